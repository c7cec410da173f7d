from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.data.records import Record
from convoy.data.settings import SplitParams
from convoy.data.split import assign, cut, pixel_hash

SHARES = SplitParams(val=0.15, test=0.2)
BOTH = ("val", "test")


def hashed(n: int) -> str:
    return pixel_hash(np.array([[[n % 256, n // 256 % 256, n // 65536]]], np.uint8))


def image(n: int, label: str = "cat", delivered=None, path: str | None = None) -> Record:
    return Record(path or f"{delivered}/{label}/{n}.png", label, delivered, pixels=hashed(n))


numbers = st.lists(st.integers(0, 500), min_size=1, max_size=60)


@given(numbers, numbers)
def test_an_image_keeps_its_split_when_others_are_added(first, added):
    before = assign([image(n) for n in first], SHARES, BOTH)
    after = assign([image(n) for n in first + added], SHARES, BOTH)
    assert after[: len(before)] == before


@given(numbers)
def test_identical_images_never_straddle_two_splits(seeds):
    images = [image(n, path=f"{index}.png") for index, n in enumerate(seeds + seeds)]
    assigned = assign(images, SHARES, BOTH)
    assert [a.split for a in assigned[: len(seeds)]] == [a.split for a in assigned[len(seeds) :]]


@given(numbers, st.randoms())
def test_the_order_of_delivery_does_not_matter(seeds, random):
    images = [image(n, path=f"{index}.png") for index, n in enumerate(seeds)]
    shuffled = random.sample(images, len(images))
    assigned = dict(zip(images, assign(images, SHARES, BOTH), strict=True))
    assert dict(zip(shuffled, assign(shuffled, SHARES, BOTH), strict=True)) == assigned


def test_the_shares_are_kept():
    splits = [cut(hashed(n), SHARES, ("val", "test")) for n in range(20_000)]
    assert abs(splits.count("val") / 20_000 - 0.15) < 0.01
    assert abs(splits.count("test") / 20_000 - 0.2) < 0.01


@pytest.mark.parametrize("larger", [SplitParams(val=0.3, test=0.2), SplitParams(val=0.15, test=0.4)])
def test_raising_one_share_moves_images_out_of_train_only(larger):
    before = [cut(hashed(n), SHARES, BOTH) for n in range(2000)]
    after = [cut(hashed(n), larger, BOTH) for n in range(2000)]
    assert before != after
    assert all(old in ("train", new) for old, new in zip(before, after, strict=True))


@given(st.lists(st.sampled_from(("train", "val", "test")), min_size=1, max_size=40))
def test_a_delivered_val_or_test_split_is_kept(delivered):
    images = [image(n, delivered=split) for n, split in enumerate(delivered)]
    missing = [split for split in BOTH if split not in delivered]
    for split, assigned in zip(delivered, assign(images, SHARES, missing), strict=True):
        assert assigned.split in ({"train", *missing} if split == "train" else {split})


def test_a_missing_split_is_cut_from_train_only():
    images = [image(n, delivered="test" if n % 2 else "train") for n in range(400)]
    assigned = assign(images, SHARES, ("val",))
    assert {a.split for a in assigned[0::2]} == {"train", "val"}
    assert {a.split for a in assigned[1::2]} == {"test"}


@pytest.mark.parametrize("splits", [("test", "train", "val"), ("val", "train")])
def test_an_image_delivered_in_several_splits_is_kept_in_the_first_of_test_val_train(splits):
    kept, *others = assign([image(1, delivered=split) for split in splits], SHARES, BOTH)
    assert kept.split == splits[0]
    for assigned in others:
        assert (assigned.split, assigned.status) == (None, "left_out")
        assert f"{splits[0]}/cat/1.png" in assigned.reason


def test_identical_pixels_under_two_labels_are_used_under_neither():
    cat, dog, other = assign([image(1, "cat"), image(1, "dog"), image(2)], SHARES, BOTH)
    assert cat.split is dog.split is None
    assert cat.status == dog.status == "quarantined"
    assert "None/dog/1.png" in cat.reason
    assert "None/cat/1.png" in dog.reason
    assert (other.status, other.reason) == ("ok", "")


def test_unusable_files_are_left_as_they_are():
    broken = replace(image(1, "dog"), status="quarantined", reason="is empty", split=None)
    assert assign([broken, image(1)], SHARES, BOTH)[0] is broken
    assert assign([broken, image(1)], SHARES, BOTH)[1].status == "ok"


def test_the_hash_includes_the_shape():
    pixels = np.zeros((2, 8, 3), np.uint8)
    assert pixel_hash(pixels) != pixel_hash(pixels.reshape(8, 2, 3))
    assert pixel_hash(pixels) == pixel_hash(np.asfortranarray(pixels))
