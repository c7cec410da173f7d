"""Run a program for a round: print its lines, keep the last ones, and stop it and its children when the round stops."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from convoy.core.errors import ConvoyError, without_credentials

TAIL = 40
"""Last lines of a program that the report shows."""

GRACE_S = 1.0
"""Seconds for processes that Ctrl-C has reached to end by themselves."""

STOP_S = 45.0
"""Seconds for stopped stages to save their state and end their run."""


class RoundError(ConvoyError):
    """A step failed: the round ends, is cleaned up, and the champion stays; `log` has the program's last lines."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Stopped(KeyboardInterrupt):
    """SIGTERM, which may have reached this process only; a terminal's Ctrl-C reaches its children too."""


def stream(words: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
    """Run a program and print its lines as they come; return the last ones.

    Raises:
        RoundError: it failed.
    """
    process = subprocess.Popen(  # noqa: S603 (own words)
        words,
        cwd=folder,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    tail: deque[str] = deque(maxlen=TAIL)
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            tail.append(line)
        code = process.wait()
    except BaseException as error:  # a stage that goes on in a worktree that is gone harms the next round
        _stop(process, signalled=not isinstance(error, Stopped))
        raise
    output = without_credentials("".join(tail))
    if code:
        raise RoundError(f"`{Path(words[1]).name}` ended with exit code {code}", output)
    return output


def _stop(process: "subprocess.Popen[str]", *, signalled: bool) -> None:
    """Stop a program and its children: first the stages, which save their state, then the processes that wait for them."""
    if not signalled and not _wait(process, GRACE_S):
        for child in _descendants(process.pid):
            if _is_stage(child):
                with suppress(psutil.Error):
                    child.terminate()
    if not _wait(process, STOP_S):
        for child in [*_descendants(process.pid), psutil.Process(process.pid)]:
            with suppress(psutil.Error):
                child.kill()
        _wait(process, STOP_S)


def _wait(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Wait for a program to end and print its output: it would block on a full pipe."""
    if process.stdout is None:
        return True
    descriptor, until = process.stdout.fileno(), time.monotonic() + seconds
    os.set_blocking(descriptor, False)
    while time.monotonic() < until:
        with suppress(BlockingIOError, ValueError, OSError):
            while rest := os.read(descriptor, 65536):
                sys.stdout.write(rest.decode(errors="replace"))
        sys.stdout.flush()
        if process.poll() is not None:
            return True
        time.sleep(0.05)
    return False


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _is_stage(process: psutil.Process) -> bool:
    """Whether a process is a stage script, which handles SIGTERM, and not a shell or DVC, which wait for it."""
    with suppress(psutil.Error):
        words = process.cmdline()
        return len(words) > 1 and words[1].startswith("pipelines/") and "repro" not in words[1]
    return False
