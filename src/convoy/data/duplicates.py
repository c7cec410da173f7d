"""Find images that show nearly the same: recompressed, resized, brightened, shifted by a pixel, or mirrored.

A perceptual hash alone is imprecise, so hashes only propose pairs, and the correlation of the aligned pixels decides.
Both look at gray levels between two blurs: compression and resizing change what is finer, and what is coarser (a white
background, a bright sky) is alike in images that show different things.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from convoy.data.records import Pair

PX = 32
"""Side of the gray thumbnail that is an image's fingerprint."""

SIZE = PX * PX
"""Length of a fingerprint, in bytes."""

MIN_SIDE = 32
"""Shortest side of an image that is compared, in pixels, that of a fingerprint: icons and digits (MNIST has 28) are alike by chance."""

MIN_CONTRAST = 2.0
"""Smallest standard deviation of the band of an image that is compared, of 255: what remains of a blank image is noise."""

SHARP, SOFT, COARSE = 0.7, 1.3, 3.0
"""Standard deviations of Gaussian blurs, in pixels of the thumbnail: what is finer than the first depends on compression, what is
coarser than the last (a white background, a bright sky) is alike in pictures of different things. Half the size and back
is about the second."""

GRAY_WEIGHTS = (19595, 38470, 7471)
"""Of red, green and blue, of 65536, as Pillow converts to gray (ITU-R BT.601)."""

TINY = 1e-6
"""Keeps divisions by the contrast of a single colour finite."""

SHIFT = 2
"""Largest shift at which two thumbnails are compared, in pixels."""

CYCLES = 3.0
"""Highest frequency of a sketch, in cycles per thumbnail: a pixel's shift changes little of it."""

STEPS = 32
"""Steps of a sketch's 8-bit numbers per standard deviation."""

MIN_SPREAD = 0.02
"""Smallest standard deviation of a sketch's numbers, of 1: where all images are alike, what is left of it is noise."""

RADIUS = 2.0
"""Largest distance of the sketches of two images that are compared, in standard deviations."""

TABLES = 16
"""Independent hash tables: a pair that the cells of some separate is found in another."""

CELL = 1.3
"""Side of a hash cell, in standard deviations."""

WINDOW = 12
"""Entries of a cell that each entry is compared with, so that a thousand copies of an image cost a thousand comparisons."""

BLOCK = 4096
"""Images or pairs that are computed at once."""

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Block = tuple[I64, I64, F32, npt.NDArray[np.bool_]]
"""Pairs: first images, second images, correlations, and whether the second is mirrored."""


def fingerprint(image_u8: U8) -> U8:
    """Shrink an (H, W, 3) RGB image to (1024,) gray levels, a square of 32 px row by row."""
    height, width, _ = image_u8.shape
    # Converting 12 million pixels takes 40 ms; 12 x 12 samples of each cell are near its mean.
    down, across = max(1, height // (12 * PX)), max(1, width // (12 * PX))
    gray = Image.fromarray(np.ascontiguousarray(image_u8[::down, ::across])).convert("L")
    if gray.size != (PX, PX):
        gray = gray.resize((PX, PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(gray).reshape(-1)


def fingerprints_of(images_u8: U8) -> U8:
    """Compute `fingerprint` of (n, H, W, 3) images of one size, as (n, 1024)."""
    if images_u8.shape[1:3] != (PX, PX):
        return np.stack([fingerprint(image_u8) for image_u8 in images_u8])
    red, green, blue = (
        images_u8[..., channel] * np.uint32(weight) for channel, weight in enumerate(GRAY_WEIGHTS)
    )
    gray: U8 = ((red + green + blue + np.uint32(0x8000)) >> 16).astype(np.uint8)
    return gray.reshape(-1, SIZE)


def pairs(fingerprints: U8, eligible: npt.NDArray[np.bool_], limit: float) -> list[Pair]:
    """Find near-duplicates in time that grows almost linearly with the number of images.

    Of images that all resemble each other only as many pairs are returned as connect them, at most n - 1 in all.

    Args:
        fingerprints: (n, 1024) uint8 of `fingerprint`, in memory or mapped; read in blocks.
        eligible: (n,) whether an image is compared. Images that are too small (`MIN_SIDE`) are the caller's to exclude, and
            all but one of those with the same pixels; nearly blank ones (`MIN_CONTRAST`) are excluded here.
        limit: smallest correlation, above 0.

    Returns:
        Pairs by first, then second index; the same for the same fingerprints.
    """
    rows, sketches = _sketches(fingerprints, np.flatnonzero(eligible))
    found = _Links(len(rows))
    for table in range(TABLES):
        for first, second, mirrored in _candidates(sketches, table, found):
            similar = correlation(fingerprints[rows[first]], fingerprints[rows[second]], mirrored)
            near = similar >= limit
            found.add(first[near], second[near], similar[near], mirrored[near])
    return [
        Pair(int(rows[first]), int(rows[second]), similar, bool(mirrored))
        for first, second, similar, mirrored in found.forest()
    ]


def clusters(pairs: Sequence[Pair], n: int) -> I64:
    """Number each of n images by the first that it is connected to, in (n,); an image without a pair by itself."""
    first = np.array([pair.first for pair in pairs], np.int64)
    second = np.array([pair.second for pair in pairs], np.int64)
    links = coo_array((np.ones(len(pairs), np.int8), (first, second)), shape=(n, n))
    _, label = connected_components(links, directed=False)
    lowest = np.full(n, n, np.int64)
    np.minimum.at(lowest, label, np.arange(n))
    numbers: I64 = lowest[label]
    return numbers


def correlation(first: U8, second: U8, mirrored: npt.NDArray[np.bool_]) -> F32:
    """Correlate gray levels at the best of all shifts up to `SHIFT`, once the sharper image is blurred like the other.

    That is the multiple correlation of one image with two blurs of the other, in -1..1: a copy that lost its finest
    details correlates fully, another picture does not.

    Args:
        first: (n, 1024) fingerprints.
        second: (n, 1024) fingerprints of the images that they are compared with.
        mirrored: (n,) whether the second image is mirrored first.
    """
    sharp_a, soft_a = _bands(first)
    sharp_b, soft_b = _bands(second)
    for band in (sharp_b, soft_b):
        band[mirrored] = band[mirrored, :, ::-1]
    inner = PX - 2 * SHIFT
    centre = slice(SHIFT, SHIFT + inner)
    each = np.arange(len(first))
    windows = sliding_window_view(soft_b, (inner, inner), (1, 2))  # (n, 5, 5, 28, 28)
    target = _standardized(soft_a[:, centre, centre])
    best = np.full(len(first), -1, np.float32)
    down, across = np.zeros((2, len(first)), np.int64)
    for row, column in np.ndindex(windows.shape[1:3]):
        window = windows[:, row, column]
        spread = window.std(axis=(1, 2)) * inner + TINY
        at = np.einsum("nij,nij->n", target, window) / spread
        down[at > best], across[at > best] = row, column
        np.maximum(best, at, out=best)
    soft_b = windows[each, down, across]
    sharp_b = sliding_window_view(sharp_b, (inner, inner), (1, 2))[each, down, across]
    sharp_a, soft_a = sharp_a[:, centre, centre], soft_a[:, centre, centre]
    found = np.maximum(_explained(sharp_a, sharp_b, soft_b), _explained(sharp_b, sharp_a, soft_a))
    similar: F32 = np.where(best > 0, np.minimum(found, 1), best)  # 1.0000001 by rounding
    return similar


def _standardized(images: F32) -> F32:
    """Bring (n, h, w) images to mean 0 and length 1."""
    centred: F32 = images - images.mean(axis=(1, 2), keepdims=True)
    centred /= np.linalg.norm(centred, axis=(1, 2), keepdims=True) + TINY
    return centred


def _explained(images: F32, sharp: F32, soft: F32) -> F32:
    """Compute the multiple correlation of (n, h, w) images with two others each, in 0..1."""
    images, sharp, soft = _standardized(images), _standardized(sharp), _standardized(soft)
    detail = _standardized(sharp - np.einsum("nij,nij->n", sharp, soft)[:, np.newaxis, np.newaxis] * soft)
    found: F32 = np.hypot(np.einsum("nij,nij->n", images, soft), np.einsum("nij,nij->n", images, detail))
    return found


@cache
def _blur(sigma: float) -> F32:
    """Matrix that blurs a row of the thumbnail."""
    rows: F32 = np.asarray(gaussian_filter1d(np.eye(PX, dtype=np.float32), sigma, 0, mode="nearest"))
    return rows


def _bands(fingerprints: U8) -> tuple[F32, F32]:
    """Compute two bands of gray levels, between a blur and `COARSE`, as (n, 32, 32)."""
    gray = fingerprints.reshape(-1, PX, PX).astype(np.float32)
    sharp, soft, coarse = (_blur(sigma) @ gray @ _blur(sigma).T for sigma in (SHARP, SOFT, COARSE))
    return np.subtract(sharp, coarse), np.subtract(soft, coarse)


@cache
def _cosines() -> tuple[F32, npt.NDArray[np.bool_]]:
    """Matrix from gray levels to the sketches of four crops, and which of a sketch's numbers mirroring negates.

    Each crop lacks a row and a column at a side, so that images shifted by a pixel, in any direction,
    have a crop in common; mirroring swaps the crops.
    """
    side = PX - 1
    at = np.arange(side) + 0.5
    frequencies = [
        (down, across)
        for down in range(PX)
        for across in range(PX)
        if 0 < np.hypot(down, across) / 2 <= CYCLES
    ]
    window = np.sin(np.pi * at / side)
    waves = [window * np.cos(np.pi * k * at / side) for k in range(PX)]
    fine, coarse = _blur(SOFT), _blur(COARSE)
    columns = []
    for top in (0, 1):
        for left in (0, 1):
            for down, across in frequencies:
                wave = np.zeros((PX, PX))
                wave[top : top + side, left : left + side] = np.outer(waves[down], waves[across])
                columns.append((fine.T @ wave @ fine - coarse.T @ wave @ coarse).ravel())
    return np.array(columns, np.float32).T.copy(), np.array([across % 2 == 1 for _, across in frequencies])


def _sketches(fingerprints: U8, rows: I64) -> tuple[I64, npt.NDArray[np.int8]]:
    """Leave out nearly blank images; sketch the others as (n, 4, d), in steps of a standard deviation over `STEPS`."""
    matrix, odd = _cosines()
    scale = np.ones(len(odd), np.float32)
    kept, sketches = [rows[:0]], [np.empty((0, 4, len(odd)), np.int8)]
    sample = rows[:: len(rows) // BLOCK + 1]
    for chosen in (sample, *(rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))):
        gray = fingerprints[chosen]
        contrasted = _bands(gray)[1].std(axis=(1, 2)) >= MIN_CONTRAST
        sketch = (gray[contrasted].astype(np.float32) @ matrix).reshape(-1, 4, len(odd))
        sketch /= np.linalg.norm(sketch, axis=2, keepdims=True) + TINY
        if chosen is not sample:
            kept.append(chosen[contrasted])
            sketches.append(np.clip(np.rint(sketch / scale), -127, 127).astype(np.int8))
        elif len(sketch):
            scale = np.maximum(sketch.std(axis=(0, 1)), MIN_SPREAD) / STEPS
    return np.concatenate(kept), np.concatenate(sketches)


def _keys(sketches: npt.NDArray[np.int8], table: int) -> I64:
    """Compute the cells of each image's four crops and of their mirror images, as (n, 8) numbers."""
    _, odd = _cosines()
    random = np.random.default_rng(table)
    axes = max(4, round(np.log2(8 * len(sketches) + 1) / 1.5))
    turn = np.linalg.qr(random.normal(size=(len(odd), min(axes, 15)))).Q.astype(np.float32)
    offset = random.random(turn.shape[1], np.float32)
    keys = np.empty((len(sketches), 8), np.int64)
    weights = 16 ** np.arange(turn.shape[1], dtype=np.int64)
    for start in range(0, len(sketches), BLOCK):
        block = sketches[start : start + BLOCK].astype(np.float32)
        both = np.concatenate([block, np.where(odd, -block, block)], axis=1)
        cells = np.floor(both @ turn / (CELL * STEPS) + offset).clip(-8, 7).astype(np.int64) + 8
        keys[start : start + BLOCK] = cells @ weights
    return keys


def _candidates(
    sketches: npt.NDArray[np.int8], table: int, found: "_Links"
) -> Iterator[tuple[I64, I64, npt.NDArray[np.bool_]]]:
    """Yield first images, second images and whether these are mirrored, of new pairs that share a cell and are not connected."""
    keys = _keys(sketches, table).ravel()
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    for step in range(1, WINDOW + 1):
        at = np.flatnonzero(keys[step:] == keys[:-step])
        if len(at) == 0:
            break
        blocks = [at[start : start + 16 * BLOCK] for start in range(0, len(at), 16 * BLOCK)]
        near = [_near(sketches, order[block], order[block + step], found) for block in blocks]
        codes = found.new(np.unique(np.concatenate(near)))
        for start in range(0, len(codes), BLOCK):
            pair, mirrored = codes[start : start + BLOCK] // 2, codes[start : start + BLOCK] % 2 == 1
            yield pair // len(sketches), pair % len(sketches), mirrored
        found.connect()


def _near(sketches: npt.NDArray[np.int8], first: I64, second: I64, found: "_Links") -> I64:
    """Choose the entries whose sketches are near; return each pair of images and whether it is mirrored as a number."""
    _, odd = _cosines()
    a, b = np.minimum(first // 8, second // 8), np.maximum(first // 8, second // 8)
    asked = (a != b) & ((first % 8 < 4) | (second % 8 < 4)) & (found.component[a] != found.component[b])
    first, second, a, b = first[asked], second[asked], a[asked], b[asked]
    mirrored = (first % 8 < 4) != (second % 8 < 4)
    distance = sketches[first // 8, first % 4].astype(np.float32)
    other = sketches[second // 8, second % 4].astype(np.float32)
    distance -= np.where(mirrored[:, np.newaxis] & odd, -other, other)
    near = np.einsum("ij,ij->i", distance, distance) < (RADIUS * STEPS) ** 2
    codes: I64 = (a[near] * len(sketches) + b[near]) * 2 + mirrored[near]
    return codes


class _Links:
    """Hold pairs of n images, and which images are connected by them.

    Attributes:
        component: (n,) equal for images that are connected, as of the last call of `connect`.
    """

    def __init__(self, n: int) -> None:
        self.component: npt.NDArray[np.int32] = np.arange(n, dtype=np.int32)
        none = np.empty(0, np.int64)
        self._blocks: list[Block] = [(none, none, np.empty(0, np.float32), np.empty(0, np.bool_))]
        self._changed = False
        self._seen = np.full(1, -1, np.int64)

    def new(self, codes: I64) -> I64:
        """Return those of sorted numbers that were not given before."""
        at = np.searchsorted(self._seen, codes)
        old = self._seen[np.minimum(at, len(self._seen) - 1)] == codes
        self._seen = np.insert(self._seen, at[~old], codes[~old])
        new: I64 = codes[~old]
        return new

    def add(self, first: I64, second: I64, similar: F32, mirrored: npt.NDArray[np.bool_]) -> None:
        """Add pairs."""
        if len(first):
            self._blocks.append((first, second, similar, mirrored))
            self._changed = True

    def connect(self) -> None:
        """Update the components."""
        if self._changed:
            n = len(self.component)
            first, second, _, _ = self._all()
            links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
            _, self.component = connected_components(links, directed=False)
            self._changed = False

    def forest(self) -> list[tuple[int, int, float, bool]]:
        """Choose the pairs with the highest correlations that connect what all pairs connect, in order."""
        n = len(self.component)
        first, second, similar, mirrored = self._all()
        if not len(first):
            return []
        best = np.argsort(-similar, kind="stable")
        key, at = np.unique((first * n + second)[best], return_index=True)
        at = best[at]
        first, second, similar, mirrored = first[at], second[at], similar[at], mirrored[at]
        tree = minimum_spanning_tree(coo_array((2 - similar, (first, second)), shape=(n, n)).tocsr()).tocoo()
        kept = np.searchsorted(key, np.sort(tree.row.astype(np.int64) * n + tree.col))
        return list(
            zip(
                first[kept].tolist(),
                second[kept].tolist(),
                similar[kept].tolist(),
                mirrored[kept].tolist(),
                strict=True,
            )
        )

    def _all(self) -> Block:
        first, second, similar, mirrored = zip(*self._blocks, strict=True)
        block = (
            np.concatenate(first),
            np.concatenate(second),
            np.concatenate(similar),
            np.concatenate(mirrored),
        )
        self._blocks = [block]
        return block
