import unicodedata

import pytest

from convoy.core.errors import DataError
from convoy.images.layout import is_litter, recognise


def splits_and_labels(*names):
    return list(map(recognise(names).split_and_label, names))


def test_class_folders_give_labels_and_no_split():
    assert splits_and_labels("cat/1.png", "dog/a/b.png") == [(None, "cat"), (None, "dog")]


@pytest.mark.parametrize("wrap", ["", "images/", "a/b/c/"])
def test_folders_that_only_wrap_are_skipped(wrap):
    assert splits_and_labels(f"{wrap}cat/1.png", f"{wrap}dog/2.png") == [(None, "cat"), (None, "dog")]
    assert splits_and_labels(f"{wrap}train/cat/1.png", f"{wrap}test/cat/2.png") == [
        ("train", "cat"),
        ("test", "cat"),
    ]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "VALIDATION", "Test")],
)
def test_common_names_of_the_splits_are_recognised(train, val, test):
    found = splits_and_labels(f"{train}/a/1.png", f"{val}/a/1.png", f"{test}/a/1.png")
    assert found == [("train", "a"), ("val", "a"), ("test", "a")]


def test_a_train_folder_alone_is_a_split():
    assert splits_and_labels("train/cat/1.png", "train/dog/1.png") == [("train", "cat"), ("train", "dog")]


def test_a_wrapping_folder_named_like_a_split_is_skipped():
    assert splits_and_labels("training/train/cat/1.png", "training/test/cat/1.png") == [
        ("train", "cat"),
        ("test", "cat"),
    ]


def test_a_class_named_train_is_a_class():
    assert splits_and_labels("train/1.png", "bus/1.png") == [(None, "train"), (None, "bus")]


def test_files_beside_the_classes_or_splits_have_neither():
    assert splits_and_labels("README.md", "cat/1.png", "dog/1.png")[0] == (None, None)
    assert splits_and_labels("x/notes.txt", "x/cat/1.png", "x/dog/1.png")[0] == (None, None)
    assert splits_and_labels("train/a/1.png", "test/a/1.png", "extra/a/1.png", "test/2.png")[2:] == [
        (None, None),
        ("test", None),
    ]
    assert splits_and_labels("top.txt", "x/cat/1.png", "x/dog/1.png")[0] == (None, None)


def test_two_unicode_spellings_of_a_class_are_one_class():
    short, long = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    assert short != long
    assert splits_and_labels(f"{short}/1.png", f"{long}/2.png", "b/1.png")[:2] == [(None, short)] * 2


def test_two_folders_for_a_split_are_refused():
    with pytest.raises(DataError, match="x/val and x/validation are both the val split"):
        recognise(["x/train/a/1.png", "x/val/a/1.png", "x/validation/a/1.png"])


def test_a_delivery_without_a_train_split_is_refused():
    with pytest.raises(DataError, match="has test but no train folder"):
        recognise(["test/a/1.png", "test/b/1.png"])


@pytest.mark.parametrize(
    "name", ["__MACOSX/cat/._1.png", ".DS_Store", "cat/.hidden.png", "cat/Thumbs.db", "desktop.ini", ".git/x"]
)
def test_what_operating_systems_leave_behind_is_litter(name):
    assert is_litter(name)
    assert not is_litter("cat/1.png")


def test_the_missing_splits_are_those_not_delivered():
    assert recognise(["a/1.png", "b/1.png"]).missing == ("val", "test")
    assert recognise(["train/a/1.png", "valid/a/1.png"]).missing == ("test",)
    assert recognise(["train/a/1.png", "val/a/1.png", "test/a/1.png"]).missing == ()
