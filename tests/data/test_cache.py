import io
import sqlite3
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.data import cache, duplicates, prepare, scan
from convoy.data.cache import Cache, Seen
from convoy.images.decode import decode
from deliveries import data_params


@pytest.fixture
def decoded(monkeypatch):
    """Collect what is decoded."""
    found: list[bytes] = []

    def counted(content, held=None, **options):
        found.append(content)
        return decode(content, held, **options)

    monkeypatch.setattr(scan, "decode", counted)
    return found


def photo(seed: int, brighter: int = 0) -> bytes:
    """Draw 40 x 40 pixels of soft shapes."""
    cells = np.random.default_rng(seed).integers(40, 200, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(cells).resize((40, 40), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image) + np.uint8(brighter)).save(stream, "PNG")
    return stream.getvalue()


def prepared(data: Path, out: Path, **params):
    prepare.prepare(data, data_params(image_px=8, max_quarantined=0.1, **params), out)
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_only_new_files_are_decoded_and_the_dataset_is_the_same(folder, pets, png, decoded, tmp_path):
    data, out = folder(pets), tmp_path / "build/dataset"
    first = prepared(data, out)
    assert sorted(decoded) == sorted(pets.values())
    decoded.clear()
    assert prepared(data, out) == first
    assert decoded == []
    new = png(5000)
    (data / "cat/new.png").write_bytes(new)
    with_new = prepared(data, out)
    assert decoded == [new]
    assert with_new == prepared(data, tmp_path / "other/dataset"), "as without a cache"


@pytest.mark.parametrize(
    "change",
    [
        {"image_px": 16},
        {"fit": "crop"},
        {"fit": "crop", "crop_share": 0.9},
        {"store_px": 64},
        {"background": "black"},
        {"max_truncated": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_option_that_decides_what_is_kept_changes_the_key(change):
    params = data_params()
    assert cache.key(params) == cache.key(data_params())
    assert cache.key(params) != cache.key(data_params(**change))


@pytest.mark.parametrize("package", cache.PACKAGES)
def test_the_version_of_each_library_changes_the_key(monkeypatch, package):
    monkeypatch.setattr(cache, "version", lambda _: "1.0")
    before = cache.key(data_params())
    monkeypatch.setattr(cache, "version", lambda name: "1.1" if name == package else "1.0")
    assert cache.key(data_params()) != before


def test_code_changes_the_key(monkeypatch, tmp_path):
    before = cache.key(data_params())
    edited = tmp_path / "decode.py"
    edited.write_bytes(Path(cache.decode.__file__).read_bytes() + b"#")
    monkeypatch.setattr(cache.decode, "__file__", str(edited))
    assert cache.key(data_params()) != before


def test_an_option_that_is_changed_finds_nothing_stale(folder, decoded, tmp_path, png):
    files = {
        f"{label}/{n}.png": png(n + 100 * len(label), 12, 8) for label in ("cat", "a dog") for n in range(20)
    }
    data = folder(files)
    for number, options in enumerate(({"fit": "squash"}, {"fit": "crop"}, {"fit": "squash"})):
        decoded.clear()
        content = prepared(data, tmp_path / "build/dataset", **options)
        assert content == prepared(data, tmp_path / f"other{number}/dataset", **options)
        assert len(decoded) == (80 if number < 2 else 40), "the other folder has no cache"


def test_a_damaged_row_and_a_damaged_file_are_not_used(tmp_path, capsys):
    path, seen = tmp_path / "cache/images.sqlite", Seen(("L",), b"abc")
    with Cache(path, b"key") as kept:
        kept.use(b"1", seen)
        kept.use(b"2", Seen((), b""))
    with Cache(path, b"key") as kept:
        assert kept.find([b"1"]) == {b"1": seen}
        assert not kept.find([b"3"])
    with Cache(path, b"another key") as kept:
        assert not kept.find([b"1"])
    db = sqlite3.connect(path)
    db.execute("UPDATE image SET arrays = x'616264' WHERE arrays = x'616263'")
    db.commit()
    db.close()
    with Cache(path, b"key") as kept:
        assert not kept.find([b"1"])
        assert kept.find([b"2"])


def old_layout(path: Path) -> None:
    """Write the tables of the first version, which had no number, one of which is gone."""
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE seen (file BLOB PRIMARY KEY); CREATE TABLE image (file BLOB, arrays BLOB)")
    db.close()


def newer_layout(path: Path) -> None:
    """Write a file as of a later version."""
    Cache(path, b"key").__enter__().__exit__(None, None, None)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {cache.LAYOUT + 1}")
    db.close()


def corrupt(path: Path) -> None:
    """Write no database, and the log of another one."""
    path.write_bytes(b"not a database, but long enough to be refused as such" * 100)
    path.with_name(f"{path.name}-wal").write_bytes(b"a log")


def cut_short(path: Path) -> None:
    """Write the first part of a database."""
    newer_layout(path)
    path.write_bytes(path.read_bytes()[: cache.PAGE_BYTES // 2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (old_layout, "another version"),
        (newer_layout, "another version"),
        (corrupt, "not a database"),
        (cut_short, ""),
    ],
)
def test_a_file_of_another_version_or_a_damaged_one_is_replaced_and_reported(tmp_path, capsys, make, reason):
    path, seen = tmp_path / "cache/images.sqlite", Seen(("L",), b"abc")
    path.parent.mkdir()
    make(path)
    with Cache(path, b"key") as kept:
        kept.use(b"1", seen)
    out = " ".join(capsys.readouterr().out.split())
    assert all(word in out for word in ("images.sqlite", "replaced", reason, "every file is decoded"))
    db = sqlite3.connect(path)
    assert {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} == {
        "image",
        "work",
    }
    db.close()
    with Cache(path, b"key") as kept:
        assert kept.find([b"1"]) == {b"1": seen}
    assert capsys.readouterr().out == ""


def test_a_cache_that_cannot_be_made_is_reported_and_stops_nothing(folder, pets, tmp_path, capsys, decoded):
    (tmp_path / "build").mkdir()
    (tmp_path / "build/cache").write_text("a file")
    prepared(folder(pets), tmp_path / "build/dataset")
    assert "build/cache/images.sqlite cannot be used" in capsys.readouterr().out
    assert len(decoded) == len(pets)


def test_a_cache_that_has_grown_too_large_keeps_what_the_last_delivery_had(tmp_path, monkeypatch):
    path, large = tmp_path / "cache/images.sqlite", Seen((), np.zeros(10_000, np.uint8).tobytes())
    old, used, used_too = (sha256(name).digest() for name in (b"old", b"used", b"used too"))
    with Cache(path, b"key") as kept:
        for name in (old, used, used_too):
            kept.use(name, large)
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    with Cache(path, b"key") as kept:
        assert kept.find([used]) == {used: large}
        kept.use(used, None)
        kept.use(used_too, None)
    with Cache(path, b"key") as kept:
        assert kept.find([used, used_too, old]) == {used: large, used_too: large}


def test_a_refused_delivery_leaves_what_was_decoded(folder, pets, decoded, tmp_path):
    data, out = folder(pets | {f"cat/{n}.jpg": b"x" for n in range(30)}), tmp_path / "build/dataset"
    with pytest.raises(DataError, match="unusable"):
        prepared(data, out)
    decoded.clear()
    for n in range(30):
        (data / f"cat/{n}.jpg").unlink()
    assert "dataset.json" in prepared(data, out)
    assert decoded == []


def test_arrays_of_a_step_are_kept_for_the_next_delivery_under_the_same_key(tmp_path):
    path, arrays = tmp_path / "cache/images.sqlite", {"a": np.arange(5), "b": np.zeros((0, 3), np.float32)}
    with Cache(path, b"key") as kept:
        assert kept.earlier("pairs") is None
        kept.keep("pairs", {"a": np.zeros(1)})
        kept.keep("pairs", arrays)
    with Cache(path, b"key") as kept:
        found = kept.earlier("pairs")
        assert found is not None
        assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
            name: (array.dtype, array.tolist()) for name, array in arrays.items()
        }
    with Cache(path, b"another key") as kept:
        assert kept.earlier("pairs") is None
    db = sqlite3.connect(path)
    db.execute("UPDATE work SET arrays = x'00'")
    db.commit()
    db.close()
    with Cache(path, b"key") as kept:
        assert kept.earlier("pairs") is None


def test_near_duplicates_are_those_of_a_search_without_a_cache(folder, tmp_path, monkeypatch):
    """Images come, go and move to another class after a search that the cache has."""
    searched = []
    search = duplicates.search

    def noted(fingerprints, eligible, limit, earlier=None):
        searched.append(earlier)
        return search(fingerprints, eligible, limit, earlier)

    monkeypatch.setattr(scan.duplicates, "search", noted)
    photos = {
        f"{label}/{n}.png": photo(n + 50 * (label == "dog")) for label in ("cat", "dog") for n in range(20)
    }
    copies = {f"dog/copy-{n}.png": photo(n, brighter=9) for n in range(3)}
    data, out = folder(photos | copies), tmp_path / "build/dataset"
    prepared(data, out)
    for n, name in enumerate((f"cat/{n}.png" for n in (0, 7, 9)), 90):
        (data / name).unlink()
        (data / f"cat/{n}.png").write_bytes(photo(n))
        (data / f"cat/copy-{n}.png").write_bytes(photo(n, brighter=9))
    (data / "cat/5.png").rename(data / "dog/5.png")
    searched.clear()
    continued = prepared(data, out)
    assert searched[0] is not None
    searched.clear()
    assert continued == prepared(data, tmp_path / "other/dataset")
    assert searched[0] is None
    assert continued["report.html"].count(b"copy-9") > 0
