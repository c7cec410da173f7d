"""Sketch gray thumbnails in 44 numbers, so that a matrix product compares an image with thousands of others.

A sketch holds the lowest frequencies of the middle of a thumbnail, weighted by how little a shift by a pixel changes them. Both
follow from a model of natural images, not from the images at hand: how far apart two sketches are is a fact of two
images alone. Sums are of whole numbers and exact, so it is the same bits whatever else is computed with them.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from convoy.data.correlation import COARSE, ONE, PX, SOFT, U8, blur, in_blocks

CYCLES = 3.5
"""Highest frequency of a sketch, in cycles per window."""

WINDOW = 30.0
"""Side of the window in the middle of the thumbnail, in pixels: what a shift by a pixel moves in or out has no weight."""

RANGE = 16.0
"""Distance over which the model's correlation of two pixels falls to 1 / e, in pixels. exp(-distance / 16) is near that of photographs:
sketches of CIFAR-10 have standard deviations of 0.5 to 1.3 where the model has 1."""

ROBUST = 0.02
"""Variance of other changes, such as compression, beside that of a shift, of 1."""

WEIGHT = 1.5
"""Power of the weights: of 0.5, 1, 1.5 and 2, it left the fewest pairs of different CIFAR-10 images as near as shifted copies."""

BOXED = 6
"""Numbers of a sketch, those that a shift changes least, that are compared by themselves too."""

REACH = 4.7
"""Largest difference of each of them, in standard deviations of what a shift by a pixel both ways changes. All of 1,500 shifted images
of CIFAR-10 are within 3.5."""

STEPS = 64
"""Steps of a sketch's whole numbers per standard deviation. The squares of 44 stay below 2**24, exact as float32."""

MIN_CONTRAST = 2.0
"""Smallest standard deviation of the band of an image that is compared, of 255: what remains of a blank image is noise."""

LARGEST_SHIFT = 1.3
"""Largest shift that `misfit` makes up for, in pixels; larger ones are far from linear."""

CELLS = PX // 2
BLOCK = 1024
"""Thumbnails that are sketched at once: 2 MB each for a few arrays. More take no less time."""

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Waves(NamedTuple):
    """Hold the matrices that make sketches.

    Attributes:
        project: (256, 44) whole numbers, from sums of 2 x 2 gray levels to unweighted numbers.
        contrast: (256, 64) whole numbers, from the same to the band at every fourth pixel.
        down: (256, 44) like `project`, of half the change that two pixels' shift makes.
        across: (256, 44) the same sideways.
        odd: (44,) whether mirroring negates a number.
        weights: (44,) steps of a number, once a sketch has the length 1.
        reach: (BOXED,) largest difference of the first numbers, in steps.
    """

    project: F64
    contrast: F64
    down: F64
    across: F64
    odd: Bools
    weights: F64
    reach: F32


class Sketches(NamedTuple):
    """Hold sketches of n images, each turned so that its first odd number is not negative.

    Attributes:
        points: (n, 44) int16, below 2**12, since their squares add up to less than 2**24.
        mirrored: (n,) whether the image was mirrored for that.
        contrasted: (n,) False for nearly blank images (`MIN_CONTRAST`).
    """

    points: npt.NDArray[np.int16]
    mirrored: Bools
    contrasted: Bools

    @classmethod
    def of(cls, n: int) -> "Sketches":
        """Make room for the sketches of n images."""
        return cls(np.empty((n, len(model().odd)), np.int16), *np.empty((2, n), np.bool_))


def sketch(thumbnails: U8) -> Sketches:
    """Sketch (n, 1024) thumbnails."""
    waves = model()
    first = int(np.flatnonzero(waves.odd)[0])
    points, mirrored, contrasted = made = Sketches.of(len(thumbnails))
    both = np.concatenate([waves.project, waves.contrast], axis=1)
    for start in range(0, len(thumbnails), BLOCK):
        block = slice(start, start + BLOCK)
        found = _cells(thumbnails[block]) @ both
        numbers, band = _rounded(found[:, : len(waves.odd)]), found[:, len(waves.odd) :]
        steps = _steps(numbers, _length(numbers))
        mirrored[block] = steps[:, first] < 0
        points[block] = np.where(mirrored[block, np.newaxis] & waves.odd, -steps, steps)
        contrasted[block] = np.rint(band * (STEPS / ONE)).std(axis=1) >= MIN_CONTRAST * STEPS
    return made


@in_blocks(BLOCK)
def misfit(first: U8, second: U8, mirrored: Bools) -> F64:
    """Measure how far apart two sketches are, in standard deviations, at the best shift up to `LARGEST_SHIFT`.

    A small shift changes a sketch nearly linearly, which is the tangent distance of Simard, LeCun and Denker (1993).

    Args:
        first: (n, 1024) thumbnails.
        second: (n, 1024) thumbnails that they are compared with.
        mirrored: (n,) whether the second image is mirrored first.
    """
    odd = model().odd
    a, down_a, across_a = _tangents(first)
    b, down_b, across_b = _tangents(second)
    for numbers in (b, down_b):
        numbers[np.ix_(mirrored, odd)] *= -1
    across_b[np.ix_(mirrored, ~odd)] *= -1
    apart, down, across = a - b, down_a + down_b, across_a + across_b  # twice the tangents
    pairs = [(down, down), (across, across), (down, across), (apart, down), (apart, across)]
    dd, aa, da, pd, pa = (np.einsum("ij,ij->i", one, other) for one, other in pairs)
    dd, aa = dd + 1, aa + 1
    determinant = np.maximum(dd * aa - da * da, 1)
    limit = LARGEST_SHIFT / 2
    by_down = np.clip((pd * aa - pa * da) / determinant, -limit, limit)[:, np.newaxis]
    by_across = np.clip((pa * dd - pd * da) / determinant, -limit, limit)[:, np.newaxis]
    left = np.rint(apart - by_down * down - by_across * across)
    distance: F64 = np.sqrt(np.einsum("ij,ij->i", left, left)) / STEPS
    return distance


def _tangents(thumbnails: U8) -> tuple[F64, F64, F64]:
    """Compute the sketch of each image as it is, and what shifts by a pixel change of it."""
    waves = model()
    found = _cells(thumbnails) @ np.concatenate([waves.project, waves.down, waves.across], axis=1)
    numbers, down, across = (_rounded(part) for part in np.split(found, 3, axis=1))
    length = _length(numbers)
    return _steps(numbers, length), _steps(down, length), _steps(across, length)


def _cells(thumbnails: U8) -> F64:
    """Add up the four levels of each cell of 2 x 2 pixels, as (n, 256)."""
    rows = thumbnails.reshape(-1, CELLS, 2, PX)
    both: npt.NDArray[np.uint16] = np.add(rows[:, :, 0], rows[:, :, 1], dtype=np.uint16)
    cells: F64 = np.add(both[:, :, ::2], both[:, :, 1::2], dtype=np.float64)
    return cells.reshape(-1, CELLS**2)


def _rounded(numbers: F64) -> F64:
    """Bring whole numbers below 2**40 to whole numbers below 2**23, of which 44 squares add up exactly."""
    found: F64 = np.rint(numbers * 2.0**-17)
    return found


def _length(numbers: F64) -> F64:
    found: F64 = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
    return np.maximum(found, 1)[:, np.newaxis]


def _steps(numbers: F64, length: F64) -> F64:
    found: F64 = np.rint(numbers / length * model().weights)
    return found


@cache
def model() -> Waves:
    """Derive the matrices from the model of natural images."""
    cells = np.arange(CELLS) * 2 + 1.0  # their middles, in pixels
    down, across = (axis.ravel() for axis in np.meshgrid(cells, cells, indexing="ij"))
    related = np.exp(-np.hypot(np.subtract.outer(down, down), np.subtract.outer(across, across)) / RANGE)
    counts = range(int(2 * CYCLES) + 1)
    frequencies = [(y, x) for y in counts for x in counts if 0 < np.hypot(y, x) / 2 <= CYCLES]
    odd = np.array([x % 2 == 1 for _, x in frequencies])

    def waves(by_down: float, by_across: float) -> F64:
        def wave(half_cycles: int, by: float) -> F64:
            at = (cells - (PX - WINDOW) / 2 - by) / WINDOW
            inside = (at > 0) & (at < 1)
            found: F64 = np.where(inside, np.sin(np.pi * at) * np.cos(np.pi * half_cycles * at), 0)
            return found

        window = np.outer(wave(0, by_down), wave(0, by_across)).ravel()
        found = np.array([np.outer(wave(y, by_down), wave(x, by_across)).ravel() for y, x in frequencies])
        return found - np.outer(found.sum(axis=1) / window.sum(), window)  # a single colour has no waves

    centre = waves(0, 0)
    signal = centre @ related @ centre.T
    moves = [centre - waves(y, x) for y in (-1, 1) for x in (-1, 1)]
    noise = sum(move @ related @ move.T for move in moves) / 4 + ROBUST * signal
    slopes = [(waves(1, 0) - waves(-1, 0)) / 2, (waves(0, 1) - waves(0, -1)) / 2]
    blocks = []
    for kind in (False, True):  # mirroring keeps them apart
        own = odd == kind
        variances, turn = eigh(noise[np.ix_(own, own)], signal[np.ix_(own, own)])
        found = [turn.T @ matrix[own] for matrix in (centre, *slopes)]
        blocks.append((variances, np.full(own.sum(), kind), *found))
    variance, is_odd, *matrices = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    order = np.argsort(variance, kind="stable")
    changed = np.sqrt(variance[order])
    project, by_down, by_across = (matrix[order].T for matrix in matrices)
    scale = 2.0**39 / (
        4 * 255 * max(np.abs(matrix).sum(axis=0).max() for matrix in (project, by_down, by_across))
    )
    weights = (changed + 0.1) ** -WEIGHT
    weights *= STEPS / np.sqrt((weights**2).mean())
    band = np.kron(blur(SOFT)[::4], blur(SOFT)[::4]) - np.kron(blur(COARSE)[::4], blur(COARSE)[::4])
    band = band.reshape(-1, CELLS, 2, CELLS, 2).mean(axis=(2, 4)).reshape(-1, CELLS**2) / ONE
    project, by_down, by_across = (np.rint(matrix * scale) for matrix in (project, by_down, by_across))
    return Waves(
        project,
        np.rint(band).T,
        by_down,
        by_across,
        is_odd[order],
        weights * np.sqrt(len(order)),
        (REACH * changed[:BOXED] * weights[:BOXED]).astype(np.float32),
    )
