from pathlib import Path

import pytest
import torch
from torch import nn

from convoy.errors import NetworkError
from convoy.networks import catalog, spec
from convoy.networks.build import assemble, build
from convoy.networks.spec import Spec

SHIPPED = Path(__file__).parents[2] / "networks"
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
    "wide_resnet50_2",
]
"""The smallest member of each family of torchvision's."""


def network(*layers: object) -> Spec:
    return Spec.model_validate({"name": "mine", "layers": list(layers)})


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def volume(module: nn.Module, px: int) -> tuple[int, ...]:
    return tuple(module.eval()(torch.zeros(2, 3, px, px)).shape)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_maps_images_to_one_logit_per_class(name):
    assert volume(build(spec.load(name, SHIPPED), classes=7, image_px=32), 32) == (2, 7)


def test_lenet5_has_the_parameters_of_the_paper():
    lenet5 = build(spec.load("lenet5", SHIPPED), classes=10, image_px=32)
    two_more_channels = 2 * 6 * 5 * 5

    assert parameters(lenet5) == 62_006
    assert parameters(lenet5) - two_more_channels == 61_706


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_padding_makes_a_side_of_input_over_stride_rounded_up(side, stride, kernel):
    conv = {"conv": {"filters": 2, "kernel": kernel, "stride": stride, "padding": "same"}}
    made = build(network(conv, "flatten", {"dense": "classes"}), classes=5, image_px=side)

    assert made.dense1.in_features == 2 * (-(-side // stride)) ** 2


def test_same_padding_puts_the_odd_pixel_at_the_end():
    conv = {"conv": {"filters": 1, "kernel": 2, "padding": "same", "bias": False}}
    made = build(network(conv, "flatten", {"dense": "classes"}), classes=2, image_px=2)
    with torch.no_grad():
        made.conv1[1].weight.fill_(1)
        image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2)

        assert made.conv1(image).squeeze().tolist() == [[30, 18], [21, 12]]


def test_layers_are_named_by_their_word_and_number():
    made = build(
        network({"conv": {"filters": 4, "kernel": 3}}, "relu", "relu", "flatten", {"dense": "classes"}), 2, 8
    )

    assert [name for name, _ in made.named_children()] == ["conv1", "relu1", "relu2", "flatten1", "dense1"]


def test_a_residual_adds_what_arrives_through_its_shortcut():
    def conv(kernel):
        return {"conv": {"filters": 4, "kernel": kernel, "padding": "same"}}

    layers = [{"residual": {"body": [conv(3)], "shortcut": [conv(1)]}}, "flatten", {"dense": "classes"}]
    made = build(network(*layers), classes=2, image_px=6)
    image = torch.randn(1, 3, 6, 6)

    total = made.residual1.body(image) + made.residual1.shortcut(image)

    assert torch.equal(made.residual1(image), total)


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
    made = build(
        network({"conv": {"filters": 4, "kernel": 3}}, "norm", "flatten", {"dense": "classes"}), 2, 8
    )
    torch.manual_seed(5)
    conv, dense = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

    assert torch.equal(made.conv1.weight, conv.weight)
    assert torch.equal(made.conv1.bias, conv.bias)
    assert torch.equal(made.dense1.weight, dense.weight)
    assert made.norm1.running_var.tolist() == [1.0] * 4
    assert made.norm1.running_mean.tolist() == [0.0] * 4


def test_assembling_allocates_no_weights(monkeypatch):
    make, devices = catalog.make, set()

    def watched(*arguments):
        made = make(*arguments)
        devices.update(value.device.type for value in made.parameters())
        return made

    monkeypatch.setattr(catalog, "make", watched)

    assembled = assemble(spec.load("resnet18", SHIPPED), classes=1000, image_px=224)

    assert devices == {"meta"}
    assert parameters(assembled) == 11_689_512


@pytest.mark.parametrize(
    ("name", "px", "layer", "arrived", "smallest"),
    [
        ("lenet5", 8, "layer 4 (conv)", "2×2×6", 16),
        ("lenet5", 15, "layer 6 (max_pool)", "1×1×16", 16),
    ],
)
def test_images_too_small_are_refused_with_layer_volume_and_the_smallest_side(
    name, px, layer, arrived, smallest
):
    chosen = spec.load(name, SHIPPED)
    with pytest.raises(NetworkError) as caught:
        build(chosen, classes=10, image_px=px)
    message = str(caught.value)

    assert f"{name} does not take images of {px} px: {layer} cannot take the volume {arrived} (" in message
    assert f"The smallest that works is {smallest}: set data.image_px to it" in message
    build(chosen, classes=10, image_px=smallest)
    with pytest.raises(NetworkError):
        build(chosen, classes=10, image_px=smallest - 1)


@pytest.mark.parametrize(
    ("name", "px", "layer", "smallest"),
    [
        ("alexnet", 32, "layer features.12 (MaxPool2d) cannot take the volume 1×1×256", 63),
        ("vit_b_32", 30, "torchvision's vit_b_32 says: Input shape indivisible by patch size!", 32),
    ],
)
def test_images_too_small_for_a_torchvision_network_are_refused_alike(name, px, layer, smallest):
    with pytest.raises(NetworkError) as caught:
        build(Spec(name="mine", torchvision=name), classes=10, image_px=px)

    assert layer in str(caught.value)
    assert f"The smallest that works is {smallest}:" in str(caught.value)


def test_a_layer_that_fits_at_no_size_says_so():
    giant = network({"conv": {"filters": 1, "kernel": 2000}}, "flatten", {"dense": "classes"})

    with pytest.raises(NetworkError, match=r"layer 1 \(conv\).*No side up to 1024 works: correct the layer"):
        build(giant, classes=2, image_px=1020)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([{"dense": "classes"}], "layer 1 (dense) needs a flat row, but the volume 8×8×3 arrives"),
        (["flatten", {"max_pool": 2}], "layer 2 (max_pool) needs a volume, but a row of 192 arrives"),
        (["flatten", "norm"], "layer 2 (norm) needs a volume, but a row of 192 arrives"),
        (["flatten", {"dense": 5}], "mine ends in a row of 5, not in one number for each of the 4 classes"),
        (["relu"], "mine ends in 8×8×3, not in one number"),
        (
            [{"conv": {"filters": 4, "kernel": 1, "groups": 2}}],
            "layer 1 (conv): groups 2 must divide the 3 channels that arrive and the 4 filters",
        ),
        (
            [{"residual": [{"max_pool": 2}]}],
            "layer 1 (residual) cannot add 8×8×3 to the 4×4×3 that its body makes. Give it a `shortcut`",
        ),
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused_with_the_remedy(layers, said):
    with pytest.raises(NetworkError) as caught:
        build(network(*layers), classes=4, image_px=8)

    assert said in str(caught.value)


def test_googlenet_and_inception_come_without_auxiliary_heads():
    for name, px in (("googlenet", 32), ("inception_v3", 75)):
        made = assemble(Spec(name="mine", torchvision=name), classes=3, image_px=px)

        assert not made.aux_logits
        assert not made.transform_input


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_builds_and_runs(name):
    made = assemble(Spec(name="mine", torchvision=name), classes=7, image_px=224)

    assert made(torch.empty((2, 3, 224, 224), device="meta")).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.names())
def test_every_classifier_of_torchvision_builds_and_runs(name):
    made = assemble(Spec(name="mine", torchvision=name), classes=7, image_px=224)

    assert made(torch.empty((2, 3, 224, 224), device="meta")).shape == (2, 7)
