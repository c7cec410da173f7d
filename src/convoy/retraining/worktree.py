"""Create and remove the git worktree of a round, which shares the caller's DVC cache and remotes; run programs in it.

In the caller's repository only git's own record of the worktree is written, and removed with it.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

import psutil

from convoy.core import escaping, pipeline, stage, yaml
from convoy.core.console import info
from convoy.core.errors import ConvoyError, without_credentials
from convoy.repo import dvc, git

FOLDER = Path(".dvc/tmp/retrain")  # files of a round in the caller's repository, which DVC and git ignore
WORKTREE = FOLDER / "worktree"
DATA = "data.dvc"

NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")
"""Hooks, such as DVC's own after a checkout, are meant for people's working trees."""

FORGE = re.compile(
    r"(GH_|GITHUB_|GITLAB_|CI_|RETRAIN_)\w*(TOKEN|JWT|PASSWORD|PAT)(_|$)|CI_REPOSITORY_URL$|ACTIONS_(RUNTIME|ID)_\w*TOKEN$",
    re.IGNORECASE,
)
"""Variables that may hold a credential of GitHub or GitLab."""

TAIL = 40  # last lines of a program that the report shows
GRACE_S = 1.0  # for processes that Ctrl-C has reached to end by themselves
STOP_S = 45.0  # for stopped stages to save their state and end their run


class RoundError(ConvoyError):
    """A step failed: the round ends, is cleaned up, and the champion stays; `log` has the program's last lines."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Stopped(KeyboardInterrupt):
    """SIGTERM, which may have reached this process only; a terminal's Ctrl-C reaches its children too."""


def create(root: Path) -> Path:
    """Check out the caller's HEAD, on no branch, with the caller's DVC cache and remotes; return the pipeline's folder.

    That is a subfolder where the caller is the subfolder of a larger repository. A worktree left by a killed round is
    removed first.

    Raises:
        RoundError: the commit does not contain the pipeline.
    """
    remove(root)
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    git.run(root, *NO_HOOKS, "worktree", "add", "--quiet", "--detach", str(root / WORKTREE), "HEAD")
    tree = root / WORKTREE / git.prefix(root)
    if not (tree / ".dvc").is_dir():
        raise RoundError(
            f"the commit that is checked out has no pipeline in {git.prefix(root)}/. Type: git add . && git commit"
        )
    dvc.configure(tree, root, dvc.Cache.of(root).folder)
    _link_source(root, tree)
    return tree


def remove(root: Path) -> None:
    """Remove the worktree, or what is left of it, and git's record of it."""
    tree = root / WORKTREE
    if tree.exists():  # git itself refuses to remove a damaged worktree
        shutil.rmtree(tree)
    listed = git.query(root, "worktree", "list", "--porcelain").splitlines()
    if f"worktree {tree.resolve()}" in listed:
        git.run(root, "worktree", "remove", "--force", "--force", str(tree))


def checkout_pinned(tree: Path, *, has_remote: bool) -> list[str]:
    """Check out what DVC keeps and no stage makes, starting weights and data that are not imported again; return its files.

    Raises:
        RoundError: content is neither in DVC's cache nor in its remote.
    """
    tracked = git.names(tree, "ls-files", "-z", "--", "*.dvc")
    names = [name for name in tracked if not follows_source(tree / name)]
    if not names:
        return []
    try:
        dvc.run(tree, "checkout", *names)
    except dvc.DvcError as error:
        if not has_remote:
            raise RoundError(_absent(names, error, "and there is no DVC remote")) from error
        try:
            dvc.run(tree, "fetch", *names)
            dvc.run(tree, "checkout", *names)
        except dvc.DvcError as again:
            raise RoundError(_absent(names, again, "nor in the DVC remote")) from again
    return names


def follows_source(path: Path) -> bool:
    """Whether a .dvc file is an import that is not frozen; `dvc add` makes files without a source."""
    content = yaml.read(path) if path.exists() else {}
    return bool(content.get("deps")) and not content.get("frozen", False)


@contextmanager
def inside(root: Path, tree: Path) -> Iterator[None]:
    """Change to the worktree, with the store, the outbox and the checkpoints of the caller."""
    before = {name: os.environ.get(name) for name in (stage.REPOSITORY, "MLFLOW_TRACKING_URI")}
    os.environ[stage.REPOSITORY] = str(root)
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = absolute(uri, root)
    try:
        with chdir(tree):
            yield
    finally:
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


def pipeline_environment(tree: Path) -> dict[str, str]:
    """Return the variables of programs that decode images and train: without the tokens that push and open requests."""
    env = {key: text for key, text in os.environ.items() if not FORGE.match(key)}
    # The rest of git's settings, such as safe.directory, is counted by number.
    env |= {
        key: without_credentials(text) for key, text in env.items() if key.startswith("GIT_CONFIG_VALUE_")
    }
    return env | dvc.environment(tree) | {"PYTHONPATH": str(tree / "src")}


def absolute(uri: str, root: Path) -> str:
    """Make the URI of a store with a relative path absolute."""
    scheme, mark, path = uri.partition(":///")
    if mark and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}{mark}{(root / path).resolve()}"
    return uri if ":" in uri else str((root / uri).resolve())


def _link_source(root: Path, tree: Path) -> None:
    """Link a source inside the repository that git does not track, such as a folder of images."""
    path = pipeline.data_import(tree).address
    if "://" in path or not path or Path(path).is_absolute():
        return
    source, link = root / path, tree / path
    if source.exists() and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source, target_is_directory=source.is_dir())


def _absent(names: list[str], error: Exception, where: str) -> str:
    return (
        f"content of {', '.join(names)} is not in DVC's cache {where}: {error!s:.400}\n"
        "On the machine that has it, run `dvc push` (docs/data.md shows how to add a remote), then run this again."
    )


def stream(words: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
    """Run a program and print its lines as they come; return the last lines.

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
            info(line.rstrip("\n"))
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
                sys.stdout.write(escaping.lines(rest.decode(errors="replace")))
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
