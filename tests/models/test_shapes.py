"""Shapes by arithmetic: equal to torch's on random layers; images that are too small; layers that do not fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convoy.core.errors import NetworkError
from convoy.data.settings import DataParams
from convoy.models import spec
from convoy.models.build import build_layers
from convoy.models.layer_types import Conv, pair
from convoy.models.shapes import LARGEST_PX, TooSmallError, chain, infer, smallest_px
from convoy.models.spec import SpecParser
from network_specs import HEAD, SHIPPED, network

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
    [
        *("norm", "relu", "glu", "softmax2d", "global_avg_pool", "layer_norm"),
        *({"local_response_norm": 3}, {"dropout": 0.5}, {"group_norm": 1}, {"group_norm": 2}, {"scale": 0.5}),
        {"multiply": ["global_avg_pool", "sigmoid"]},
        {"multiply": ["global_avg_pool", "flatten"]},
        {"residual": {"body": ["relu"], "drop": 0.5}},
    ]
)
images = st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(1, 9), st.integers(1, 9))


def read(*given):
    return SpecParser().layers(list(given))


def pads(conv, volume):
    """(left, right, top, bottom), by the rule as TensorFlow documents it."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding != "same":
        high, wide = pair(conv.padding)
        return wide, wide, high, high
    added = []
    for side, kernel, stride, dilation in zip(
        volume[1:], pair(conv.kernel), pair(conv.stride), pair(conv.dilation), strict=True
    ):
        window = dilation * (kernel - 1) + 1
        total = max(window - (side % stride or stride), 0)
        added = [total // 2, total - total // 2, *added]
    return tuple(added)


def by_torch(layer, volume, module):
    """What torch makes of an image, with the weights of the module that Convoy made, if it made any."""
    image = torch.rand((2, *volume))
    if not isinstance(layer, Conv):
        stride = pair(layer.kernel if layer.stride is None else layer.stride)
        kind = functional.max_pool2d if layer.word == "max_pool" else functional.avg_pool2d
        return image, kind(image, pair(layer.kernel), stride, pair(layer.padding), ceil_mode=layer.ceil)
    weight, bias = torch.rand(layer.filters, max(volume[0] // layer.groups, 1), *pair(layer.kernel)), None
    if module:
        weight, bias = (*module.parameters(), None)[:2]
    padded = functional.pad(image, pads(layer, volume), MODES[layer.padding_mode])
    made = functional.conv2d(padded, weight, bias, pair(layer.stride), 0, pair(layer.dilation), layer.groups)
    return image, made


@settings(max_examples=400, deadline=None)
@given(st.one_of(convs(), pools()), images)
def test_a_layer_takes_makes_and_refuses_what_torchs_does(given_layer, volume):
    (layer,) = read(given_layer)
    try:
        (step,) = chain((layer,), volume, 2)
    except (TooSmallError, NetworkError) as refusal:
        assert isinstance(refusal, NetworkError) == ("groups" in str(refusal))  # noqa: PT017 (either may come, or none)
        with pytest.raises(RuntimeError):
            by_torch(layer, volume, None)
        return
    module = build_layers((step,), auxiliary=False).eval()
    image, expected = by_torch(layer, volume, module)
    assert step.output == tuple(expected.shape[1:])
    torch.testing.assert_close(module(image), expected)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(convs(), pools(), adaptive, others), min_size=1, max_size=5), images)
def test_every_volume_on_the_way_through_a_network_is_that_of_torch(given_layers, volume):
    try:
        steps = chain(read(*given_layers), volume, 2)
    except (TooSmallError, NetworkError):
        return
    network = build_layers(steps, auxiliary=False)
    seen = []
    for module in network:
        module.register_forward_hook(lambda _module, _given, made: seen.append(tuple(made.shape[1:])))
    network.eval()(torch.rand((2, *volume)))
    assert [step.output for step in steps] == seen
    assert [step.input for step in steps] == [volume, *seen[:-1]]


def test_each_repetition_branch_and_group_has_the_volume_that_reaches_it(load):
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
    steps = infer(mine, 4, 10)
    assert [(step.name, step.output) for step in steps] == [
        ("repeat1", (2, 4, 4)),
        ("branches1", (7, 4, 4)),
        ("halve", (7, 2, 2)),
        ("residual1", (4, 2, 2)),
        ("auxiliary1", (4, 2, 2)),
        ("flatten1", (16,)),
        ("dense1", (4,)),
    ]
    assert [part[0].input for part in steps[0].parts] == [(3, 10, 10), (2, 8, 8), (2, 6, 6)]
    assert [len(part) for part in steps[1].parts] == [0, 1]
    assert [[step.name for step in part] for part in steps[3].parts] == [["conv1"], ["conv1", "norm1"]]
    assert [step.output for step in steps[4].parts[0]] == [(16,), (4,)]


@pytest.mark.parametrize(
    ("layer", "label", "facts"),
    [
        ("{dense: classes}", "(dense)", ["flat row", "8×8×3", "`- flatten` before"]),
        ("{residual: [{max_pool: 2}]}", "(residual)", ["add 8×8×3 to the 4×4×3", "`shortcut` whose output is 4×4×3"]),
        ("{residual: {body: [relu], shortcut: [{max_pool: 2}]}}", "(residual)", ["add 4×4×3 to the 8×8×3"]),
        ("{conv: {filters: 4, kernel: 1, groups: 2}}", "(conv)", ["groups 2", "3 input channels"]),
        ("{conv: {filters: 4, kernel: 1, groups: 3}}", "(conv)", ["groups 3", "4 filters"]),
        ("glu", "(glu)", ["even number", "8×8×3"]),
        ("{group_norm: 2}", "(group_norm)", ["groups 2", "3 input channels", "Groups that do: 1, 3"]),
        ("{multiply: [{max_pool: 2}]}", "(multiply)", ["input, 8×8×3, by 4×4×3", "1×1×3 or 8×8×3"]),
        ("{multiply: [global_avg_pool, flatten, {dense: 5}]}", "(multiply)", ["8×8×3, by a row of 5", "1×1×3 or 8×8×3"]),
        ("{group: {layers: [flatten, {multiply: [{dense: 3}]}]}}", "(group), layer 2 (multiply)", ["a row of 192", "a row of 3"]),
        ("{multiply: [{dense: 3}]}", "(multiply), layer 1 (dense)", ["8×8×3"]),
        ("{branches: {left: [{max_pool: 2}], right: [relu]}}", "(branches)", ["left 4×4×3, right 8×8×3", "padding `same`"]),
        ("{branches: {left: [flatten], right: [relu]}}", "(branches)", ["left a row of 192, right 8×8×3"]),
        ("{auxiliary: {weight: 1, layers: [flatten, {dense: 5}]}}", "(auxiliary)", ["a row of 5", "4 classes", "`- dense: classes`"]),
        ("{auxiliary: {weight: 1, layers: [relu]}}", "(auxiliary)", ["8×8×3", "4 classes"]),
        ("{group: {layers: [relu, {dense: 3}]}}", "(group), layer 2 (dense)", ["8×8×3"]),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_each_other_are_refused_with_location_and_remedy(misfit, layer, label, facts):
    message = misfit(f"layers: [{layer}, flatten, {{dense: classes}}]\n")
    assert message.startswith(f"networks/mine.yaml:1, layer 1 {label}")
    assert [fact for fact in facts if fact not in message] == []


@pytest.mark.parametrize(
    "word",
    ["norm", "{max_pool: 2}", "{conv: {filters: 1, kernel: 1}}", "global_avg_pool", "{adaptive_avg_pool: 1}", "softmax2d",
     "{local_response_norm: 2}", "{group_norm: 2}", "{branches: [[relu], [relu]]}"],
)  # fmt: skip
def test_a_flat_row_is_refused_by_layers_that_need_a_volume(misfit, word):
    message = misfit(f"layers:\n  - flatten\n  - {word}\n  - dense: classes\n")
    layer = word.strip("{").split(":")[0]
    assert message.startswith(f"networks/mine.yaml:3, layer 2 ({layer}) needs a volume")
    assert "a row of 192" in message


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("tanh: {name: twin}", "{relu: {name: twin}}", "twin"),
        ("tanh: {name: twin}", "{conv: {filters: 1, kernel: 1, name: twin}}", "twin"),
        ("tanh: {name: twin}", "{group: {layers: [relu], name: twin}}", "twin"),
        ("relu", "{tanh: {name: relu1}}", "relu1"),
    ],
)
def test_two_layers_of_the_same_name_in_a_list_are_refused(misfit, first, second, name):
    message = misfit(f"layers:\n  - {first}\n  - {second}\n")
    assert message.startswith("networks/mine.yaml:3, layer 2 (")
    assert f"is named `{name}`" in message


def test_layers_in_different_lists_may_have_the_same_name(load):
    layers = "[{relu: {name: x}}, {group: {layers: [{tanh: {name: x}}]}}, flatten, {dense: classes}]"
    assert len(infer(load(f"layers: {layers}\n"), 2, 8)) == 4


@pytest.mark.parametrize(
    ("layer", "volume", "message"),
    [
        ({"conv": {"filters": 1, "kernel": 5}}, (3, 4, 6), "4×6×3 (a window of 5 pixels does not fit into 4)"),
        ({"conv": {"filters": 1, "kernel": 3, "dilation": 3, "padding": 1}}, (3, 9, 4), "9×4×3 (a window of 7 pixels does not fit into 6)"),
        ({"conv": {"filters": 1, "kernel": 3, "padding": 2, "padding_mode": "reflect"}}, (3, 2, 9), "2×9×3 (a reflection of 2 pixels needs a longer side)"),
        ({"conv": {"filters": 1, "kernel": 3, "padding": 3, "padding_mode": "circular"}}, (3, 2, 9), "2×9×3 (circular padding of 3 pixels needs a side as long)"),
        ({"group_norm": 3}, (3, 1, 1), "1×1×3 (each group has a single number, which a norm makes 0)"),
        ({"max_pool": {"kernel": 4, "padding": 1}}, (3, 1, 9), "1×9×3 (a window of 4 pixels does not fit into 3)"),
    ],
)  # fmt: skip
def test_a_volume_too_small_is_refused_with_its_sides_and_the_reason(layer, volume, message):
    word = next(iter(layer))
    with pytest.raises(TooSmallError) as caught:
        chain(read("relu", layer), volume, 2)
    assert str(caught.value) == f"layer 2 ({word}) cannot take the volume {message}"


def test_a_flat_row_stays_flat():
    steps = chain(read("flatten", "flatten", {"dropout": 0.1}, "relu", {"dense": 6}, "glu"), (2, 3, 4), 2)
    assert [step.output for step in steps] == [(24,), (24,), (24,), (24,), (6,), (3,)]
    assert isinstance(build_layers(steps, auxiliary=False).dense1, nn.Linear)


SMALLEST = {
    "airbench": 9,
    "airbench_half": 9,
    "alexnet": 63,
    "alexnet_2012": 63,
    "convnet": 8,
    "googlenet": 15,
    "inception_v3": 299,
    "lenet5": 16,
    "resnet18": 1,
    "resnet50": 1,
    "vgg11": 32,
    "vgg13": 32,
    "vgg16": 32,
    "vgg19": 32,
}


def refused(chosen, px, classes=10):
    with pytest.raises(NetworkError) as caught:
        infer(chosen, classes, px)
    return str(caught.value)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_the_smallest_side_of_a_shipped_network_works_and_none_below_it(name):
    chosen = spec.load(name, SHIPPED)
    assert smallest_px(chosen.layers, 10, 1) == SMALLEST[name]
    assert infer(chosen, 10, SMALLEST[name])[-1].output == (10,)
    if px := SMALLEST[name] - 1:
        message = refused(chosen, px)
        assert f"{name} does not take images of {px} px: " in message
        assert f"The smallest that works is {SMALLEST[name]}: set data.image_px to it" in message


@pytest.mark.parametrize(
    ("name", "px", "line", "cause"),
    [
        ("lenet5", 8, 9, "layer 4 (conv) cannot take the volume 2×2×6 (a window of 5 pixels does not fit into 2)"),
        ("vgg11", 31, 26, "layer 13 (max_pool) cannot take the volume 1×1×512"),
    ],
)  # fmt: skip
def test_images_too_small_are_refused_with_line_and_volume(name, px, line, cause):
    message = refused(spec.load(name, SHIPPED), px)
    assert message.startswith(
        f"{name} does not take images of {px} px: {SHIPPED}/{name}.yaml:{line}, {cause}"
    )


def test_images_too_small_are_refused_with_the_sides_that_work_with_and_without_auxiliary_heads():
    inception = spec.load("inception_v3", SHIPPED)
    message = refused(inception, 96)
    assert "layer 16 (auxiliary), layer 1 (avg_pool) cannot take the volume 4×4×768" in message
    assert "The smallest that works is 299" in message
    assert "Without its auxiliary heads 96 works" in message
    assert "Without its auxiliary heads 75 works" in refused(inception, 20)


def test_a_layer_that_fits_at_no_size_is_refused_without_a_side():
    giant = network({"conv": {"filters": 1, "kernel": LARGEST_PX + 1}}, *HEAD)
    message = refused(giant, 1000)
    assert "cannot take the volume 1000×1000×3 (a window of 1025 pixels does not fit into 1000)" in message
    assert "No side up to 1024 works" in message


def uneven(*rest):
    halves = [[{"max_pool": 2}], [{"conv": {"filters": 1, "kernel": 1, "stride": 2, "padding": "same"}}]]
    return network({"branches": halves}, {"conv": {"filters": 1, "kernel": 2}}, *rest)


def test_a_side_at_which_branches_differ_does_not_count_as_working():
    assert "The smallest that works is 4:" in refused(uneven(*HEAD), 2)
    assert "different height or width: branch1 2×2×3, branch2 3×3×1" in refused(uneven(*HEAD), 5)


def test_layers_that_fit_each_other_at_no_size_are_refused_for_the_mismatch_not_the_size():
    never = network({"max_pool": 4}, {"dense": "classes"})
    assert refused(never, 2).startswith("layer 2 (dense) needs a flat row, but its input is the volume 1×1×3")


@pytest.mark.parametrize(
    ("layers", "output"), [(["flatten", {"dense": 5}], "a row of 5"), (["relu"], "8×8×3")]
)
def test_a_network_that_does_not_end_in_classes_is_refused_with_the_remedy(layers, output):
    message = refused(network(*layers), 8, classes=4)
    assert message.startswith(f"mine ends in {output}, not in one number for each of the 4 classes.")
    assert "`- dense: classes`" in message


def test_the_search_for_a_side_ends_at_the_limit_of_params_yaml():
    metadata = DataParams.model_fields["image_px"].metadata
    assert [limit.le for limit in metadata if hasattr(limit, "le")] == [LARGEST_PX]
