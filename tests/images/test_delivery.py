import os
from pathlib import Path

import pytest

from convoy.core.errors import DataError
from convoy.images.delivery import open_delivery


def test_a_folder_and_every_archive_of_it_hand_out_the_same_files(folder, zipped, tarred, parts):
    for path in (folder(parts), zipped(parts), *(tarred(parts, kind) for kind in ("", "gz", "bz2", "xz"))):
        delivery = open_delivery(path)
        assert dict(delivery.files()) == parts
        assert sorted(delivery.names()) == sorted(parts)


def test_files_can_be_streamed_twice(zipped, pets):
    delivery = open_delivery(zipped(pets))
    assert list(delivery.files()) == list(delivery.files())


def test_reading_an_archive_writes_nothing(zipped, pets, tmp_path):
    delivery = open_delivery(zipped(pets))
    before = sorted(tmp_path.rglob("*"))
    assert len(list(delivery.files())) == len(pets)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["", "a/b/"])
def test_a_folder_with_one_archive_stands_for_the_archive(zipped, folder, pets, where):
    content = zipped(pets).read_bytes()
    delivery = open_delivery(
        folder({f"{where}pets.zip": content, f"{where}README.md": b"hi", f"{where}.DS_Store": b""})
    )
    assert delivery.kind == "zip"
    assert dict(delivery.files()) == pets


def test_a_folder_with_two_archives_is_refused(zipped, folder, pets):
    content = zipped(pets).read_bytes()
    with pytest.raises(DataError, match=r"holds 2 archives \(test.zip, train.zip\); one is read"):
        open_delivery(folder({"train.zip": content, "test.zip": content}))


def test_litter_is_left_out(folder, zipped, pets):
    litter = {
        "__MACOSX/cat/._0.png": b"x",
        "__MACOSX/plain.png": b"x",
        ".cache/cat/0.png": b"x",
        "cat/.DS_Store": b"x",
        "cat/Thumbs.db": b"x",
    }
    for path in (folder(pets | litter), zipped(pets | litter)):
        assert dict(open_delivery(path).files()) == pets
        assert len(open_delivery(path).names()) == len(pets)


def test_paths_are_tidied(zipped):
    assert open_delivery(zipped({"./cat//1.png": b"1"})).names() == ["cat/1.png"]


def test_a_path_that_occurs_twice_is_refused(tarred):
    path = tarred({"cat/1.png": b"1", "./cat/1.png": b"2"})
    with pytest.raises(DataError, match=r"holds `cat/1.png` twice"):
        open_delivery(path).names()


def test_one_plain_file_is_refused_and_the_layout_explained(tmp_path, png):
    (tmp_path / "x.zip").write_bytes(png(1))
    with pytest.raises(
        DataError, match=r"x.zip is one file and no zip or tar archive. Expected: one folder per class"
    ):
        open_delivery(tmp_path / "x.zip")


def test_a_missing_delivery_says_how_to_fetch_it(tmp_path):
    with pytest.raises(DataError, match=r"does not exist. Fetch it with `dvc repro`"):
        open_delivery(tmp_path / "data")


def test_a_linked_file_is_followed_since_dvc_links_from_its_cache(folder, tmp_path):
    data = folder({"cat/1.png": b"1"})
    (tmp_path / "cached").write_bytes(b"2")
    (data / "cat" / "2.png").symlink_to(tmp_path / "cached")
    assert dict(open_delivery(data).files()) == {"cat/1.png": b"1", "cat/2.png": b"2"}


def test_a_linked_folder_a_broken_link_and_a_pipe_are_refused_by_name(folder, tmp_path):
    for name, make, reason in (
        ("linked", lambda path: path.symlink_to(tmp_path), "is a link to a folder"),
        ("broken", lambda path: path.symlink_to("nowhere"), "is no plain file"),
        ("pipe", os.mkfifo, "is no plain file"),
    ):
        data = folder({"cat/1.png": b"1", "dog/1.png": b"1"}, name=name)
        make(data / "cat" / "odd")
        with pytest.raises(DataError, match=f"cat/odd {reason}"):
            open_delivery(data).names()


def test_a_file_name_that_is_no_utf8_is_refused(folder):
    data = folder({"cat/1.png": b"1", "dog/1.png": b"1"})
    Path(os.fsdecode(os.fsencode(data) + b"/cat/\xff.png")).write_bytes(b"1")
    with pytest.raises(DataError, match="a file name that is no UTF-8"):
        open_delivery(data).names()
