"""A delivered folder as one archive that DVC imports, packed again when the folder changes."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from convoy.commands.data import use
from convoy.core import yaml
from convoy.core.errors import DataError, RequestError
from convoy.images.delivery import open_delivery
from convoy.lineage import why
from convoy.repo import packing
from small_pipeline import Small

dvc_runs = pytest.mark.pipeline
"""Each start of DVC takes a second."""

FILES = {f"{label}/{n}.png": f"{label} {n}".encode() for label in ("cat", "dog") for n in range(6)}


@pytest.fixture
def photos(folder):
    return folder(FILES, "my photos (2024)")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(archive):
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def test_an_archive_holds_every_file_and_empty_folder(photos, root):
    (photos / "bird").mkdir()
    packed = packing.pack(photos, root)
    assert content(packed.archive) == FILES
    assert packed.files == len(FILES)
    with tarfile.open(packed.archive) as tar:
        assert "bird" in tar.getnames()
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_the_same_names_and_contents_give_the_same_bytes(photos, root, folder):
    first = digest(packing.pack(photos, root).archive)
    for path in photos.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert digest(packing.pack(photos, root).archive) == first
    other = packing.pack(folder(dict(reversed(FILES.items())), "again"), root)
    assert digest(other.archive) == first
    assert sorted(path.name for path in (root / "packed").iterdir()) == sorted(
        [".gitignore", *(f"{other.archive.name}{end}" for end in ("", ".json")),
         *(f"{packing.archive_of(photos, root).name}{end}" for end in ("", ".json"))]
    )  # fmt: skip


CHANGES = {
    "content": lambda photos: (photos / "cat/1.png").write_bytes(b"another"),
    "added": lambda photos: (photos / "cat/new.png").write_bytes(b"1"),
    "removed": lambda photos: (photos / "dog/2.png").unlink(),
    "renamed": lambda photos: (photos / "dog/2.png").rename(photos / "dog/9.png"),
    "folder": lambda photos: (photos / "bird").mkdir(),
    "same size and time": lambda photos: _replace(photos / "cat/1.png"),
}


def _replace(path):
    status = path.stat()
    path.with_name("other").write_bytes(b"CAT 1")
    os.utime(path.with_name("other"), ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_name("other").replace(path)


@pytest.fixture
def imported(photos, root):
    packed = packing.pack(photos, root)
    (root / "data.dvc").write_text(f"deps:\n- path: {json.dumps(str(packed.archive))}\n", encoding="utf-8")
    return packed


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_folder_is_seen_and_packed_again(change, photos, root, imported):
    assert packing.of(root) == imported
    assert not packing.has_changed(imported)
    assert packing.refresh(root) == []
    before = digest(imported.archive)
    CHANGES[change](photos)
    assert packing.has_changed(imported)
    (line,) = packing.refresh(root)
    assert str(photos) in line
    assert "packed again" in line
    assert digest(imported.archive) != before
    assert packing.refresh(root) == []
    left = {
        path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*") if path.is_file()
    }
    assert content(imported.archive) == left


def test_a_rounds_worktree_that_links_the_archive_packs_the_folder_again(photos, root, imported, tmp_path):
    tree = tmp_path / "tree"
    (tree / "packed").mkdir(parents=True)
    path = imported.archive.relative_to(root)
    (tree / "data.dvc").write_text(f"deps:\n- path: {path}\n", encoding="utf-8")
    (tree / path).symlink_to(imported.archive)
    assert packing.of(tree) == imported
    (photos / "cat" / "new.png").write_bytes(b"new")
    (line,) = packing.refresh(tree)
    assert "packed again" in line
    assert content(tree / path)["cat/new.png"] == b"new"
    assert (tree / path).is_symlink()
    assert packing.refresh(root) == []


def test_the_change_of_a_frozen_import_is_packed_and_needs_dvc_update(photos, root, imported):
    with (root / "data.dvc").open("a") as file:
        file.write("frozen: true\n")
    (photos / "cat" / "new.png").write_bytes(b"new")
    (_, line) = packing.refresh(root)
    for fact in ("data.dvc is frozen", "data/ stays as it is", "dvc update data.dvc"):
        assert fact in line


def test_a_touched_file_is_packed_again_to_the_same_bytes(photos, root, imported):
    before = digest(imported.archive)
    os.utime(photos / "cat/1.png", (1, 1))
    assert packing.refresh(root)
    assert digest(imported.archive) == before


def test_a_lost_archive_is_made_again_and_a_lost_folder_is_named(photos, root, imported):
    before = digest(imported.archive)
    imported.archive.unlink()
    assert packing.refresh(root)
    assert digest(imported.archive) == before
    photos.rename(photos.with_name("elsewhere"))
    (line,) = packing.refresh(root)
    for fact in (str(photos), "is gone", str(imported.archive), "convoy data use"):
        assert fact in line


@pytest.mark.parametrize(
    "text", ["", "deps: []", "deps:\n- path: samples\n", "deps:\n- path: /x/packed/gone.tar\n", "- 1"]
)
def test_any_other_import_is_left_alone(text, root):
    (root / "data.dvc").write_text(text, encoding="utf-8")
    assert packing.of(root) is None
    assert packing.refresh(root) == []


def test_linked_files_and_folders_are_packed_as_what_they_link_to(photos, root, folder):
    elsewhere = folder({"deep/1.png": b"linked"}, "elsewhere")
    (photos / "bird").symlink_to(elsewhere)
    (photos / "cat" / "linked.png").symlink_to(elsewhere / "deep/1.png")
    found = content(packing.pack(photos, root).archive)
    assert found["bird/deep/1.png"] == found["cat/linked.png"] == b"linked"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("nowhere"), "odd cannot be read: No such file"),
        (os.mkfifo, "odd is not a regular file"),
        (lambda path: path.symlink_to(path.parent.parent), "links to a folder that it is in"),
        (lambda path: Path(os.fsdecode(os.fsencode(path) + b"\xff")).touch(), "not UTF-8"),
    ],
)
def test_what_cannot_be_packed_is_named_and_nothing_is_left(make, reason, photos, root):
    make(photos / "cat" / "odd")
    with pytest.raises(DataError, match=reason):
        packing.pack(photos, root)
    assert [path.name for path in (root / "packed").iterdir()] == [".gitignore"]


def test_a_folder_that_changes_while_it_is_packed_is_refused(photos, root, monkeypatch):
    add = packing._add

    def late(tar, entry):
        add(tar, entry)
        (photos / "cat" / "late.png").write_bytes(b"x")

    monkeypatch.setattr(packing, "_add", late)
    with pytest.raises(DataError, match=r"has changed while it was packed. Try again"):
        packing.pack(photos, root)
    assert not list((root / "packed").glob("*.tar"))


@dvc_runs
def test_data_use_packs_a_folder_and_why_sees_its_change(tmp_path, root, pets, folder, settings, monkeypatch):
    Small(root).init()
    Small(root).dvc("init", "-q")
    monkeypatch.chdir(root)
    photos = folder(pets, "photos")
    (tmp_path / "pets.zip").write_bytes(b"x")
    params = settings()
    with pytest.raises(RequestError, match=r"--pack is for folders .*pets.zip is none"):
        use(str(tmp_path / "pets.zip"), root, params=params, pack=True)
    monkeypatch.setattr(packing, "MANY_FILES", len(pets))
    use(str(photos), root, params=params)
    assert (root / "data").is_dir()
    monkeypatch.setattr(packing, "MANY_FILES", len(pets) - 1)
    lines = "\n".join(use(str(photos), root, params=params))
    for fact in (
        f"{len(pets)} files of {photos}",
        "--no-pack",
        "make repro",
        "Warning: ",
        f"`convoy data use --pack {photos} && dvc freeze data.dvc`",
    ):
        assert fact in lines
    packed = packing.of(root)
    assert root / yaml.read(root / "data.dvc")["deps"][0]["path"] == packed.archive
    assert dict(open_delivery(root / "data").files()) == pets
    assert Small(root).dvc("status", "--json").strip() == "{}"
    assert why.explain(root)["nothing_to_do"]

    (photos / "cat" / "new.png").write_bytes(pets["dog/1.png"])
    (data,) = why.explain(root)["stages"]
    assert data["verdict"] == "runs"
    assert data["changes"][0]["state"] == "update available"
    assert "changed at its source" in "\n".join(why.lines(why.explain(root)))
    packing.refresh(root)
    assert "changed deps" in Small(root).dvc("status", "--json")
    Small(root).dvc("repro", "data.dvc")
    assert len(open_delivery(root / "data").names()) == len(pets) + 1
    use(str(photos), root, params=params, pack=False)
    assert (root / "data").is_dir()
