"""The lesson about a convolution: each printed number is true; the picture."""

import re

import numpy as np
import pytest
from PIL import Image

from convoy.explain.convolution import read_filters, read_image, work_out
from convoy.explain.convolution_lesson import FEW_SUMS, draw, lesson, number


def explained(image=None, filters=("vertical",), padding=0, mode="zero", stride=1, every_sum=False):
    worked = work_out(read_image(image), read_filters(filters), padding, mode, stride)
    return "\n".join(lesson(worked, every_sum=every_sum)), worked


def drawn(out, image=None, filters=("vertical",), padding=0):
    draw(work_out(read_image(image), read_filters(filters), padding, "replicate", 1), out)
    return out


def sums(text):
    """Read (products, total) of each printed sum back."""
    factor = r"\(?(-?[\d.]+)\)?"
    found = []
    for line in re.findall(r"^  row .*", text, re.MULTILINE):
        left, total = line.partition(":")[2].split(" = ")
        pairs = re.findall(rf"{factor}·{factor}", left)
        found.append(([(float(x), float(w)) for x, w in pairs], float(total)))
    return found


def test_every_printed_sum_adds_up_and_is_in_the_activation():
    text, worked = explained(
        "1 -2 3; 4 0.5 6; 7 8 9 | 1 0 0; 0 2 0; 0 0 3", ("1 2; -3 4 | 0 1; 1 0", "1 1; 1 1"), padding=1
    )
    printed = sums(text)
    assert [total for _, total in printed] == np.moveaxis(worked.activation, 2, 0).ravel().tolist()
    for products, total in printed:
        assert len(products) == 8
        assert sum(x * w for x, w in products) == total


def test_the_size_is_derived_with_the_numbers_put_in():
    text, _ = explained("1 2 3 4 5 6 7; 1 2 3 4 5 6 7; 1 2 3 4 5 6 7; 1 2 3 4 5 6 7", padding=1, stride=2)
    assert "floor((size + 2·padding - kernel) / stride) + 1" in text
    assert "height: floor((4 + 2·1 - 3) / 2) + 1 = 2" in text
    assert "width:  floor((7 + 2·1 - 3) / 2) + 1 = 4" in text
    assert "Activation volume 2×4×1" in text


def test_many_sums_are_cut_with_their_number_the_largest_and_the_way_to_see_them():
    large = "; ".join(" ".join(str((3 * i + 5 * j) % 7) for j in range(12)) for i in range(12))
    text, worked = explained(large)
    assert len(sums(text)) == FEW_SUMS + 1
    assert f"… and {100 - FEW_SUMS} more sums; the largest is" in text
    assert sums(text)[-1][1] == worked.activation.max()
    assert "--all prints every product of every sum." in text
    complete, _ = explained(large, every_sum=True)
    assert len(sums(complete)) == 100
    assert "--all" not in complete


def test_long_sums_are_cut_unless_all_is_asked_for():
    inputs = "1 2 3 4 5 6; " * 6, ("1 1 1 1 1 1; " * 6,)
    text, _ = explained(*inputs)
    assert "+ … 27 more = 126" in text
    assert "--all" in text
    complete, _ = explained(*inputs, every_sum=True)
    assert "more =" not in complete


def test_the_padding_is_named_and_drawn():
    text, _ = explained("7", ("identity",), padding=1)
    assert "with 1 row(s) and column(s) of zeros on every side: 3×3×1" in text
    assert "    0 0 0\n    0 7 0\n    0 0 0" in text
    text, _ = explained("7", ("identity",), padding=1, mode="replicate")
    assert "copies of its border" in text
    assert "    7 7 7\n    7 7 7" in text


def test_relu_and_pooling_are_shown_with_what_they_did():
    text, _ = explained()
    assert "ReLU, max(0, x): 10 of 25 sums are negative and become 0; the volume stays 5×5×1" in text
    assert "2×2×1; row 5 and column 5 fill no square and are dropped" in text
    assert "    3 0\n    3 0\n" in text


def test_an_activation_too_small_to_pool_is_named_so():
    text, _ = explained("1 2; 3 4", ("1 1; 1 1",))
    assert "2×2 max pooling needs 2 rows and 2 columns, and 1×1 is too small." in text


def test_the_largest_sum_is_located():
    text, _ = explained()
    assert "The largest sum is 3, at row 2, column 2 and 2 more time(s)" in text
    assert "where image and filter agree" in text.replace("\n", " ")
    text, _ = explained("0 0 0; 0 0 0; 0 0 0")
    assert "Every sum is 0: all windows agree" in text


def test_cross_correlation_is_named_with_what_the_turned_filter_would_give():
    text, _ = explained()
    assert "cross-correlation" in text
    assert "the turned filter would give -3 instead of 3 at row 2, column 2." in text
    text, _ = explained(filters=("blur",))
    assert "Here the turned filter gives the same activation." in text


def test_numbers_are_short():
    written = [number(x) for x in (0.0, -0.0, 3.0, -0.00001, 1 / 3, 0.0625, 12345.6789, 1e12)]
    assert written == ["0", "0", "3", "0", "0.3333", "0.0625", "12345.6789", "1e+12"]


def words(svg):
    """List the texts of an SVG; matplotlib draws letters as paths and keeps the text in comments."""
    return [line.strip()[5:-4] for line in svg.read_text().splitlines() if line.strip().startswith("<!-- ")]


@pytest.mark.filterwarnings("error")
def test_small_numbers_are_in_their_cells(tmp_path):
    texts = words(drawn(tmp_path / "new" / "small.svg"))
    titles = {
        "image 7×7×1",
        "filter vertical, 3×3×1",
        "activation 5×5",
        "after ReLU 5×5",
        "2×2 max pooling 2×2",
    }
    assert {title for title in titles if any(title in line for line in texts)} == titles
    assert sum(line.strip() == "3" for line in texts) == 3 + 3 + 2  # activation, ReLU, pooling


@pytest.mark.filterwarnings("error")
def test_a_photo_is_drawn_without_numbers(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    out = drawn(tmp_path / "photo.svg", str(tmp_path / "photo.png"), ("edge", "blur"), padding=1)
    texts = words(out)
    assert len(texts) < 40
    assert any("image 90×120×3, padded by 1" in line for line in texts)


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
def test_unusual_inputs_are_drawn(tmp_path, image, filters):
    with Image.open(drawn(tmp_path / "odd.png", image, filters)) as picture:
        assert picture.format == "PNG"
        assert picture.convert("L").getpixel((0, 0)) == 255
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


def test_equal_input_gives_equal_bytes(tmp_path):
    assert drawn(tmp_path / "a.png").read_bytes() == drawn(tmp_path / "b.png").read_bytes()


def test_filters_beyond_the_rows_are_counted(tmp_path):
    texts = words(drawn(tmp_path / "five.svg", filters=["edge"] * 5))
    assert any("(the first 4 of 5 filters)" in line for line in texts)
    assert sum("after ReLU" in line for line in texts) == 4


def test_zeros_are_white_not_the_colour_of_the_most_negative(tmp_path):
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
