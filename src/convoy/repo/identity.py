"""Identify the run, code, data, params and process that a result comes from.

A run's id is created here before MLflow is contacted, so that a tracking server that is down takes no identity away.
"""

import fnmatch
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
from convoy.core import contract, escaping, params, pipeline
from convoy.core.errors import ConvoyError, listed
from convoy.repo import git

CHANGES = (".", ":(exclude)dvc.lock")
"""Paths below the pipeline's folder, as git spells them, whose changes make a tree dirty."""

CODE = (".py", ".pyi", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh", ".dvc", ".gitignore", ".dvcignore")
"""Ends of the names of code and settings, whose content a run records even before git tracks it."""

SECRETS = (
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", ".netrc", ".npmrc", ".pypirc"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".git-credentials", ".htpasswd", "config.local"),
)
"""Names of files whose content no run records, tracked or not; lower case."""

SECRET_WORDS = ("credential", "secret", "password", "token")
"""Parts of names of new files that are recorded only once git tracks them, unless they are Python code."""

NAMED_FILES = 50  # new files that a tag names

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

ARGUMENTS = 500  # names in a call of git

EPOCH_S = 1e9
"""Seconds that no machine has been up for, and that all times since 1970 exceed."""

SAME_START_S = 1.5
"""Tolerance in seconds when comparing with the start times that earlier versions recorded."""

PIPELINES = ("dvc", "repro.py")
"""Programs that run DVC: its own, and pipelines/repro.py, which runs it in its process (`repo/reproduce.py`)."""

PROC = Path("/proc")
"""The kernel's account of processes; other systems than Linux have none."""


def mint_run_id() -> str:
    """Create a run id such as `20261123-124501-9f3c1a`: UTC time, then 24 random bits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def workspace_tags() -> dict[str, str]:
    """Return the tags of a run that name commit, params and data; those without a value are left out."""
    tags = {**git_state(), contract.PARAMS_HASH: params.digest(params.read())}
    if contract.GIT_COMMIT in tags and (names := left_out()):
        tags[contract.NEW_FILES] = escaping.visible(listed(names, NAMED_FILES))
    if data := pipeline.data_import().md5:
        tags[contract.DATA_MD5] = data
    return tags


def git_state() -> dict[str, str]:
    """Return the commit that is checked out and whether files differ from it, new ones included whose content counts.

    Without a commit, the reason instead. `dvc.lock` does not count: DVC writes it while the
    pipeline runs, and each run gets its final one.
    """
    commit = git.query(Path.cwd(), "rev-parse", "HEAD")
    if not commit:
        return {contract.GIT_UNKNOWN: git.no_commit(Path.cwd())}
    try:
        tracked = git.run(
            Path.cwd(), "status", "--porcelain", "--untracked-files=no", "--", *_recorded(Path.cwd())
        )
        dirty = bool(tracked or _new_files(Path.cwd())[0])
    except git.GitError:  # the diff fails for the same reason, which the run then has
        dirty = True
    return {contract.GIT_COMMIT: commit, contract.GIT_DIRTY: str(dirty).lower()}


def write_diff(target: Path) -> str:
    """Write what differs from the commit, as a diff for `git apply`.

    Of new files, those that a stage depends on, and code and settings; others once git tracks them (`git add`).
    Nothing that looks like a secret. The user's index is never written: new files are added, by name only, to a copy of it.

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
            new, _ = _new_files(root)
            # git would read new files whole before the size of a diff shows.
            if sum((root / name).lstat().st_size for name in new if (root / name).exists()) > DIFF_BYTES:
                return _too_large()
            literal = env | {"GIT_LITERAL_PATHSPECS": "1"}
            for start in range(0, len(new), ARGUMENTS):
                git.run(root, "add", "--intent-to-add", "--", *new[start : start + ARGUMENTS], env=literal)
            git.run(root, "diff", *DIFF_FORMAT, f"--output={target}", "HEAD", "--", *_recorded(root), env=env)
        except git.GitError as error:
            return f"{error!s:.300}"
    if target.stat().st_size > DIFF_BYTES:
        target.unlink()
        return _too_large()
    return ""


def left_out() -> list[str]:
    """List the files that differ from the commit and whose content a run does not record."""
    return _new_files(Path.cwd())[1] + _changed_secrets(Path.cwd())


def _new_files(root: Path) -> tuple[list[str], list[str]]:
    """List the new files that git does not ignore: those whose content a run records, and the others."""
    names = git.names(root, "ls-files", "--others", "--exclude-standard", "-z")
    dependencies = _dependencies(root) if names else []
    recorded = [
        name
        for name in names
        if name != "dvc.lock"
        and (name.endswith(CODE) or any(Path(name).is_relative_to(path) for path in dependencies))
        and not is_secret(name)
        and (name.endswith(".py") or not any(word in Path(name).name.lower() for word in SECRET_WORDS))
    ]
    return recorded, sorted({*names} - {*recorded, "dvc.lock"})


def _dependencies(root: Path) -> list[str]:
    """List what the stages of dvc.yaml depend on; nothing where DVC itself could not read it."""
    try:
        stages = pipeline.stages(root).values()
        return [path for fields in stages for path in pipeline.declared(fields)[1]]
    except (ConvoyError, OSError, TypeError, AttributeError):  # of another shape than DVC reads
        return []


def is_secret(name: str) -> bool:
    """Check whether a path, such as `.env` or `keys/id_rsa`, has a name that secrets have."""
    return any(fnmatch.fnmatch(part.lower(), secret) for part in Path(name).parts for secret in SECRETS)


def _changed_secrets(root: Path) -> list[str]:
    """List files that look like secrets and that git tracks, where they differ from the commit."""
    changed = git.names(root, "diff", "--name-only", "--relative", "--no-renames", "-z", "HEAD")
    return [name for name in changed if is_secret(name)]


def _recorded(root: Path) -> list[str]:
    """Return the paths whose changes are recorded, as git spells them."""
    return [*CHANGES, *(f":(exclude,literal){name}" for name in _changed_secrets(root))]


def _too_large() -> str:
    return f"more than {DIFF_BYTES / 1e6:.0f} MB differ from the commit"


def process_tags() -> dict[str, str]:
    """Return the tags of a run that name user, host and the process that it lives and dies with.

    A stage, and each of its commands, ends long before its run does: the owner is the process above it that runs DVC.
    """
    owner = psutil.Process()
    for parent in psutil.Process().parents():
        if any(Path(word).name in PIPELINES for word in _command(parent)[:4]):
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
