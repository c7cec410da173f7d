import re

import pytest

from convoy.core.errors import RequestError
from convoy.training.freezing import COLUMNS, Plan

RESNET = ("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc")


@pytest.fixture
def plan(params):
    """Make the plan of a small ResNet; keywords are those of `train.transfer`."""

    def make(epochs=10, blocks=RESNET, **transfer):
        return Plan.of(blocks, params(epochs=epochs, transfer=transfer), "resnet")

    return make


def frozen_counts(plan, epochs):
    return [sum(plan.frozen(epoch)) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("freeze", "count"), [(0, 0), (2, 2), (5, 5), ("conv1", 1), ("layer1.0", 2), ("layer1", 3), ("layer2", 5)]
)
def test_blocks_are_frozen_from_the_image_to_a_count_or_a_name(plan, freeze, count):
    made = plan(freeze=freeze)

    for epoch in (0, 5, 9, 10_000):
        assert made.frozen(epoch) == tuple(index < count for index in range(6))


def test_blocks_are_released_one_by_one_the_deepest_first(plan):
    made = plan(freeze=3, release=2)

    assert frozen_counts(made, 8) == [3, 3, 2, 2, 1, 1, 0, 0]
    assert made.frozen(2) == (True, True, False, False, False, False)


def test_a_block_is_released_after_the_epochs_beside_its_name_and_the_others_stay_frozen(plan):
    made = plan(freeze="layer2", release={"layer2": 1, "layer1.1": 4})

    frozen = [
        [name for name, held in zip(RESNET, made.frozen(epoch), strict=True) if held] for epoch in range(6)
    ]
    assert frozen[0] == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert frozen[1] == frozen[3] == ["conv1", "layer1.0", "layer1.1"]
    assert frozen[4] == frozen[5] == ["conv1", "layer1.0"]


def test_the_rate_falls_by_the_factor_with_every_block_towards_the_image(plan):
    assert plan(lr_factor=0.5).factors == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    assert plan().factors == (1,) * 6


@pytest.mark.parametrize(
    ("transfer", "said"),
    [
        (
            {"freeze": 6},
            r"freeze: 6 holds all 6 blocks of resnet, its head `fc` included.*At most 5, or `layer2.1`",
        ),
        ({"freeze": 9}, r"freeze: 9 holds all 6 blocks of resnet.*At most 5"),
        ({"freeze": "fc"}, r"freeze: fc holds all 6 blocks of resnet.*At most 5"),
        ({"freeze": "layr1.1"}, r"freeze: resnet has no block `layr1.1`; did you mean `layer1.1`\?"),
        ({"freeze": "layr1.1"}, r"from image to head: conv1, layer1.0, layer1.1, layer2.0, layer2.1, fc"),
        ({"freeze": "layer"}, r"resnet has no block `layer`"),
        ({"freeze": 2, "release": {"layer9": 1}}, r"release: resnet has no block `layer9`"),
        (
            {"freeze": 2, "release": {"layer1": 1}},
            r"release: `layer1.1` is not frozen.*freeze: 2 freezes conv1, layer1.0\.",
        ),
        ({"release": {"conv1": 1}}, r"release: `conv1` is not frozen.*freeze: 0 freezes nothing"),
        ({"freeze": 3, "release": {"layer1": 1, "layer1.1": 2}}, r"release names `layer1.1` twice"),
        (
            {"freeze": 3, "release": {"conv1": 10}},
            r"`conv1` after 10 epochs, but train.epochs is 10.*At most 9",
        ),
        (
            {"freeze": 3, "release": 10},
            r"release is 10, but train.epochs is 10: no block.*At most 9; 0: never",
        ),
    ],
)
def test_a_plan_that_does_not_fit_the_network_or_the_epochs_is_refused(plan, transfer, said):
    with pytest.raises(RequestError, match=re.compile(said, re.DOTALL)) as caught:
        plan(**transfer)

    assert caught.value.exit_code == 2


def test_a_network_of_one_block_can_freeze_none(plan):
    with pytest.raises(RequestError, match=r"which must learn\. At most 0\.$"):
        plan(blocks=("dense1",), freeze=1)
    assert plan(blocks=("dense1",)).frozen(0) == (False,)


def test_releases_without_frozen_blocks_change_nothing(plan):
    assert frozen_counts(plan(release=3), 10) == [0] * 10
    assert plan(release=30).frozen(0) == (False,) * 6


def test_a_plan_that_changes_nothing_is_said_in_one_line(plan):
    said = "plan: nothing is frozen, all 6 blocks (conv1 to fc) train at the same learning rate"
    assert plan().table([0.1] * 10) == said


def test_the_table_shows_every_block_in_every_epoch(plan):
    table = plan(
        epochs=4, blocks=("conv1", "conv2", "dense1"), freeze=2, release=2, lr_factor=0.1, batch_norm="frozen"
    ).table([0.01, 0.1, 0.05, 0.002])

    assert table.splitlines() == [
        "plan: learning rate of each block at the first step of an epoch",
        "block          trains from       1       2       3       4",
        "conv1          never        frozen  frozen  frozen  frozen",
        "conv2          epoch 3      frozen  frozen   0.005  0.0002",
        "dense1 (head)  epoch 1        0.01     0.1    0.05   0.002",
        "batch norms: frozen except in the head, statistics, scale and shift",
    ]


@pytest.mark.parametrize(
    ("epochs", "transfer"),
    [
        (10, {"release": 1}),
        (11, {"release": 4}),
        (200, {"release": {"conv1": 99}}),
        (200, {"lr_factor": 0.9}),
    ],
)
def test_a_long_training_is_shown_by_its_ends_its_changes_and_some_epochs_between(plan, epochs, transfer):
    lines = plan(epochs=epochs, freeze=3, **transfer).table([0.1] * epochs).splitlines()

    without_credentials = [int(word) for word in lines[1].split()[3:]]
    changes = [int(line.split("epoch ")[1].split()[0]) for line in lines[2:] if "epoch " in line]
    assert len(without_credentials) == COLUMNS
    assert without_credentials == sorted(set(without_credentials))
    assert {1, epochs, *changes} <= set(without_credentials)
    assert max(len(line) for line in lines) < 110


def test_more_changes_than_columns_are_still_each_named_with_their_epoch(plan):
    blocks = (*(f"conv{index}" for index in range(30)), "dense1")

    lines = plan(epochs=30, blocks=blocks, freeze=30, release=1).table([0.1] * 30).splitlines()

    assert len(lines[1].split()[3:]) == COLUMNS
    assert lines[1].split()[3] == "1"
    assert lines[1].split()[-1] == "30"
    starts = [re.search(r"epoch \d+|never", line)[0] for line in lines[2:]]
    assert starts == ["never", *(f"epoch {epoch}" for epoch in range(30, 1, -1)), "epoch 1"]


@pytest.mark.parametrize("freeze", [1, 5])
def test_any_reason_to_look_makes_a_table(plan, freeze):
    for transfer in ({"freeze": freeze}, {"lr_factor": 0.9}, {"batch_norm": "frozen"}):
        assert len(plan(**transfer).table([0.1] * 10).splitlines()) >= 8
