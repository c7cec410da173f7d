"""The journal of a run: an append-only file of JSON lines on disk, which the uploader delivers later.

Each entry is one `write`, so a killed process leaves whole entries. Power loss or a full disk can tear
an entry; it is skipped when read.

Kinds of entry: `open` (what the run is and which store it belongs to; `resumed` if it continues),
`tags`, `params`, `points` (`[name, value, step, time in ms]`), `files`, `dataset`, `model`, `system`
(whether to sample the machine) and `end`.
"""

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convoy.core import contract, files
from convoy.repo import identity

FILE = "journal.jsonl"
SENT = "sent.json"

FOREIGN_SECONDS = 600.0  # silence after which a writer on another host (a shared disk) counts as dead

Entry = Mapping[str, Any]


@dataclass
class State:
    """Summarize the entries of a journal."""

    opened: Entry = field(default_factory=dict)  # the latest `open`
    tags: dict[str, str] = field(default_factory=dict)
    stages: set[str] = field(default_factory=set)  # that have written to the run
    ended: str = ""  # status of `end`; empty while the run is open
    published: dict[str, set[int]] = field(default_factory=dict)  # steps at which each metric has a point
    sampled: bool = False
    remade: bool = False  # resumed after the journal had been delivered and removed
    writer: str = ""  # the process that wrote the latest `open` or started the latest stage

    def add(self, entry: Entry) -> None:
        """Add an entry; one that another version of Convoy wrote may lack a part."""
        kind = entry.get("kind")
        if kind == "open":
            self.remade |= not self.opened and bool(entry.get("resumed"))
            self.opened = entry
            self.ended = ""
        elif kind == "end":
            self.ended = entry.get("status", "KILLED")
            self.sampled = False
        elif kind == "system":
            self.sampled = bool(entry.get("on"))
        elif kind == "points":
            for name, _, step, *_ in entry.get("points", ()):
                self.published.setdefault(name, set()).add(step)
        if kind in {"open", "tags"}:
            tags = entry.get("tags", {})
            self.tags |= tags
            self.writer = entry.get("writer", self.writer)
            if contract.STAGE in tags:
                self.stages.add(tags[contract.STAGE].partition(" ")[0])

    @property
    def between_stages(self) -> bool:
        """Whether the last stage that wrote is done, so that another may follow."""
        return self.tags.get(contract.STAGE, "").endswith(" done")

    def is_alive(self, path: Path, gone: str = "") -> bool:
        """Check whether a process may still write: the one that runs DVC and owns the run unless it is `gone`, or the stage."""
        if self.tags.get(contract.HOST) != identity.host():
            return time.time() - path.stat().st_mtime < FOREIGN_SECONDS
        return any(map(identity.is_alive, {self.tags.get(contract.OWNER, ""), self.writer} - {gone}))


@dataclass
class Sent:
    """Record how many entries and bytes of a journal the store has, and why the last attempt failed, if it did."""

    entries: int = 0
    size: int = 0
    mlflow_run_id: str = ""
    error: str = ""
    tried_ms: int = 0
    held: list[str] = field(default_factory=list)  # folders of files that the store's location did not take

    @classmethod
    def load(cls, folder: Path) -> "Sent":
        """Read the record; one that power loss made unreadable starts over, since a second delivery does no harm."""
        try:
            return cls(**files.read_json(folder / SENT))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Replace the record on disk."""
        files.write_json(folder / SENT, asdict(self))


class Journal:
    """Append to the journal in a folder, which is created if necessary."""

    def __init__(self, folder: Path) -> None:
        """Open the journal for appending; an entry torn at its end is closed off.

        Raises:
            OSError: the disk does not take it.
        """
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / FILE
        # Readable by its owner alone: the address of a store may hold a password.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, entry: Entry, *, sync: bool = False) -> None:
        """Write an entry; with `sync` it survives power loss once this returns.

        Raises:
            OSError: the disk is full or gone; the entry is not in the journal.
        """
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._torn:
                line = b"\n" + line
            self._torn = True
            written = _write(self._descriptor, line)
            if written < len(line):
                raise OSError(f"{self.path}: the disk took {written} of {len(line)} bytes")
            self._torn = False
            if sync:
                os.fsync(self._descriptor)

    def copy_in(self, path: Path, *more: Path) -> str:
        """Copy files, or the content of a folder, beside the journal, and `more` files and folders; return the new folder's name.

        Raises:
            OSError: the disk is full, or a file does not exist.
        """
        name = f"files/{secrets.token_hex(6)}"
        target = self.folder / name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            target.mkdir(parents=True)
            for source in (path, *more):
                files.copy(source, target / source.name)
        for copy in (target.parent, target, *target.rglob("*")):
            with contextlib.suppress(OSError):  # a file system without modes
                copy.chmod(0o700 if copy.is_dir() else 0o600)
        return name

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read(path: Path, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Read whole entries from a byte offset, each with the offset where it ends.

    A torn entry that others follow is read as an empty one.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {}
            yield entry if isinstance(entry, dict) else {}, offset


def state(folder: Path) -> State:
    """Summarize a journal; the state is empty if there is none."""
    summary = State()
    if (folder / FILE).exists():
        for entry, _ in read(folder / FILE):
            summary.add(entry)
    return summary


def _write(descriptor: int, line: bytes) -> int:
    """Write in one call; tests replace this to simulate a full disk."""
    return os.write(descriptor, line)
