import gzip
import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.images.decode import decode
from convoy.images.delivery import open_delivery


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
    files = {"pets.zip": zipped(pets).read_bytes(), ".DS_Store": b""}
    delivery = open_delivery(folder({f"{where}{name}": content for name, content in files.items()}))
    assert delivery.kind == "zip"
    assert dict(delivery.files()) == pets


def test_several_archives_are_read_as_folders_of_their_names(zipped, tarred, folder, png):
    archives = {
        "circle.zip": zipped({"1.png": png(1)}).read_bytes(),
        "square.tar.gz": tarred({"square/1.png": png(2)}).read_bytes(),
        "README.md": b"hi",
    }
    delivery = open_delivery(folder(archives))
    assert delivery.kind == "2 archives"
    assert delivery.names() == ["README.md", "circle/1.png", "square/square/1.png"]
    assert dict(delivery.files())["square/square/1.png"] == png(2)
    assert "circle.zip as circle/" in delivery.notes[0]
    assert dict(delivery.images(prepared({"circle/1.png": png(1)}), "read", 1)).keys() == {"circle/1.png"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("takeout-2024-001.zip", "takeout-2024-002.zip"), ("cat/0.png", "cat/1.png")),
        (("images_01.zip", "images_02.zip"), ("cat/0.png", "cat/1.png")),
        (("a/x.part1.zip", "a/x.part2.zip"), ("a/cat/0.png", "a/cat/1.png")),
        (
            ("train-0.zip", "train-1.zip", "val-0.zip"),
            ("train/cat/0.png", "train/cat/1.png", "val/cat/2.png"),
        ),
        (("0.zip", "1.zip"), ("0/cat/0.png", "1/cat/1.png")),
        (("train/train.zip", "test/test.zip"), ("test/cat/1.png", "train/cat/0.png")),
        (("photos-2023.zip", "drawings-2024.zip"), ("drawings-2024/cat/1.png", "photos-2023/cat/0.png")),
    ],
)
def test_numbered_archives_are_the_parts_of_one(zipped, folder, png, names, expected):
    files = {name: zipped({f"cat/{n}.png": png(n)}).read_bytes() for n, name in enumerate(names)}
    assert sorted(open_delivery(folder(files)).names()) == list(expected)


def test_numbered_archives_without_folders_are_classes(zipped, folder, png):
    files = {f"class{n}.zip": zipped({"1.png": png(n)}).read_bytes() for n in range(2)}
    assert open_delivery(folder(files)).names() == ["class0/1.png", "class1/1.png"]


def test_parts_may_repeat_a_file_that_is_no_image_but_no_image(zipped, folder, png):
    first = zipped({"cat/1.png": png(1), "index.html": b"1"}).read_bytes()
    second = zipped({"cat/2.png": png(2), "index.html": b"2"}).read_bytes()
    delivery = open_delivery(folder({"x-1.zip": first, "x-2.zip": second}))
    assert (
        delivery.names() == [name for name, _ in delivery.files()] == ["cat/1.png", "index.html", "cat/2.png"]
    )
    with pytest.raises(DataError, match=r"contains `cat/1.png` twice"):
        open_delivery(folder({"x-1.zip": first, "x-2.zip": first})).names()


def test_archives_beside_images_stay_files(zipped, folder, pets):
    delivery = open_delivery(
        folder(pets | {"more.zip": zipped(pets).read_bytes(), "old.7z": b"7z\xbc\xaf\x27\x1c"})
    )
    assert delivery.kind == "folder"
    assert sorted({*delivery.names()} - pets.keys()) == ["more.zip", "old.7z"]


def test_an_archive_of_archives_is_refused_with_the_remedy(zipped, pets):
    content = zipped(pets).read_bytes()
    with pytest.raises(
        DataError, match=r"archives instead of images \(cat.zip, dog.zip\).*Unpack it, and deliver"
    ):
        open_delivery(zipped({"cat.zip": content, "dog.zip": content, "README.md": b""})).names()
    assert "old.zip" in open_delivery(zipped(pets | {"old.zip": content})).names()


@pytest.mark.parametrize(
    "name",
    [
        "photos.zip.001",
        "photos.z01",
        "photos.tar.gz.02",
        "photos.tgz.001",
        "photos.tbz2.001",
        "photos.txz.001",
        "photos.tzst.001",
        "photos.part2.rar",
    ],
)
def test_a_piece_of_a_split_archive_is_refused_with_the_command_that_joins_it(folder, name):
    with pytest.raises(
        DataError, match=rf"{name} is a piece of a split archive.*cat photos.zip.\* > photos.zip"
    ):
        open_delivery(folder({name: b"PK\x03\x04"}))


def test_compressed_files_that_are_no_archives_are_listed(folder):
    names = ["1.gz", "2.gz"]
    delivery = open_delivery(folder(dict.fromkeys(names, gzip.compress(b"text"))))
    assert (delivery.kind, delivery.names()) == ("folder", names)


@pytest.mark.parametrize("write", ["folder", "zipped"])
def test_litter_is_neither_listed_nor_read_but_counted(request, write, pets):
    names = ("__MACOSX/cat/._0.png", "__MACOSX/1.png", ".backup/cat/0.png", "cat/.DS_Store", "cat/.draft.png",
             "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "dog/1_thumb.jpg")  # fmt: skip
    delivery = open_delivery(request.getfixturevalue(write)(pets | dict.fromkeys(names, pets["cat/0.png"])))
    assert sorted(delivery.names()) == sorted(pets)
    assert dict(delivery.files()) == pets
    counts = {"system file": 3, "file in a hidden folder": 1, "hidden file": 1, "thumbnail": 2}
    assert {kind: number for kind, (number, _) in delivery.litter.items()} == counts
    assert delivery.litter["file in a hidden folder"] == (1, ".backup/cat/0.png")


@pytest.mark.parametrize("write", ["folder", "zipped", "tarred"])
def test_a_class_folder_may_begin_with_a_point(request, write, png):
    files = {".net/1.png": png(1), "java/1.png": png(2)}
    assert dict(open_delivery(request.getfixturevalue(write)(files)).files()) == files


def test_folders_without_images_are_listed_the_outermost_only(folder, zipped, png):
    files = {"cat/1.png": png(1), "notes/a/b.txt": b"hi"}
    data = folder(files)
    for name in ("dog/small", "cat/empty", ".git/refs", "@eaDir"):
        (data / name).mkdir(parents=True)
    (data / "dog" / ".DS_Store").touch()
    delivery = open_delivery(data)
    delivery.names()
    assert delivery.empty_folders == ["cat/empty", "dog", "notes"]
    delivery = open_delivery(zipped(files | {"dog/small/": b"", "@eaDir/": b""}))
    delivery.names()
    assert delivery.empty_folders == ["dog", "notes"]


def test_a_folder_of_litter_that_cannot_be_read_is_passed_over(folder, pets, monkeypatch):
    data = folder(pets | {"lost+found/x": b"", "secret/x": b""})
    walk, refused = os.walk, ["lost+found"]

    def refusing(top, onerror):
        yield from walk(top)
        for name in refused:
            onerror(PermissionError(13, "Permission denied", str(data / name)))

    monkeypatch.setattr("convoy.images.delivery.os.walk", refusing)
    assert len(open_delivery(data).names()) == len(pets) + 1
    refused[:] = ["secret"]
    with pytest.raises(DataError, match="secret cannot be read: Permission denied"):
        open_delivery(data).names()


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
    with pytest.raises(DataError, match=r"contains `cat/\\xff.png`, a file name that is not UTF-8"):
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
    def decode_nothing(_: bytes, **options: object) -> None:
        raise DataError("cannot be decoded: an older Pillow")

    monkeypatch.setattr("convoy.images.delivery.decode", decode_nothing)
    with pytest.raises(DataError, match=r"cat/0.png was prepared, but now it cannot be .*--force prepare"):
        images_of(folder(pets), {"cat/0.png": pets["cat/0.png"]})


def test_an_archive_is_read_no_further_than_the_last_image(tarred, pets):
    path = tarred(pets, "")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert list(images_of(path, {"cat/0.png": pets["cat/0.png"]})) == ["cat/0.png"]


def unmarked(tmp_path, names, page):
    """A zip whose names are in a code page, without the mark for UTF-8."""
    path = tmp_path / "old.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(f"{number:0{len(name.encode(page))}}", bytes([number]))
    content = path.read_bytes()
    for number, name in enumerate(names):
        packed = name.encode(page)
        content = content.replace(f"{number:0{len(packed)}}".encode(), packed)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("page", "shown", "names"),
    [
        ("cp932", "Shift-JIS", ["猫/ソート.png", "犬/表.png"]),
        ("gbk", "GBK", ["苹果/1.png", "香蕉/1.png"]),
        ("cp437", "cp437", ["Äpfel/1.png", "Bären/1.png"]),
        ("cp1252", "cp1252", ["Äpfel/1.png", "Bären/1.png"]),
        ("utf-8", "utf-8", ["Äpfel/1.png", "猫/1.png"]),
    ],
)
def test_names_in_a_code_page_are_decoded_and_the_code_page_is_stated(tmp_path, page, shown, names):
    delivery = open_delivery(unmarked(tmp_path, names, page))
    assert delivery.names() == delivery.names() == names
    assert dict(delivery.files()) == {name: bytes([number]) for number, name in enumerate(names)}
    (note,) = delivery.notes
    assert f"old.zip are not marked as UTF-8, and read as {shown}" in note


def test_names_that_make_no_sense_are_pointed_out(tmp_path):
    delivery = open_delivery(unmarked(tmp_path, ["a°b±c/1.png"], "latin1"))
    assert len(delivery.names()) == 1
    assert "make no sense in any known code page" in delivery.notes[0]


def test_names_that_are_utf8_or_ascii_need_no_note(zipped):
    for name in ("猫/1.png", "cat/1.png"):
        delivery = open_delivery(zipped({name: b"1"}))
        delivery.names()
        assert delivery.notes == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"words", "does not start as one"),
    ],
)
def test_a_file_named_like_an_archive_that_is_none_is_refused_for_its_images_are_missing(
    folder, zipped, png, content, reason
):
    cats = zipped({"1.png": png(1)}).read_bytes()
    with pytest.raises(
        DataError, match=rf"dog\.zip is named like an archive, but .*{reason}.* Fetch it again"
    ):
        open_delivery(folder({"cat.zip": cats, "dog.zip": content}))


def test_a_licence_beside_an_archive_is_no_image(folder, zipped, pets):
    delivery = open_delivery(
        folder({"LICENSE": b"MIT", "README.md": b"", "pets.zip": zipped(pets).read_bytes()})
    )
    assert sorted(delivery.names()) == sorted(pets)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "tab", "json", "jsonl", "ndjson"])
def test_a_list_beside_an_archive_is_listed_with_its_images(suffix, folder, zipped, png):
    archive = zipped({"1.png": png(1)}).read_bytes()
    delivery = open_delivery(folder({f"train.{suffix}": b"id,label\n1,cat\n", "train.zip": archive}))
    assert sorted(delivery.names()) == [f"train.{suffix}", "train/1.png"]
