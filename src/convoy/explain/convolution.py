"""A convolution worked by hand: the image and filters that are typed or named, and every volume on the way.

H rows and W columns of C channels; F filters of K rows (or columns); P padding; S stride.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core.errors import DataError, RequestError
from convoy.core.params import did_you_mean
from convoy.images.decode import decode

Volume = npt.NDArray[np.float64]
PaddingMode = Literal["zero", "replicate"]


class Named(NamedTuple):
    """A filter as typed, and what it responds to."""

    weights: str
    finds: str


NAMED = {
    "edge": Named("-1 -1 -1; -1 8 -1; -1 -1 -1", "pixels that differ from their surroundings"),
    "vertical": Named("-1 0 1; -1 0 1; -1 0 1", "edges from dark, left, to bright, right"),
    "horizontal": Named("-1 -1 -1; 0 0 0; 1 1 1", "edges from dark, above, to bright, below"),
    "diagonal": Named("1 -1 -1; -1 1 -1; -1 -1 1", "strokes from top left to bottom right"),
    "sharpen": Named("0 -1 0; -1 5 -1; 0 -1 0", "the image with stronger contrasts"),
    "blur": Named("1/16 1/8 1/16; 1/8 1/4 1/8; 1/16 1/8 1/16", "the weighted mean around each pixel"),
    "emboss": Named("-2 -1 0; -1 1 1; 0 1 2", "relief, lit from the bottom right"),
    "identity": Named("0 0 0; 0 1 0; 0 0 0", "the image itself"),
}

EXAMPLE = """
0 0 0 0 0 0 0
0 0 0 1 0 0 0
0 0 1 1 0 0 0
0 0 0 1 0 0 0
0 0 0 1 0 0 0
0 0 1 1 1 0 0
0 0 0 0 0 0 0
"""
"""A binary 1: an upright stroke, whose sides give opposite signs with the filter `vertical`."""

POOL = 2
"""Side and stride of the pooled squares."""
LONGEST_SIDE_PX = 256
"""Larger files are shrunk to this, so that single pixels are visible in the picture."""
MAX_PADDING = 64
LARGEST_NUMBER = 1e6
"""Up to here every sum is exact enough to be printed."""
HOW_TO_TYPE = 'Type a matrix like "0 1 0; 1 1 1; 0 1 0", further channels after |'


@dataclass(frozen=True)
class GivenImage:
    """An image to convolve: (H, W, C) values, 0..255 from a file, as typed otherwise."""

    values: Volume
    source: str  # where it came from, and how it was changed
    is_rgb: bool = False


@dataclass(frozen=True)
class GivenFilter:
    """A filter: (KH, KW, C) weights; C is 1 for weights that all channels share."""

    name: str
    weights: Volume


@dataclass(frozen=True)
class Worked:
    """A convolution with every volume on the way from an image to its pooled activation.

    Attributes:
        weights: (F, KH, KW, C), of the filters.
        padded: (H + 2P, W + 2P, C), the input of the sums.
        activation: (H', W', F) sums of products, one map per filter.
        rectified: (H', W', F) after ReLU.
        pooled: (H'/2, W'/2, F) rounded down, after max pooling; empty where H' or W' is 1.
    """

    image: GivenImage
    filters: Sequence[GivenFilter]
    padding: int
    mode: PaddingMode
    stride: int
    weights: Volume
    padded: Volume
    activation: Volume
    rectified: Volume
    pooled: Volume

    def window(self, row: int, column: int) -> Volume:
        """Cut out the (KH, KW, C) pixels under a filter for one cell of the activation, from 0."""
        top, left = row * self.stride, column * self.stride
        height, width = self.weights.shape[1:3]
        return self.padded[top : top + height, left : left + width]

    def as_json(self) -> dict[str, Any]:
        """Return plain data: volumes as nested lists [row][column][channel]; rows and columns count from 1."""
        row, column, channel = largest(self.activation)
        maps = {"activation": self.activation, "relu": self.rectified, "max_pool": self.pooled}
        shaped = {
            name: {"shape": list(values.shape), "values": values.tolist()} for name, values in maps.items()
        }
        return {
            "operation": "cross-correlation",
            "image": {"source": self.image.source, "shape": list(self.image.values.shape)},
            "filters": [
                {"name": given.name, "weights": weights.tolist()}
                for given, weights in zip(self.filters, self.weights, strict=True)
            ],
            "padding": self.padding,
            "padding_mode": self.mode,
            "stride": self.stride,
            "largest": {
                "value": float(self.activation[row, column, channel]),
                "row": row + 1,
                "column": column + 1,
                "filter": channel + 1,
            },
            **shaped,
        }


def work_out(
    image: GivenImage, filters: Sequence[GivenFilter], padding: int, mode: PaddingMode, stride: int
) -> Worked:
    """Convolve with filters of the same size, rectify and pool.

    Raises:
        RequestError: as `convolve` and `stack`.
    """
    weights = stack(filters, image.values.shape[2])
    activation = convolve(image.values, weights, padding, mode, stride)
    rectified = np.maximum(activation, 0.0)
    volumes = weights, pad(image.values, padding, mode), activation, rectified, max_pool(rectified)
    return Worked(image, filters, padding, mode, stride, *volumes)


def convolve(image: Volume, weights: Volume, padding: int, mode: PaddingMode, stride: int) -> Volume:
    """Lay each (KH, KW, C) filter on every window of an (H, W, C) image; multiply and add up.

    The filter is not flipped: like every CNN library, this computes a cross-correlation.

    Returns:
        (H', W', F) with H' = floor((H + 2P - KH) / S) + 1, and W' likewise.

    Raises:
        RequestError: a stride below 1, a padding out of range, or a filter larger than the padded image.
    """
    if stride < 1:
        raise RequestError(f"The stride is {stride}, but must be at least 1: --stride 1")
    if not 0 <= padding <= MAX_PADDING:
        raise RequestError(
            f"The padding is {padding}, but must be from 0 to {MAX_PADDING}. A K×K filter keeps the size with "
            "(K - 1) / 2: --padding 1 for 3×3"
        )
    height, width = image.shape[:2]
    count, tall, wide = weights.shape[:3]
    lacking = max(tall - height, wide - width) - 2 * padding
    if lacking > 0:
        raise RequestError(
            f"A {tall}×{wide} filter does not fit into the {height}×{width} image with padding {padding}. "
            f"Choose a smaller filter, or --padding {padding + -(-lacking // 2)}"
        )
    padded = pad(image, padding, mode)
    rows, columns = output_size(height, tall, padding, stride), output_size(width, wide, padding, stride)
    activation = np.zeros((rows, columns, count))
    down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    for i, j in np.ndindex(tall, wide):
        # The pixels under weight (i, j), one per window: (H', W', C) times (C, F).
        pixels = padded[i : i + down : stride, j : j + right : stride]
        activation += pixels @ weights[:, i, j].T
    return activation


def output_size(size: int, kernel: int, padding: int, stride: int) -> int:
    """Count the windows along one side: floor((size + 2P - K) / S) + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def pad(image: Volume, padding: int, mode: PaddingMode) -> Volume:
    """Add rows and columns around an (H, W, C) image: zeros, or copies of its border."""
    around = ((padding, padding), (padding, padding), (0, 0))
    padded: Volume = np.pad(image, around, mode="constant" if mode == "zero" else "edge")
    return padded


def max_pool(volume: Volume) -> Volume:
    """Keep the largest of each 2×2 square of (H, W, C); an odd last row or column is dropped."""
    height, width, channels = volume.shape
    rows, columns = height // POOL, width // POOL
    squares = volume[: rows * POOL, : columns * POOL].reshape(rows, POOL, columns, POOL, channels)
    pooled: Volume = squares.max(axis=(1, 3))
    return pooled


def largest(volume: Volume) -> tuple[int, int, int]:
    """Find the row, column and channel of the largest value, the first of several; from 0."""
    row, column, channel = np.unravel_index(int(volume.argmax()), volume.shape)
    return int(row), int(column), int(channel)


def read_image(text: str | None) -> GivenImage:
    """Read an image from a file or a typed matrix; None is the built-in example.

    Raises:
        RequestError: the file does not exist, or the matrix cannot be read.
        DataError: the file is not an image.
    """
    if text is None:
        return GivenImage(matrix(EXAMPLE, "The example"), "the built-in example, a 1")
    if _is_typed(text):
        return GivenImage(matrix(text, "The image"), "typed")
    path = Path(text)
    try:
        image_u8 = decode(path.read_bytes()).image_u8
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read as an image file: {error.strerror}. Name another file. {HOW_TO_TYPE}."
        ) from error
    except DataError as error:
        raise DataError(f"{path} {error}. Name another image, or omit it for the example.") from error
    picture = Image.fromarray(image_u8)
    height, width = image_u8.shape[:2]
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BILINEAR)
    source = str(path) if picture.size == (width, height) else f"{path}, shrunk from {height}×{width}"
    values = np.asarray(picture).astype(np.float64)
    if (values == values[:, :, :1]).all():
        return GivenImage(values[:, :, :1], f"{source}; gray, so one channel")
    return GivenImage(values, source, is_rgb=True)


def read_filters(texts: Sequence[str]) -> list[GivenFilter]:
    """Read filters by name or typed; all of the same size, as in a layer.

    Raises:
        RequestError: an unknown name, a matrix that cannot be read, or sizes that differ.
    """
    filters = []
    for number, text in enumerate(texts, start=1):
        if text in NAMED:
            filters.append(GivenFilter(text, matrix(NAMED[text].weights, f"The filter {text}")))
        elif _is_typed(text):
            name = f"typed {number}" if len(texts) > 1 else "typed"
            filters.append(GivenFilter(name, matrix(text, "The filter")))
        else:
            raise RequestError(
                f"There is no filter `{text}`{did_you_mean(text, NAMED)}. "
                'Or type its weights: --filter "0 -1 0; -1 5 -1; 0 -1 0"'
            )
    sizes = sorted({f"{given.weights.shape[0]}×{given.weights.shape[1]}" for given in filters})
    if len(sizes) > 1:
        raise RequestError(
            f"The filters measure {' and '.join(sizes)}, but those of a layer have the same size. "
            "Run the command once for each size."
        )
    return filters


def stack(filters: Sequence[GivenFilter], channels: int) -> Volume:
    """Stack filters as deep as the image, (F, KH, KW, C), repeating weights that all channels share.

    Raises:
        RequestError: a filter whose planes are neither one nor as many as the channels.
    """
    for given in filters:
        planes = given.weights.shape[2]
        if planes not in (1, channels):
            raise RequestError(
                f"The filter {given.name} has {planes} planes, but the image {channels} channel(s). "
                "Type one plane per channel, separated by |, or a single plane for all channels."
            )
    return np.stack(
        [np.broadcast_to(given.weights, (*given.weights.shape[:2], channels)) for given in filters]
    )


def matrix(text: str, label: str) -> Volume:
    """Parse typed numbers as (H, W, C): rows end with `;` or a new line, channels are separated by `|`.

    Args:
        text: decimal numbers or fractions such as 1/9, separated by spaces.
        label: starts the message of an error, such as `The filter`.

    Raises:
        RequestError: a word that is not a number, rows or channels of different size, no numbers.
    """
    planes = [_plane(plane, label) for plane in text.split("|")]
    shapes = sorted({(len(plane), len(plane[0])) for plane in planes})
    if len(shapes) > 1:
        sizes = " and ".join(f"{rows}×{columns}" for rows, columns in shapes)
        raise RequestError(
            f"{label} has channels of {sizes}, but they must have the same size. {HOW_TO_TYPE}."
        )
    return np.moveaxis(np.array(planes, dtype=np.float64), 0, 2)


def _is_typed(text: str) -> bool:
    """Tell a matrix, even an invalid one, from a name: it has rows or starts with a number."""
    return ";" in text or _number(next(iter(text.split()), "")) is not None


def _plane(text: str, label: str) -> list[list[float]]:
    """Parse the rows of one channel."""
    rows: list[list[float]] = []
    for line in text.replace("\n", ";").split(";"):
        row = []
        for word in line.split():
            number = _number(word)
            if number is None:
                raise RequestError(
                    f"{label} holds `{word}`, which is not a number from {-LARGEST_NUMBER:,.0f} to "
                    f"{LARGEST_NUMBER:,.0f}. {HOW_TO_TYPE}."
                )
            row.append(number)
        if row:  # a `;` or a new line at the end starts no row
            rows.append(row)
    if not rows:
        raise RequestError(f"{label} holds no numbers. {HOW_TO_TYPE}.")
    for index, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise RequestError(
                f"{label} is ragged: row 1 has {len(rows[0])} number(s), row {index} has {len(row)}. {HOW_TO_TYPE}."
            )
    return rows


def _number(word: str) -> float | None:
    """Parse a decimal number or a fraction; None where it is neither, or too large."""
    above, divided, below = word.partition("/")
    try:
        number = float(above) / float(below) if divided else float(above)
    except (ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST_NUMBER else None
