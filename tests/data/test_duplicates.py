import hashlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convoy.data import duplicates
from convoy.data.correlation import correlation
from convoy.data.duplicates import (
    SIZE,
    Compared,
    clusters,
    fingerprint,
    fingerprints_of,
    pairs,
    search,
)
from convoy.data.records import Pair
from convoy.data.sketches import BOXED, STEPS, misfit, model, sketch

LIMIT = 0.92


def picture(seed, px=32):
    """Draw shapes over a gradient, as different from those of other seeds as photographs are."""
    random = np.random.default_rng(seed)
    sky, ground = random.integers(40, 215, (2, 3))
    rows = np.linspace(sky, ground, 256)[:, np.newaxis].repeat(256, 1)
    image = Image.fromarray(rows.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        left, top, width, height = random.integers(0, 256, 4) // np.array([1, 1, 3, 3])
        shape = random.choice([draw.ellipse, draw.rectangle])
        shape(
            (left, top, left + width + 8, top + height + 8), fill=tuple(random.integers(0, 256, 3).tolist())
        )
    return np.asarray(image.resize((px, px), Image.Resampling.LANCZOS))


def jpeg(image_u8, quality=60):
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def halved(image_u8, resampling=Image.Resampling.BICUBIC):
    height, width, _ = image_u8.shape
    half = Image.fromarray(image_u8).resize((width // 2, height // 2), resampling)
    return np.asarray(half.resize((width, height), resampling))


def brightened(factor):
    return lambda image_u8: np.clip(image_u8 * factor + 0.5, 0, 255).astype(np.uint8)


def shifted(down, across):
    def shift(image_u8):
        height, width, _ = image_u8.shape
        padded = np.pad(image_u8, ((1, 1), (1, 1), (0, 0)), "edge")
        return padded[1 + down : 1 + down + height, 1 + across : 1 + across + width]

    return shift


def mirrored(image_u8):
    return image_u8[:, ::-1]


COPIES = {
    "recompressed": jpeg,
    "half size and back": halved,
    "half size and back, softer": lambda image_u8: halved(image_u8, Image.Resampling.BILINEAR),
    "brighter": brightened(1.1),
    "darker": brightened(0.9),
    "shifted right": shifted(0, -1),
    "shifted up": shifted(1, 0),
    "shifted down and left": shifted(-1, 1),
    "mirrored": mirrored,
    "mirrored and recompressed": lambda image_u8: jpeg(np.ascontiguousarray(mirrored(image_u8))),
}


def prints(images):
    return np.stack([fingerprint(image_u8) for image_u8 in images])


def find(fingerprints, limit=LIMIT):
    return pairs(fingerprints, np.ones(len(fingerprints), bool), limit)


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed) for seed in range(200)]


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(pictures, copy):
    images = [*pictures, *map(COPIES[copy], pictures[:100])]
    found = find(prints(images))
    assert [(pair.first, pair.second) for pair in found] == [(n, n + 200) for n in range(100)]
    assert all(pair.mirrored == copy.startswith("mirrored") for pair in found)
    assert all(LIMIT <= pair.correlation <= 1 for pair in found)


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_larger_images_are_found(copy):
    images = [picture(seed, px) for seed, px in enumerate(range(200, 400, 5))]
    copies = [COPIES[copy](image_u8) for image_u8 in images]
    found = find(prints([*images, *copies]))
    assert [(pair.first, pair.second) for pair in found] == [(n, n + 40) for n in range(40)]


def test_a_copy_in_another_size_is_found():
    images = [picture(seed, 500) for seed in range(10)]
    small = [np.asarray(Image.fromarray(image_u8).resize((90, 90))) for image_u8 in images]
    assert [(pair.first, pair.second) for pair in find(prints([*images, *small]))] == [
        (n, n + 10) for n in range(10)
    ]


def test_the_order_and_the_correlations_are_the_same_every_time(pictures):
    fingerprints = prints([*pictures, *map(jpeg, pictures), *map(mirrored, pictures)])
    found = find(fingerprints)
    assert found == find(fingerprints.copy())
    assert found == sorted(found, key=lambda pair: (pair.first, pair.second))
    assert all(pair.first < pair.second for pair in found)


def test_images_that_are_not_eligible_are_in_no_pair(pictures):
    fingerprints = prints([*pictures[:20], *pictures[:20]])
    eligible = np.arange(40) != 25
    found = pairs(fingerprints, eligible, LIMIT)
    assert [(pair.first, pair.second) for pair in found] == [(n, n + 20) for n in range(20) if n != 5]
    assert pairs(fingerprints, np.zeros(40, bool), LIMIT) == []
    assert pairs(fingerprints[:0], np.zeros(0, bool), LIMIT) == []


def test_a_thousand_copies_are_connected_by_as_few_pairs_as_possible(pictures, monkeypatch):
    compared = []
    correlation = duplicates.correlation

    def counted(first, second, is_mirrored):
        compared.append(len(first))
        return correlation(first, second, is_mirrored)

    monkeypatch.setattr(duplicates, "correlation", counted)
    random = np.random.default_rng(0)
    copies = prints(pictures[:1]).astype(int) + random.integers(-3, 4, (1000, SIZE))
    fingerprints = np.concatenate([prints(pictures[:50]), copies.clip(0, 255).astype(np.uint8)])
    found = find(fingerprints)
    assert len(found) == 1000
    assert set(clusters(found, 1050)[50:].tolist()) == {0}
    assert sum(compared) < 20_000  # of half a million


def test_images_that_look_alike_are_compared_with_the_nearest_only(monkeypatch):
    """Icons: one shape at one place, each with details of its own."""
    compared = []
    monkeypatch.setattr(duplicates, "misfit", lambda *sides: compared.append(len(sides[0])) or misfit(*sides))
    random = np.random.default_rng(0)
    icons = np.full((400, 32, 32), 255)
    icons[:, 8:24, 8:24] = 40
    icons[:, 10:22, 10:22] += random.integers(-30, 90, (400, 4, 4)).repeat(3, 1).repeat(3, 2)
    fingerprints = icons.clip(0, 255).astype(np.uint8).reshape(-1, SIZE)
    found, kept = search(fingerprints, np.ones(400, bool), LIMIT)
    assert kept.crowded.sum() > 350
    assert len(kept.first) == sum(compared) < 13_000  # of 80,000
    assert len(found) < 400
    assert found == find(fingerprints)


@pytest.fixture(scope="module")
def varied(pictures):
    """Fingerprints of pictures and copies, identical ones, blank ones, 150 frames of one scene, and 100 more or less like another."""
    random = np.random.default_rng(0)
    frames = prints(pictures[:1]).astype(int) + random.integers(-6, 7, (150, SIZE))
    copies = [
        copy(image_u8) for copy, image_u8 in zip(itertools.cycle(COPIES.values()), pictures, strict=False)
    ]
    blank = np.full((3, SIZE), 9, np.uint8)
    share = random.uniform(0.2, 0.7, (100, 1))
    like = np.rint(share * prints(pictures[1:2]) + (1 - share) * prints(pictures[100:]))
    parts = [prints([*pictures, *copies, *pictures[:20]]), blank, frames.clip(0, 255), like]
    parts = [part.astype(np.uint8) for part in parts]
    return np.concatenate(parts)[random.permutation(sum(map(len, parts)))]


@pytest.mark.parametrize("seed", range(4))
def test_a_search_continues_any_earlier_one_with_the_same_result(varied, seed, monkeypatch):
    """Images come, go, change places and become eligible; the limit changes too, and how near they must be."""
    monkeypatch.setattr(duplicates, "DENSE", (2**16, 100)[seed // 2])
    random = np.random.default_rng(seed)
    kept = None
    for share in random.permutation([0.02, 0.4, 0.97, 1.0]):
        chosen = np.flatnonzero(random.random(len(varied)) < share)
        if seed % 2:
            random.shuffle(chosen)
        eligible = random.random(len(chosen)) < 0.95
        limit = float(random.choice([0.9, LIMIT, 0.985]))
        found, fresh = search(varied[chosen], eligible, limit)
        again, kept = search(varied[chosen], eligible, limit, kept)
        assert again == found
        for name, array in fresh.arrays().items():
            np.testing.assert_array_equal(kept.arrays()[name], array)
        kept = Compared.restored(kept.arrays())


def test_an_added_image_is_compared_with_the_others_only_once(varied, monkeypatch):
    everything = np.ones(len(varied), bool)
    found, kept = search(varied, everything, LIMIT)
    monkeypatch.setattr(duplicates, "misfit", lambda *_: pytest.fail("compared again"))
    assert search(varied, everything, LIMIT, kept)[0] == found
    monkeypatch.undo()
    compared = []
    monkeypatch.setattr(duplicates, "misfit", lambda *sides: compared.append(len(sides[0])) or misfit(*sides))
    _, kept = search(varied, np.arange(len(varied)) > 0, LIMIT)
    before = sum(compared)
    assert search(varied, everything, LIMIT, kept)[0] == found
    assert sum(compared) - before < before / 5


def test_every_pair_of_near_sketches_is_compared(varied, monkeypatch):
    """However images are grouped, and whatever is computed at once."""
    sizes = {"GROUP": 50, "WIDTH": 70, "ROWS": 8, "COLUMNS": 16, "TILES": 2, "BATCH": 100}
    everything = np.ones(len(varied), bool)
    found, kept = search(varied, everything, LIMIT)
    for name, size in sizes.items():
        monkeypatch.setattr(duplicates, name, size)
    again, the_same = search(varied, everything, LIMIT)
    assert again == found
    for name, array in kept.arrays().items():
        np.testing.assert_array_equal(the_same.arrays()[name], array)

    first_of = {hashlib.sha256(row).digest()[:16].rstrip(b"\0"): n for n, row in enumerate(varied)}
    rows = np.array([first_of[digest] for digest in kept.digests])
    sketches = sketch(varied[rows])
    points = sketches.points.astype(float)
    near = np.zeros((2, len(rows), len(rows)), bool)
    for flip, other in enumerate((points, points * np.where(model().odd, -1, 1))):
        apart = np.abs(points[:, np.newaxis] - other)
        near[flip] = (apart[..., :BOXED] <= model().reach).all(axis=2)
        near[flip] &= (
            np.linalg.norm(apart[..., : duplicates.FIRST], axis=2) <= duplicates.FIRST_RADIUS * STEPS
        )
        near[flip] &= np.linalg.norm(apart, axis=2) <= duplicates.RADIUS * STEPS
    near &= sketches.contrasted & sketches.contrasted[:, np.newaxis] & ~np.eye(len(rows), dtype=bool)
    np.testing.assert_array_equal(near.sum(axis=(0, 2)) > duplicates.CROWD, kept.crowded)
    crowd = kept.crowded & kept.crowded[:, np.newaxis]
    expected = {(a, b, bool(flip)) for flip, a, b in np.argwhere(near & ~crowd).tolist() if a < b}
    turned = kept.mirrored ^ sketches.mirrored[kept.first] ^ sketches.mirrored[kept.second]
    compared = zip(kept.first.tolist(), kept.second.tolist(), turned.tolist(), strict=True)
    assert {pair for pair in compared if not crowd[pair[:2]]} == expected
    assert expected


def test_of_many_images_those_compared_are_nearer_and_copies_are_found(pictures, monkeypatch):
    copies = [copy(image_u8) for copy in COPIES.values() for image_u8 in pictures[:20]]
    images = prints([*pictures, *copies])
    everything = np.ones(len(images), bool)
    found, few = search(images, everything, LIMIT)
    monkeypatch.setattr(duplicates, "DENSE", len(images) // 16)
    again, many = search(images, everything, LIMIT)
    assert len(many.first) < len(few.first)
    np.testing.assert_array_equal(clusters(again, len(images)), clusters(found, len(images)))
    assert set(clusters(again, len(images))[200:].tolist()) == set(range(20))


def test_an_image_is_connected_to_a_pair_whatever_else_there_is(pictures):
    """A result must not hang on the images between, except in a crowd."""
    together = find(prints([*pictures, *map(jpeg, pictures), *map(shifted(1, -1), pictures)]))
    assert {(pair.first, pair.second, pair.correlation) for pair in together if pair.second < 400} <= {
        (pair.first, pair.second, pair.correlation)
        for pair in find(prints([*pictures, *map(jpeg, pictures)]))
    }


def test_sketches_and_correlations_are_the_same_bits_in_any_batch(pictures):
    first, second = prints(pictures), prints(map(jpeg, pictures))
    mirrored = np.arange(200) % 2 == 1
    for measure in (correlation, misfit):
        alone = [measure(first[[n]], second[[n]], mirrored[[n]]) for n in range(200)]
        np.testing.assert_array_equal(np.concatenate(alone), measure(first, second, mirrored))
    together = sketch(first).points
    np.testing.assert_array_equal(
        np.concatenate([sketch(first[n : n + 3]).points for n in range(0, 200, 3)]), together
    )


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_images_are_in_no_pair(level):
    random = np.random.default_rng(0)
    noisy = np.clip(level + random.integers(-2, 3, (500, SIZE)), 0, 255).astype(np.uint8)
    assert find(noisy) == []
    assert find(np.full((500, SIZE), level, np.uint8)) == []


def test_noise_has_no_duplicates():
    noise = np.random.default_rng(0).integers(0, 256, (500, SIZE), np.uint8)
    assert find(noise) == []


def test_a_higher_limit_finds_fewer(pictures):
    images = prints([*pictures, *map(jpeg, pictures)])
    found = find(images)
    limit = sorted(pair.correlation for pair in found)[100]
    assert {(pair.first, pair.second) for pair in find(images, limit)} == {
        (pair.first, pair.second) for pair in found if pair.correlation >= limit
    }


def test_clusters_are_numbered_by_their_first_image():
    chain = [Pair(2, 5, 1), Pair(4, 5, 1), Pair(0, 3, 1)]
    assert clusters(chain, 7).tolist() == [0, 1, 2, 0, 2, 2, 6]
    assert clusters([], 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", list(itertools.product([1, 23, 32, 33, 700], [1, 40, 1025])), ids=str)
def test_fingerprints_have_one_length_and_the_mean_of_the_gray_levels(size):
    height, width = size
    gray = np.add.outer(np.linspace(20, 120, height), np.linspace(0, 100, width)).astype(np.uint8)
    image_u8 = np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    found = fingerprint(image_u8)
    assert (found.shape, found.dtype) == ((SIZE,), np.uint8)
    assert abs(found.mean() - gray.mean()) < 3


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (40, 32), (300, 200)])
def test_images_of_one_size_have_the_fingerprints_of_each_alone(size):
    images_u8 = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    images_u8[4] = 255
    assert np.array_equal(fingerprints_of(images_u8), [fingerprint(image_u8) for image_u8 in images_u8])
