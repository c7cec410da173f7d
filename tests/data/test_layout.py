import unicodedata

import pytest

from convoy.core.errors import DataError
from convoy.data.layout import recognise


def splits_and_labels(*names):
    places = map(recognise(names).place, names)
    return [(place.split, place.label) for place in places]


@pytest.mark.parametrize("wrap", ["", "images/", "a/b/c/"])
def test_class_folders_give_labels_and_folders_that_only_wrap_are_skipped(wrap):
    assert splits_and_labels(f"{wrap}cat/1.png", f"{wrap}dog/a/b.png") == [(None, "cat"), (None, "dog")]
    delivered = splits_and_labels(f"{wrap}train/cat/1.png", f"{wrap}test/cat/2.png")
    assert delivered == [("train", "cat"), ("test", "cat")]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "VALIDATION", "Test")],
)
def test_common_names_of_the_splits_are_recognised(train, val, test):
    delivered = splits_and_labels(f"{train}/a/1.png", f"{val}/a/1.png", f"{test}/a/1.png")
    assert delivered == [("train", "a"), ("val", "a"), ("test", "a")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train/cat/1.png", "train/dog/1.png"), [("train", "cat"), ("train", "dog")]),
        (("training/train/cat/1.png", "training/test/cat/1.png"), [("train", "cat"), ("test", "cat")]),
        (("train/1.png", "bus/1.png"), [(None, "train"), (None, "bus")]),
    ],
    ids=["train alone", "named like a split, but wraps", "class named train"],
)
def test_a_folder_named_like_a_split_is_judged_by_its_content(names, expected):
    assert splits_and_labels(*names) == expected


def test_files_beside_the_classes_or_splits_have_neither():
    for beside, wrap in (("README.md", ""), ("x/notes.txt", "x/"), ("top.txt", "x/")):
        assert splits_and_labels(beside, f"{wrap}cat/1.png", f"{wrap}dog/1.png")[0] == (None, None)
    delivered = splits_and_labels("train/a/1.png", "test/a/1.png", "extra/a/1.png", "test/2.png")
    assert delivered[2:] == [(None, None), ("test", None)]


def test_two_unicode_spellings_of_a_class_are_one_class():
    short, long = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    assert short != long
    assert splits_and_labels(f"{short}/1.png", f"{long}/2.png", "b/1.png")[:2] == [(None, short)] * 2


def test_two_folders_for_a_split_or_none_for_train_are_refused():
    with pytest.raises(DataError, match="x/val and x/validation are both the val split"):
        recognise(["x/train/a/1.png", "x/val/a/1.png", "x/validation/a/1.png"])
    with pytest.raises(DataError, match="has test but no train folder"):
        recognise(["test/a/1.png", "test/b/1.png"])


def test_the_delivered_splits_are_listed():
    assert recognise(["a/1.png", "b/1.png"]).delivered == ()
    assert recognise(["train/a/1.png", "valid/a/1.png"]).delivered == ("train", "val")
    assert recognise(["test/a/1.png", "val/a/1.png", "train/a/1.png"]).delivered == ("train", "val", "test")
