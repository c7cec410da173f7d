import io

import numpy as np
import pytest
from PIL import Image

from convoy.evaluation import picture


@pytest.mark.parametrize(
    "classes",
    [
        ["0", "1"],
        ["costs $5", "$\\frac{$", "a name that is much longer than its axis"],
        [f"class {k}" for k in range(300)],
    ],
    ids=["two", "formulas", "many"],
)
@pytest.mark.filterwarnings("error")
def test_any_class_names_and_numbers_can_be_drawn(classes):
    counts = np.eye(len(classes), dtype=np.int64) * 3
    for dark in (False, True):
        image = Image.open(io.BytesIO(picture.draw(counts, classes, dark=dark)))
        assert image.format == "PNG"
        assert max(image.size) <= 2000


def test_equal_counts_give_equal_bytes():
    counts = np.array([[3, 1], [0, 4]])
    assert picture.draw(counts, ["a", "b"]) == picture.draw(counts, ["a", "b"])


def test_the_dark_picture_stands_on_dark_paper():
    counts = np.eye(2, dtype=np.int64)
    corner = {
        dark: Image.open(io.BytesIO(picture.draw(counts, ["a", "b"], dark=dark)))
        .convert("L")
        .getpixel((0, 0))
        for dark in (False, True)
    }
    assert corner[False] > 200
    assert corner[True] < 60
