"""Write samples/digits/digits.zip: the UCI digits that scikit-learn carries, as PNG files in class folders.

Run `python samples/make_digits.py`; equal library versions give equal bytes. Other
versions of zlib may compress differently, the pixels are the same.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WHITE = 16
"""Brightest value of the UCI digits, which count the set pixels of 4x4 blocks: 0 to 16."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of every file: the earliest that a zip can hold, so that no clock gets in."""


def write(path: Path) -> int:
    """Write the zip with files `<digit>/<index>.png`, 8x8 gray, 0..255; return how many."""
    digits = load_digits()
    images_u8 = np.round(digits.images * (255 / WHITE)).astype(np.uint8)
    files = sorted(
        (f"{label}/{index:04}.png", image_u8)
        for index, (label, image_u8) in enumerate(zip(digits.target, images_u8, strict=True))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, image_u8 in files:
            png = io.BytesIO()
            Image.fromarray(image_u8).save(png, format="PNG", optimize=True)
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, also when this runs on Windows
            archive.writestr(entry, png.getvalue())  # stored: a PNG is compressed already
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the embedded sample delivery.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits" / "digits.zip")
    out = parser.parse_args().out
    print(f"{out}: {write(out):,} images")
