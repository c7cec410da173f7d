"""Hold a lock that one process at a time can own, and that the system releases when its owner dies."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from convoy.core import files
from convoy.core.errors import ConvoyError


class AlreadyRunning(ConvoyError):  # noqa: N818 (a state; callers add the remedy)
    """Name the process that holds a lock, such as `process 4711 on build3 since 2026-11-23 12:00:00 UTC`."""


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock, without waiting; `<lock>.json` beside it names its owner.

    Raises:
        AlreadyRunning: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    owner = lock.with_name(f"{lock.name}.json")
    system_lock = FileLock(lock)
    try:
        system_lock.acquire(timeout=0)
    except Timeout as error:
        raise AlreadyRunning(describe_owner(lock)) from error
    try:
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        files.write_json(owner, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        owner.unlink(missing_ok=True)
        system_lock.release()


def describe_owner(lock: Path) -> str:
    """Describe the process that holds a lock or, if killed, held it last."""
    try:
        owner = files.read_json(lock.with_name(f"{lock.name}.json"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has only just started"
