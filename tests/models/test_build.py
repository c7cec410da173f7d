"""Modules of layers, each of which computes what its line in the spec describes; whole networks and their first weights."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import activation

from convoy.core.errors import NetworkError
from convoy.models import spec, torchvision
from convoy.models.build import Auxiliary, Group, WithAuxiliary, assemble, build, build_layers
from convoy.models.layer_types import ACTIVATIONS, OVER_CHANNELS
from convoy.models.shapes import chain
from convoy.models.spec import Spec, SpecParser
from network_specs import HEAD, SHIPPED, network, slow_but

CONV = {"conv": {"filters": 4, "kernel": 3, "padding": 1}}
NUMPYS = {"zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}
GIVEN = {"approximate": "tanh", "lower": 0.1, "upper": 0.2, "min_val": -0.5, "max_val": 0.5}
"""Arguments of activations that 0.3 does not fit."""


def module(line, volume=(4, 5, 5)):
    steps = chain(SpecParser().layers([line]), volume, 2)
    return build_layers(steps, auxiliary=False)[0]


def test_every_activation_of_torch_with_one_input_has_a_word():
    with_a_query_key_and_value = {"MultiheadAttention"}
    assert {name for name, _ in ACTIVATIONS.values()} == set(activation.__all__) - with_a_query_key_and_value


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_an_activation_is_torchs_with_its_arguments(word):
    name, arguments = ACTIVATIONS[word]
    kind = getattr(nn, name)
    given = {argument: GIVEN.get(argument, 0.3) for argument in arguments}
    extra = {"dim": 1} if word in OVER_CHANNELS else {}
    image = torch.randn(3, 4, 5, 5)
    made = module({word: given}).eval()
    implicit = {"inplace", "dim", "num_parameters", "device", "dtype"}
    obsolete = {"min_value", "max_value", "args", "kwargs"}
    assert set(arguments) == set(inspect.signature(kind).parameters) - implicit - obsolete
    assert type(made) is kind
    assert torch.equal(made(image), kind(**given, **extra).eval()(image))
    if word != "threshold":
        assert torch.equal(module(word).eval()(image), kind(**extra).eval()(image))
    if word != "softmax2d":
        assert module({word: given}, volume=(6,))(image[:, 0, 0, :].repeat(1, 2)[:, :6]).shape[0] == 3


@pytest.mark.parametrize("mode", NUMPYS)
@pytest.mark.parametrize(
    ("padding", "kernel", "stride", "pads"),
    [
        (2, 3, 1, ((2, 2), (2, 2))),
        ([1, 3], 3, 2, ((1, 1), (3, 3))),
        ("same", 3, 1, ((1, 1), (1, 1))),
        ("same", 4, 1, ((1, 2), (1, 2))),
        ("same", [3, 2], 2, ((1, 1), (0, 0))),
        ("same", [5, 6], 3, ((1, 2), (2, 2))),
    ],
)
def test_a_convolution_pads_as_by_hand(mode, padding, kernel, stride, pads):
    volume = (2, 5, 8)
    line = {"filters": 3, "kernel": kernel, "stride": stride, "padding": padding, "padding_mode": mode}
    made = module({"conv": line}, volume)
    image = torch.rand(1, *volume)
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), *pads), NUMPYS[mode]))
    weight, bias = made.parameters()
    torch.testing.assert_close(made(image), functional.conv2d(padded, weight, bias, stride))


def test_layers_have_the_given_units_and_bias():
    assert module({"conv": {"filters": 2, "kernel": 1, "bias": False}}).bias is None
    assert module({"conv": {"filters": 2, "kernel": 1}}).bias is not None
    dense = module({"dense": {"units": 7, "bias": False}}, (5,))
    assert (dense.in_features, dense.out_features, dense.bias) == (5, 7, None)
    assert module({"dense": "classes"}, (5,)).out_features == 2


def test_local_response_norm_is_the_papers_with_alpha_divided_by_the_size():
    size, alpha, beta, k = 5, 5e-4, 0.75, 2.0
    image = torch.rand(1, 9, 2, 2, dtype=torch.float64) * 50
    squares = [image[:, max(c - 2, 0) : c + 3].square().sum(dim=1) for c in range(9)]
    by_hand = image / (k + alpha / size * torch.stack(squares, dim=1)) ** beta
    made = module({"local_response_norm": {"size": size, "alpha": alpha, "beta": beta, "k": k}}, (9, 2, 2))
    torch.testing.assert_close(made(image), by_hand)


def test_a_norm_is_batch_norm_with_its_epsilon():
    norm = module({"norm": {"eps": 0.01}})
    assert (type(norm), norm.num_features, norm.eps, norm.momentum) == (nn.BatchNorm2d, 4, 0.01, 0.1)


def test_a_norm_without_scale_learns_its_bias_alone_and_gives_what_batch_norm_gives_with_a_scale_of_1():
    norm = module({"norm": {"scale": False, "eps": 1e-12, "momentum": 0.4}})
    theirs = nn.BatchNorm2d(4, eps=1e-12, momentum=0.4)
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    assert "weight" not in norm.state_dict()
    norm.load_state_dict({key: value for key, value in theirs.state_dict().items() if key != "weight"})
    for training in (True, False):
        for made in (norm, theirs):
            made.train(training)
            made.zero_grad()
        image = torch.randn(3, 4, 5, 5)
        outputs = [made(image) for made in (norm, theirs)]
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(*outputs)
        assert torch.equal(norm.bias.grad, theirs.bias.grad)
    assert torch.equal(norm.running_var, theirs.running_var)
    build_again = build(network({"norm": {"scale": False}}, *HEAD), 2, 8)
    assert torch.equal(build_again.norm1.weight, torch.ones(3))


def test_group_norm_normalises_groups_of_channels_of_each_image():
    image = torch.randn(2, 4, 3, 3)
    parts = image.view(2, 2, 18)
    mean, variance = parts.mean(dim=2, keepdim=True), parts.var(dim=2, keepdim=True, correction=0)
    by_hand = ((parts - mean) / (variance + 0.1).sqrt()).view_as(image)
    torch.testing.assert_close(module({"group_norm": {"groups": 2, "eps": 0.1}}, (4, 3, 3))(image), by_hand)


@pytest.mark.parametrize("volume", [(4, 3, 3), (4,)])
def test_layer_norm_normalises_each_pixel_over_its_channels(volume):
    image = torch.randn(2, *volume)
    mean, variance = image.mean(dim=1, keepdim=True), image.var(dim=1, keepdim=True, correction=0)
    made = module({"layer_norm": {"eps": 0.1}}, volume)
    torch.testing.assert_close(made(image), (image - mean) / (variance + 0.1).sqrt())
    assert made.weight.shape == made.bias.shape == (4,)


def test_a_scale_is_a_fixed_factor():
    scale = module({"scale": 0.125}, (6,))
    assert list(scale.parameters()) == []
    assert torch.equal(scale(torch.full((2, 6), 3.0)), torch.full((2, 6), 0.375))


@pytest.mark.parametrize(
    "layers",
    [
        ["global_avg_pool", {"conv": {"filters": 4, "kernel": 1}}, "sigmoid"],
        ["global_avg_pool", "flatten", {"dense": 4}, "sigmoid"],
        [{"conv": {"filters": 4, "kernel": 3, "padding": 1}}, "sigmoid"],
        [{"conv": {"filters": 1, "kernel": 1}}, "sigmoid"],
    ],
)
def test_multiply_weighs_its_input_by_what_its_layers_make_of_it(layers):
    product, image = module({"multiply": layers}), torch.randn(2, 4, 5, 5)
    gate = image
    for part in product:
        gate = part(gate)
    by_hand = torch.stack(
        [image[n] * (gate[n] if gate.dim() == 4 else gate[n][:, None, None]) for n in range(2)]
    )
    assert torch.equal(product(image), by_hand)


def test_a_residual_drops_its_body_for_whole_images_in_training_only():
    plain, dropping = {"residual": ["tanh"]}, {"residual": {"body": ["tanh"], "drop": 0.25}}
    image, residual = torch.rand(4000, 4, 1, 1) + 0.1, module(dropping, (4, 1, 1))
    change = residual(image) - image
    dropped = (change == 0).flatten(1)
    assert torch.equal(dropped.any(dim=1), dropped.all(dim=1))
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = ~dropped[:, 0]
    torch.testing.assert_close(change[kept], image.tanh()[kept] / 0.75)
    assert torch.equal(residual.eval()(image), module(plain, (4, 1, 1))(image))
    state = torch.get_rng_state()
    module(plain, (4, 1, 1))(image)
    assert torch.equal(torch.get_rng_state(), state), "a residual without drop draws no random numbers"


def test_dropout_drops_its_share_in_training_only():
    dropout = module({"dropout": 0.25}, (10_000,))
    row = torch.ones(1, 10_000)
    assert (dropout(row) == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(dropout.eval()(row), row)


@pytest.mark.parametrize(
    "before",
    [{"group_norm": 2}, "layer_norm", {"norm": {"scale": False}}, {"multiply": ["sigmoid"]},
     {"residual": {"body": [{"group_norm": 1}], "drop": 0.5}}],
)  # fmt: skip
def test_a_relu_behind_a_layer_of_modern_networks_overwrites_what_nothing_else_needs(before):
    made = build_layers(chain(SpecParser().layers([before, "relu"]), (4, 3, 3), 2), auxiliary=False).double()
    assert made.relu1.inplace
    image = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for made.relu1.inplace in (True, False):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(made(image).square().sum(), [image, *made.parameters()]))
    assert all(torch.equal(*each) for each in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({"adaptive_avg_pool": [2, 3]}, nn.AdaptiveAvgPool2d((2, 3))),
        ({"adaptive_max_pool": 2}, nn.AdaptiveMaxPool2d(2)),
        ("global_avg_pool", nn.AdaptiveAvgPool2d(1)),
        ({"max_pool": {"kernel": [2, 1], "stride": [1, 2]}}, nn.MaxPool2d((2, 1), (1, 2))),
        ({"avg_pool": {"kernel": 2, "ceil": True}}, nn.AvgPool2d(2, 2, ceil_mode=True)),
        ("flatten", nn.Flatten()),
    ],
)
def test_a_pooling_layer_is_torchs(line, kind):
    image = torch.randn(2, 4, 5, 5)
    assert torch.equal(module(line)(image), kind(image))


def test_each_repetition_has_separate_weights_and_is_named_by_its_number():
    repeat = module({"repeat": {"times": 3, "layers": [{"conv": {"filters": 4, "kernel": 1}}, "relu"]}})
    weights = [part.conv1.weight for part in repeat]
    assert [name for name, _ in repeat.named_children()] == ["0", "1", "2"]
    assert len({id(weight) for weight in weights}) == 3
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("line", "label", "name"),
    [
        ({"relu": {"name": "train"}}, "layer 1 (relu)", "train"),
        ({"group": {"layers": ["relu"], "name": "forward"}}, "layer 1 (group)", "forward"),
        ({"group": {"layers": [{"tanh": {"name": "append"}}]}}, "layer 1 (group), layer 1 (tanh)", "append"),
        ({"branches": {"double": ["relu"], "other": []}}, "layer 1 (branches)", "double"),
        ({"residual": [{"relu": {"name": "half"}}]}, "layer 1 (residual), body layer 1 (relu)", "half"),
    ],
)
def test_a_name_of_an_attribute_of_torchs_modules_is_refused(line, label, name):
    with pytest.raises(NetworkError) as caught:
        module(line)
    assert str(caught.value).startswith(f"{label}: `{name}` is an attribute of torch's modules")


def test_a_relu_overwrites_a_volume_that_nothing_else_needs():
    layers = [
        CONV,
        "relu",  # straight after a convolution: over its volume
        {"residual": ["relu", CONV]},  # the shortcut needs its input
        "relu",
        {"branches": [["relu"], ["relu"]]},  # so does the other branch
        {"auxiliary": {"weight": 0.3, "layers": HEAD}},
        "relu",  # the head needs its input
        "sigmoid",
        "relu",  # the sigmoid goes backward by what it made
        *HEAD,
    ]
    made = build_layers(chain(SpecParser().layers(layers), (3, 6, 6), 2), auxiliary=True).double()
    over = {name for name, module in made.named_modules() if getattr(module, "inplace", False)}
    image = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def gradients():
        answer = made(image)
        total = answer.logits.sum() + answer.auxiliary[0][1].sum()
        return torch.autograd.grad(total, [image, *made.parameters()])

    overwritten = gradients()
    for module in made.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert over == {"relu1", "relu2"}
    assert all(torch.equal(*pair) for pair in zip(overwritten, gradients(), strict=True))


IMAGE = (3, 6, 6)


def image():
    return torch.randn(2, *IMAGE)


def with_heads(*, auxiliary=True):
    spec = network(
        CONV,
        {"auxiliary": {"weight": 0.3, "layers": HEAD}},
        "relu",
        {"auxiliary": {"weight": 0.4, "layers": [{"max_pool": 2}, *HEAD], "name": "late"}},
        *HEAD,
    )
    return build(spec, classes=5, image_px=6, auxiliary=auxiliary)


def test_a_residual_adds_its_shortcut_or_its_input():
    shortcut = [{"conv": {"filters": 4, "kernel": 1}}]
    residual = module({"residual": {"body": [CONV], "shortcut": shortcut}}, IMAGE)
    volume = image()
    assert torch.equal(residual(volume), residual.body.conv1(volume) + residual.shortcut.conv1(volume))
    assert torch.equal(module({"residual": ["tanh"]}, IMAGE)(volume), volume.tanh() + volume)


def test_branches_are_concatenated_in_their_order():
    branches = module({"branches": {"wide": [CONV], "none": [], "odd": ["tanh"]}}, IMAGE)
    volume = image()
    output = branches(volume)
    assert [name for name, _ in branches.named_children()] == ["wide", "none", "odd"]
    assert torch.equal(output, torch.cat([branches.wide(volume), volume, volume.tanh()], dim=1))
    flat = module({"branches": [["flatten"], [{"max_pool": 2}, "flatten"]]}, IMAGE)
    assert flat(volume).shape == (2, 108 + 27)


def test_a_named_group_is_one_child_of_the_network():
    group = module({"group": {"layers": ["relu", "tanh"], "name": "both"}}, IMAGE)
    assert type(group) is Group
    assert [name for name, _ in group.named_children()] == ["relu1", "tanh1"]


def test_in_training_auxiliary_heads_return_logits_with_their_weights():
    network = with_heads()
    volume = image()
    answer = network.train()(volume)
    assert isinstance(answer, WithAuxiliary)
    after_conv = network.conv1(volume)
    (early_weight, early), (late_weight, late) = answer.auxiliary
    assert (early_weight, late_weight) == (0.3, 0.4)
    assert torch.equal(early, network.auxiliary1(after_conv))
    assert torch.equal(late, network.late(after_conv.relu()))
    assert torch.equal(answer.logits, network.dense1(after_conv.relu().flatten(1)))


def test_in_evaluation_auxiliary_heads_do_not_run():
    network = with_heads()
    volume = image()
    answer = network.eval()(volume)
    assert isinstance(answer, torch.Tensor)
    assert torch.equal(answer, network.train()(volume).logits)


def test_without_auxiliary_heads_training_returns_logits_only():
    network = with_heads(auxiliary=False)
    assert [name for name, _ in network.named_children()] == ["conv1", "relu1", "flatten1", "dense1"]
    assert not any(isinstance(part, Auxiliary) for part in network.modules())
    assert network.train()(image()).shape == (2, 5)


FAMILIES = ["alexnet", "convnext_tiny", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "regnet_y_400mf",
            "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "vit_b_16"]  # fmt: skip
"""Small members of torchvision's families that differ in kind."""

SMALL = ["convnet", "googlenet", "lenet5", "resnet18"]
"""Shipped networks that take 32 px and build in a moment."""


@pytest.mark.parametrize("name", slow_but(SMALL, spec.names(SHIPPED)))
def test_a_shipped_network_computes_finite_logits_from_the_start(name):
    px = 299 if name == "inception_v3" else 32 if name in SMALL else 64
    made = build(spec.load(name, SHIPPED), classes=7, image_px=px, auxiliary=True)
    assert made.training
    assert all(parameter.device.type == "cpu" for parameter in made.parameters())
    logits = made.eval()(torch.randn(2, 3, px, px))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_a_network_has_the_starting_weights_that_torch_gives_such_layers():
    torch.manual_seed(5)
    made = build(network({"conv": {"filters": 4, "kernel": 3}}, "norm", *HEAD), 2, 8)
    torch.manual_seed(5)
    conv, norm, dense = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 6 * 6, 2)
    for mine, theirs in ((made.conv1, conv), (made.norm1, norm), (made.dense1, dense)):
        expected = theirs.state_dict()
        assert mine.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in mine.state_dict().items())


def test_kaimings_start_has_the_spread_that_preserves_a_volumes_variance():
    layers = [
        {"conv": {"filters": 128, "kernel": 3, "padding": 1}},
        {"conv": {"filters": 256, "kernel": [1, 3]}},
        "flatten",
        {"dense": 100},
        {"dense": "classes"},
    ]
    made = build(network(*layers, init="kaiming"), 50, 12)
    layers = (made.conv1, made.conv2, made.dense1, made.dense2)
    spreads = [layer.weight.std().item() for layer in layers]
    expected = [math.sqrt(2 / (128 * 9)), math.sqrt(2 / (256 * 3)), 0.01, 0.01]
    assert spreads == pytest.approx(expected, rel=0.05)
    assert all(not part.bias.any() for part in made.modules() if isinstance(part, nn.Conv2d | nn.Linear))


def test_a_deep_network_with_kaimings_start_responds_to_its_input_before_training():
    assert {spec.load(name, SHIPPED).init for name in ("vgg19", "googlenet", "inception_v3")} == {"kaiming"}
    images = torch.randn(4, 3, 32, 32)
    spreads = {}
    for init in ("kaiming", "torch"):
        torch.manual_seed(0)
        chosen = spec.load("googlenet", SHIPPED).model_copy(update={"init": init})
        with torch.no_grad():
            spreads[init] = build(chosen, classes=5, image_px=32).eval()(images).std(dim=0).mean().item()
    assert spreads["kaiming"] > 1e-3
    assert spreads["torch"] < 1e-4


def test_assembling_a_network_of_layers_allocates_no_weights():
    assembled = assemble(spec.load("vgg16", SHIPPED), classes=1000, image_px=224, auxiliary=True)
    tensors = [*assembled.parameters(), *assembled.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert not assembled.training


def test_assembling_a_network_of_torchvision_allocates_no_weights(monkeypatch):
    make, devices = torchvision.make, set()

    def watched(*arguments):
        made = make(*arguments)
        devices.update(value.device.type for value in made.parameters())
        return made

    monkeypatch.setattr(torchvision, "make", watched)
    assembled = assemble(Spec(name="mine", torchvision="resnet18"), classes=1000, image_px=224)
    assert devices == {"meta"}
    assert sum(value.numel() for value in assembled.parameters()) == 11_689_512


@pytest.mark.parametrize(
    ("name", "px", "layer", "smallest"),
    [
        ("alexnet", 32, "layer features.12 (MaxPool2d) cannot take the volume 1×1×256", 63),
        ("vit_b_32", 33, "torchvision's vit_b_32: Input shape indivisible by patch size!", 64),
    ],
)
def test_images_too_small_for_a_torchvision_network_are_refused_alike(name, px, layer, smallest):
    with pytest.raises(NetworkError) as caught:
        build(Spec(name="mine", torchvision=name), classes=10, image_px=px)
    assert layer in str(caught.value)
    assert f"The smallest that works is {smallest}:" in str(caught.value)


def test_googlenet_and_inception_come_without_auxiliary_heads():
    for name, px in (("googlenet", 32), ("inception_v3", 75)):
        made = assemble(Spec(name="mine", torchvision=name), classes=3, image_px=px)
        assert not made.aux_logits
        assert not made.transform_input


@pytest.mark.parametrize("name", slow_but(FAMILIES, torchvision.names()))
def test_every_classifier_of_torchvision_builds_and_runs(name):
    made = assemble(Spec(name="mine", torchvision=name), classes=7, image_px=224)
    assert made(torch.empty((2, 3, 224, 224), device="meta")).shape == (2, 7)
