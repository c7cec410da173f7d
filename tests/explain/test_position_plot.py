import numpy as np
import pytest
from PIL import Image

from convoy.explain.position import digits
from convoy.explain.position_plot import draw
from convoy.explain.position_verdict import Pair, Verdict


@pytest.fixture(scope="module")
def sheets():
    return digits(seed=1)


def verdict(shuffled):
    return Verdict(
        Pair((0.97, 0.98, 0.99), (shuffled,) * 3, 0.001), Pair((0.9,) * 3, (0.9,) * 3, 0.001), (1, 2, 3)
    )


@pytest.mark.filterwarnings("error")
def test_the_picture_follows_the_accuracies_and_names_neither_date_nor_version(sheets, tmp_path):
    for name, accuracy in (("a", 0.8), ("b", 0.8), ("c", 0.3)):
        for kind in ("png", "svg"):
            draw(sheets, verdict(accuracy), tmp_path / kind / f"{name}.{kind}")
    picture = Image.open(tmp_path / "png" / "a.png")
    assert picture.format == "PNG"
    assert "Software" not in picture.info
    assert np.asarray(picture.convert("L"))[0, 0] == 255
    a, b, c = ((tmp_path / "png" / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
    svg = (tmp_path / "svg" / "a.svg").read_bytes()
    assert b"<svg" in svg
    assert b"<dc:date>" not in svg
