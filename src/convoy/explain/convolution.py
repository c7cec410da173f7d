"""Convolution as one works it out by hand.

H rows and W columns of C channels; F filters of K rows (or columns); P padding; S stride.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.core.errors import RequestError
from convoy.explain.filters import PaddingMode

Volume = npt.NDArray[np.float64]

POOL = 2
"""Side and stride of the pooled squares."""


@dataclass(frozen=True)
class Worked:
    """Hold every volume on the way from an image to its pooled activation.

    Attributes:
        padded: (H + 2P, W + 2P, C), what the filters were laid on.
        filters: (F, KH, KW, C) weights.
        padding: P.
        stride: S.
        activation: (H', W', F) sums of products, one map per filter.
        rectified: (H', W', F) after ReLU.
        pooled: (H'/2, W'/2, F) rounded down, after max pooling; empty where H' or W' is 1.
    """

    padded: Volume
    filters: Volume
    padding: int
    stride: int
    activation: Volume
    rectified: Volume
    pooled: Volume

    def window(self, row: int, column: int) -> Volume:
        """Cut out the (KH, KW, C) pixels under a filter for one place of the activation, from 0."""
        top, left = row * self.stride, column * self.stride
        height, width = self.filters.shape[1:3]
        return self.padded[top : top + height, left : left + width]


def work_out(image: Volume, filters: Volume, padding: int, mode: PaddingMode, stride: int) -> Worked:
    """Convolve, rectify and pool.

    Args:
        image: (H, W, C).
        filters: (F, KH, KW, C).
        padding: rows and columns added on every side.
        mode: what the padding holds.
        stride: step from one window to the next, down and to the right.

    Raises:
        RequestError: as `convolve`.
    """
    activation = convolve(image, filters, padding, mode, stride)
    rectified = relu(activation)
    padded = pad(image, padding, mode)
    return Worked(padded, filters, padding, stride, activation, rectified, max_pool(rectified))


def convolve(image: Volume, filters: Volume, padding: int, mode: PaddingMode, stride: int) -> Volume:
    """Lay each (KH, KW, C) filter on every window of an (H, W, C) image; multiply and add up.

    The filter is not flipped: like every CNN library, this computes what mathematics
    calls cross-correlation.

    Returns:
        (H', W', F) with H' = floor((H + 2P - KH) / S) + 1, and W' likewise.

    Raises:
        RequestError: a stride below 1, a negative padding, or a filter larger than the padded image.
    """
    if stride < 1:
        raise RequestError(f"The stride is {stride}; a filter moves by 1 or more: --stride 1")
    if padding < 0:
        raise RequestError(f"The padding is {padding}; an image gets 0 or more rows around it: --padding 0")
    height, width = image.shape[:2]
    count, tall, wide = filters.shape[:3]
    lacking = max(tall - height, wide - width) - 2 * padding
    if lacking > 0:
        raise RequestError(
            f"A {tall}×{wide} filter does not fit into the {height}×{width} image with padding {padding}. "
            f"Take a smaller filter, or --padding {padding + -(-lacking // 2)}"
        )
    padded = pad(image, padding, mode)
    rows, columns = output_size(height, tall, padding, stride), output_size(width, wide, padding, stride)
    activation = np.zeros((rows, columns, count))
    down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    for i, j in np.ndindex(tall, wide):
        # The pixels that weight (i, j) meets, one per window: (H', W', C) times (C, F).
        pixels = padded[i : i + down : stride, j : j + right : stride]
        activation += pixels @ filters[:, i, j].T
    return activation


def output_size(size: int, kernel: int, padding: int, stride: int) -> int:
    """Count the windows along one side: floor((size + 2P - K) / S) + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def pad(image: Volume, padding: int, mode: PaddingMode) -> Volume:
    """Put rows and columns around an (H, W, C) image: zeros, or copies of its border."""
    how = {PaddingMode.ZERO: "constant", PaddingMode.REPLICATE: "edge"}
    around = ((padding, padding), (padding, padding), (0, 0))
    padded: Volume = np.pad(image, around, mode=how[mode])  # type: ignore[call-overload] # numpy lists literals
    return padded


def relu(volume: Volume) -> Volume:
    """Replace what is negative by 0."""
    return np.maximum(volume, 0.0)


def max_pool(volume: Volume) -> Volume:
    """Keep the largest of each 2×2 square of (H, W, C); an odd last row or column is left out."""
    height, width, channels = volume.shape
    rows, columns = height // POOL, width // POOL
    squares = volume[: rows * POOL, : columns * POOL].reshape(rows, POOL, columns, POOL, channels)
    pooled: Volume = squares.max(axis=(1, 3))
    return pooled


def largest(volume: Volume) -> tuple[int, int, int]:
    """Find the row, column and channel of the largest value, the first of several; from 0."""
    row, column, channel = np.unravel_index(int(volume.argmax()), volume.shape)
    return int(row), int(column), int(channel)
