"""Find images that show nearly the same: recompressed, resized, brightened, shifted by a pixel, or mirrored.

A perceptual hash alone is imprecise, so the distance of sketches only proposes pairs, and the correlation of the aligned pixels decides.
Both look at gray levels between two blurs: compression and resizing change what is finer, and what is coarser (a white
background, a bright sky) is alike in images that show different things.

Which pairs are compared depends on the images alone, not on how they are grouped to be faster, so a search that continues
an earlier one finds the same, bit for bit.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from convoy.data.correlation import PX, correlation
from convoy.data.records import Pair
from convoy.data.sketches import BOXED, STEPS, Sketches, misfit, model, sketch

GRAY_WEIGHTS = (19595, 38470, 7471)
"""Of red, green and blue, of 65536, as Pillow converts to gray (ITU-R BT.601)."""

SIZE = PX * PX
"""Length of a fingerprint, in bytes."""

MIN_SIDE = 32
"""Shortest side of an image that is compared, in pixels, that of a fingerprint: icons and digits (MNIST has 28) are alike by chance."""

FIRST, FIRST_RADIUS = 20, 3.2
"""Numbers of two sketches that are compared first, and their largest distance, in standard deviations. Of 1,500 images of CIFAR-10, shifted by a
pixel both ways or half the size and back, all are within 2.8. Larger shifts and other colours need more: this radius and
those below leave out no pair of CIFAR-10 that is known to correlate above 0.95, and 4 true ones of about 800 above 0.92."""

RADIUS = 4.7
"""Largest distance of two sketches. Of the same images all are within 4."""

MISFIT = 2.9
"""Largest `misfit` of two images whose correlation is computed. Of the same images, and half the size and back, all are within 2.1."""

DENSE, CLOSER, DOUBLINGS = 2**16, 0.97, 4
"""Beyond so many images, `FIRST_RADIUS`, `RADIUS` and `sketches.REACH` shrink by this factor with each doubling, at most so often: to 2.8, 4.2 and
4.2. Else an image would have more others near it the more there are. With the smallest, 98 % of the images of CIFAR-10 that
have a near-duplicate still do."""

CROWD = 128
"""Images near an image, above which it is part of a crowd: frames of a video, icons. Those are compared with the nearest only."""

TRIES, ROUNDS = 4, 8
"""Images of a crowd that each is compared with at once, the nearest that it is not connected to, and how often."""

REACH = 2048
"""Images of a crowd before and after an image, in an order of similar ones, that are looked at: time grows with the crowd, not its square."""

GROUP = 1024
"""Images of similar sketches, of whose neighbours the sketches are collected once."""

WIDTH = 2**15
"""Neighbours of a group whose sketches are collected at once: 3 MB."""

ROWS, COLUMNS, TILES = 64, 512, 8
"""Images and others whose distances are computed by a matrix product, of which larger ones take up to twice the time, and how many at once."""

LEAF = 128
"""Images of a crowd that are compared with those around them at once."""

BATCH = 2**16
"""Close pairs that are looked at at once, so that numpy's calls take a small part of the time."""

BLOCK = 1024
"""Images or pairs that are computed at once."""

UNLIKE = -2.0
"""Stands for the correlation of a pair whose sketches do not fit."""

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Hold what a search compared, for a search of other images, many of them the same.

    A cache must key it by the code of duplicates.py, sketches.py and correlation.py and by the versions of numpy and scipy. It
    does not depend on the limit.

    Attributes:
        digests: (n,) sorted 16-byte hashes of the fingerprints.
        crowded: (n,) whether more than `CROWD` images are near.
        first: (m,) indices of the first image of each pair that was compared.
        second: (m,) of the second, always larger.
        mirrored: (m,) whether the second is mirrored.
        similar: (m,) their correlation.
    """

    digests: npt.NDArray[np.bytes_]
    crowded: Bools
    first: I32
    second: I32
    mirrored: Bools
    similar: F32

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name, such as for `numpy.savez`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def restored(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Undo `arrays`."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


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


def pairs(fingerprints: U8, eligible: Bools, limit: float) -> list[Pair]:
    """Find near-duplicates, as `search` does without an earlier result."""
    return search(fingerprints, eligible, limit)[0]


def search(
    fingerprints: U8, eligible: Bools, limit: float, earlier: Compared | None = None
) -> tuple[list[Pair], Compared]:
    """Find near-duplicates, in time that depends on the images that the earlier search did not have.

    Two images are compared if their sketches are near (`RADIUS`, `MISFIT`), whatever other images there are, except that many (`DENSE`) must be
    nearer; a search then compares all again if it has more or fewer images by a factor of 2. Only within a crowd, of images with
    more than `CROWD` others near, each is compared with the nearest that it is not yet connected to, at most `TRIES` * `ROUNDS`;
    crowds are compared again each time.

    Of images that all resemble each other only as many pairs are returned as connect them, at most n - 1 in all.

    Args:
        fingerprints: (n, 1024) uint8 of `fingerprint`, in memory or mapped; read in blocks.
        eligible: (n,) whether an image is compared. Images that are too small (`MIN_SIDE`) are the caller's to exclude, and
            all but one of those with the same pixels; nearly blank ones are excluded here.
        limit: smallest correlation, above 0.
        earlier: of a search of any images, with any limit. It changes the time, never the result.

    Returns:
        Pairs by first, then second index, and what was compared.
    """
    images = _Images.of(fingerprints, np.flatnonzero(eligible))
    n = len(images.rows)
    fresh, known = images.known(earlier)
    fresh |= earlier is not None and _scale(len(earlier.digests)) != _scale(n)
    kept = known.where(~(fresh[known.first] | fresh[known.second]))
    near = np.bincount(np.concatenate([kept.first, kept.second]), minlength=n).astype(np.int32)
    candidates = _joined([kept, *_near(images.sketches, fresh, near)])  # which counts further images near
    crowded = near > CROWD
    del kept
    candidates = candidates.where(~(crowded[candidates.first] & crowded[candidates.second]))
    compared = images.compare(candidates, known)
    for more in _in_crowds(images, crowded, compared, known, limit):
        compared = _joined([compared, more])
    compared = compared.sorted()
    return _forest(images, compared, limit), Compared(images.digests, crowded, *compared)


def _scale(n: int) -> float:
    """Factor of the radii for n images."""
    return CLOSER ** min(DOUBLINGS, (max(n - 1, 0) // DENSE).bit_length())


def clusters(pairs: Sequence[Pair], n: int) -> I64:
    """Number each of n images by the first that it is connected to, in (n,); an image without a pair by itself."""
    first = np.array([pair.first for pair in pairs], np.int64)
    second = np.array([pair.second for pair in pairs], np.int64)
    label = _components(first, second, n)
    lowest = np.full(n, n, np.int64)
    np.minimum.at(lowest, label, np.arange(n))
    numbers: I64 = lowest[label]
    return numbers


class _Entries(NamedTuple):
    """Hold pairs of images: first and second index, whether the second is mirrored, and their correlation.

    There may be `CROWD` for each image, so their numbers decide how much memory a search takes.
    """

    first: I32
    second: I32
    mirrored: Bools
    similar: F32

    def where(self, chosen: I64 | Bools) -> "_Entries":
        """Choose pairs by a mask or indices."""
        return _Entries(self.first[chosen], self.second[chosen], self.mirrored[chosen], self.similar[chosen])

    def sorted(self) -> "_Entries":
        """Sort by all but the correlation."""
        return self.where(np.lexsort((self.mirrored, self.second, self.first)))

    def codes(self, n: int) -> I64:
        """Number all that pairs of n images may be."""
        found = self.first.astype(np.int64)
        found *= n
        found += self.second
        found *= 2
        found += self.mirrored
        return found


def _joined(blocks: Sequence[_Entries]) -> _Entries:
    none = _entries(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))
    return _Entries(*(np.concatenate(columns) for columns in zip(none, *blocks, strict=True)))


def _entries(first: I64, second: I64, mirrored: Bools) -> _Entries:
    """Put the lower index first; nothing is known of the correlation."""
    unknown = np.full(len(first), np.nan, np.float32)
    lower, higher = np.minimum(first, second), np.maximum(first, second)
    return _Entries(lower.astype(np.int32), higher.astype(np.int32), mirrored, unknown)


class _Images(NamedTuple):
    """Hold the distinct images that are compared, by the digest of their fingerprints.

    Attributes:
        fingerprints: of all images.
        rows: (n,) the first with each fingerprint, by digest.
        digests: (n,) sorted.
        sketches: of n images.
        copies: (k, 2) the same first, and further rows with its fingerprint.
    """

    fingerprints: U8
    rows: I64
    digests: npt.NDArray[np.bytes_]
    sketches: Sketches
    copies: I64

    @classmethod
    def of(cls, fingerprints: U8, rows: I64) -> "_Images":
        """Sketch images."""
        blocks = [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)]
        hashes = bytearray()
        for block in blocks:
            for row in fingerprints[rows[block]]:
                hashes += hashlib.sha256(row).digest()[:16]
        digests, first, which = np.unique(
            np.frombuffer(hashes, "S16"), return_index=True, return_inverse=True
        )
        sketches = Sketches.of(len(first))
        for block in blocks:
            for part, found in zip(sketches, sketch(fingerprints[rows[block]]), strict=True):
                part[which[block]] = found
        again = np.flatnonzero(sketches.contrasted[which] & (first[which] < np.arange(len(rows))))
        copies = np.stack([rows[first[which[again]]], rows[again]], axis=1)
        return cls(fingerprints, rows[first], digests, sketches, copies)

    def known(self, earlier: Compared | None) -> tuple[Bools, _Entries]:
        """Find which images must be compared with all, and the pairs whose correlation an earlier search computed."""
        fresh = np.ones(len(self.rows), np.bool_)
        if earlier is None or not len(self.rows):
            return fresh, _joined([])
        number = np.searchsorted(self.digests, earlier.digests).clip(max=len(self.rows) - 1)
        here = self.digests[number] == earlier.digests
        fresh[number[here & ~earlier.crowded]] = False
        both = np.flatnonzero(here[earlier.first] & here[earlier.second])
        number = number.astype(np.int32)
        first, second = number[earlier.first[both]], number[earlier.second[both]]
        return fresh, _Entries(first, second, earlier.mirrored[both], earlier.similar[both]).sorted()

    def compare(self, asked: _Entries, known: _Entries) -> _Entries:
        """Correlate pairs that are not known, if their sketches fit."""
        n = len(self.rows)
        similar = np.full(len(asked.first), np.nan, np.float32)
        if len(known.first):
            codes, old = asked.codes(n), known.codes(n)
            at = np.searchsorted(old, codes).clip(max=len(old) - 1)
            similar = np.where(old[at] == codes, known.similar[at], similar)
        new = np.flatnonzero(np.isnan(similar))
        for start in range(0, len(new), BLOCK):
            block = new[start : start + BLOCK]
            first, second = (self.fingerprints[self.rows[side[block]]] for side in asked[:2])
            mirrored = asked.mirrored[block]
            similar[block] = UNLIKE
            fit = misfit(first, second, mirrored) <= MISFIT
            similar[block[fit]] = correlation(first[fit], second[fit], mirrored[fit])
        return asked._replace(similar=similar)


@dataclass(frozen=True)
class _Ordered:
    """Hold sketches of a crowd in an order in which similar ones are near each other.

    Attributes:
        number: (n,) of each image.
        columns: (22, n) by `_columns`.
        mirrored: (n,) whether the image was mirrored.
    """

    number: I64
    columns: F32
    mirrored: Bools

    @classmethod
    def of(cls, sketches: Sketches, chosen: I64) -> "_Ordered":
        """Order images."""
        number = np.concatenate(_leaves(sketches.points, chosen, np.arange(BOXED), LEAF))
        return cls(number, _columns(sketches.points[number]), sketches.mirrored[number])

    def distances(self, rows: slice, others: slice, *, flip: bool) -> F32:
        """Compute squared distances of some sketches and others, or their mirror images."""
        found: F32 = _rows(self.columns[:FIRST, rows].T, flip=flip) @ self.columns[:, others]
        return found

    def pairs(self, first: I64, second: I64, flips: Bools) -> _Entries:
        """Make entries of places in this order."""
        mirrored = self.mirrored[first] ^ self.mirrored[second] ^ flips
        return _entries(self.number[first], self.number[second], mirrored)


def _columns(points: I16) -> F32:
    """Lay out the `FIRST` numbers of sketches, 1 and their squared length, as (22, n) for a product with `_rows`."""
    columns = np.ones((FIRST + 2, len(points)), np.float32)
    columns[:FIRST] = points[:, :FIRST].T
    columns[-1] = np.einsum("ij,ij->j", columns[:FIRST], columns[:FIRST])
    return columns


def _tiles(points: I16) -> F32:
    """Lay `_columns` out as (m, 22, `COLUMNS`), filled up with sketches at an infinite distance."""
    columns = np.pad(_columns(points), ((0, 0), (0, -len(points) % COLUMNS)))
    columns[-1, len(points) :] = np.inf
    return np.ascontiguousarray(columns.reshape(FIRST + 2, -1, COLUMNS).swapaxes(0, 1))


def _rows(numbers: F32, *, flip: bool) -> F32:
    """Lay out (n, 20) sketches, or their mirror images, as (n, 22), so that a product has squared distances; whole numbers, so exact."""
    squares = np.einsum("ij,ij->i", numbers, numbers)[:, np.newaxis]
    signs = np.where(model().odd[:FIRST], -1, 1) if flip else 1
    return np.concatenate(
        [numbers * np.float32(-2) * signs, squares, np.ones_like(squares)], axis=1, dtype=np.float32
    )


def _leaves(points: I16, chosen: I64, axes: I64, most: int) -> list[I64]:
    """Halve a set of sketches along the widest of some numbers, again and again, until at most so many are together."""
    pending, leaves = [chosen], []
    while pending:
        part = pending.pop()
        if len(part) <= most:
            leaves.append(part)
            continue
        own = points[part[:, np.newaxis], axes] / model().reach[axes]
        axis = int((own.max(axis=0) - own.min(axis=0)).argmax())
        split = np.argpartition(own[:, axis], len(part) // 2)
        pending += [part[split[len(part) // 2 :]], part[split[: len(part) // 2]]]
    return [leaf for leaf in leaves if len(leaf)]


def _near(sketches: Sketches, fresh: Bools, near: I32) -> Iterator[_Entries]:
    """Yield the pairs with a fresh image whose sketches are near, and count each image's in `near`.

    Pairs of two images that are in a crowd by then are only counted.
    """
    points, mirrored, _ = sketches
    scale = _scale(len(points))
    odd, reach = model().odd, model().reach * np.float32(scale)
    for close in _batches(_close(sketches, fresh, scale)):
        first, second, _ = close
        undecided = (near[first] <= CROWD) | (near[second] <= CROWD)  # most of a crowd's pairs are not
        first, second, flips = first[undecided], second[undecided], close[2][undecided]
        apart = points.take(second, axis=0).astype(np.float32)
        apart[np.ix_(flips, odd)] *= -1
        apart -= points.take(first, axis=0)
        kept = (np.abs(apart[:, :BOXED]) <= reach).all(axis=1)
        kept &= np.einsum("ij,ij->i", apart, apart) <= (RADIUS * scale * STEPS) ** 2
        first, second = first[kept], second[kept]
        np.add.at(near, first, 1)
        np.add.at(near, second, 1)
        entries = _entries(first, second, mirrored[first] ^ mirrored[second] ^ flips[kept])
        yield entries.where((near[first] <= CROWD) | (near[second] <= CROWD))


_Close = tuple[I32, I32, Bools]
"""Pairs of images: the first, the second, and whether its sketch is mirrored."""


def _batches(found: Iterator[_Close]) -> Iterator[_Close]:
    """Join some pairs each to at least `BATCH`."""
    more = next(found, None)
    while more:
        waiting, size = [more], len(more[0])
        while size < BATCH and (more := next(found, None)):
            waiting.append(more)
            size += len(more[0])
        first, second, flips = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        yield first, second, flips
        more = next(found, None)


def _close(sketches: Sketches, fresh: Bools, scale: float) -> Iterator[_Close]:
    """Yield each pair with a fresh image once whose `FIRST` numbers are within `FIRST_RADIUS`, of those that `_near` may keep.

    All images are in the order of a boxed number that mirroring does not change; images of a group have the others in common. So
    those that `ROWS` of a group are compared with are neighbours in memory.
    """
    points = sketches.points
    odd, reach = model().odd[:BOXED], model().reach * np.float32(scale)
    axis = int(np.flatnonzero(~odd)[0])
    order = np.flatnonzero(sketches.contrasted)
    order = order[np.argsort(points[order, axis], kind="stable")].astype(np.int32)
    boxed = points[order, :BOXED].T.copy()
    groups = _leaves(boxed.T, np.flatnonzero(fresh[order]), np.delete(np.arange(BOXED), axis), GROUP)
    groups = [np.sort(group) for group in groups]
    turn = np.full(len(order), len(order), np.int32)
    turn[np.concatenate([*groups, np.empty(0, np.int64)])] = np.arange(sum(map(len, groups)))
    for group, flip in itertools.product(groups, (False, True)):
        own = boxed[:, group] * np.where(odd & flip, -1, 1)[:, np.newaxis]
        lows, highs = np.ceil(own.min(axis=1) - reach), np.floor(own.max(axis=1) + reach)
        chosen = turn >= turn[group[0]]
        for numbers, low, high in zip(boxed, lows.astype(np.int16), highs.astype(np.int16), strict=True):
            chosen &= (numbers >= low) & (numbers <= high)
        others = np.flatnonzero(chosen)
        rows = _rows(points[order[group], :FIRST].astype(np.float32), flip=flip)
        for begin in range(0, len(others), WIDTH):
            some = others[begin : begin + WIDTH]
            tiles = _tiles(points.take(order[some], axis=0))  # faster than an index
            lefts = boxed[axis, some].searchsorted(own[axis, ::ROWS] - reach[axis])
            rights = boxed[axis, some].searchsorted(own[axis, ROWS - 1 :: ROWS] + reach[axis], "right")
            for start, left, right in itertools.zip_longest(range(0, len(group), ROWS), lefts, rights):
                last = len(tiles) if right is None else -(-right // COLUMNS)  # the last rows may be fewer
                for at in range(left // COLUMNS, last, TILES):
                    distances = rows[start : start + ROWS] @ tiles[at : min(at + TILES, last)]
                    close = np.flatnonzero(distances <= (FIRST_RADIUS * scale * STEPS) ** 2)
                    tile, row, column = np.unravel_index(close, distances.shape)
                    first, second = group[start + row], some[(at + tile) * COLUMNS + column]
                    later = turn[second] > turn[first]
                    yield order[first[later]], order[second[later]], np.full(later.sum(), flip)


def _in_crowds(
    images: _Images, crowded: Bools, compared: _Entries, known: _Entries, limit: float
) -> Iterator[_Entries]:
    """Compare each image of a crowd with the nearest that it is not connected to, in rounds."""
    if not crowded.any():
        return
    ordered = _Ordered.of(images.sketches, np.flatnonzero(crowded))
    n, size = len(images.rows), len(ordered.number)
    tried = np.full((size, TRIES * ROUNDS), -1)
    links, done = compared.where(compared.similar >= limit), np.empty(0, np.int64)
    for turn in range(ROUNDS):
        component = _components(links.first, links.second, n)[ordered.number]
        chosen = slice(turn * TRIES, (turn + 1) * TRIES)
        for start in range(0, size, LEAF):
            rows, around = slice(start, start + LEAF), slice(max(0, start - REACH), start + LEAF + REACH)
            tried[rows, chosen] = _nearest(ordered, rows, around, component, tried[rows, : chosen.start])
        first, which = np.nonzero(tried[:, chosen] >= 0)
        second, flip = np.divmod(tried[first, chosen.start + which], 2)
        asked = ordered.pairs(first, second, flip == 1)
        codes, at = np.unique(asked.codes(n), return_index=True)
        asked, done = asked.where(at[~np.isin(codes, done)]), np.union1d(codes, done)
        if not len(asked.first):
            break
        found = images.compare(asked, known)
        yield found
        links = _joined([links, found.where(found.similar >= limit)])


def _nearest(ordered: _Ordered, rows: slice, around: slice, component: I32, tried: I64) -> I64:
    """Choose the nearest that each of some images was not compared with and is not connected to, as (rows, TRIES).

    Returns:
        Twice the place of each, and 1 more for its mirror image; -1 where no more are near.
    """
    distance = np.stack([ordered.distances(rows, around, flip=flip) for flip in (False, True)], axis=2)
    distance[distance > (FIRST_RADIUS * STEPS) ** 2] = np.inf
    distance[component[rows, np.newaxis] == component[around]] = np.inf
    distance = distance.reshape(len(distance), -1)
    each = np.arange(len(distance))
    for before in tried.T:
        distance[each[before >= 0], before[before >= 0] - 2 * around.start] = np.inf
    chosen = np.empty((len(distance), TRIES), np.int64)
    for n in range(TRIES):
        nearest = distance.argmin(axis=1)
        chosen[:, n] = np.where(np.isinf(distance[each, nearest]), -1, nearest + 2 * around.start)
        distance[each, nearest] = np.inf
    return chosen


def _components(first: I32 | I64, second: I32 | I64, n: int) -> I32:
    """Number the components of n images by the pairs that connect them, in (n,)."""
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
    _, component = connected_components(links, directed=False)
    return np.asarray(component, np.int32)


def _forest(images: _Images, compared: _Entries, limit: float) -> list[Pair]:
    """Choose the pairs with the highest correlations that connect what all pairs connect, in order."""
    n = len(images.fingerprints)
    found = compared.where(compared.similar >= limit)
    same = images.copies
    one, other = (
        np.concatenate([images.rows[side], more]) for side, more in zip(found[:2], same.T, strict=True)
    )
    first, second = np.minimum(one, other), np.maximum(one, other)
    similar = np.concatenate([found.similar, np.ones(len(same), np.float32)])
    mirrored = np.concatenate([found.mirrored, np.zeros(len(same), np.bool_)])
    best = np.lexsort((mirrored, -similar))
    key, at = np.unique((first * n + second)[best], return_index=True)
    if not len(key):
        return []
    at = best[at]
    first, second, similar, mirrored = first[at], second[at], similar[at], mirrored[at]
    tree = minimum_spanning_tree(coo_array((2 - similar, (first, second)), shape=(n, n)).tocsr()).tocoo()
    kept = np.searchsorted(key, np.sort(tree.row.astype(np.int64) * n + tree.col))
    columns = (first[kept].tolist(), second[kept].tolist(), similar[kept].tolist(), mirrored[kept].tolist())
    return [Pair(*pair) for pair in zip(*columns, strict=True)]
