"""Blocks of a network, the plan that freezes and releases them, and the check that frozen ones do not change."""

import itertools
import re

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from convoy.core.errors import NetworkError, RequestError, TrainingError
from convoy.models.build import Group, assemble
from convoy.models.spec import Spec, load, names
from convoy.training.fit import fit
from convoy.training.freezing import COLUMNS, Plan, blocks, sha256
from network_specs import HEAD, SHIPPED

CLASSES = 7

FAMILIES = ["convnext_tiny", "densenet121", "googlenet", "inception_v3", "maxvit_t", "mobilenet_v3_small", "resnet18",
            "swin_t", "vgg11_bn", "vit_b_16"]  # fmt: skip
"""Members of torchvision's families that differ in their modules."""
SIDES = {"inception_v3": 75, "maxvit_t": 224}


def from_layers(*layers):
    spec = Spec.model_validate({"name": "some", "layers": list(layers)})
    return assemble(spec, CLASSES, 16, auxiliary=True)


def contents(network):
    return {block.name: list(block.modules) for block in blocks(network)}


def conv(filters):
    return {"conv": {"filters": filters, "kernel": 3, "padding": 1}}


def test_a_norm_and_what_has_no_weights_belong_to_the_layer_before_them():
    first, second = (conv(4), "norm", "relu", {"max_pool": 2}), (conv(4), "prelu", "norm")
    assert contents(from_layers(*first, *second, *HEAD)) == {
        "conv1": ["conv1", "norm1", "relu1", "max_pool1"],
        "conv2": ["conv2", "prelu1", "norm2", "flatten1"],
        "dense1": ["dense1"],
    }


def test_what_comes_before_the_first_weights_belongs_to_the_first_block():
    network = from_layers({"avg_pool": 2}, "norm", conv(4), *HEAD)
    assert contents(network) == {"conv1": ["avg_pool1", "norm1", "conv1", "flatten1"], "dense1": ["dense1"]}


def test_units_are_blocks_as_a_whole_and_plain_chains_are_not():
    network = nn.Sequential()
    network.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    unit = Group(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    network.stage = nn.Sequential(unit, nn.Sequential(nn.Conv2d(4, 4, 3)))
    network.head = nn.Linear(4, 2)
    assert contents(network) == {
        "stem.0": ["stem.0", "stem.1"],
        "stage.0": ["stage.0"],
        "stage.1.0": ["stage.1.0"],
        "head": ["head"],
    }


def test_the_blocks_of_a_residual_network_are_its_residual_units():
    network = assemble(Spec(name="resnet", torchvision="resnet18"), CLASSES, 32)
    units = [f"layer{stage}.{unit}" for stage in (1, 2, 3, 4) for unit in (0, 1)]
    assert list(contents(network)) == ["conv1", *units, "fc"]
    assert contents(network)["conv1"] == ["conv1", "bn1", "relu", "maxpool"]
    assert contents(network)["layer4.1"] == ["layer4.1", "avgpool"]


SHIPPED_SPECS = [load(name, SHIPPED) for name in names(SHIPPED)]
TORCHVISIONS = [Spec(name=f"torchvision:{name}", torchvision=name) for name in FAMILIES]


@pytest.mark.parametrize("spec", [*SHIPPED_SPECS, *TORCHVISIONS], ids=lambda spec: spec.name)
def test_every_parameter_is_in_one_block_or_an_auxiliary_head_and_the_head_is_the_last_block(spec):
    px = spec.made_for.image_px if spec.made_for else SIDES.get(spec.torchvision, 32)
    network = assemble(spec, CLASSES, px, auxiliary=True)
    parts = [block.parameters() for block in blocks(network)]
    pairs = [(key, id(value)) for part in parts for key, value in part.items()]
    aside = {key for key, _ in network.named_parameters() if key.startswith("auxiliary")}
    assert len(pairs) == len(set(pairs))
    assert dict(pairs) == {key: id(value) for key, value in network.named_parameters() if key not in aside}
    assert len(parts) >= 3
    assert all(parts)
    predicting = [any(value.shape[0] == CLASSES for value in part.values()) for part in parts]
    assert predicting == [False] * (len(parts) - 1) + [True]
    assert {key.rpartition(".")[2] for key in parts[-1]} <= {"weight", "bias"}


def test_a_parameter_of_the_network_itself_is_in_the_first_block():
    network = assemble(Spec(name="some", torchvision="vit_b_16"), CLASSES, 32)
    first = blocks(network)[0]
    assert set(first.parameters()) == {"class_token", "conv_proj.weight", "conv_proj.bias"}


def test_batch_norms_are_found_at_any_depth():
    network = from_layers(conv(4), "norm", {"residual": [conv(4), "norm"]}, *HEAD)
    norms = [list(block.batch_norms()) for block in blocks(network)]
    assert norms == [["norm1"], ["residual1.body.norm1"], []]


def test_a_network_without_weights_is_refused():
    with pytest.raises(NetworkError, match=r"no weights, so there is nothing to train\. Add a conv"):
        blocks(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


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
    frozen = [[*itertools.compress(RESNET, made.frozen(epoch))] for epoch in range(6)]
    assert frozen[0] == [*RESNET[:5]]
    assert frozen[1] == frozen[3] == ["conv1", "layer1.0", "layer1.1"]
    assert frozen[4] == frozen[5] == ["conv1", "layer1.0"]


def test_the_rate_falls_by_the_factor_with_every_block_towards_the_image(plan):
    assert plan(lr_factor=0.5).factors == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    assert plan().factors == (1,) * 6


@pytest.mark.parametrize(
    ("transfer", "reason"),
    [
        ({"freeze": 6}, r"freeze: 6 freezes all 6 blocks of resnet, the head `fc` included.*At most 5, or `layer2.1`"),
        ({"freeze": 9}, r"freeze: 9 freezes all 6 blocks of resnet.*At most 5"),
        ({"freeze": "fc"}, r"freeze: fc freezes all 6 blocks of resnet.*At most 5"),
        ({"freeze": "layr1.1"}, r"freeze: resnet has no block `layr1.1`; did you mean `layer1.1`\?.*from image to head: conv1, layer1.0, layer1.1, layer2.0, layer2.1, fc"),
        ({"freeze": "layer"}, r"resnet has no block `layer`"),
        ({"freeze": 2, "release": {"layer9": 1}}, r"release: resnet has no block `layer9`"),
        ({"freeze": 2, "release": {"layer1": 1}}, r"release: `layer1.1` is not frozen.*freeze: 2 freezes conv1, layer1.0\."),
        ({"release": {"conv1": 1}}, r"release: `conv1` is not frozen.*freeze: 0 freezes nothing"),
        ({"freeze": 3, "release": {"layer1": 1, "layer1.1": 2}}, r"release names `layer1.1` twice"),
        ({"freeze": 3, "release": {"conv1": 10}}, r"`conv1` after 10 epochs, but train.epochs is 10.*At most 9"),
        ({"freeze": 3, "release": 10}, r"release is 10, but train.epochs is 10: no block.*At most 9; 0: never"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_network_or_the_epochs_is_refused(plan, transfer, reason):
    with pytest.raises(RequestError, match=re.compile(reason, re.DOTALL)) as caught:
        plan(**transfer)
    assert caught.value.exit_code == 2


def test_a_plan_that_changes_nothing_is_one_line(plan):
    made = plan(release=30)
    assert frozen_counts(made, 10) == [0] * 10
    (line,) = made.table([0.1] * 10).splitlines()
    assert "all 6 blocks (conv1 to fc)" in line


def test_a_network_of_one_block_can_freeze_none(plan):
    with pytest.raises(RequestError, match=r"which must train\. At most 0\.$"):
        plan(blocks=("dense1",), freeze=1)


def test_the_table_shows_every_block_in_every_epoch(plan):
    chosen = {"freeze": 2, "release": 2, "lr_factor": 0.1, "batch_norm": "frozen"}
    made = plan(epochs=4, blocks=("conv1", "conv2", "dense1"), **chosen)
    assert made.table([0.01, 0.1, 0.05, 0.002]).splitlines()[1:] == [
        "block          trains from       1       2       3       4",
        "conv1          never        frozen  frozen  frozen  frozen",
        "conv2          epoch 3      frozen  frozen   0.005  0.0002",
        "dense1 (head)  epoch 1        0.01     0.1    0.05   0.002",
        "batch norms: frozen except in the head (statistics, scale and shift)",
    ]


@pytest.mark.parametrize(
    ("epochs", "transfer"),
    [(10, {"release": 1}), (11, {"release": 4}), (99, {"release": {"conv1": 98}}), (200, {"lr_factor": 0.9})],
)
def test_a_long_training_is_shown_by_its_ends_its_changes_and_some_epochs_between(plan, epochs, transfer):
    lines = plan(epochs=epochs, freeze=3, **transfer).table([0.1] * epochs).splitlines()
    shown = [int(word) for word in lines[1].split()[3:]]
    changes = [int(line.split("epoch ")[1].split()[0]) for line in lines[2:] if "epoch " in line]
    assert len(shown) == COLUMNS
    assert shown == sorted(set(shown))
    assert {1, epochs, *changes} <= set(shown)
    assert max(len(line) for line in lines) < 110


def test_more_changes_than_columns_are_still_each_named_with_their_epoch(plan):
    blocks = (*(f"conv{index}" for index in range(30)), "dense1")
    lines = plan(epochs=30, blocks=blocks, freeze=30, release=1).table([0.1] * 30).splitlines()
    assert len(lines[1].split()[3:]) == COLUMNS
    assert lines[1].split()[3] == "1"
    assert lines[1].split()[-1] == "30"
    starts = [re.search(r"epoch \d+|never", line)[0] for line in lines[2:]]
    assert starts == ["never", *(f"epoch {epoch}" for epoch in range(30, 1, -1)), "epoch 1"]


def test_any_reason_to_look_makes_a_table(plan):
    for transfer in ({"freeze": 1}, {"lr_factor": 0.9}, {"batch_norm": "frozen"}):
        assert len(plan(**transfer).table([0.1] * 10).splitlines()) >= 8


class Nudge(pl.Callback):
    """Change a tensor a little, once, in an epoch."""

    def __init__(self, name, epoch=0):
        self.name, self.epoch = name, epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 0):
            tensor = pl_module.model.network.state_dict()[self.name]
            tensor.add_(1e-6 if tensor.is_floating_point() else 1)


class FollowImages(pl.Callback):
    """Let the statistics of a norm follow the images, as a network that switches its own modes would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.model.network.norm2.train()


@pytest.fixture
def transfer(dataset, stack, params, out, starting):
    """Train `stack` from starting weights for three epochs; keywords are those of `train.transfer`."""

    def run(*callbacks, epochs=3, **plan):
        chosen = params(epochs=epochs, transfer=plan)
        return fit(dataset, stack, chosen, 1, out, callbacks=callbacks, starting=starting(stack))

    return run


def reported(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen:")]


@pytest.mark.parametrize(
    ("plan", "count"),
    [
        ({"freeze": 2, "release": 1}, 8),
        ({"batch_norm": "frozen"}, 15),  # three norms of five tensors
        ({"freeze": 3, "release": 2, "batch_norm": "frozen"}, 21),  # and three convolutions
    ],
)
def test_frozen_tensors_are_reported_as_unchanged(transfer, capsys, plan, count):
    transfer(**plan)
    (line,) = reported(capsys)
    assert re.fullmatch(rf"frozen: {count} tensors unchanged while frozen \(sha256 [0-9a-f]{{12}}\)", line)


def test_without_frozen_tensors_nothing_is_reported(transfer, capsys):
    transfer(lr_factor=0.5)
    assert reported(capsys) == []


def test_a_frozen_weight_that_changed_fails_the_training_by_name(transfer, out):
    with pytest.raises(TrainingError, match=r"^1 frozen tensors changed: residual1\.body\.conv1\.weight\."):
        transfer(Nudge("residual1.body.conv1.weight", epoch=2), freeze=2)
    assert not (out / "weights.pt").exists()


def test_a_weight_that_changed_before_its_release_is_found_at_the_release(transfer, on):
    seen = []
    count = on("on_train_epoch_end", lambda trainer, _module: seen.append(trainer.current_epoch))
    with pytest.raises(TrainingError, match=r"changed: norm1\.weight\."):
        transfer(Nudge("norm1.weight"), count, freeze=1, release=1)
    assert seen == [0]


def test_a_weight_may_change_once_it_is_released(transfer, capsys):
    transfer(Nudge("norm1.weight", epoch=1), freeze=1, release=1)
    assert reported(capsys)[0].startswith("frozen: 4 tensors")  # conv1 and norm1, weight and bias each


def test_frozen_statistics_that_followed_the_images_fail_the_training_by_name(transfer):
    names = "norm2.num_batches_tracked, norm2.running_mean, norm2.running_var"
    with pytest.raises(TrainingError, match=rf"^3 frozen tensors changed: {names}\..*batch_norm to adapt"):
        transfer(FollowImages(), epochs=1, batch_norm="frozen")


@pytest.mark.parametrize("name", ["running_var", "weight"])
def test_every_part_of_a_frozen_norm_is_watched_also_in_a_released_block(transfer, name):
    with pytest.raises(TrainingError, match=rf"^1 frozen tensors changed: norm1\.{name}\."):
        transfer(Nudge(f"norm1.{name}", epoch=2), freeze=1, release=1, batch_norm="frozen")


def test_with_adapt_statistics_may_follow_the_images(transfer, capsys):
    transfer(FollowImages(), freeze=3)
    assert reported(capsys)[0].startswith("frozen: 12 tensors")


def test_a_hash_depends_on_the_values_and_not_on_their_order_in_memory():
    values = torch.arange(48, dtype=torch.float32).reshape(2, 3, 2, 4)
    assert sha256(values) == sha256(values.contiguous(memory_format=torch.channels_last))
    assert sha256(values) != sha256(values + 1)
    assert sha256(values) != sha256(torch.where(values == 47, 47.00001, values))
    assert sha256(torch.tensor(3)) != sha256(torch.tensor(4))
    assert len(sha256(values.bfloat16())) == 64
