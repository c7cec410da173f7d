import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convoy.core.errors import NetworkError
from convoy.evaluation import feature_maps, feature_page
from convoy.models import build, torchvision
from convoy.models.deployable import NormalizedModel
from convoy.models.spec import Spec

HEAD = ["global_avg_pool", "flatten", {"dense": "classes"}]
RNG = np.random.default_rng(0)


def noise(px):
    return RNG.integers(0, 256, (px, px, 3), dtype=np.uint8)


def deployable(network, mean=(0.5, 0.4, 0.3)):
    return NormalizedModel(network.eval(), mean, [0.25] * 3)


def of(layers, px=32, **more):
    torch.manual_seed(0)
    return deployable(build.build(Spec.model_validate({"name": "tiny", "layers": layers}), 2, px), **more)


def of_torchvision(name, px):
    torch.manual_seed(0)
    return deployable(torchvision.make(name, 2, px))


def conv(filters, **more):
    return {"conv": {"filters": filters, "kernel": 3, "padding": "same", **more}}


def found_in(model, px=32):
    image_u8 = noise(px)
    return image_u8, feature_maps.find(model, [image_u8])


def page_of(model, tmp_path, px=32, classes=("cat", "dog"), **subject):
    image_u8, found = found_in(model, px)
    subjects = [feature_page.Subject(**{"source": "some/image.png", "image_u8": image_u8} | subject)]
    feature_page.write(tmp_path / "page.html", "tiny", list(classes), subjects, found)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def normalised(model, image_u8):
    return (torch.from_numpy(image_u8).permute(2, 0, 1)[None] / 255 - model.mean) / model.std


def assert_maps_are_of(volume, maps):
    assert len(maps) == min(8, volume.shape[1])
    for one in maps:
        np.testing.assert_allclose(one.values, volume[0, one.channel].numpy(), rtol=1e-5, atol=1e-6)


def test_a_map_is_what_norm_and_activation_made_of_the_convolution():
    model = of([conv(4), "norm", "relu", {"max_pool": 2}, conv(6), {"leaky_relu": 0.1}, *HEAD])
    image_u8, found = found_in(model)
    net = model.network
    with torch.no_grad():
        low = net.relu1(net.norm1(net.conv1(normalised(model, image_u8))))
        high = net.leaky_relu1(net.conv2(net.max_pool1(low)))
        answer = model(torch.from_numpy(image_u8).permute(2, 0, 1)[None].float()).softmax(1)[0]

    assert_maps_are_of(low, found.images[0].strongest["low"])
    assert_maps_are_of(high, found.images[0].strongest["high"])
    assert found.layers["low"].operations == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert found.layers["high"].volume == (6, 16, 16)
    np.testing.assert_allclose(found.images[0].probabilities, answer, rtol=1e-5)


def test_a_map_at_the_end_of_a_residual_is_the_sum_that_goes_on():
    residual = {"residual": [conv(4), "norm"]}
    model = of([conv(4), residual, "relu", {"residual": [conv(4)]}, *HEAD])
    image_u8, found = found_in(model)
    net = model.network
    with torch.no_grad():
        middle = net.relu1(net.residual1(net.conv1(normalised(model, image_u8))))
        high = net.residual2(middle)

    assert [layer.name for layer in found.layers.values()] == ["conv1", "residual1", "residual2"]
    assert found.layers["middle"].operations == ["Sum", "ReLU"]
    assert_maps_are_of(middle, found.images[0].strongest["middle"])
    assert_maps_are_of(high, found.images[0].strongest["high"])


def test_layers_that_write_in_place_do_not_spoil_the_maps():
    model = of_torchvision("resnet18", 32)
    image_u8, found = found_in(model)
    net = model.network
    with torch.no_grad():
        low = net.relu(net.bn1(net.conv1(normalised(model, image_u8))))
        high = net.layer2(net.layer1(net.maxpool(low.clone())))

    assert found.layers["high"].name == "layer2.1"
    assert_maps_are_of(low, found.images[0].strongest["low"])
    assert_maps_are_of(high, found.images[0].strongest["high"])


def test_what_is_written_over_a_map_later_does_not_reach_it():
    class Overwriting(nn.Sequential):
        def forward(self, volume):
            made = self[0](volume)
            answer = self[2](self[1](made))
            made.zero_()
            return answer

    model = deployable(Overwriting(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    image_u8, found = found_in(model)
    with torch.no_grad():
        assert_maps_are_of(model.network[0](normalised(model, image_u8)), found.images[0].strongest["low"])


def test_the_drawn_maps_alone_stay_in_memory_not_their_volumes():
    found = found_in(of([conv(4), "relu", *HEAD]))[1]
    assert all(one.values.base is None for one in found.images[0].strongest["low"])


def test_maps_too_small_to_show_a_shape_are_passed_over():
    found = found_in(of_torchvision("resnet18", 32))[1]
    assert [layer.volume[1:] for layer in found.layers.values()] == [(16, 16), (4, 4), (4, 4)]
    assert found.passed_over
    assert not found_in(of([conv(4), "relu", *HEAD]))[1].passed_over


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
        feature_maps.Layer(f"conv{n}", f"conv{n}", ["Conv2d"], (4, side, side), (f"conv{n}", 0))
        for n, side in enumerate(sides)
    ]
    assert [layers.index(one) for one in feature_maps.choose(layers).values()] == picked


@pytest.mark.parametrize(
    ("name", "px", "names"),
    [
        ("vit_b_16", 32, ["conv_proj"]),
        ("googlenet", 64, ["conv1", "inception4b.branch2.0", "inception4e.branch4.1"]),
        ("squeezenet1_1", 64, ["features.0", "features.4.expand3x3", "features.7.expand3x3"]),
        ("mobilenet_v3_small", 128, ["features.0.0", "features.6", "features.12.0"]),
    ],
)
def test_torchvisions_families_are_looked_into(name, px, names):
    found = found_in(of_torchvision(name, px), px)[1]
    assert [layer.name for layer in found.layers.values()] == names
    for depth, layer in found.layers.items():
        assert found.images[0].strongest[depth][0].values.shape == layer.volume[1:]


def test_an_activation_that_is_no_module_is_in_the_map():
    found = found_in(of_torchvision("googlenet", 64), 64)[1]  # its BasicConv2d calls relu as a function
    assert found.layers["low"].operations == ["BasicConv2d"]
    assert min(one.values.min() for one in found.images[0].strongest["low"]) == 0


def test_a_convolution_with_uneven_padding_keeps_its_own_name():
    found = found_in(of([conv(4, stride=2), "relu", *HEAD]))[1]
    assert found.layers["low"].name == "conv1"
    assert found.layers["low"].operations == ["Conv2d", "ReLU"]
    assert found.filters.shape == (4, 3, 3, 3)


def test_the_strongest_map_has_the_largest_value_inside_the_border():
    model = of([{"conv": {"filters": 2, "kernel": 1, "bias": False}}, *HEAD], mean=(0, 0, 0))
    with torch.no_grad():
        model.network.conv1.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]).view(2, 3, 1, 1))
    image_u8 = np.zeros((32, 32, 3), np.uint8)
    image_u8[1, 30, 0] = 255
    image_u8[2, 29, 1] = 51
    (red_at_the_border, green_inside) = (0, 1)
    maps = feature_maps.find(model, [image_u8]).images[0].strongest["low"]
    assert [one.channel for one in maps] == [green_inside, red_at_the_border]
    assert [one.strength for one in maps] == pytest.approx([0.2 / 0.25, 0])


def test_the_filters_are_the_first_convolutions_weights():
    model = of([conv(5), "relu", *HEAD])
    found = found_in(model)[1]
    weights = model.network.conv1.weight.detach()
    assert found.first == "conv1"
    np.testing.assert_array_equal(found.filters[4, 0, 2], weights[4, :, 0, 2])


def test_no_hook_stays_behind():
    model = of([conv(4), "relu", *HEAD])
    found_in(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_answers_with_nan_is_refused_with_the_remedy():
    model = of([conv(4), "relu", *HEAD])
    with torch.no_grad():
        model.network.conv1.weight.fill_(float("nan"))
    with pytest.raises(NetworkError, match=r"answers with NaN: its weights have diverged.*train\.lr=0\.01"):
        found_in(model)


def test_the_page_needs_nothing_beside_itself_and_stays_below_a_megabyte(tmp_path):
    deep = [conv(16), "relu", conv(16), "relu", conv(16), "relu", *HEAD]
    page = page_of(
        of(deep, px=224), tmp_path, px=224
    )  # noise, and three volumes of full size: the worst case
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"|url\(([^)]*)\)', page)
    assert len(links) == 1 + 16 + 3 * 8
    assert all("".join(link).startswith("data:image/png;base64,") for link in links)
    assert "<script" not in page
    assert len(page) < 1_000_000


def test_names_are_text_in_the_page_and_never_markup(tmp_path):
    page = page_of(
        of([conv(4), "relu", *HEAD]), tmp_path, classes=("<b>cat</b>", "a & b"), source="<i>x</i>.png"
    )
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_the_page_shows_the_image_as_the_network_sees_it(tmp_path):
    image_u8 = noise(32)
    page = page_of(of([conv(4), "relu", *HEAD]), tmp_path, image_u8=image_u8)
    np.testing.assert_array_equal(decoded(re.search(r"--image: url\(([^)]*)\)", page)[1]), image_u8)


def test_a_map_is_black_at_0_and_below_and_white_at_its_largest_value():
    values = np.array([[-1.0, 0.0], [1.0, 2.0]], np.float32)
    drawn = decoded(feature_page._map(feature_maps.ActivationMap(0, 2.0, values)))
    assert drawn.tolist() == [[0, 0], [128, 255]]
    silent = decoded(feature_page._map(feature_maps.ActivationMap(0, 0.0, np.zeros((2, 2), np.float32))))
    assert not silent.any()


def test_a_filter_is_gray_at_0_and_full_at_its_largest_weight_of_either_sign():
    weights = np.array([[[0.0, 0.5, -0.5]], [[0.25, 0, 0]]], np.float32)
    assert decoded(feature_page._filter(weights))[:, 0].tolist() == [[128, 255, 0], [191, 128, 128]]


def test_gray_images_show_the_sum_of_the_weights_over_the_colours(tmp_path):
    model = of([{"conv": {"filters": 1, "kernel": [1, 2]}}, *HEAD], mean=(0.3, 0.3, 0.3))
    with torch.no_grad():
        model.network.conv1.weight.copy_(torch.tensor([[1.0, 1, 0], [-2, -2, 0]]).T.view(1, 3, 1, 2))
    page = page_of(model, tmp_path)
    assert "learned from gray images" in page
    assert decoded(re.search(r'<img src="([^"]*)" alt="Filter 0"', page)[1]).tolist() == [
        [[191] * 3, [0] * 3]
    ]


def test_filters_that_see_one_colour_each_are_drawn_too(tmp_path):
    page = page_of(of([conv(6, groups=3), "relu", *HEAD]), tmp_path)
    assert "on one colour each" in page
    assert page.count('alt="Filter') == 6


def test_a_thousand_filters_are_cut_and_said_to_be(tmp_path):
    page = page_of(of([conv(97), "relu", *HEAD]), tmp_path)
    assert re.search(r"The first 96 of\s+97 filters", page)
    assert page.count('alt="Filter') == 96


def test_a_network_without_convolutions_says_that_there_is_nothing_to_see(tmp_path):
    page = page_of(of(["flatten", {"dense": "classes"}]), tmp_path)
    assert "has no convolution, so there are neither filters nor maps to see" in page
    assert "How to read the maps" not in page


def test_a_transformers_page_says_why_there_are_no_deeper_maps(tmp_path):
    page = page_of(of([{"conv": {"filters": 4, "kernel": 16, "stride": 16}}, *HEAD]), tmp_path)
    assert re.search(r"has 1 convolution, so .* what follows works on tokens", page, re.DOTALL)


def test_a_known_class_shows_whether_the_answer_was_right(tmp_path):
    model = of([conv(4), "relu", *HEAD])
    with torch.no_grad():
        model.network.dense1.bias.copy_(torch.tensor([9.0, 0.0]))
    assert 'class="said right"' in page_of(model, tmp_path, actual="cat")
    assert 'class="said wrong"' in page_of(model, tmp_path, actual="dog")
    assert 'class="said"' in page_of(model, tmp_path)
