import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.images.decode import decode
from convoy.images.delivery import is_litter, open_delivery


def prepared(files):
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def images_of(path, files):
    return dict(open_delivery(path).images(prepared(files), "read", 100))


def test_a_folder_and_every_archive_of_it_have_the_same_files(folder, zipped, tarred, parts):
    for path in (folder(parts), zipped(parts), *(tarred(parts, kind) for kind in ("", "gz", "bz2", "xz"))):
        delivery = open_delivery(path)
        assert dict(delivery.files()) == parts
        assert sorted(delivery.names()) == sorted(parts)


def test_an_archive_is_read_twice_without_writing_a_file(zipped, pets, tmp_path):
    delivery = open_delivery(zipped(pets))
    before = sorted(tmp_path.rglob("*"))
    assert dict(delivery.files()) == dict(delivery.files()) == pets
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["", "a/b/"])
def test_a_folder_with_a_single_archive_is_read_as_the_archive(zipped, folder, pets, where):
    files = {"pets.zip": zipped(pets).read_bytes(), "README.md": b"hi", ".DS_Store": b""}
    delivery = open_delivery(folder({f"{where}{name}": content for name, content in files.items()}))
    assert delivery.kind == "zip"
    assert dict(delivery.files()) == pets


def test_a_folder_with_two_archives_is_refused(zipped, folder, pets):
    content = zipped(pets).read_bytes()
    with pytest.raises(DataError, match=r"contains 2 archives \(test.zip, train.zip\)"):
        open_delivery(folder({"train.zip": content, "test.zip": content}))


def test_litter_is_skipped(folder, zipped, pets):
    names = ("__MACOSX/cat/._0.png", "__MACOSX/1.png", ".cache/cat/0.png", "cat/.DS_Store", "cat/Thumbs.db")
    litter = dict.fromkeys(names, b"x")
    for path in (folder(pets | litter), zipped(pets | litter)):
        assert dict(open_delivery(path).files()) == pets
        assert len(open_delivery(path).names()) == len(pets)


def test_paths_are_normalised_and_unique(zipped, tarred):
    assert open_delivery(zipped({"./cat//1.png": b"1"})).names() == ["cat/1.png"]
    twice = tarred({"cat/1.png": b"1", "./cat/1.png": b"2"})
    with pytest.raises(DataError, match=r"contains `cat/1.png` twice"):
        open_delivery(twice).names()


def test_what_is_no_delivery_is_refused_with_the_remedy(tmp_path, png):
    (tmp_path / "x.zip").write_bytes(png(1))
    with pytest.raises(DataError, match=r"x.zip is a file, .* archive, .*. Expected: one folder per class"):
        open_delivery(tmp_path / "x.zip")
    with pytest.raises(DataError, match=r"does not exist. Fetch it with `dvc repro`"):
        open_delivery(tmp_path / "data")


def test_a_linked_file_is_followed_since_dvc_links_from_its_cache(folder, tmp_path):
    data = folder({"cat/1.png": b"1"})
    (tmp_path / "cached").write_bytes(b"2")
    (data / "cat" / "2.png").symlink_to(tmp_path / "cached")
    assert dict(open_delivery(data).files()) == {"cat/1.png": b"1", "cat/2.png": b"2"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to(path.parent), "is a link to a folder"),
        (lambda path: path.symlink_to("nowhere"), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
    ],
)
def test_a_linked_folder_a_broken_link_and_a_pipe_are_refused_by_name(folder, make, reason):
    data = folder({"cat/1.png": b"1"})
    make(data / "cat" / "odd")
    with pytest.raises(DataError, match=f"cat/odd {reason}"):
        open_delivery(data).names()


def test_a_file_name_that_is_no_utf8_is_refused(folder):
    data = folder({"cat/1.png": b"1"})
    Path(os.fsdecode(os.fsencode(data) + b"/cat/\xff.png")).write_bytes(b"1")
    with pytest.raises(DataError, match="a file name that is not UTF-8"):
        open_delivery(data).names()


def test_prepared_images_are_decoded_again_from_a_folder_and_from_an_archive(folder, zipped, pets):
    chosen = {path: pets[path] for path in ("dog/3.png", "cat/1.png", "cat/0.png")}
    for path in (folder(pets), zipped(pets)):
        images = images_of(path, chosen)
        assert images.keys() == chosen.keys()
        assert all(np.array_equal(image_u8, decode(pets[name]).image_u8) for name, image_u8 in images.items())
    assert list(images_of(folder(pets), chosen)) == list(chosen)
    assert list(images_of(zipped(pets), chosen)) == sorted(chosen)


def test_only_the_chosen_files_of_a_folder_are_read(folder, pets):
    data = folder({"cat/0.png": pets["cat/0.png"]})
    (data / "cat" / "2.png").mkdir()
    assert list(images_of(data, {"cat/0.png": pets["cat/0.png"]})) == ["cat/0.png"]
    with pytest.raises(DataError, match=r"cat/2.png cannot be read: Is a directory"):
        images_of(data, {"cat/2.png": b""})


def test_no_chosen_images_read_nothing(zipped, pets):
    delivery = open_delivery(zipped(pets))
    delivery.path.unlink()
    assert list(delivery.images({}, "read", 0)) == []


@pytest.mark.parametrize("kind", ["folder", "zipped"])
def test_images_that_are_gone_or_have_changed_are_counted_after_the_others(request, pets, kind):
    chosen = {path: pets[path] for path in ("cat/0.png", "cat/1.png", "dog/2.png")}
    write = request.getfixturevalue(kind)
    gone = write({name: content for name, content in pets.items() if not name.startswith("cat/1")})
    seen = []
    with pytest.raises(DataError, match=r"1 of 3 images are no longer delivered .* is cat/1.png.*dvc repro"):
        seen.extend(open_delivery(gone).images(prepared(chosen), "read", 80))
    assert [path for path, _ in seen] == ["cat/0.png", "dog/2.png"]
    changed = write(pets | {"dog/2.png": pets["dog/3.png"], "cat/0.png": b"x"})
    with pytest.raises(DataError, match=r"2 of 3 images have changed .* is cat/0.png.*dvc repro"):
        images_of(changed, chosen)


def test_an_image_that_no_longer_decodes_is_named(folder, pets, monkeypatch):
    def decode_nothing(_: bytes) -> None:
        raise DataError("cannot be decoded: an older Pillow")

    monkeypatch.setattr("convoy.images.delivery.decode", decode_nothing)
    with pytest.raises(DataError, match=r"cat/0.png was prepared, but now it cannot be .*--force prepare"):
        images_of(folder(pets), {"cat/0.png": pets["cat/0.png"]})


def test_an_archive_is_read_no_further_than_the_last_image(tarred, pets):
    path = tarred(pets, "")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert list(images_of(path, {"cat/0.png": pets["cat/0.png"]})) == ["cat/0.png"]


@pytest.mark.parametrize(
    "name", ["__MACOSX/cat/._1.png", ".DS_Store", "cat/.hidden.png", "cat/Thumbs.db", "desktop.ini", ".git/x"]
)
def test_what_operating_systems_leave_behind_is_litter(name):
    assert is_litter(name)
    assert not is_litter("cat/1.png")
