"""Volumes by arithmetic against volumes by torch, on random layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convoy.core.errors import NetworkError
from convoy.models import modules
from convoy.models.fitting import placed
from convoy.models.layer_types import Conv, pair
from convoy.models.parser import Reader
from convoy.models.shapes import MisfitError, chain, describe, same_padding

MODES = {"zeros": "constant", "replicate": "replicate", "reflect": "reflect", "circular": "circular"}


def sides(low, high):
    return st.one_of(st.integers(low, high), st.lists(st.integers(low, high), min_size=2, max_size=2))


@st.composite
def convs(draw):
    return {
        "conv": {
            "filters": draw(st.sampled_from([1, 2, 4, 6])),
            "kernel": draw(sides(1, 5)),
            "stride": draw(sides(1, 4)),
            "padding": draw(st.one_of(sides(0, 4), st.sampled_from(["same", "valid"]))),
            "padding_mode": draw(st.sampled_from(list(MODES))),
            "dilation": draw(sides(1, 3)),
            "groups": draw(st.sampled_from([1, 1, 1, 2, 3])),
            "bias": draw(st.booleans()),
        }
    }


@st.composite
def pools(draw):
    kernel = draw(sides(1, 5))
    high, wide = pair(kernel)
    return {
        draw(st.sampled_from(["max_pool", "avg_pool"])): {
            "kernel": kernel,
            "stride": draw(st.one_of(st.none(), sides(1, 5))),
            "padding": [draw(st.integers(0, high // 2)), draw(st.integers(0, wide // 2))],
            "ceil": draw(st.booleans()),
        }
    }


adaptive = st.builds(
    lambda word, side: {word: side}, st.sampled_from(["adaptive_avg_pool", "adaptive_max_pool"]), sides(1, 9)
)
others = st.sampled_from(
    ["norm", "relu", "glu", "softmax2d", "global_avg_pool", {"local_response_norm": 3}, {"dropout": 0.5}]
)
images = st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(1, 9), st.integers(1, 9))


def read(*given):
    return Reader().layers(list(given))


def pads(conv, volume):
    """(left, right, top, bottom), by the rule as TensorFlow documents it."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding != "same":
        high, wide = pair(conv.padding)
        return wide, wide, high, high
    found = []
    for side, kernel, stride, dilation in zip(
        volume[1:], pair(conv.kernel), pair(conv.stride), pair(conv.dilation), strict=True
    ):
        window = dilation * (kernel - 1) + 1
        total = max(window - (side % stride or stride), 0)
        found = [total // 2, total - total // 2, *found]
    return tuple(found)


def by_torch(layer, volume, module):
    """What torch makes of an image, with the weights of the module that Convoy made, if it made one."""
    image = torch.rand((2, *volume))
    if not isinstance(layer, Conv):
        stride = pair(layer.kernel if layer.stride is None else layer.stride)
        kind = functional.max_pool2d if layer.word == "max_pool" else functional.avg_pool2d
        return image, kind(image, pair(layer.kernel), stride, pair(layer.padding), ceil_mode=layer.ceil)
    weights = dict(module.named_parameters()) if module else {}
    weight = next((value for name, value in weights.items() if name.endswith("weight")), None)
    bias = next((value for name, value in weights.items() if name.endswith("bias")), None)
    if weight is None:
        weight = torch.rand(layer.filters, max(volume[0] // layer.groups, 1), *pair(layer.kernel))
    padded = functional.pad(image, pads(layer, volume), MODES[layer.padding_mode])
    made = functional.conv2d(padded, weight, bias, pair(layer.stride), 0, pair(layer.dilation), layer.groups)
    return image, made


@settings(max_examples=600, deadline=None)
@given(st.one_of(convs(), pools()), images)
def test_a_layer_takes_makes_and_refuses_what_torchs_does(given_layer, volume):
    (layer,) = read(given_layer)
    try:
        (step,) = chain((layer,), volume, 2)
    except (MisfitError, NetworkError) as refusal:
        assert isinstance(refusal, NetworkError) == ("groups" in str(refusal))  # noqa: PT017 (either may come, or none)
        with pytest.raises(RuntimeError):
            by_torch(layer, volume, None)
        return
    module = modules.network((step,), auxiliary=False).eval()

    image, expected = by_torch(layer, volume, module)

    assert step.leaves == tuple(expected.shape[1:])
    torch.testing.assert_close(module(image), expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(convs(), pools(), adaptive, others), min_size=1, max_size=5), images)
def test_every_volume_on_the_way_through_a_network_is_that_of_torch(given_layers, volume):
    try:
        steps = chain(read(*given_layers), volume, 2)
    except (MisfitError, NetworkError):
        return
    network = modules.network(steps, auxiliary=False)
    seen = []
    for module in network:
        module.register_forward_hook(lambda _module, _given, made: seen.append(tuple(made.shape[1:])))

    network.eval()(torch.rand((2, *volume)))

    assert [step.leaves for step in steps] == seen
    assert [step.arrives for step in steps] == [volume, *seen[:-1]]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_is_tensorflows_rule(kernel, stride, dilation):
    window = dilation * (kernel - 1) + 1
    for side in range(1, 20):
        remainder = side % stride
        total = max(window - (remainder or stride), 0)  # as tf.nn documents it

        before, after = same_padding(side, kernel, stride, dilation)

        assert before + after == total
        assert after - before == total % 2  # the odd pixel at the end
        assert (side + total - window) // stride + 1 == -(-side // stride)


def test_a_volume_is_written_with_its_depth_last():
    assert [describe((3, 4, 5)), describe((7,))] == ["4×5×3", "a row of 7"]


def test_each_repetition_branch_and_group_is_placed_with_what_arrives_at_it(load):
    mine = load(
        """
        layers:
          - repeat: {times: 3, layers: [{conv: {filters: 2, kernel: 3}}, relu]}
          - branches: {a: [], b: [{conv: {filters: 5, kernel: 1}}]}
          - group: {layers: [{max_pool: 2}], name: halve}
          - residual: {body: [{conv: {filters: 4, kernel: 1}}], shortcut: [{conv: {filters: 4, kernel: 1}}, norm]}
          - auxiliary: {weight: 0.3, layers: [flatten, {dense: classes}]}
          - flatten
          - dense: classes
        """
    )

    steps = placed(mine, 4, 10)

    assert [(step.name, step.leaves) for step in steps] == [
        ("repeat1", (2, 4, 4)),
        ("branches1", (7, 4, 4)),
        ("halve", (7, 2, 2)),
        ("residual1", (4, 2, 2)),
        ("auxiliary1", (4, 2, 2)),
        ("flatten1", (16,)),
        ("dense1", (4,)),
    ]
    assert [part[0].arrives for part in steps[0].parts] == [(3, 10, 10), (2, 8, 8), (2, 6, 6)]
    assert [len(part) for part in steps[1].parts] == [0, 1]
    assert [[step.name for step in part] for part in steps[3].parts] == [["conv1"], ["conv1", "norm1"]]
    assert [step.leaves for step in steps[4].parts[0]] == [(16,), (4,)]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("{dense: classes}", " (dense) needs a flat row, but the volume 8×8×3 arrives. Put `- flatten` before it."),
        ("{residual: [{max_pool: 2}]}", " (residual) cannot add 8×8×3 to the 4×4×3 that its body makes. Give it a `shortcut` that makes 4×4×3, such as a conv with kernel 1."),
        ("{residual: {body: [relu], shortcut: [{max_pool: 2}]}}", " (residual) cannot add 4×4×3 to the 8×8×3 that its body makes. Give it a `shortcut` that makes 8×8×3, such as a conv with kernel 1."),
        ("{conv: {filters: 4, kernel: 1, groups: 2}}", " (conv): groups 2 must divide the 3 channels that arrive and the 4 filters"),
        ("{conv: {filters: 4, kernel: 1, groups: 3}}", " (conv): groups 3 must divide the 3 channels that arrive and the 4 filters"),
        ("glu", " (glu) halves the channels, but 8×8×3 arrives. Make their number even."),
        ("{branches: {left: [{max_pool: 2}], right: [relu]}}", " (branches) cannot put its branches behind each other, since heights and widths differ: left 4×4×3, right 8×8×3. Give their layers the same strides, and padding `same`."),
        ("{branches: {left: [flatten], right: [relu]}}", " (branches) cannot put its branches behind each other, since heights and widths differ: left a row of 192, right 8×8×3. Give their layers the same strides, and padding `same`."),
        ("{auxiliary: {weight: 1, layers: [flatten, {dense: 5}]}}", " (auxiliary) ends in a row of 5, not in one number for each of the 4 classes. Let its last layers be `- flatten` and `- dense: classes`."),
        ("{auxiliary: {weight: 1, layers: [relu]}}", " (auxiliary) ends in 8×8×3, not in one number for each of the 4 classes. Let its last layers be `- flatten` and `- dense: classes`."),
        ("{group: {layers: [relu, {dense: 3}]}}", " (group), layer 2 (dense) needs a flat row, but the volume 8×8×3 arrives. Put `- flatten` before it."),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_each_other_are_refused_with_place_and_remedy(misfit, layer, said):
    assert (
        misfit(f"layers: [{layer}, flatten, {{dense: classes}}]\n") == f"networks/mine.yaml:1, layer 1{said}"
    )


@pytest.mark.parametrize(
    "word",
    ["norm", "{max_pool: 2}", "{conv: {filters: 1, kernel: 1}}", "global_avg_pool", "{adaptive_avg_pool: 1}", "softmax2d",
     "{local_response_norm: 2}", "{branches: [[relu], [relu]]}"],
)  # fmt: skip
def test_a_flat_row_is_refused_by_what_needs_a_volume(misfit, word):
    message = misfit(f"layers:\n  - flatten\n  - {word}\n  - dense: classes\n")

    kind = word.strip("{").split(":")[0]
    assert message == (
        f"networks/mine.yaml:3, layer 2 ({kind}) needs a volume, but a row of 192 arrives. Put it before `- flatten`."
    )


@pytest.mark.parametrize(
    "layer",
    [
        "{relu: {name: twin}}",
        "{conv: {filters: 1, kernel: 1, name: twin}}",
        "{group: {layers: [relu], name: twin}}",
    ],
)
def test_two_layers_of_one_name_beside_each_other_are_refused(misfit, layer):
    assert misfit(f"layers:\n  - tanh: {{name: twin}}\n  - {layer}\n").endswith(
        ": another layer beside it is called `twin`. Give one of them another name."
    )
    assert misfit("layers:\n  - relu\n  - tanh: {name: relu1}\n") == (
        "networks/mine.yaml:3, layer 2 (tanh): another layer beside it is called `relu1`. Give one of them another name."
    )


def test_layers_in_different_lists_may_have_one_name(load):
    mine = load(
        "layers: [{relu: {name: x}}, {group: {layers: [{tanh: {name: x}}]}}, flatten, {dense: classes}]\n"
    )

    assert len(placed(mine, 2, 8)) == 4


@pytest.mark.parametrize(
    ("layer", "volume", "said"),
    [
        ({"conv": {"filters": 1, "kernel": 5}}, (3, 4, 6), "4×6×3 (a window of 5 pixels does not fit into 4)"),
        ({"conv": {"filters": 1, "kernel": 3, "dilation": 3, "padding": 1}}, (3, 9, 4), "9×4×3 (a window of 7 pixels does not fit into 6)"),
        ({"conv": {"filters": 1, "kernel": 3, "padding": 2, "padding_mode": "reflect"}}, (3, 2, 9), "2×9×3 (a reflection of 2 pixels needs a longer side)"),
        ({"conv": {"filters": 1, "kernel": 3, "padding": 3, "padding_mode": "circular"}}, (3, 2, 9), "2×9×3 (it cannot wrap around 3 pixels)"),
        ({"max_pool": {"kernel": 4, "padding": 1}}, (3, 1, 9), "1×9×3 (a window of 4 pixels does not fit into 3)"),
    ],
)  # fmt: skip
def test_a_volume_too_small_is_refused_with_itself_and_the_reason(layer, volume, said):
    word = next(iter(layer))
    with pytest.raises(MisfitError) as caught:
        chain(read("relu", layer), volume, 2)

    assert str(caught.value) == f"layer 2 ({word}) cannot take the volume {said}"


def test_a_flat_row_stays_flat():
    steps = chain(read("flatten", "flatten", {"dropout": 0.1}, "relu", {"dense": 6}, "glu"), (2, 3, 4), 2)

    assert [step.leaves for step in steps] == [(24,), (24,), (24,), (24,), (6,), (3,)]
    assert isinstance(modules.network(steps, auxiliary=False).dense1, nn.Linear)
