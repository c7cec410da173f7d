"""Measure the statistics of one image: checks, report and data drift use them."""

import math
from array import array
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

STATISTICS = (
    "brightness",
    "contrast",
    "sharpness",
    "colourfulness",
    "red",
    "green",
    "blue",
    "width",
    "height",
    "aspect",
    "file_size",
    "bytes_per_pixel",
)
"""What `measure` returns, in this order.

Brightness and contrast: mean and standard deviation of the gray levels, 0..255. Sharpness and colourfulness: see `measure`.
Red, green, blue: means, 0..255. Width and height: pixels, upright. Aspect: longer over shorter side. File size: bytes.
"""

REDUCED_PX = 96
"""Longest side that is measured: sharpness is then relative to the picture, not to the camera's pixels. A photograph of 4,000 px
is soft at pixel level, and sharp for a network that sees a few hundred. (OpenBLAS starts threads, here inside each of the
decoder's, for products of more than 10,000 numbers.)"""

PLANES = np.array([[0.299, 0.587, 0.114], [1, -1, 0], [0.5, 0.5, -1]], np.float32)
"""Red, green, blue to gray (ITU-R BT.601, as Pillow's mode L), red against green, yellow against blue."""


def measure(image_u8: npt.NDArray[np.uint8], file_size: int) -> npt.NDArray[np.float32]:
    """Measure an image, reduced to at most `REDUCED_PX` by averaging blocks.

    Sharpness is the root mean square of the second differences of the gray levels along both axes (the modified Laplacian
    of Nayar and Nakagawa, "Shape from focus", 1994), over the contrast, so that fog and night do not count as blur.
    Photographs have 0.3 to 2; blurred by a hundredth of their width, about 0.1; 0 for a single colour.

    Colourfulness is that of Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003: 0 for gray, about 100 for
    strong colours.

    Args:
        image_u8: (H, W, 3) uint8 RGB.
        file_size: of the file that it came in, in bytes.

    Returns:
        (len(STATISTICS),) float32.
    """
    height, width, _ = image_u8.shape
    longer, shorter = max(height, width), min(height, width)
    small_u8 = _reduced(image_u8)
    columns = small_u8.shape[1]
    rgb = small_u8.reshape(-1, 3).T.astype(np.float32, order="C")  # (3, n)
    n = rgb.shape[1]
    mean = np.add.reduce(rgb, 1) / n
    rgb -= mean[:, np.newaxis]
    covariance = PLANES @ (rgb @ rgb.T / n) @ PLANES.T
    contrast, *opponents = (math.sqrt(max(float(variance), 0.0)) for variance in np.diagonal(covariance))
    gray_mean, *offsets = (PLANES @ mean).tolist()
    gray = rgb[0] * PLANES[0, 0]
    gray += rgb[1] * PLANES[0, 1]
    gray += rgb[2] * PLANES[0, 2]
    sharpness = _second_difference(gray, columns) / contrast if contrast > 0 else 0.0
    colourfulness = math.hypot(*opponents) + 0.3 * math.hypot(*offsets)
    sizes = (width, height, longer / shorter, file_size, file_size / (width * height))
    return np.array([gray_mean, contrast, sharpness, colourfulness, *mean, *sizes], np.float32)


def columns(measured: "array[float]") -> Mapping[str, npt.NDArray[np.float32]]:
    """Return each statistic of all images, from the rows of `measure` one after the other: (n,) float32, read-only."""
    table = np.frombuffer(measured, np.float32).reshape(-1, len(STATISTICS)).T.copy()
    table.flags.writeable = False
    return dict(zip(STATISTICS, table, strict=True))


def _reduced(image_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Average blocks; of large images at least 4 x 4 pixels of each, so that 20 megapixels cost as little as 0.1."""
    step = max(1, max(image_u8.shape) // (4 * REDUCED_PX))
    sampled_u8 = image_u8[::step, ::step]
    factor = -(-max(sampled_u8.shape) // REDUCED_PX)
    if factor == 1:
        return sampled_u8
    return np.asarray(Image.fromarray(np.ascontiguousarray(sampled_u8)).reduce(factor))


def _second_difference(gray: npt.NDArray[np.float32], columns: int) -> float:
    """Compute the root mean square of g[i - 1] - 2 g[i] + g[i + 1] along rows plus columns of (n,) gray levels."""
    total = 0.0
    rows = len(gray) // columns
    if columns > 2:
        along = gray[2:] - 2 * gray[1:-1] + gray[:-2]
        along[columns - 2 :: columns] = along[columns - 1 :: columns] = 0  # reach from one row into the next
        total += float(along @ along) / (rows * (columns - 2))
    if rows > 2:
        down = gray[2 * columns :] - 2 * gray[columns:-columns] + gray[: -2 * columns]
        total += float(down @ down) / len(down)
    return math.sqrt(total)
