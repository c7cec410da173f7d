"""What the lesson says, and that what it says is true."""

import re

import numpy as np

from convoy.explain.convolution import work_out
from convoy.explain.convolution_input import read_filters, read_image, stack
from convoy.explain.convolution_text import FEW_SUMS, lesson, number
from convoy.explain.filters import PaddingMode


def told(image=None, filters=("vertical",), padding=0, mode=PaddingMode.ZERO, stride=1, every_sum=False):
    given, chosen = read_image(image), read_filters(filters)
    worked = work_out(given.values, stack(chosen, given.values.shape[2]), padding, mode, stride)
    return "\n".join(lesson(given, chosen, worked, mode, every_sum=every_sum)), worked


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
    text, worked = told(
        "1 -2 3; 4 0.5 6; 7 8 9 | 1 0 0; 0 2 0; 0 0 3", ("1 2; -3 4 | 0 1; 1 0", "1 1; 1 1"), padding=1
    )
    printed = sums(text)
    assert [total for _, total in printed] == np.moveaxis(worked.activation, 2, 0).ravel().tolist()
    for products, total in printed:
        assert len(products) == 8
        assert sum(x * w for x, w in products) == total


def test_the_size_is_derived_with_the_numbers_put_in():
    text, _ = told("1 2 3 4 5 6 7; 1 2 3 4 5 6 7; 1 2 3 4 5 6 7; 1 2 3 4 5 6 7", padding=1, stride=2)
    assert "floor((size + 2·padding - kernel) / stride) + 1" in text
    assert "height: floor((4 + 2·1 - 3) / 2) + 1 = 2" in text
    assert "width:  floor((7 + 2·1 - 3) / 2) + 1 = 4" in text
    assert "Activation volume 2×4×1" in text


def test_many_sums_are_cut_with_their_number_the_largest_and_the_way_to_see_them():
    large = "; ".join(" ".join(str((3 * i + 5 * j) % 7) for j in range(12)) for i in range(12))
    text, worked = told(large)
    assert len(sums(text)) == FEW_SUMS + 1
    assert f"… and {100 - FEW_SUMS} more sums, the largest of which is" in text
    assert sums(text)[-1][1] == worked.activation.max()
    assert "--all prints every product of every sum." in text
    complete, _ = told(large, every_sum=True)
    assert len(sums(complete)) == 100
    assert "--all" not in complete


def test_long_sums_are_cut_unless_all_is_asked_for():
    planes = "|".join(["1 2 3 4 5 6; " * 6] * 1)
    filter_ = "1 1 1 1 1 1; " * 6
    text, _ = told(planes, (filter_,))
    assert "+ … 27 more = 126" in text
    assert "--all" in text
    complete, _ = told(planes, (filter_,), every_sum=True)
    assert "more =" not in complete


def test_the_padding_is_named_and_drawn():
    text, _ = told("7", ("identity",), padding=1)
    assert "with 1 row(s) and column(s) of zeros on every side: 3×3×1" in text
    assert "    0 0 0\n    0 7 0\n    0 0 0" in text
    text, _ = told("7", ("identity",), padding=1, mode=PaddingMode.REPLICATE)
    assert "copies of its border" in text
    assert "    7 7 7\n    7 7 7" in text


def test_relu_and_pooling_are_shown_with_what_they_did():
    text, _ = told()
    assert "ReLU, max(0, x): 10 of 25 sums are negative and become 0; the volume stays 5×5×1" in text
    assert "the largest of each square, 2×2×1; row 5 and column 5 fill no square and are left out" in text
    assert "    3 0\n    3 0\n" in text


def test_an_activation_too_small_to_pool_says_so():
    text, _ = told("1 2; 3 4", ("1 1; 1 1",))
    assert "2×2 max pooling needs 2 rows and 2 columns, and 1×1 is too small." in text


def test_the_largest_sum_is_placed():
    text, _ = told()
    assert "The largest sum is 3, at row 2, column 2 and 2 more time(s)" in text
    assert "where image and filter agree" in text.replace("\n", " ")
    text, _ = told("0 0 0; 0 0 0; 0 0 0")
    assert "Every sum is 0: no window agrees" in text


def test_cross_correlation_is_named_with_what_the_turned_filter_would_give():
    text, _ = told()
    assert "cross-correlation" in text
    assert "the turned filter would give -3 instead of 3 at row 2, column 2." in text
    text, _ = told(filters=("blur",))
    assert "Here the turned filter gives the same activation." in text


def test_numbers_are_short():
    written = [number(x) for x in (0.0, -0.0, 3.0, -0.00001, 1 / 3, 0.0625, 12345.6789, 1e12)]
    assert written == ["0", "0", "3", "0", "0.3333", "0.0625", "12345.6789", "1e+12"]
