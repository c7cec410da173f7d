import itertools

import pytest

from convoy.core.errors import DataError
from convoy.data.prepare import prepare
from deliveries import png_of


@pytest.fixture
def before(folder, pets, settings, tmp_path):
    """Files of a prepared dataset of cats and dogs, 40 images each."""
    out = tmp_path / "before"
    prepare(folder(pets, name="first"), settings(), out)
    return {path.name: path for path in out.iterdir()}


@pytest.fixture
def again(folder, settings, tmp_path, capsys):
    """Prepare a later delivery; what was printed from the finding on."""

    number = itertools.count()

    def run(files, before, **changes):
        capsys.readouterr()
        prepare(
            folder(files, name=f"later{next(number)}"), settings(**changes), tmp_path / "now", before=before
        )
        return (
            " ".join(capsys.readouterr().out.split())
            .partition("classes ")[2]
            .partition("report: The classes")[2]
        )

    return run


def owls(images=10):
    return {f"an owl/{n}.png": png_of(9000 + n) for n in range(images)}


def test_nothing_is_stated_without_a_dataset_before_or_with_the_same_classes(pets, before, again):
    assert again(pets | owls(), {}) == ""
    assert again(pets | {"cat/more.png": png_of(7777)}, before, classes="fail") == ""
    assert again(pets | owls(), before) != ""


def test_a_new_class_is_named_with_what_follows(pets, before, again):
    text = again(pets | owls(), before)
    assert "new: `an owl` (10 images)" in text
    assert "missing" not in text
    for consequence in ("new head", "number of `cat`, `dog` changes", "champion is wrong"):
        assert consequence in text
    assert "gate refuses" not in text


def test_a_missing_class_is_named_with_what_follows(pets, before, again):
    files = {path: content for path, content in (pets | owls()).items() if not path.startswith("dog")}
    text = again(files, before)
    assert "new: `an owl` (10 images)" in text
    assert "missing: `dog` (40 images)" in text
    assert "gate refuses a candidate that lacks a class of the champion" in text


@pytest.mark.parametrize(("images", "found"), [(40, True), (21, True), (20, False)])
def test_a_renamed_class_is_found_by_most_of_its_images(pets, before, again, images, found):
    moved = {
        path.replace("dog/", "hound/"): content for path, content in pets.items() if path.startswith("dog")
    }
    kept = dict(list(moved.items())[:images])
    other = {f"hound/new{n}.png": png_of(8000 + n) for n in range(30)}
    text = again(
        {path: content for path, content in pets.items() if path.startswith("cat")} | kept | other, before
    )
    assert (f"`dog` is `hound` now ({images} of its 40 images)" in text) == found
    assert ("missing: `dog`" in text) == (not found)


def test_a_class_that_is_now_part_of_another_or_was_one_is_found(
    pets, before, again, folder, settings, tmp_path
):
    cats = {path: content for path, content in pets.items() if path.startswith("cat")}
    kittens = {path.replace("cat/", "kitten/"): content for path, content in list(cats.items())[:10]}
    rest = {path: content for path, content in pets.items() if path not in list(cats)[:10]}
    assert "`cat` is `kitten` now (10 of its 40 images)" in again(kittens | rest, before)
    out = tmp_path / "three"
    prepare(folder(kittens | rest, name="split"), settings(), out)
    text = again(pets, {path.name: path for path in out.iterdir()})
    assert "`kitten` is `cat` now (10 of its 10 images)" in text


def test_other_data_are_no_later_version(before, again):
    files = {
        f"{label}/{n}.png": png_of(100 * k + n) for k, label in enumerate(("red", "green")) for n in range(20)
    }
    assert again(files, before, classes="fail") == ""


def test_fail_refuses_with_both_lists_and_the_value_that_accepts(pets, before, again, tmp_path):
    with pytest.raises(DataError) as caught:
        again(pets | owls(), before, classes="fail")
    message = str(caught.value)
    assert "Before: `cat`, `dog` (2). Now: `an owl`, `cat`, `dog` (3)." in message
    assert "data.classes: extend in params.yaml" in message
    assert not (tmp_path / "now").exists()


def test_what_is_written_does_not_depend_on_the_dataset_before(
    pets, before, again, tmp_path, folder, settings
):
    again(pets | owls(), before)
    prepare(folder({}, name="later0"), settings(), tmp_path / "alone")
    written = [path for path in (tmp_path / "alone").rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert path.read_bytes() == (tmp_path / "now" / path.relative_to(tmp_path / "alone")).read_bytes()
