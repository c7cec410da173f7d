"""Keep what a run has to say on the disk first: one line of JSON per entry, which a courier delivers later.

An entry is one `write` to a file that is only ever appended to, so a process that is killed
leaves whole entries. Power loss or a full disk can tear one: it is skipped when read.

Kinds of entry: `open` (what the run is and where it is to be kept; `resumed` in a run that goes on),
`tags`, `params`, `points` (`[name, value, step, time in ms]`), `files`, `dataset`, `model`, `system`
(whether to sample the machine) and `end`.
"""

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

from convoy.core import files
from convoy.repo import identity

FILE = "journal.jsonl"
SENT = "sent.json"
STAGE = "convoy.stage"
"""Tag that says which stage writes to the run, such as `train running` or `train done`."""

FOREIGN_SECONDS = 600.0
"""Silence after which a journal that another host writes, on a shared disk, is not waited for any more."""

Entry = Mapping[str, Any]


@dataclass
class State:
    """Sum up what the entries so far say.

    Attributes:
        opened: the latest `open` entry; empty if there is none.
        tags: the latest value of each tag.
        begun: stages that have written to the run.
        ended: status of the `end` entry; empty while the run is open.
        published: steps that each metric has a point at.
        sampled: whether the machine is to be sampled.
        remade: whether the run went on after its journal was delivered and removed.
        writer: the process that wrote the latest `open` or began the latest stage.
    """

    opened: Entry = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    ended: str = ""
    published: dict[str, set[int]] = field(default_factory=dict)
    sampled: bool = False
    remade: bool = False
    writer: str = ""

    def take(self, entry: Entry) -> None:
        """Add an entry; what another version of Convoy wrote may lack a part."""
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
            if STAGE in tags:
                self.begun.add(tags[STAGE].partition(" ")[0])

    @property
    def between_stages(self) -> bool:
        """Tell whether the last stage that wrote is done, so that another may follow or not."""
        return self.tags.get(STAGE, "").endswith(" done")

    def is_alive(self, path: Path) -> bool:
        """Tell whether somebody may still write: the `dvc` that owns the run, or the stage itself."""
        if self.tags.get("convoy.host") != identity.host():
            return time.time() - path.stat().st_mtime < FOREIGN_SECONDS
        return identity.is_alive(self.tags.get("convoy.owner", "")) or identity.is_alive(self.writer)


@dataclass
class Sent:
    """Say how far a journal was delivered.

    Attributes:
        entries: number of entries that the store has.
        size: bytes of the journal that they take.
        mlflow_run_id: empty until the store has the run.
        error: why the last try failed; empty if it did not.
        tried_ms: when the store was last tried.
    """

    entries: int = 0
    size: int = 0
    mlflow_run_id: str = ""
    error: str = ""
    tried_ms: int = 0

    @classmethod
    def load(cls, folder: Path) -> "Sent":
        """Read what was noted; from the start where a power loss left nothing legible, since a second delivery harms nothing."""
        try:
            return cls(**files.read_json(folder / SENT))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Replace what is noted."""
        files.write_json(folder / SENT, asdict(self))


class Journal:
    """Append to the journal in a folder, which is made if need be."""

    def __init__(self, folder: Path) -> None:
        """Open for appending; what was torn at the end is closed off.

        Raises:
            OSError: the disk does not take it.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        # Readable by its owner alone: the address of a store may hold a password.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, entry: Entry, *, sync: bool = False) -> None:
        """Write an entry; with `sync` it survives a power loss once this returns.

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

    def keep(self, path: Path, *more: Path) -> str:
        """Copy files, or what a folder holds, beside the journal; return the new folder's name.

        Raises:
            OSError: the disk is full, or there is no such file.
        """
        name = f"files/{secrets.token_hex(6)}"
        target = self.folder / name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            target.mkdir(parents=True)
            for one in (path, *more):
                shutil.copyfile(one, target / one.name)
        return name

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def read(path: Path, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Read whole entries from a byte on, each with the byte where it ends.

    A torn entry, which is followed by others, is read as an empty one.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line), offset


def state(folder: Path) -> State:
    """Sum up a journal; nothing is said where there is none."""
    summed = State()
    if (folder / FILE).exists():
        for entry, _ in read(folder / FILE):
            summed.take(entry)
    return summed


def _parse(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _write(descriptor: int, line: bytes) -> int:
    """Write at once; tests replace this to have a full disk."""
    return os.write(descriptor, line)
