"""Run other programs for a round: their lines go through, the last are kept, and they end when it is stopped."""

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
"""Lines of a program that are kept for the report."""

GRACE_S = 1.0
"""Time in which what Ctrl-C reached by itself ends without being told again."""

STOP_S = 45.0
"""Time that stopped stages have to save their state and to end their run."""


class RoundError(ConvoyError):
    """Give a round up: what it made is cleaned away, and the champion stays."""

    def __init__(self, message: str, log: str = "") -> None:
        """Take the message, and the last lines of the program that failed."""
        super().__init__(message)
        self.log = log


class Stopped(KeyboardInterrupt):
    """Tell SIGTERM, which may reach this process alone, from a terminal's Ctrl-C, which reaches its children too."""


def git(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """Run git and return what it printed.

    Raises:
        RoundError: with git's own words.
    """
    done = subprocess.run(  # noqa: S603 (own words)
        ["git", *words],  # noqa: S607 (git from PATH, as everywhere)
        cwd=folder,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = without_credentials((done.stderr.strip() or done.stdout.strip())[-2000:])
        verb = next((word for word in words if word[0] != "-" and "=" not in word), words[0])
        raise RoundError(f"`git {verb}` failed: {said}", said)
    return done.stdout.strip()


def stream(words: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
    """Run a program whose lines people shall see as they come; return the last ones.

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
        _stop(process, told=not isinstance(error, Stopped))
        raise
    said = without_credentials("".join(tail))
    if code:
        raise RoundError(f"`{Path(words[1]).name}` ended with exit code {code}", said)
    return said


def _stop(process: "subprocess.Popen[str]", *, told: bool) -> None:
    """End a program and all that it started: stages first, which save their state, then what waits for them."""
    if not told and not _ends(process, GRACE_S):
        for child in _descendants(process.pid):
            if _is_stage(child):
                with suppress(psutil.Error):
                    child.terminate()
    if not _ends(process, STOP_S):
        for child in [*_descendants(process.pid), psutil.Process(process.pid)]:
            with suppress(psutil.Error):
                child.kill()
        _ends(process, STOP_S)


def _ends(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Wait for a program to end, and pass on what it still prints: it would wait for a pipe that nobody empties."""
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
    """Tell a stage script, which knows how to end, from the shell and DVC, which wait for it."""
    with suppress(psutil.Error):
        words = process.cmdline()
        return len(words) > 1 and words[1].startswith("pipelines/") and "repro" not in words[1]
    return False
