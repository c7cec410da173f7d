import math

import pytest
import torch
from torch import nn

from convoy.core.errors import NetworkError
from convoy.models import spec, torchvision
from convoy.models.build import assemble, build
from convoy.models.spec import Spec
from network_specs import HEAD, SHIPPED, network

FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t",
    "swin_v2_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
"""The smallest member of each family of torchvision's."""

SMALL = ["convnet", "googlenet", "lenet5", "resnet18"]
"""Shipped networks that take 32 px and build in a moment."""


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_maps_images_to_one_logit_per_class(name):
    chosen = spec.load(name, SHIPPED)
    px = 299 if name == "inception_v3" else 64
    made = assemble(chosen, classes=7, image_px=px)
    assert made(torch.empty((2, 3, px, px), device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    "name",
    [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in spec.names(SHIPPED)],
)
def test_a_shipped_network_computes_finite_logits_from_the_start(name):
    px = 299 if name == "inception_v3" else 32 if name in SMALL else 64
    made = build(spec.load(name, SHIPPED), classes=7, image_px=px, auxiliary=True)
    assert made.training
    assert all(parameter.device.type == "cpu" for parameter in made.parameters())
    logits = made.eval()(torch.randn(2, 3, px, px))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_layers_are_named_by_their_word_and_number():
    made = build(network({"conv": {"filters": 4, "kernel": 3}}, "relu", "relu", *HEAD), 2, 8)
    assert [name for name, _ in made.named_children()] == ["conv1", "relu1", "relu2", "flatten1", "dense1"]


def test_the_same_seed_gives_the_same_starting_weights():
    chosen = spec.load("convnet", SHIPPED)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(chosen, 3, 32).state_dict()["conv1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_network_has_the_starting_weights_that_torch_gives_such_layers():
    torch.manual_seed(5)
    made = build(network({"conv": {"filters": 4, "kernel": 3}}, "norm", *HEAD), 2, 8)
    torch.manual_seed(5)
    conv, dense = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)
    assert torch.equal(made.conv1.weight, conv.weight)
    assert torch.equal(made.conv1.bias, conv.bias)
    assert torch.equal(made.dense1.weight, dense.weight)
    assert made.norm1.running_var.tolist() == [1.0] * 4
    assert made.norm1.running_mean.tolist() == [0.0] * 4


def test_a_norm_starts_without_effect_and_without_history():
    made = build(network("norm", *HEAD), 2, 8)
    assert made.norm1.weight.tolist() == [1.0] * 3
    assert made.norm1.bias.tolist() == [0.0] * 3
    assert made.norm1.num_batches_tracked == 0


def test_kaimings_start_has_the_spread_that_preserves_a_volumes_variance():
    layers = [
        {"conv": {"filters": 128, "kernel": 3, "padding": 1}},
        {"conv": {"filters": 256, "kernel": [1, 3]}},
        "flatten",
        {"dense": 100},
        {"dense": "classes"},
    ]
    made = build(network(*layers, init="kaiming"), 50, 12)
    spreads = [
        made.get_submodule(name).weight.std().item() for name in ("conv1", "conv2", "dense1", "dense2")
    ]
    expected = [math.sqrt(2 / (128 * 9)), math.sqrt(2 / (256 * 3)), 0.01, 0.01]
    assert spreads == pytest.approx(expected, rel=0.05)
    assert all(not part.bias.any() for part in made.modules() if isinstance(part, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize(("name", "px"), [("vgg19", 32), ("googlenet", 64), ("inception_v3", 299)])
def test_a_deep_network_with_kaimings_start_responds_to_its_input_before_training(name, px):
    images = torch.randn(4, 3, px, px)
    spreads = {}
    for init in ("kaiming", "torch"):
        torch.manual_seed(0)
        made = build(
            spec.load(name, SHIPPED).model_copy(update={"init": init}), classes=5, image_px=px
        ).eval()
        with torch.no_grad():
            spreads[init] = made(images).std(dim=0).mean().item()
    assert spec.load(name, SHIPPED).init == "kaiming"
    assert spreads["kaiming"] > 1e-3
    assert spreads["torch"] < 1e-4


@pytest.mark.parametrize("name", ["vgg16", "inception_v3"])
def test_assembling_a_network_of_layers_allocates_no_weights(name):
    assembled = assemble(spec.load(name, SHIPPED), classes=1000, image_px=299, auxiliary=True)
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
    assert parameters(assembled) == 11_689_512


@pytest.mark.parametrize(
    ("name", "px", "layer", "smallest"),
    [
        ("alexnet", 32, "layer features.12 (MaxPool2d) cannot take the volume 1×1×256", 63),
        ("vit_b_32", 30, "torchvision's vit_b_32: Input shape indivisible by patch size!", 32),
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


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow)
        for name in torchvision.names()
    ],
)
def test_every_classifier_of_torchvision_builds_and_runs(name):
    made = assemble(Spec(name="mine", torchvision=name), classes=7, image_px=224)
    assert made(torch.empty((2, 3, 224, 224), device="meta")).shape == (2, 7)
