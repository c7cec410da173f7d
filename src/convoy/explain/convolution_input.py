"""Read what a convolution is asked for: an image file, a typed matrix, filters by name or typed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convoy.core.errors import DataError, RequestError
from convoy.core.params import did_you_mean
from convoy.explain.convolution import Volume
from convoy.explain.filters import NAMED
from convoy.images.decode import decode

EXAMPLE = """
0 0 0 0 0 0 0
0 0 0 1 0 0 0
0 0 1 1 0 0 0
0 0 0 1 0 0 0
0 0 0 1 0 0 0
0 0 1 1 1 0 0
0 0 0 0 0 0 0
"""
"""A binary 1: an upright stroke, whose sides the filter `vertical` answers with opposite signs."""

LONGEST_SIDE_PX = 256
"""Larger files are shrunk to this, so that single pixels can be seen in the picture."""

MOST_PADDING = 64
"""More would be a frame, and much more would fill the memory."""

LARGEST_NUMBER = 1e6
"""Up to here every sum is exact enough to be printed."""

HOW_TO_TYPE = 'A matrix is typed like "0 1 0; 1 1 1; 0 1 0", one more channel after |'


@dataclass(frozen=True)
class GivenImage:
    """Hold an image to convolve.

    Attributes:
        values: (H, W, C); 0..255 from a file, as typed otherwise.
        source: where it came from, and what was done to it.
        is_rgb: whether the channels are red, green and blue from a file.
    """

    values: Volume
    source: str
    is_rgb: bool = False


@dataclass(frozen=True)
class GivenFilter:
    """Hold one filter: (KH, KW, C) weights, where C is 1 for one that serves every channel alike."""

    name: str
    weights: Volume


def read_image(text: str | None) -> GivenImage:
    """Take an image from a file or from what was typed; without either, the built-in example.

    Raises:
        RequestError: no such file, or a matrix that cannot be read.
        DataError: the file is no image.
    """
    if text is None:
        return GivenImage(matrix(EXAMPLE, "The example"), "the built-in example, a 1")
    if _is_typed(text):
        return GivenImage(matrix(text, "The image"), "typed")
    return _from_file(Path(text))


def read_filters(texts: Sequence[str]) -> list[GivenFilter]:
    """Take filters by name or typed; all of one size, as in one layer.

    Raises:
        RequestError: an unknown name, a matrix that cannot be read, or sizes that differ.
    """
    given = [
        _filter(text, f"typed {place}" if len(texts) > 1 else "typed")
        for place, text in enumerate(texts, start=1)
    ]
    sizes = {f"{one.weights.shape[0]}×{one.weights.shape[1]}" for one in given}
    if len(sizes) > 1:
        raise RequestError(
            f"The filters measure {' and '.join(sorted(sizes))}; those of one layer have one size. "
            "Run the command once for each."
        )
    return given


def stack(filters: Sequence[GivenFilter], channels: int) -> Volume:
    """Make filters as deep as the image: (F, KH, KW, C); one plane of weights serves every channel.

    Raises:
        RequestError: a filter whose planes are neither one nor as many as the channels.
    """
    for one in filters:
        planes = one.weights.shape[2]
        if planes not in (1, channels):
            raise RequestError(
                f"The filter {one.name} has {planes} planes and the image {channels} channel(s). "
                "Type one plane for every channel, divided by |, or a single one that serves them all."
            )
    deep = [np.broadcast_to(one.weights, (*one.weights.shape[:2], channels)) for one in filters]
    return np.stack(deep)


def check_padding(padding: int) -> None:
    """Refuse a padding that would fill the memory.

    Raises:
        RequestError: it is larger than is worked out here.
    """
    if padding > MOST_PADDING:
        raise RequestError(
            f"The padding is {padding}; at most {MOST_PADDING} is worked out here, and a K×K filter that "
            "keeps the size wants (K - 1) / 2: --padding 1 for 3×3"
        )


def matrix(text: str, what: str) -> Volume:
    """Read typed numbers as (H, W, C): rows end with `;` or a new line, channels are divided by `|`.

    Args:
        text: decimal numbers or fractions such as 1/9, divided by spaces.
        what: begins the message of an error, such as `The filter`.

    Raises:
        RequestError: what is no number, rows or channels of different size, nothing at all.
    """
    planes = [_plane(plane, what) for plane in text.split("|")]
    shapes = {(len(plane), len(plane[0])) for plane in planes}
    if len(shapes) > 1:
        found = " and ".join(f"{rows}×{columns}" for rows, columns in sorted(shapes))
        raise RequestError(f"{what} has channels of {found}; they must be of one size. {HOW_TO_TYPE}.")
    return np.moveaxis(np.array(planes, dtype=np.float64), 0, 2)


def _is_typed(text: str) -> bool:
    """Tell a matrix, even a wrong one, from a name: it has rows or begins with a number."""
    return ";" in text or _number(next(iter(text.split()), "")) is not None


def _plane(text: str, what: str) -> list[list[float]]:
    """Read the rows of one channel."""
    rows = []
    for line in text.replace("\n", ";").split(";"):
        words = line.split()
        numbers = [_number(word) for word in words]
        for word, number in zip(words, numbers, strict=True):
            if number is None:
                raise RequestError(
                    f"{what} holds `{word}`, which is no number from {-LARGEST_NUMBER:,.0f} to "
                    f"{LARGEST_NUMBER:,.0f}. {HOW_TO_TYPE}."
                )
        rows.append([number for number in numbers if number is not None])
    rows = [row for row in rows if row]  # a `;` or a new line at the end begins no row
    if not rows:
        raise RequestError(f"{what} holds no numbers. {HOW_TO_TYPE}.")
    for place, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise RequestError(
                f"{what} is ragged: row 1 has {len(rows[0])} number(s), row {place} has {len(row)}. "
                f"{HOW_TO_TYPE}."
            )
    return rows


def _number(word: str) -> float | None:
    """Read a decimal number or a fraction; nothing where it is neither, or too large."""
    above, divided, below = word.partition("/")
    try:
        number = float(above) / float(below) if divided else float(above)
    except (ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST_NUMBER else None


def _filter(text: str, name_if_typed: str) -> GivenFilter:
    """Take one filter by name, or read its weights."""
    if text in NAMED:
        return GivenFilter(text, matrix(NAMED[text].weights, f"The filter {text}"))
    if not _is_typed(text):
        raise RequestError(
            f"There is no filter `{text}`{did_you_mean(text, NAMED)}. "
            'Or type its weights: --filter "0 -1 0; -1 5 -1; 0 -1 0"'
        )
    return GivenFilter(name_if_typed, matrix(text, "The filter"))


def _from_file(path: Path) -> GivenImage:
    """Decode a file, shrink it, and drop two of three equal channels."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read as an image file: {error.strerror}. Name another file. {HOW_TO_TYPE}."
        ) from error
    try:
        image_u8 = decode(content).image_u8
    except DataError as error:
        raise DataError(f"{path} {error}. Name another image, or leave it out for the example.") from error
    picture = Image.fromarray(image_u8)
    was = f"{picture.height}×{picture.width}"
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BILINEAR)
    source = str(path) if f"{picture.height}×{picture.width}" == was else f"{path}, shrunk from {was}"
    values = np.asarray(picture).astype(np.float64)
    if (values == values[:, :, :1]).all():
        return GivenImage(values[:, :, :1], f"{source}; gray, so one channel")
    return GivenImage(values, source, is_rgb=True)
