"""Locks of which one process at a time is the owner, and which the system releases when it dies."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from convoy.core import files
from convoy.core.errors import ConvoyError


class AlreadyRunning(ConvoyError):  # noqa: N818 (not an error of anybody: callers add what to do)
    """Report that another process holds a lock.

    Attributes:
        owner: such as `process 4711 on build3 since 2026-11-23 12:00:00 UTC`.
    """

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock, without waiting; `<lock>.json` beside it names its owner.

    Raises:
        AlreadyRunning: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    facts = lock.with_name(f"{lock.name}.json")
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise AlreadyRunning(describe_owner(lock)) from error
    try:
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        files.write_json(facts, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        facts.unlink(missing_ok=True)
        held.release()


def describe_owner(lock: Path) -> str:
    """Name the process that holds a lock or, killed, held it last."""
    try:
        facts = files.read_json(lock.with_name(f"{lock.name}.json"))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has only just started"
