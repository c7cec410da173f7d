import unicodedata

import pytest

from convoy.core.errors import DataError
from convoy.images.layout import Place, is_litter, recognise


def places(*names):
    layout = recognise(names)
    return [(place.split, place.label) for place in map(layout.place, names)]


def test_class_folders_give_labels_and_no_split():
    assert places("cat/1.png", "dog/a/b.png") == [(None, "cat"), (None, "dog")]


@pytest.mark.parametrize("wrap", ["", "images/", "a/b/c/"])
def test_folders_that_only_wrap_are_looked_through(wrap):
    assert places(f"{wrap}cat/1.png", f"{wrap}dog/2.png") == [(None, "cat"), (None, "dog")]
    assert places(f"{wrap}train/cat/1.png", f"{wrap}test/cat/2.png") == [("train", "cat"), ("test", "cat")]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "VALIDATION", "Test")],
)
def test_common_spellings_of_the_parts_are_understood(train, val, test):
    found = places(f"{train}/a/1.png", f"{val}/a/1.png", f"{test}/a/1.png")
    assert found == [("train", "a"), ("val", "a"), ("test", "a")]


def test_a_train_folder_alone_is_a_part_and_no_wrapping():
    assert places("train/cat/1.png", "train/dog/1.png") == [("train", "cat"), ("train", "dog")]


def test_a_wrapping_folder_named_as_a_part_is_looked_through():
    assert places("training/train/cat/1.png", "training/test/cat/1.png") == [
        ("train", "cat"),
        ("test", "cat"),
    ]


def test_a_class_named_train_is_a_class():
    assert places("train/1.png", "bus/1.png") == [(None, "train"), (None, "bus")]


def test_files_beside_the_classes_or_parts_belong_to_none():
    assert places("README.md", "cat/1.png", "dog/1.png")[0] == (None, None)
    assert places("x/notes.txt", "x/cat/1.png", "x/dog/1.png")[0] == (None, None)
    assert places("train/a/1.png", "test/a/1.png", "extra/a/1.png", "test/2.png")[2:] == [
        (None, None),
        ("test", None),
    ]
    assert places("top.txt", "x/cat/1.png", "x/dog/1.png")[0] == (None, None)


def test_two_unicode_spellings_of_a_class_are_one_class():
    short, long = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    assert short != long
    assert places(f"{short}/1.png", f"{long}/2.png", "b/1.png")[:2] == [(None, short)] * 2


def test_two_folders_for_one_part_are_refused():
    with pytest.raises(DataError, match="x/val and x/validation both mean the val part"):
        recognise(["x/train/a/1.png", "x/val/a/1.png", "x/validation/a/1.png"])


def test_a_delivery_without_a_train_part_is_refused():
    with pytest.raises(DataError, match="has test but no train folder: nothing to learn from"):
        recognise(["test/a/1.png", "test/b/1.png"])


@pytest.mark.parametrize(
    "name", ["__MACOSX/cat/._1.png", ".DS_Store", "cat/.hidden.png", "cat/Thumbs.db", "desktop.ini", ".git/x"]
)
def test_what_operating_systems_leave_behind_is_litter(name):
    assert is_litter(name)
    assert not is_litter("cat/1.png")


def test_a_place_is_comparable():
    assert recognise(["a/1.png", "b/1.png"]).place("a/1.png") == Place(None, "a")


def test_the_missing_parts_are_those_not_delivered():
    assert recognise(["a/1.png", "b/1.png"]).missing == ("val", "test")
    assert recognise(["train/a/1.png", "valid/a/1.png"]).missing == ("test",)
    assert recognise(["train/a/1.png", "val/a/1.png", "test/a/1.png"]).missing == ()
