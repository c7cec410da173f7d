import io
import runpy
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SAMPLES = Path(__file__).parents[2] / "samples"


def pixels(path: Path) -> dict[str, list]:
    with zipfile.ZipFile(path) as archive:
        return {
            name: np.asarray(Image.open(io.BytesIO(archive.read(name)))).tolist()
            for name in archive.namelist()
        }


def test_making_the_sample_again_gives_equal_pixels(tmp_path):
    make = runpy.run_path(str(SAMPLES / "make_digits.py"))
    assert make["write"](tmp_path / "digits.zip") == 1797
    assert pixels(tmp_path / "digits.zip") == pixels(SAMPLES / "digits" / "digits.zip")


def test_making_the_sample_twice_gives_equal_bytes(tmp_path):
    make = runpy.run_path(str(SAMPLES / "make_digits.py"))
    for name in ("a.zip", "b.zip"):
        make["write"](tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_sample_holds_the_digits_under_their_labels():
    digits = load_digits()
    found = pixels(SAMPLES / "digits" / "digits.zip")
    assert list(found) == sorted(found)
    for index in (0, 1, 777, 1796):
        expected = np.round(digits.images[index] * 255 / 16).astype(int).tolist()
        assert found[f"{digits.target[index]}/{index:04}.png"] == expected


def test_the_sample_folder_holds_nothing_but_the_archive_and_its_licence_lies_beside():
    assert [path.name for path in (SAMPLES / "digits").iterdir()] == ["digits.zip"]
    licence = (SAMPLES / "LICENSE-digits.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in licence
    assert "E. Alpaydin and C. Kaynak" in licence
