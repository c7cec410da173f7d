"""The checkpoints of one training on disk: written whole or not at all, checked before use, pruned.

`checkpoints/<hash of every input of train>/` holds `step-NNNNNNN.ckpt` and beside each a
`.json` that says what it is. The second is written last, so a checkpoint without it was
never finished.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from convoy.core import files, stage
from convoy.core.console import info
from convoy.core.errors import TrainingError
from convoy.training.settings import CheckpointParams

COPIES = 2
"""Checkpoints of a training that are kept: the one before serves where the newest is damaged."""

REFERENCE = "run.json"
"""Copy of the reference to the run, as DVC records it."""

DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Note:
    """Say what a checkpoint is.

    Attributes:
        sha256: of the file.
        inputs: hash of everything that the training was given.
        run_id: Convoy's id of the run that it belongs to.
        epoch: that the next step belongs to, 1 for the first; of a finished training, the last one.
        step: optimizer steps done.
        finished: whether nothing is left to train.
        torch: version that wrote it.
        saved: UTC time.
    """

    sha256: str
    inputs: str
    run_id: str
    epoch: int
    step: int
    finished: bool
    torch: str
    saved: str


@dataclass(frozen=True)
class Found:
    """Hold a checkpoint that may be used, loaded on the CPU."""

    path: Path
    note: Note
    content: dict[str, Any]


class CheckpointStore:
    """Keep the checkpoints of the trainings with one set of inputs."""

    def __init__(self, root: Path, inputs: str, params: CheckpointParams) -> None:
        """Take the folder of all trainings, and the hash of this one's inputs."""
        self.folder = root / inputs[:16]
        self.inputs = inputs
        self.params = params

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the training's lock, which the system takes from a process that dies.

        Raises:
            TrainingError: another process trains on the same inputs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = self.folder / "owner.json"
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise TrainingError(
                f"another process trains on the same inputs already: {_described(owner)}. Two would overwrite each "
                f"other's checkpoints in {self.folder}. Wait for it, then type: dvc repro"
            ) from error
        try:
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            files.write_json(owner, facts)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def newest(self) -> Found | None:
        """Load the newest checkpoint that may be used; what is wrong with newer ones is said."""
        refused = False
        for path in reversed(self._paths()):
            try:
                found = self._load(path)
            except TrainingError as error:
                info(f"{path} is not used: {error}.")
                refused = True
                continue
            if refused:
                info(f"The one before it is taken: step {found.note.step:,}.")
            return found
        if refused:
            info("No checkpoint is left that may be used: the training starts from its beginning.")
        return None

    def save(self, write: Callable[[Path], None], **facts: Any) -> None:  # noqa: ANN401 (the fields of `Note`)
        """Write a checkpoint that is either whole, also after a loss of power, or not there.

        Args:
            write: writes the checkpoint to the path that it is given.
            **facts: of the note: `run_id`, `epoch`, `step`, `finished`.

        Raises:
            OSError: the disk is full or cannot be written to; earlier checkpoints are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{facts['step']:07}.ckpt"
        scratch = self.folder / f".{path.name}.{os.getpid()}"
        try:
            write(scratch)
            _to_disk(scratch)
            note = Note(
                sha256=files.sha256(scratch),
                inputs=self.inputs,
                torch=torch.__version__,
                saved=_now(),
                **facts,
            )
            scratch.replace(path)
            files.write_json(path.with_suffix(".json"), asdict(note))
            _to_disk(path.with_suffix(".json"))
            _to_disk(self.folder)
        finally:
            scratch.unlink(missing_ok=True)
        for old in self._paths()[: -1 if note.finished else -COPIES]:
            _remove(old)

    def is_recorded(self, reference: Path) -> bool:
        """Tell whether DVC has recorded the training that finished here, by the reference to its run.

        Then whoever trains on these inputs again has asked for it, by `dvc repro --force`.
        """
        noted = self.folder / REFERENCE
        return noted.exists() and stage.recorded("train", reference, noted.read_bytes())

    def note_result(self, reference: Path) -> None:
        """Remember which reference the finished training's results come with."""
        shutil.copyfile(reference, self.folder / REFERENCE)

    def clear(self) -> None:
        """Remove every checkpoint of these inputs, so that the training starts from its beginning."""
        for path in self._paths():
            _remove(path)
        (self.folder / REFERENCE).unlink(missing_ok=True)

    def prune(self) -> None:
        """Remove what trainings with other inputs left: beyond a number of them, or a number of days."""
        others = [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]
        newest_first = sorted(others, key=_age_s)
        for place, folder in enumerate(newest_first, start=2):  # this training is the first
            if place > self.params.keep or _age_s(folder) > self.params.keep_days * DAY_S:
                _remove_unless_held(folder)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.ckpt"))

    def _load(self, path: Path) -> Found:
        """Check a checkpoint against its note, and load it without running code that it may hold.

        Raises:
            TrainingError: why it may not be used.
        """
        beside = path.with_suffix(".json")
        try:
            note = Note(**files.read_json(beside))
        except FileNotFoundError as error:
            raise TrainingError("it was not written to its end") from error
        except (json.JSONDecodeError, TypeError) as error:
            raise TrainingError(f"{beside.name} does not say what it is ({error})") from error
        if note.inputs != self.inputs:
            raise TrainingError("it was made by other code, data or params")
        if files.sha256(path) != note.sha256:
            raise TrainingError("it is truncated or damaged: its sha256 is not the one that was noted")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what its readers do
            raise TrainingError(f"torch {torch.__version__} does not read it ({error!s:.200})") from error
        return Found(path, note, content)


def _described(owner: Path) -> str:
    """Name the process that holds a lock, as far as it has said who it is."""
    try:
        facts = files.read_json(owner)
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has not said yet who it is"


def _age_s(folder: Path) -> float:
    """Measure the seconds since the newest file of a folder was written."""
    times = [path.stat().st_mtime for path in (folder, *folder.glob("*"))]
    return time.time() - max(times)


def _remove_unless_held(folder: Path) -> None:
    """Remove a training's folder, unless a process is at work in it."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _remove(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)  # first: a checkpoint without its note is none
    path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
