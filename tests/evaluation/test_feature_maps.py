import numpy as np
import pytest
import torch
from torch import nn

from convoy.core.errors import NetworkError
from convoy.evaluation import feature_maps
from feature_networks import HEAD, conv, features_of, from_layers, from_torchvision, normalized


def network_input(model, image_u8):
    return (torch.from_numpy(image_u8).permute(2, 0, 1)[None] / 255 - model.mean) / model.std


def assert_maps_are_of(volume, maps):
    assert len(maps) == min(8, volume.shape[1])
    for map_ in maps:
        np.testing.assert_allclose(map_.values, volume[0, map_.channel].numpy(), rtol=1e-5, atol=1e-6)


def test_a_map_is_what_norm_and_activation_made_of_the_convolution():
    model = from_layers([conv(4), "norm", "relu", {"max_pool": 2}, conv(6), {"leaky_relu": 0.1}, *HEAD])
    image_u8, features = features_of(model)
    net = model.network
    with torch.no_grad():
        low = net.relu1(net.norm1(net.conv1(network_input(model, image_u8))))
        high = net.leaky_relu1(net.conv2(net.max_pool1(low)))
        answer = model(torch.from_numpy(image_u8).permute(2, 0, 1)[None].float()).softmax(1)[0]
    assert_maps_are_of(low, features.images[0].strongest["low"])
    assert_maps_are_of(high, features.images[0].strongest["high"])
    assert features.layers["low"].operations == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert features.layers["high"].volume == (6, 16, 16)
    np.testing.assert_allclose(features.images[0].probabilities, answer, rtol=1e-5)


def test_a_map_at_the_end_of_a_residual_is_the_sum_that_goes_on():
    residual = {"residual": [conv(4), "norm"]}
    model = from_layers([conv(4), residual, "relu", {"residual": [conv(4)]}, *HEAD])
    image_u8, features = features_of(model)
    net = model.network
    with torch.no_grad():
        middle = net.relu1(net.residual1(net.conv1(network_input(model, image_u8))))
        high = net.residual2(middle)
    assert [layer.name for layer in features.layers.values()] == ["conv1", "residual1", "residual2"]
    assert features.layers["middle"].operations == ["Sum", "ReLU"]
    assert_maps_are_of(middle, features.images[0].strongest["middle"])
    assert_maps_are_of(high, features.images[0].strongest["high"])


def test_in_place_layers_do_not_change_the_maps():
    model = from_torchvision("resnet18", 32)
    image_u8, features = features_of(model)
    net = model.network
    with torch.no_grad():
        low = net.relu(net.bn1(net.conv1(network_input(model, image_u8))))
        high = net.layer2(net.layer1(net.maxpool(low.clone())))
    assert features.layers["high"].name == "layer2.1"
    assert_maps_are_of(low, features.images[0].strongest["low"])
    assert_maps_are_of(high, features.images[0].strongest["high"])


def test_a_map_is_a_copy_that_later_writes_do_not_reach():
    class Overwriting(nn.Sequential):
        def forward(self, volume):
            made = self[0](volume)
            answer = self[2](self[1](made))
            made.zero_()
            return answer

    model = normalized(Overwriting(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    image_u8, features = features_of(model)
    maps = features.images[0].strongest["low"]
    with torch.no_grad():
        assert_maps_are_of(model.network[0](network_input(model, image_u8)), maps)
    assert all(map_.values.base is None for map_ in maps)  # only these stay in memory, not the whole volume


def test_maps_too_small_to_show_a_shape_are_passed_over():
    features = features_of(from_torchvision("resnet18", 32))[1]
    assert [layer.volume[1:] for layer in features.layers.values()] == [(16, 16), (4, 4), (4, 4)]
    assert features.passed_over
    assert not features_of(from_layers([conv(4), "relu", *HEAD]))[1].passed_over


@pytest.mark.parametrize(
    ("sides", "picked"),
    [
        ([], []),
        ([1], [0]),
        ([8, 1], [0, 1]),
        ([32, 16, 8, 8, 4, 2], [0, 2, 4]),
        ([9, 3, 2, 1], [0, 1, 2]),
        ([9, 1, 1], [0, 1, 2]),
    ],
)
def test_the_first_the_middle_and_the_last_readable_layer_are_picked(sides, picked):
    layers = [
        feature_maps.Layer(str(n), str(n), ["Conv2d"], (4, side, side), (str(n), 0))
        for n, side in enumerate(sides)
    ]
    assert [layers.index(layer) for layer in feature_maps.choose(layers).values()] == picked


@pytest.mark.parametrize(
    ("name", "px", "names", "operations"),
    [
        ("vit_b_16", 32, ["conv_proj"], ["Conv2d"]),
        # BasicConv2d calls relu as a function.
        ("googlenet", 64, ["conv1", "inception4b.branch2.0", "inception4e.branch4.1"], ["BasicConv2d"]),
        ("mobilenet_v3_small", 128, ["features.0.0", "features.6", "features.12.0"], ["Conv2d", "BatchNorm2d", "Hardswish"]),
    ],
)  # fmt: skip
def test_layers_of_torchvisions_families_have_their_names_and_operations(name, px, names, operations):
    features = features_of(from_torchvision(name, px), px)[1]
    strongest = features.images[0].strongest
    assert [layer.name for layer in features.layers.values()] == names
    assert features.layers["low"].operations == operations
    assert name != "googlenet" or min(map_.values.min() for map_ in strongest["low"]) == 0
    for depth, layer in features.layers.items():
        assert strongest[depth][0].values.shape == layer.volume[1:]


def test_a_convolution_with_uneven_padding_keeps_its_own_name():
    features = features_of(from_layers([conv(4, stride=2), "relu", *HEAD]))[1]
    assert features.layers["low"].name == "conv1"
    assert features.layers["low"].operations == ["Conv2d", "ReLU"]
    assert features.filters.shape == (4, 3, 3, 3)


def test_the_strongest_map_has_the_largest_value_inside_the_border():
    model = from_layers([{"conv": {"filters": 2, "kernel": 1, "bias": False}}, *HEAD], mean=(0, 0, 0))
    with torch.no_grad():
        model.network.conv1.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]).view(2, 3, 1, 1))
    image_u8 = np.zeros((32, 32, 3), np.uint8)
    image_u8[1, 30, 0] = 255
    image_u8[2, 29, 1] = 51
    (red_at_the_border, green_inside) = (0, 1)
    maps = feature_maps.find(model, [image_u8]).images[0].strongest["low"]
    assert [map_.channel for map_ in maps] == [green_inside, red_at_the_border]
    assert [map_.strength for map_ in maps] == pytest.approx([0.2 / 0.25, 0])


def test_the_filters_are_the_first_convolutions_weights_and_all_hooks_are_removed():
    model = from_layers([conv(5), "relu", *HEAD])
    features = features_of(model)[1]
    weights = model.network.conv1.weight.detach()
    assert features.first == "conv1"
    np.testing.assert_array_equal(features.filters[4, 0, 2], weights[4, :, 0, 2])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_outputs_nan_is_refused_with_the_remedy():
    model = from_layers([conv(4), "relu", *HEAD])
    with torch.no_grad():
        model.network.conv1.weight.fill_(float("nan"))
    with pytest.raises(NetworkError, match=r"outputs NaN: its weights have diverged.*train\.lr=0\.01"):
        features_of(model)
