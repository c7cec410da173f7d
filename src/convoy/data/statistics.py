"""Measure the statistics of one image: checks, report and data drift use them."""

from array import array
from collections.abc import Mapping, Sequence

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
"""What `measure_all` returns, in this order.

Brightness and contrast: mean and standard deviation of the gray levels, 0..255. Sharpness and colourfulness: see `measure_all`.
Red, green, blue: means, 0..255. Width and height: pixels, upright. Aspect: longer over shorter side. File size: bytes.
"""

REDUCED_PX = 96
"""Longest side that is measured: sharpness is then relative to the picture, not to the camera's pixels. A photograph of 4,000 px
is soft at pixel level, and sharp for a network that sees a few hundred. (OpenBLAS starts threads, here inside each of the
decoder's, for products of more than 10,000 numbers.)"""

PLANES = np.array([[0.299, 0.587, 0.114], [1, -1, 0], [0.5, 0.5, -1]], np.float32)
"""Red, green, blue to gray (ITU-R BT.601, as Pillow's mode L), red against green, yellow against blue."""


def measure(image_u8: npt.NDArray[np.uint8], file_size: int) -> npt.NDArray[np.float32]:
    """Measure one (H, W, 3) image, as `measure_all` does."""
    measured: npt.NDArray[np.float32] = measure_all(image_u8[np.newaxis], [file_size])[0]
    return measured


def measure_all(images_u8: npt.NDArray[np.uint8], file_sizes: Sequence[int]) -> npt.NDArray[np.float32]:
    """Measure images of one size, each reduced to at most `REDUCED_PX` by averaging blocks.

    Sharpness is the root mean square of the second differences of the gray levels along both axes (the modified Laplacian
    of Nayar and Nakagawa, "Shape from focus", 1994), over the contrast, so that fog and night do not count as blur.
    Photographs have 0.3 to 2; blurred by a hundredth of their width, about 0.1; 0 for a single colour.

    Colourfulness is that of Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003: 0 for gray, about 100 for
    strong colours.

    The result for an image does not depend on the others.

    Args:
        images_u8: (n, H, W, 3) uint8 RGB.
        file_sizes: of the n files that they came in, in bytes.

    Returns:
        (n, len(STATISTICS)) float32.
    """
    n, height, width, _ = images_u8.shape
    longer, shorter = max(height, width), min(height, width)
    small_u8 = images_u8
    if longer > REDUCED_PX:
        small_u8 = np.stack([_reduced(image_u8) for image_u8 in images_u8])
    columns = small_u8.shape[2]
    rgb = small_u8.reshape(n, -1, 3).transpose(0, 2, 1).astype(np.float32, order="C")  # (n, 3, pixels)
    pixels = rgb.shape[2]
    mean = np.add.reduce(rgb, 2) / pixels
    rgb -= mean[..., np.newaxis]
    covariance = PLANES @ (rgb @ rgb.transpose(0, 2, 1) / pixels) @ PLANES.T
    variances = np.diagonal(covariance, axis1=1, axis2=2).astype(np.float64)
    contrast, *opponents = np.sqrt(np.maximum(variances, 0)).T
    gray_mean, *offsets = (PLANES @ mean[..., np.newaxis])[..., 0].T.astype(np.float64)
    gray = rgb[:, 0] * PLANES[0, 0]
    gray += rgb[:, 1] * PLANES[0, 1]
    gray += rgb[:, 2] * PLANES[0, 2]
    sharpness = np.divide(_second_difference(gray, columns), contrast, out=np.zeros(n), where=contrast > 0)
    measured = np.empty((n, len(STATISTICS)), np.float32)
    measured[:, 0] = gray_mean
    measured[:, 1] = contrast
    measured[:, 2] = sharpness
    measured[:, 3] = np.hypot(*opponents) + 0.3 * np.hypot(*offsets)
    measured[:, 4:7] = mean
    measured[:, 7:10] = width, height, longer / shorter
    measured[:, 10] = file_sizes
    measured[:, 11] = np.array(file_sizes) / (width * height)
    return measured


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


def _second_difference(gray: npt.NDArray[np.float32], columns: int) -> npt.NDArray[np.float64]:
    """Compute the root mean square of g[i - 1] - 2 g[i] + g[i + 1] along rows plus columns of (n, pixels) gray levels, as (n,)."""
    total = np.zeros(len(gray))
    rows = gray.shape[1] // columns
    if columns > 2:
        along = gray[:, 2:] - 2 * gray[:, 1:-1] + gray[:, :-2]
        along[:, columns - 2 :: columns] = along[:, columns - 1 :: columns] = (
            0  # reach from one row into the next
        )
        total += _squares(along) / (rows * (columns - 2))
    if rows > 2:
        down = gray[:, 2 * columns :] - 2 * gray[:, columns:-columns] + gray[:, : -2 * columns]
        total += _squares(down) / down.shape[1]
    return np.sqrt(total)


def _squares(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sum the squares of each row."""
    sums: npt.NDArray[np.float32] = (rows[:, np.newaxis] @ rows[:, :, np.newaxis])[:, 0, 0]
    return sums.astype(np.float64)
