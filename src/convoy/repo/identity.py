"""Identify the run, code, data, params and process that a result comes from.

A run's id is created here before MLflow is contacted, so that a tracking server that is down takes no identity away.
"""

import getpass
import os
import secrets
import shutil
import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import psutil

from convoy import __version__
from convoy.core import contract, params, yaml
from convoy.repo import git

CHANGES = (".", ":(exclude)dvc.lock")
"""Paths below the pipeline's folder, as git spells them, whose changes make a tree dirty."""

DIFF_BYTES = 10_000_000
"""Largest diff that is kept with a run; a larger one is data rather than code."""

DIFF_FORMAT = (
    "--binary",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
"""Options that make the diff independent of the user's git configuration."""

EPOCH_S = 1e9
"""Seconds that no machine has been up for, and that all times since 1970 exceed."""

SAME_START_S = 1.5
"""Tolerance in seconds when comparing with the start times that earlier versions recorded."""

PROC = Path("/proc")
"""The kernel's account of processes; other systems than Linux have none."""


def mint_run_id() -> str:
    """Create a run id such as `20261123-124501-9f3c1a`: UTC time, then 24 random bits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def workspace_tags() -> dict[str, str]:
    """Return the tags of a run that name commit, params and data; those without a value are left out."""
    tags = {**git_state(), contract.PARAMS_HASH: params.digest(params.read())}
    if data := data_md5(Path("data.dvc")):
        tags[contract.DATA_MD5] = data
    return tags


def git_state() -> dict[str, str]:
    """Return the commit that is checked out and whether files differ from it, new ones included.

    Without a commit, the reason instead. `dvc.lock` does not count: DVC writes it while the
    pipeline runs, and each run gets its final one.
    """
    commit = git.query(Path.cwd(), "rev-parse", "HEAD")
    if not commit:
        return {contract.GIT_UNKNOWN: git.no_commit(Path.cwd())}
    try:
        dirty = bool(git.run(Path.cwd(), "status", "--porcelain", "--", *CHANGES))
    except git.GitError:  # the diff fails for the same reason, which the run then has
        dirty = True
    return {contract.GIT_COMMIT: commit, contract.GIT_DIRTY: str(dirty).lower()}


def data_md5(path: Path) -> str:
    """Read DVC's hash of the delivery from data.dvc; empty if an import is not fetched yet."""
    if not path.exists():
        return ""
    content = yaml.load(path.read_text(encoding="utf-8"))
    return str(next((out["md5"] for out in content.get("outs", []) if "md5" in out), ""))


def write_diff(target: Path) -> str:
    """Write what differs from the commit, new files included, as a diff for `git apply`.

    The user's index is never written: new files are added, by name only, to a copy of it.

    Returns:
        Why no diff was written; empty if it was.
    """
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        env = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        index = Path(git.query(root, "rev-parse", "--git-path", "index"))
        try:
            if index.is_file():
                shutil.copyfile(index, env["GIT_INDEX_FILE"])
            else:
                git.run(root, "read-tree", "HEAD", env=env)
            if _untracked_bytes(root) > DIFF_BYTES:
                return _too_large()
            git.run(root, "add", "--intent-to-add", "--", *CHANGES, env=env)
            git.run(root, "diff", *DIFF_FORMAT, f"--output={target}", "HEAD", "--", *CHANGES, env=env)
        except git.GitError as error:
            return f"{error!s:.300}"
    if target.stat().st_size > DIFF_BYTES:
        target.unlink()
        return _too_large()
    return ""


def _untracked_bytes(root: Path) -> int:
    """Add up the sizes of new files, which git would read whole before the size of a diff shows."""
    names = git.names(root, "ls-files", "--others", "--exclude-standard", "-z")
    return sum((root / name).lstat().st_size for name in names if (root / name).exists())


def _too_large() -> str:
    return f"more than {DIFF_BYTES / 1e6:.0f} MB differ from the commit"


def process_tags() -> dict[str, str]:
    """Return the tags of a run that name user, host and the process that it lives and dies with.

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
        contract.VERSION: __version__,
        contract.HOST: host(),
        contract.OWNER: name(owner),
    }


def host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def name(process: psutil.Process) -> str:
    """Identify a process; a later process with the same pid gets another name, even after a reboot.

    Returns:
        `pid:ticks:boot` on Linux: clock ticks from boot to the start, and the id of the boot. Neither moves when the
        clock is set. Elsewhere `pid:seconds`, the start since 1970, which the kernel keeps.
    """
    ticks, boot = _ticks(process.pid), _boot()
    return f"{process.pid}:{ticks}:{boot}" if ticks and boot else f"{process.pid}:{process.create_time():.2f}"


def is_alive(owner: str) -> bool:
    """Check whether a process named by `name`, also by that of an earlier Convoy, still runs on this host."""
    pid, _, start = owner.partition(":")
    ticks, _, boot = start.partition(":")
    try:
        process = psutil.Process(int(pid))
        if boot:
            same = (int(ticks), boot) == (_ticks(process.pid), _boot())
        elif float(start) > EPOCH_S:
            same = abs(process.create_time() - float(start)) < SAME_START_S
        else:  # seconds since boot
            same = abs(_ticks(process.pid) / os.sysconf("SC_CLK_TCK") - float(start)) < SAME_START_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)  # killed, and not yet collected
    except (psutil.Error, ValueError):
        return False


def _ticks(pid: int) -> int:
    """Read the clock ticks from boot to a process's start; 0 where the system does not count them.

    psutil adds the time of boot, which moves when the clock is set.
    """
    try:
        # The command's name, in parentheses, may hold anything.
        return int((PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _boot() -> str:
    """Read the id that the kernel gives each boot; empty where it gives none."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _command(process: psutil.Process) -> list[str]:
    """Read a process's command line; empty if the system does not show it."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _user() -> str:
    """Name the user; containers may run under a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
