import pytest
import torch
from torch import nn

from clones import REPOSITORY
from convoy.core.errors import NetworkError
from convoy.models.build import assemble
from convoy.models.modules import Auxiliary, Group
from convoy.models.spec import Spec, load, names
from convoy.training.blocks import blocks

CLASSES = 7

FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "vgg11_bn": 32,
    "vit_b_16": 32,
}


def from_layers(*layers):
    spec = Spec.model_validate({"name": "some", "layers": list(layers)})
    return assemble(spec, CLASSES, 16, auxiliary=True)


def contents(network):
    return {block.name: list(block.modules) for block in blocks(network)}


def conv(filters):
    return {"conv": {"filters": filters, "kernel": 3, "padding": 1}}


def test_a_norm_and_what_has_no_weights_belong_to_the_layer_before_them():
    network = from_layers(
        conv(4), "norm", "relu", {"max_pool": 2}, conv(4), "prelu", "norm", "flatten", {"dense": "classes"}
    )

    assert contents(network) == {
        "conv1": ["conv1", "norm1", "relu1", "max_pool1"],
        "conv2": ["conv2", "prelu1", "norm2", "flatten1"],
        "dense1": ["dense1"],
    }


def test_what_comes_before_the_first_weights_belongs_to_the_first_block():
    network = from_layers({"avg_pool": 2}, "norm", conv(4), "flatten", {"dense": "classes"})

    assert contents(network) == {
        "conv1": ["avg_pool1", "norm1", "conv1", "flatten1"],
        "dense1": ["dense1"],
    }


def test_units_are_blocks_as_a_whole_and_plain_chains_are_not():
    network = nn.Sequential()
    network.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.stage = nn.Sequential(
        Group(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)), nn.Sequential(nn.Conv2d(4, 4, 3))
    )
    network.head = nn.Linear(4, 2)

    assert contents(network) == {
        "stem.0": ["stem.0", "stem.1"],
        "stage.0": ["stage.0"],
        "stage.1.0": ["stage.1.0"],
        "head": ["head"],
    }


def test_the_blocks_of_a_residual_network_are_its_residual_units():
    network = assemble(Spec(name="resnet", torchvision="resnet18"), CLASSES, 32)

    units_and_ends = list(contents(network))

    units = [f"layer{stage}.{unit}" for stage in (1, 2, 3, 4) for unit in (0, 1)]
    assert units_and_ends == ["conv1", *units, "fc"]
    assert contents(network)["conv1"] == ["conv1", "bn1", "relu", "maxpool"]
    assert contents(network)["layer4.1"] == ["layer4.1", "avgpool"]


def test_an_auxiliary_head_is_in_no_block():
    aside = {"auxiliary": {"weight": 0.3, "layers": ["flatten", {"dense": "classes"}]}}
    network = from_layers(conv(4), aside, "norm", conv(5), "flatten", {"dense": "classes"})

    assert isinstance(network.auxiliary1, Auxiliary)
    assert contents(network) == {
        "conv1": ["conv1", "norm1"],
        "conv2": ["conv2", "flatten1"],
        "dense1": ["dense1"],
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_a_torchvision_network_is_in_one_block_and_the_head_is_the_last(name):
    network = assemble(Spec(name="some", torchvision=name), CLASSES, FAMILIES[name])

    parts = [block.parameters() for block in blocks(network)]

    found = [(key, id(value)) for part in parts for key, value in part.items()]
    assert len(found) == len(set(found))
    assert dict(found) == {key: id(value) for key, value in network.named_parameters()}
    assert all(parts)
    answering = [any(value.shape[0] == CLASSES for value in part.values()) for part in parts]
    assert answering == [False] * (len(parts) - 1) + [True]
    assert {key.rpartition(".")[2] for key in parts[-1]} <= {"weight", "bias"}


def test_a_parameter_of_the_network_itself_is_in_the_first_block():
    network = assemble(Spec(name="some", torchvision="vit_b_16"), CLASSES, 32)

    first = blocks(network)[0]

    assert set(first.parameters()) == {"class_token", "conv_proj.weight", "conv_proj.bias"}


def test_batch_norms_are_found_at_any_depth():
    network = from_layers(conv(4), "norm", {"residual": [conv(4), "norm"]}, "flatten", {"dense": "classes"})

    assert [list(block.batch_norms()) for block in blocks(network)] == [
        ["norm1"],
        ["residual1.body.norm1"],
        [],
    ]


def test_a_network_without_weights_is_refused():
    with pytest.raises(NetworkError, match=r"no weights, so there is nothing to train\. Add a conv"):
        blocks(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def test_blocks_hold_the_networks_own_modules_and_parameters():
    network = torch.nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))

    first, head = blocks(network)

    assert first.modules["0"] is network[0]
    assert head.parameters()["1.weight"] is network[1].weight


@pytest.mark.parametrize("name", names(REPOSITORY / "networks"))
def test_every_parameter_of_a_shipped_network_is_in_one_block_or_an_auxiliary_head(name):
    spec = load(name, REPOSITORY / "networks")
    network = assemble(spec, CLASSES, spec.made_for.image_px if spec.made_for else 64, auxiliary=True)

    parts = [block.parameters() for block in blocks(network)]

    found = [key for part in parts for key in part]
    aside = [key for key, _ in network.named_parameters() if key.startswith("auxiliary")]
    assert len(parts) >= 4
    assert sorted(found + aside) == sorted(key for key, _ in network.named_parameters())
    assert [value.shape[0] for value in parts[-1].values()] == [CLASSES, CLASSES]
