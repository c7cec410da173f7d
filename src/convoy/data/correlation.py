"""Correlate pairs of gray thumbnails at the best of all small shifts.

Levels, and the weights of the blurs, are integers, so every sum below is exact: a pair's correlation is the same bits
whatever other pairs it is computed with.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

PX = 32
"""Side of a gray thumbnail."""

SHARP, SOFT, COARSE = 0.7, 1.3, 3.0
"""Standard deviations of Gaussian blurs, in pixels of the thumbnail: what is finer than the first depends on compression, what is
coarser than the last (a white background, a bright sky) is alike in pictures of different things. Half the size and back
is about the second."""

SHIFT = 2
"""Largest shift at which two thumbnails are compared, in pixels."""

ONE = 2**20
"""Weights of a blur are multiples of its inverse: 8-bit levels blurred along both axes are below 2**48, exact as float64."""

STEP = 16
"""Steps of a band per gray level: 784 products of such levels are far below 2**53, exact as float64."""

BLOCK = 256
"""Pairs that are computed at once: 2 MB each for a dozen arrays. More take no less time."""

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


Compare = Callable[[U8, U8, npt.NDArray[np.bool_]], npt.NDArray[Any]]
"""Computes a number for each pair of (n, 1024) thumbnails, the second of which is mirrored first or not."""


def in_blocks(pairs: int) -> Callable[[Compare], Compare]:
    """Decorate a function of any number of pairs, to compute so many at once."""

    def decorate(compare: Compare) -> Compare:
        @wraps(compare)
        def of_all(first: U8, second: U8, mirrored: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
            blocks = [slice(start, start + pairs) for start in range(0, len(first), pairs)]
            found = [compare(first[block], second[block], mirrored[block]) for block in blocks]
            return np.concatenate(found) if found else np.empty(0, np.float32)

        return of_all

    return decorate


@in_blocks(BLOCK)
def correlation(first: U8, second: U8, mirrored: npt.NDArray[np.bool_]) -> F32:
    """Correlate gray levels at the best of all shifts up to `SHIFT`, once the sharper image is blurred like the other.

    That is the multiple correlation of one image with two blurs of the other, in -1..1: a copy that lost its finest
    details correlates fully, another picture does not.

    Args:
        first: (n, 1024) thumbnails.
        second: (n, 1024) thumbnails that they are compared with.
        mirrored: (n,) whether the second image is mirrored first.
    """
    sharp_a, soft_a = bands(first)
    sharp_b, soft_b = bands(second)
    for band in (sharp_b, soft_b):
        band[mirrored] = band[mirrored, :, ::-1]
    inner = PX - 2 * SHIFT
    centre = slice(SHIFT, SHIFT + inner)
    sharp_a, soft_a = sharp_a[:, centre, centre], soft_a[:, centre, centre]
    windows = sliding_window_view(soft_b, (inner, inner), (1, 2))  # (n, 5, 5, 28, 28)
    sums, squares = _sums(soft_b, inner), _sums(soft_b * soft_b, inner)
    spread = np.sqrt(np.maximum(inner**2 * squares - sums**2, 1))
    centred = inner**2 * soft_a - soft_a.sum(axis=(1, 2), keepdims=True)
    best = np.full(len(first), -np.inf)
    down, across = np.zeros((2, len(first)), np.int64)
    for row, column in np.ndindex(windows.shape[1:3]):
        at = np.einsum("nij,nij->n", centred, windows[:, row, column]) / spread[:, row, column]
        better = at > best
        down[better], across[better], best[better] = row, column, at[better]
    each = np.arange(len(first))
    soft_b = windows[each, down, across]
    sharp_b = sliding_window_view(sharp_b, (inner, inner), (1, 2))[each, down, across]
    found = np.maximum(_explained(sharp_a, sharp_b, soft_b), _explained(sharp_b, sharp_a, soft_a))
    own = np.sqrt(np.maximum(_covariance(soft_a, soft_a), 1)) * inner
    similar: F32 = np.where(best > 0, found, best / own).astype(np.float32)
    return similar


def bands(thumbnails: U8) -> tuple[F64, F64]:
    """Compute two bands of gray levels, between a blur and `COARSE`, as (n, 32, 32) whole numbers of `STEP` per level."""
    gray = thumbnails.reshape(-1, PX).astype(np.float64)
    rows = (gray @ np.concatenate([blur(sigma) for sigma in (SHARP, SOFT, COARSE)]).T).reshape(-1, PX, 3 * PX)
    sharp, soft, coarse = (
        blur(sigma) @ rows[:, :, n * PX : (n + 1) * PX] for n, sigma in enumerate((SHARP, SOFT, COARSE))
    )
    return np.rint((sharp - coarse) * (STEP / ONE**2)), np.rint((soft - coarse) * (STEP / ONE**2))


@cache
def blur(sigma: float) -> F64:
    """Matrix that blurs a row of the thumbnail, repeated beyond its ends, in whole numbers; each of its rows adds up to `ONE`."""
    offsets = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 / sigma**2 * offsets**2)
    rows, at = np.zeros((PX, PX)), np.arange(PX)[:, np.newaxis]
    np.add.at(rows, (at, np.clip(at + offsets, 0, PX - 1)), weights / weights.sum() * ONE)
    whole: F64 = np.rint(rows)
    whole[np.diag_indices(PX)] += ONE - whole.sum(axis=1)
    return whole


def _sums(images: F64, side: int) -> F64:
    """Sum the (side, side) windows of (n, h, w) images, as (n, h - side + 1, w - side + 1)."""
    count = images.shape[1] - side + 1
    within = np.tri(images.shape[1], count, 0) - np.tri(images.shape[1], count, -side)  # (h, windows)
    found: F64 = within.T @ (images.reshape(-1, images.shape[2]) @ within).reshape(*images.shape[:2], count)
    return found


def _covariance(one: F64, other: F64) -> F64:
    """Compute n * n times the covariance of the n pixels of each of two images, exactly."""
    pixels = one.shape[1] * one.shape[2]
    products = np.einsum("nij,nij->n", one, other)
    found: F64 = pixels * products - one.sum(axis=(1, 2)) * other.sum(axis=(1, 2))
    return found


def _explained(images: F64, sharp: F64, soft: F64) -> F64:
    """Compute the multiple correlation of (n, h, w) images with two others each, in 0..1."""
    own, with_soft, with_sharp = (_covariance(images, other) for other in (images, soft, sharp))
    both, of_soft = _covariance(sharp, soft), np.maximum(_covariance(soft, soft), 1)
    detail = _covariance(sharp, sharp) - both**2 / of_soft
    with_detail = with_sharp - both * with_soft / of_soft
    share = with_soft**2 / of_soft + np.where(detail > 1, with_detail**2 / np.maximum(detail, 1), 0)
    found: F64 = np.sqrt(np.clip(share / np.maximum(own, 1), 0, 1))
    return found
