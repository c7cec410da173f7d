import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.data import split as splitting
from convoy.data.records import Pair, Record
from convoy.data.settings import SplitParams
from convoy.data.split import cut, pixel_hash
from deliveries import SHIPPED, data_params

SHARES = SplitParams(val=0.15, test=0.2)
BOTH = ("val", "test")
PARTS = ("train", "val", "test")


def params(**changes):
    return data_params(**{"splits": {"val": 0.15, "test": 0.2}, "rare": "train_only"} | changes)


def groups(action, **changes):
    checks = SHIPPED["checks"] | {"groups": SHIPPED["checks"]["groups"] | {"action": action} | changes}
    return params(checks=checks)


def hashed(n: int) -> str:
    return pixel_hash(np.array([[[n % 256, n // 256 % 256, n // 65536]]], np.uint8))


def at(fraction: float, tail: int = 0) -> str:
    """Make a hash that is read as a number in 0..1."""
    return f"{int(fraction * 16**13):013x}{tail:051x}"


def image(n, label="cat", delivered=None, path=None, group=None) -> Record:
    """Make the record of image number n, or of one whose hash is read as the fraction n."""
    pixels = at(n) if isinstance(n, float) else hashed(n)
    return Record(path or f"{delivered}/{label}/{n}.png", label, delivered, group, pixels=pixels)


def assign(records, delivered=(), pairs=(), **changes):
    return splitting.assign(records, params(**changes), delivered, pairs)


def splits(records, delivered=(), pairs=(), **changes):
    return [record.split for record in assign(records, delivered, pairs, **changes)[0]]


def found(findings, check):
    """Return the only finding of a check."""
    (finding,) = (finding for finding in findings if finding.check == check)
    return finding


numbers = st.lists(st.integers(0, 500), min_size=1, max_size=60)
LABELS = ("ant", "bee", "cat", "dog")
labelled = st.dictionaries(st.integers(0, 5000), st.sampled_from(LABELS), min_size=1, max_size=80)


def named(images):
    return [image(n, label) for n, label in images.items()]


@settings(max_examples=50)
@given(labelled, labelled)
def test_an_image_keeps_its_split_when_others_are_added_unless_its_class_would_miss_one(first, added):
    records = named(first)
    before, found_before = assign(records)
    after, found_after = assign(named(first | {n: label for n, label in added.items() if n not in first}))
    units = Counter(first.values())
    rare = {label for label in LABELS if units[label] < 3}
    moved = {
        path
        for finding in (*found_before, *found_after)
        if finding.check == "moved"
        for path in finding.paths
    }
    for old, new in zip(before, after, strict=False):
        if old.path not in moved and old.label not in rare:
            assert new.split == old.split == cut(old.pixels, SHARES, BOTH)


@settings(max_examples=50)
@given(labelled, labelled)
def test_a_class_that_is_in_every_split_by_itself_is_not_touched_by_growth(first, added):
    whole = {
        label
        for label in LABELS
        if {cut(hashed(n), SHARES, BOTH) for n, of in first.items() if of == label} == set(PARTS)
    }
    after, _ = assign(named(first | {n: label for n, label in added.items() if n not in first}))
    for record in after[: len(first)]:
        if record.label in whole:
            assert record.split == cut(record.pixels, SHARES, BOTH)


@settings(max_examples=50)
@given(labelled)
def test_every_class_of_three_images_is_in_every_split_and_as_few_as_needed_move(images):
    assigned, findings = assign(named(images))
    of_class = Counter(images.values())
    counts = Counter((record.label, record.split) for record in assigned)
    natural = Counter((record.label, cut(record.pixels, SHARES, BOTH)) for record in assigned)
    needed = 0
    for label, number in of_class.items():
        if number >= 3:
            assert all(counts[label, split] for split in PARTS)
            needed += sum(not natural[label, split] for split in PARTS)
        else:
            assert counts[label, "train"] == number
    assert sum(finding.figure for finding in findings if finding.check == "moved") == needed


@settings(max_examples=50)
@given(labelled, st.lists(st.tuples(st.integers(0, 79), st.integers(0, 79)), max_size=40), st.randoms())
def test_the_order_of_delivery_does_not_matter(images, links, random):
    records = named(images)
    links = [(a, b) for a, b in links if a < b < len(records)]
    assigned, _ = assign(records, pairs=[Pair(a, b, 1.0) for a, b in links])
    order = random.sample(range(len(records)), len(records))
    place = {old: new for new, old in enumerate(order)}
    pairs = [Pair(*sorted((place[a], place[b])), 1.0) for a, b in links]
    shuffled, _ = assign([records[n] for n in order], pairs=pairs)
    assert [shuffled[place[n]] for n in range(len(records))] == assigned


@settings(max_examples=50)
@given(labelled, st.lists(st.tuples(st.integers(0, 79), st.integers(0, 79)), max_size=40), st.integers(1, 9))
def test_near_duplicates_and_groups_stay_together(images, links, size):
    records = [
        record._replace(group=f"g{n // size}" if n % 2 else None) for n, record in enumerate(named(images))
    ]
    pairs = [Pair(a, b, 1.0) for a, b in links if a < b < len(records)]
    assigned, _ = assign(records, pairs=pairs)
    for pair in pairs:
        if records[pair.first].label == records[pair.second].label:
            assert assigned[pair.first].split == assigned[pair.second].split
    of_group = {}
    for record in assigned:
        assert record.group is None or of_group.setdefault(record.group, record.split) == record.split


@settings(max_examples=50)
@given(numbers)
def test_identical_images_never_straddle_two_splits(seeds):
    images = [image(n, path=f"{index}.png") for index, n in enumerate(seeds + seeds)]
    assigned = splits(images)
    assert assigned[: len(seeds)] == assigned[len(seeds) :]


def test_the_shares_are_kept():
    found = [cut(hashed(n), SHARES, ("val", "test")) for n in range(20_000)]
    assert abs(found.count("val") / 20_000 - 0.15) < 0.01
    assert abs(found.count("test") / 20_000 - 0.2) < 0.01


def test_units_of_several_images_fall_into_the_splits_by_the_same_shares():
    records = [image(n, label="cat") for n in range(9000)]
    by_pairs = splits(records, pairs=[Pair(n, n + 1, 1.0) for n in range(8999) if n % 3 != 2])
    by_group = splits([record._replace(group=str(n // 3)) for n, record in enumerate(records)])
    for units in (by_pairs[::3], by_group[::3]):
        assert abs(units.count("val") / 3000 - 0.15) < 0.03
        assert abs(units.count("test") / 3000 - 0.2) < 0.03


@pytest.mark.parametrize("larger", [SplitParams(val=0.3, test=0.2), SplitParams(val=0.15, test=0.4)])
def test_raising_one_share_moves_images_out_of_train_only(larger):
    before = [cut(hashed(n), SHARES, BOTH) for n in range(2000)]
    after = [cut(hashed(n), larger, BOTH) for n in range(2000)]
    assert before != after
    assert all(old in ("train", new) for old, new in zip(before, after, strict=True))


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=40))
def test_a_delivered_val_or_test_split_is_kept(delivered):
    images = [image(n, delivered=split) for n, split in enumerate(delivered)]
    missing = [split for split in BOTH if split not in delivered]
    for split, assigned in zip(delivered, splits(images, tuple(set(delivered))), strict=True):
        assert assigned in ({"train", *missing} if split == "train" else {split})


def test_a_missing_split_is_cut_from_train_only():
    images = [image(n, delivered="test" if n % 2 else "train") for n in range(400)]
    assigned = splits(images, ("train", "test"))
    assert set(assigned[0::2]) == {"train", "val"}
    assert set(assigned[1::2]) == {"test"}


@pytest.mark.parametrize("delivered", [("test", "train", "val"), ("val", "train")])
def test_an_image_delivered_in_several_splits_is_kept_in_the_first_of_test_val_train(delivered):
    (kept, *others), _ = assign([image(1, delivered=split) for split in delivered], delivered)
    assert kept.split == delivered[0]
    for assigned in others:
        assert (assigned.split, assigned.status) == (None, "left_out")
        assert f"{delivered[0]}/cat/1.png" in assigned.reason


def test_identical_pixels_under_two_labels_are_used_under_neither():
    (cat, dog, other), _ = assign([image(1, "cat"), image(1, "dog"), image(2)])
    assert cat.split is dog.split is None
    assert cat.status == dog.status == "quarantined"
    assert "None/dog/1.png" in cat.reason
    assert "None/cat/1.png" in dog.reason
    assert (other.status, other.reason) == ("ok", "")


def test_unusable_files_are_left_as_they_are():
    broken = image(1, "dog")._replace(status="quarantined", reason="is empty", split=None)
    (first, second), _ = assign([broken, image(1)])
    assert first is broken
    assert second.status == "ok"


def test_the_hash_includes_the_shape():
    pixels = np.zeros((2, 8, 3), np.uint8)
    assert pixel_hash(pixels) != pixel_hash(pixels.reshape(8, 2, 3))
    assert pixel_hash(pixels) == pixel_hash(np.asfortranarray(pixels))


# A class that the hashes alone would leave out of a split


@pytest.mark.parametrize(
    ("hashes", "expected"),
    [
        ((0.3, 0.5, 0.7), ["test", "train", "val"]),  # all would train: the lowest and the highest move
        ((0.7, 0.3, 0.5), ["val", "test", "train"]),
        ((0.01, 0.05, 0.1), ["test", "train", "val"]),  # all would be test
        ((0.9, 0.95, 0.99), ["test", "train", "val"]),
        ((0.1, 0.3, 0.5, 0.6), ["test", "train", "train", "val"]),
        ((0.1, 0.19, 0.9, 0.95), ["test", "train", "val", "val"]),
        ((0.3, 0.9, 0.95), ["train", "test", "val"]),  # the only one that would train stays
    ],
)
def test_the_images_nearest_to_a_split_move_to_it(hashes, expected):
    assert splits([image(value) for value in hashes]) == expected


def test_moved_images_are_stated_with_class_and_number():
    records = [
        image(value, label)
        for label, values in {"ant": (0.3, 0.5, 0.7), "bee": (0.1, 0.35, 0.4)}.items()
        for value in values
    ]
    _, findings = assign(records)
    moved = found(findings, "moved")
    assert (moved.figure, moved.action) == (3, "report")
    assert set(moved.paths) == {"None/ant/0.3.png", "None/ant/0.7.png", "None/bee/0.4.png"}
    for fact in ("3 images", "`ant` (1 to val)", "`ant` (1 to test)", "`bee` (1 to val)"):
        assert fact in moved.text


def test_twenty_classes_of_twelve_images_are_in_every_split():
    records = [image(1000 * k + n, f"class_{k:02}") for k in range(20) for n in range(12)]
    assigned, findings = assign(records, rare="fail")
    assert len({(record.label, record.split) for record in assigned}) == 60
    assert found(findings, "moved").figure < 20
    assert not [finding for finding in findings if finding.action == "fail"]


def test_a_move_takes_no_class_out_of_a_split():
    """Group b is the only one of bee in train, and nearest to test."""
    records = [image(n, "ant", group=group) for n, group in enumerate("bcde")]
    records += [image(10 + n, "bee", group=group) for n, group in enumerate("bxy")]
    assigned, _ = assign(records)
    of_class = {
        label: {record.split for record in assigned if record.label == label} for label in ("ant", "bee")
    }
    assert of_class == {"ant": set(PARTS), "bee": set(PARTS)}


# Units


def test_one_hash_decides_the_split_of_near_duplicates():
    records = [
        image(0.1)._replace(pixels=at(0.1, tail=5)),
        image(0.5)._replace(pixels=at(0.5, tail=3)),
        image(0.99),
    ]
    records[2] = records[2]._replace(pixels=at(0.99, tail=9))
    chain = [Pair(0, 1, 0.98), Pair(1, 2, 0.98)]
    others = [image(n) for n in range(40)]
    assert splits([*records, *others], pairs=chain)[:3] == ["train"] * 3


def test_a_group_keeps_its_split_when_images_are_added_to_it():
    names = [f"patient{n}" for n in range(30)]
    before = splits([image(n, group=names[n]) for n in range(30)])
    grown = [image(n, group=names[n]) for n in range(30)] + [
        image(100 + n, group=names[n % 30]) for n in range(300)
    ]
    assert splits(grown)[:30] == before
    number = int(hashlib.sha256(b"patient7").hexdigest()[:13], 16) / 16**13
    assert (before[7] == "test") == (number < 0.2)


def test_groups_that_hold_most_images_are_named_if_a_share_is_far_from_its_param():
    records = [
        image(n, label)
        for label in ("ant", "bee")
        for n in range(50 * (label == "bee"), 50 + 50 * (label == "bee"))
    ]
    records += [image(200 + n, "bee", group="burst") for n in range(900)]
    _, findings = assign(records)
    texts = {finding.text.split()[0]: finding for finding in findings if finding.check == "shares"}
    assert texts
    for split, finding in texts.items():
        assert finding.limit == getattr(SHARES, split)
        assert "the largest of 900 images" in finding.text
        assert not finding.limit / 2 <= finding.figure <= finding.limit * 2


def test_near_duplicates_of_two_classes_bind_nothing():
    records = [image(n, "ant") for n in range(40)] + [image(100 + n, "bee") for n in range(40)]
    pairs = [Pair(n, 40 + n, 0.99) for n in range(40)]
    assert splits(records, pairs=pairs) == splits(records)


def test_a_class_that_near_duplicates_leave_too_few_units_is_named_with_the_limit():
    records = [image(n, "ant") for n in range(40)] + [image(100 + n, "bee") for n in range(40)]
    _, findings = assign(records, pairs=[Pair(n, n + 1, 0.99) for n in range(39)], rare="fail")
    finding = found(findings, "rare")
    assert finding.action == "fail"
    assert "`ant` (40 images, counted as 1" in finding.text
    assert "raise data.checks.near_duplicates.limit" in finding.text


def test_pairs_of_a_delivered_split_bind_no_image_that_is_cut():
    records = [image(n, delivered="train") for n in range(60)] + [image(100, delivered="test")]
    pairs = [Pair(n, 60, 0.99) for n in range(60)]
    assert splits(records, ("train", "test"), pairs) == splits(records, ("train", "test"))


# Groups that straddle delivered splits


def straddling():
    places = [
        ("train", "a"),
        ("train", "b"),
        ("val", "b"),
        ("test", "b"),
        ("val", "c"),
        ("test", "c"),
        ("test", "d"),
        ("train", None),
    ]
    return [image(n, delivered=split, group=group) for n, (split, group) in enumerate(places)]


@pytest.mark.parametrize("action", ["report", "drop", "fail"])
def test_groups_in_several_delivered_splits_are_found(action):
    assigned, findings = splitting.assign(straddling(), groups(action), PARTS, [])
    finding = found(findings, "groups")
    assert (finding.figure, finding.limit, finding.action) == (5, 1, action)
    assert "`b` (train, val, test), `c` (val, test); 5 images" in finding.text
    dropped = [record.path for record in assigned if record.status == "left_out"]
    assert dropped == (["train/cat/1.png", "val/cat/2.png", "val/cat/4.png"] if action == "drop" else [])
    if action == "drop":
        assert "`b`" in assigned[1].reason
        assert "test/cat/3.png" in assigned[1].reason
    if action == "fail":
        assert "data.checks.groups.action" in finding.text


def test_groups_fail_above_their_largest_share_and_pass_below_their_limit():
    _, findings = splitting.assign(straddling(), groups("report", max_share=0.5), PARTS, [])
    assert found(findings, "groups").action == "fail"
    assert "62.5%" in found(findings, "groups").text
    _, findings = splitting.assign(straddling(), groups("fail", limit=2), PARTS, [])
    assert "`b`" in found(findings, "groups").text
    assert "`c`" not in found(findings, "groups").text
    _, findings = splitting.assign(straddling(), groups("fail", limit=3), PARTS, [])
    assert not [finding for finding in findings if finding.check == "groups"]


NO_TEST = {"splits": {"val": 0.15, "test": 0.0}}


def test_without_a_test_split_val_stays_as_it_is_and_the_rest_is_trained_on():
    images = [image(n, label="cat" if n % 2 else "dog") for n in range(2000)]
    usual, without = (assign(images, (), **changes)[0] for changes in ({}, NO_TEST))
    for before, after in zip(usual, without, strict=True):
        assert after.split == ("train" if before.split == "test" else before.split)
    (finding,) = [each for each in assign(images, (), **NO_TEST)[1] if each.check == "no_test"]
    assert finding.action == "report"
    assert "measured on the validation images" in finding.text
    assert not [each for each in assign(images, ())[1] if each.check == "no_test"]


def test_a_delivered_test_split_is_used_whatever_share_is_cut():
    images = [image(n, delivered="test" if n % 2 else "train") for n in range(400)]
    assigned, findings = assign(images, ("train", "test"), **NO_TEST)
    assert {record.split for record in assigned[1::2]} == {"test"}
    assert not [each for each in findings if each.check == "no_test"]


@pytest.mark.parametrize(
    ("count", "shares", "reported"),
    [(400, {}, True), (600, {}, False), (400, {"splits": {"val": 0.1, "test": 0.0}}, False)],
)
def test_a_cut_of_more_than_a_fifth_of_few_images_is_reported(count, shares, reported):
    images = [image(n, label="cat" if n % 2 else "dog") for n in range(count)]
    assigned, findings = assign(images, (), **shares)
    found = [each for each in findings if each.check == "held_out"]
    assert bool(found) == reported
    if reported:
        held_out = sum(record.split != "train" for record in assigned)
        assert f"val and test take {held_out} of 400 images" in found[0].text
        assert "data.splits.val and data.splits.test" in found[0].text
