"""The picture of a network's volumes."""

import numpy as np
import pytest
from PIL import Image

from convoy.explain.diagram import LINE, boxes, draw
from convoy.explain.table import tabulate
from convoy.models import spec
from convoy.models.spec import Spec
from network_specs import SHIPPED, made_for

DOTS_PER_INCH = 120


def boxes_of(name):
    return boxes(tabulate(*made_for(name)))


def has_margins(path):
    """Return whether no ink reaches the edge, where it would be cut off."""
    with Image.open(path) as image:
        left, top, right, bottom = image.convert("L").point(lambda value: 255 * (value < 250)).getbbox()
        return left > 0 and top > 0 and right < image.width and bottom < image.height


def ink(image):
    """Compute the share of pixels below the title that are drawn."""
    drawn = np.asarray(image.convert("L"))[int(0.45 * DOTS_PER_INCH) :] < 250
    return drawn.mean()


def test_lenet5_is_its_eight_volumes():
    assert [(box.caption, box.volume) for box in boxes_of("lenet5")] == [
        ("image", (32, 32, 3)),
        ("conv\n5×5", (28, 28, 6)),
        ("max pool\n2×2", (14, 14, 6)),
        ("conv\n5×5", (10, 10, 16)),
        ("max pool\n2×2", (5, 5, 16)),
        ("dense", (1, 1, 120)),
        ("dense", (1, 1, 84)),
        ("dense", (1, 1, 10)),
    ]


def test_blocks_of_one_convolution_are_that_convolution_and_stages_are_taken_apart():
    vgg = boxes_of("vgg16")
    assert [box.caption for box in vgg[:4]] == ["image", "conv\n3×3", "conv\n3×3", "max pool\n2×2"]
    resnet = boxes_of("resnet50")
    assert sum(box.colour == "unit" for box in resnet) == 3 + 4 + 6 + 3
    assert [box.volume for box in resnet[-3:]] == [(7, 7, 2048), (1, 1, 2048), (1, 1, 1000)]


def test_auxiliary_heads_are_left_out():
    assert [box.volume for box in boxes_of("googlenet")].count((1, 1, 1000)) == 1


@pytest.mark.parametrize("name", ["lenet5", "vgg19", "inception_v3", "resnet50"])
def test_shipped_networks_are_drawn_within_the_page(name, tmp_path):
    picture = draw(tabulate(*made_for(name)), tmp_path / "network.png")
    assert has_margins(picture)
    with Image.open(picture) as image:
        assert image.width / DOTS_PER_INCH < 1.2 * LINE
        assert ink(image) > 0.01, "only the title is drawn"


def test_the_title_of_a_short_network_fits_too(tmp_path):
    read = Spec.model_validate({"name": "a_dense_layer_alone", "layers": ["flatten", {"dense": "classes"}]})
    assert has_margins(draw(tabulate(read, 10, 32), tmp_path / "network.png"))


def test_an_svg_is_the_same_each_time(tmp_path):
    read = spec.load("lenet5", SHIPPED)
    first = draw(tabulate(read, 10, 32), tmp_path / "new" / "a.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert draw(tabulate(read, 10, 32), tmp_path / "b.svg").read_bytes() == first


def test_torchvisions_networks_are_drawn_by_their_units(tmp_path):
    read = Spec(name="mobilenet_v3_small", torchvision="mobilenet_v3_small")
    drawn = boxes(tabulate(read, 10, 64))
    assert [box.volume for box in drawn[:2]] == [(64, 64, 3), (32, 32, 16)]
    assert sum(box.caption == "InvertedResidual" for box in drawn) == 11
    assert draw(tabulate(read, 10, 64), tmp_path / "network.png").stat().st_size > 10_000
