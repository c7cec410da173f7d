"""The picture of a convolution: drawn for every kind of input, into a format that is drawn."""

import numpy as np
import pytest
from PIL import Image

from convoy.explain.convolution import work_out
from convoy.explain.convolution_input import read_filters, read_image, stack
from convoy.explain.convolution_plot import draw
from convoy.explain.filters import PaddingMode


def drawn(out, image=None, filters=("vertical",), padding=0):
    given, chosen = read_image(image), read_filters(filters)
    worked = work_out(
        given.values, stack(chosen, given.values.shape[2]), padding, PaddingMode.REPLICATE, stride=1
    )
    draw(given, chosen, worked, out)
    return out


def words(svg):
    """List what an SVG says; matplotlib draws letters as paths and keeps the text beside them."""
    return [line.strip()[5:-4] for line in svg.read_text().splitlines() if line.strip().startswith("<!-- ")]


@pytest.mark.filterwarnings("error")
def test_small_numbers_stand_in_their_cells(tmp_path):
    said = words(drawn(tmp_path / "new" / "small.svg"))
    for title in (
        "image 7×7×1",
        "filter vertical, 3×3×1",
        "activation 5×5",
        "after ReLU 5×5",
        "2×2 max pooling 2×2",
    ):
        assert any(title in line for line in said), title
    assert sum(line.strip() == "3" for line in said) == 3 + 3 + 2  # activation, ReLU, pooling


@pytest.mark.filterwarnings("error")
def test_a_photo_is_drawn_without_numbers(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    out = drawn(tmp_path / "photo.svg", str(tmp_path / "photo.png"), ("edge", "blur"), padding=1)
    said = words(out)
    assert len(said) < 40
    assert any("image 90×120×3, padded by 1" in line for line in said)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("image", "filters"),
    [
        ("1 -2; 3 4 | 5 6; 7 8", ["1 1; 0 1 | 2 0; 0 2"]),
        ("0 0 0; 0 0 0; 0 0 0", ["edge"]),
        ("5", ["2"]),
        ("1 2 3; 4 5 6; 7 8 9", ["1", "2", "3", "4", "5"]),
    ],
    ids=["channels", "zeros", "one pixel", "more filters than rows"],
)
def test_odd_inputs_are_drawn_too(tmp_path, image, filters):
    with Image.open(drawn(tmp_path / "odd.png", image, filters)) as picture:
        assert picture.format == "PNG"
        assert picture.convert("L").getpixel((0, 0)) == 255
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


def test_equal_input_gives_equal_bytes(tmp_path):
    assert drawn(tmp_path / "a.png").read_bytes() == drawn(tmp_path / "b.png").read_bytes()


def test_filters_beyond_the_rows_are_counted(tmp_path):
    said = words(drawn(tmp_path / "five.svg", filters=["edge"] * 5))
    assert any("(the first 4 of 5 filters)" in line for line in said)
    assert sum("after ReLU" in line for line in said) == 4


def test_nothing_is_drawn_white_not_as_the_most_negative(tmp_path):
    with Image.open(drawn(tmp_path / "zeros.png", filters=["0 0; 0 0"])) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    filter_panel = np.array_split(pixels, 5, axis=1)[1]
    assert np.median(filter_panel) > 240


def test_the_window_of_the_largest_sum_is_framed_in_image_and_activation(tmp_path):
    with Image.open(drawn(tmp_path / "framed.png")) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    framed = (np.abs(pixels - np.array([0xD9, 0x48, 0x0F])).sum(axis=2) < 30).any(axis=0)
    fifths = [part.any() for part in np.array_split(framed, 5)]
    assert fifths == [True, False, True, False, False]
