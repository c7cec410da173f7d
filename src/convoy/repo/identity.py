"""Say which run, code, data and params a result belongs to.

The identity of a run is minted here, before MLflow is asked for anything, so that a
tracking server that is down takes no identity away.
"""

import getpass
import os
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path

import psutil

from convoy import __version__
from convoy.repo import git

CHANGES = (".", ":(exclude,top)dvc.lock")
"""Paths, as git spells them, whose changes make a tree dirty."""


def mint_run_id() -> str:
    """Make a new run id such as `20261123-124501-9f3c1a`: UTC time, then 24 random bits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def git_state() -> dict[str, str]:
    """Name the commit that is checked out and whether files differ from it, new ones included.

    Empty where there is no git repository or no commit yet. `dvc.lock` does not count: DVC
    writes it while the pipeline runs, and each run has its final one.
    """
    commit = git.ask(Path.cwd(), "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(git.ask(Path.cwd(), "status", "--porcelain", "--", *CHANGES))
    return {"mlflow.source.git.commit": commit, "convoy.git_dirty": str(dirty).lower()}


def process_tags() -> dict[str, str]:
    """Name the host and the process that a run lives and dies with.

    A stage ends long before its run does, so the owner is the `dvc` process above it.
    """
    owner = psutil.Process()
    for parent in psutil.Process().parents():
        if any(Path(word).name == "dvc" for word in _command(parent)[:4]):
            owner = parent
            break
    return {
        "mlflow.user": _user(),
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": "dvc.yaml",
        "convoy.version": __version__,
        "convoy.host": host(),
        "convoy.owner": name(owner),
    }


def host() -> str:
    """Name this machine, as the tag `convoy.host` does."""
    return socket.gethostname()


def name(process: psutil.Process) -> str:
    """Name a process so that another with the same number is told apart: `pid:start`."""
    return f"{process.pid}:{process.create_time():.2f}"


def is_alive(owner: str) -> bool:
    """Tell whether a process that `name` named still runs on this host."""
    pid, _, created = owner.partition(":")
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(created)) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)  # killed, and not yet collected
    except (psutil.Error, ValueError):
        return False


def _command(process: psutil.Process) -> list[str]:
    """Read a process's command line; empty where the system does not show it."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _user() -> str:
    """Name the user; containers may run under a number that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
