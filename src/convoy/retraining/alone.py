"""One round at a time in a repository: a schedule may fire while the last round still runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from convoy.core import files
from convoy.repo import identity
from convoy.retraining.worktree import FOLDER, WORKTREE


class Busy(Exception):  # noqa: N818 (no mistake of anybody)
    """Tell that another round runs, and since when."""


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the repository's lock for rounds, which the system takes from a process that dies.

    Raises:
        Busy: another round runs, or what one that was killed has started.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / "lock"), folder / "owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Busy(f"another round runs in this repository: {_described(owner)}") from error
    try:
        if left := _at_work(root / WORKTREE):
            raise Busy(
                f"a round was killed ({_described(owner)}), but its pipeline still runs: "
                f"{left}. It ends by itself; `kill {left.split()[1]}` ends it now"
            )
        facts = {"pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        files.write_json(owner, facts | {"host": identity.host()})
        yield
        owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _described(owner: Path) -> str:
    try:
        facts = files.read_json(owner)
        return f"process {facts['pid']}, since {facts['since']}"
    except (OSError, ValueError, KeyError):
        return "it has begun just now"


def _at_work(place: Path) -> str:
    """Name a process that works in the worktree; empty where there is none."""
    if not place.exists():
        return ""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            folder = Path(process.cwd())
            if folder.is_relative_to(place) and any("repro" in word for word in process.cmdline()[:4]):
                return f"process {process.pid}"
    return ""
