"""Keep what decoding made of each file, so that a delivery of which a few files changed is prepared in seconds.

A file is recognised by its content. Everything that decides the result is part of the key: the versions of the libraries,
the code that decodes and measures, and the params. So nothing stale is ever found, and the file may be removed at any time.
"""

import hashlib
import io
import json
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt

from convoy.core.console import info
from convoy.data import correlation, duplicates, sketches, split, statistics
from convoy.data.settings import DataParams
from convoy.images import damaged, decode, formats, profiles, resize

CODE = (damaged, decode, formats, profiles, resize, correlation, duplicates, sketches, split, statistics)
"""Modules whose code decides what is kept, beside scan.py, which imports this one and lays the rows out."""

PACKAGES = ("pillow", "onnxruntime", "numpy", "scipy", "pillow-heif")
"""Libraries that decode and measure; the last is an extra."""

OPTIONS = ("image_px", "fit", "crop_share", "train_px", "background", "max_truncated")
"""Params that decide what is kept."""

MAX_BYTES = 4 * 2**30
"""Size of the file, in bytes, above which nothing is added, and what the last delivery did not have is removed."""

ROWS = 2048
"""Rows that are written at once."""

LOOKUP = 512
"""Files that are looked up at once: SQLite takes at most 999 values in a statement before version 3.32."""

HASH_BYTES = hashlib.sha256().digest_size

WAIT_S = 5.0
"""Longest wait for another process that writes."""

INDEX_KIB = 2**14
"""Pages of the SQLite file that are held, in KiB: the index of 250,000 files. Each look-up would read 32 KiB of it again."""

PAGE_BYTES = 2**15
"""Of the SQLite file: several rows to a page, since a row that fills a part of a second page takes all of it."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS image (
    file BLOB PRIMARY KEY, words TEXT NOT NULL, arrays BLOB NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS work (
    name TEXT PRIMARY KEY, key BLOB NOT NULL, arrays BLOB NOT NULL, checksum INTEGER NOT NULL
)
"""

LAYOUT = zlib.crc32(SCHEMA.encode()) >> 1
"""SQLite's `user_version` of a file with these tables, which is a positive int32; files before it have 0."""


class Seen(NamedTuple):
    """Hold what a file's content gave.

    Attributes:
        words: plain data, which many files have in common.
        arrays: bytes of numbers and arrays, one after the other.
    """

    words: Sequence[Any]
    arrays: bytes


def key(params: DataParams) -> bytes:
    """Hash all that decides the result beside a file's content: code, versions and params."""
    digest = hashlib.sha256()
    for path in (*(Path(str(module.__file__)) for module in CODE), Path(__file__).with_name("scan.py")):
        digest.update(path.read_bytes())
    options = {name: getattr(params, name) for name in OPTIONS}
    digest.update(json.dumps([options, *map(_version, PACKAGES)]).encode())
    return digest.digest()


def _version(package: str) -> str:
    """Return the version of a package without importing it; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Cache:
    """Look up and add what was seen, in an SQLite file; without one where the file cannot be used, which is reported.

    `find` is safe in any thread; call the other methods in the thread that created the cache.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, key
        self._rows: list[tuple[bytes, str, bytes, int]] = []
        self._used = bytearray()  # SHA-256 of the files, one after the other
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._full = False

    def __enter__(self) -> Self:
        """Open the file, or make it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._open() or self._replaced()
        except (OSError, sqlite3.Error) as error:
            info(
                f"{self._path} cannot be used ({error}): every file is decoded. `rm {self._path}` makes a new one."
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what was added, also where the delivery was refused; the next attempt decodes less."""
        self._write()
        if self._writer:
            with suppress(sqlite3.Error):
                if self._size() > MAX_BYTES:
                    self._remove_unused(self._writer)
            self._writer.close()
        if self._reader:
            self._reader.close()

    def find(self, files: Iterable[bytes]) -> Mapping[bytes, Seen]:
        """Look up at most `LOOKUP` files by the SHA-256 of their contents; without those that were not seen, or whose row is damaged."""
        if self._writer is None:
            return {}
        names = {self._name(sha256): sha256 for sha256 in files}
        marks = ",".join("?" * len(names))
        query = f"SELECT file, words, arrays, checksum FROM image WHERE file IN ({marks})"  # noqa: S608 (inserts question marks only)
        try:
            with self._reading:  # threads that take turns at each row take longer than a single one
                if self._reader is None:
                    self._reader = sqlite3.connect(self._path, WAIT_S, check_same_thread=False)
                    self._reader.execute(f"PRAGMA cache_size = -{INDEX_KIB}")
                return {
                    names[name]: Seen(_words(words), arrays)
                    for name, words, arrays, checksum in self._reader.execute(query, list(names))
                    if zlib.crc32(arrays, zlib.crc32(words.encode())) == checksum
                }
        except sqlite3.Error:
            return {}

    def use(self, sha256: bytes, seen: Seen | None) -> None:
        """Add what was seen of a file; None if it was found here."""
        if self._writer is None:
            return
        self._used += sha256
        if seen is not None and not self._full:
            words = json.dumps(seen.words)
            checksum = zlib.crc32(seen.arrays, zlib.crc32(words.encode()))
            self._rows.append((self._name(sha256), words, seen.arrays, checksum))
        if len(self._rows) >= ROWS:
            self._write()

    def earlier(self, name: str) -> Mapping[str, npt.NDArray[np.generic]] | None:
        """Return arrays of the last delivery, by name, as `keep` took them; None without, of another key, or if they are damaged."""
        if self._writer is None:
            return None
        try:
            found = self._writer.execute("SELECT key, arrays, checksum FROM work WHERE name = ?", (name,))
            key, arrays, checksum = found.fetchone() or (b"", b"", 0)
        except sqlite3.Error:
            return None
        if key != self._key or zlib.crc32(arrays) != checksum:
            return None
        with np.load(io.BytesIO(arrays), allow_pickle=False) as loaded:
            return dict(loaded)

    def keep(self, name: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Keep arrays of a step that takes long, for the next delivery; they replace those of its name."""
        if self._writer is None or self._full:
            return
        stream = io.BytesIO()
        np.savez(stream, **cast("Mapping[str, Any]", arrays))
        packed = stream.getvalue()
        with suppress(sqlite3.Error):  # no room, or locked: the next delivery takes longer
            self._writer.execute(
                "INSERT OR REPLACE INTO work VALUES (?, ?, ?, ?)",
                (name, self._key, packed, zlib.crc32(packed)),
            )
            self._writer.commit()

    def _name(self, sha256: bytes) -> bytes:
        return hashlib.sha256(self._key + sha256).digest()

    def _replaced(self) -> sqlite3.Connection | None:
        """Begin a new file."""
        for end in ("", "-wal", "-shm"):  # SQLite would write what a log of another file holds into this one
            Path(f"{self._path}{end}").unlink(missing_ok=True)
        return self._open()

    def _open(self) -> sqlite3.Connection | None:
        """Open the file, or make it; None if it must be replaced, which is reported."""
        db = sqlite3.connect(self._path, WAIT_S)
        try:
            _set_up(db)
        except sqlite3.OperationalError:  # locked, read-only, or without room
            db.close()
            raise
        except sqlite3.DatabaseError as error:
            db.close()
            info(f"{self._path} is replaced by an empty one ({error}); every file is decoded once more.")
            return None
        return db

    def _size(self) -> int:
        db = cast("sqlite3.Connection", self._writer)
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _remove_unused(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TEMP TABLE used (file BLOB PRIMARY KEY)")
        files = (bytes(self._used[at : at + HASH_BYTES]) for at in range(0, len(self._used), HASH_BYTES))
        db.executemany("INSERT OR IGNORE INTO used VALUES (?)", ((self._name(file),) for file in files))
        db.execute("DELETE FROM image WHERE file NOT IN (SELECT file FROM used)")
        db.commit()

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        if self._writer is None or not rows:
            return
        try:
            self._writer.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?)", rows)
            self._writer.commit()
            self._full = self._size() > MAX_BYTES
        except sqlite3.Error as error:
            info(f"{self._path} takes no more ({error}); the next prepare decodes the other files again.")
            self._full = True
            with suppress(sqlite3.Error):
                self._writer.rollback()


def _set_up(db: sqlite3.Connection) -> None:
    """Make the tables of a new file.

    Raises:
        sqlite3.DatabaseError: it has tables of another layout, or is damaged.
    """
    has_tables = db.execute("SELECT 1 FROM sqlite_master").fetchone()
    if has_tables and db.execute("PRAGMA user_version").fetchone() != (LAYOUT,):
        raise sqlite3.DatabaseError("written by another version of Convoy")
    db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = OFF")  # a row that a loss of power damages has another checksum
    if not has_tables:
        db.executescript(f"BEGIN; {SCHEMA}; PRAGMA user_version = {LAYOUT}; COMMIT")


@lru_cache(maxsize=1024)
def _words(text: str) -> tuple[Any, ...]:
    return tuple(json.loads(text))
