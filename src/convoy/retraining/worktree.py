"""Create and remove the git worktree of a round, which shares the caller's DVC cache and remotes.

In the caller's repository only git's own record of the worktree is written, and removed with it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from convoy.core import stage, yaml
from convoy.repo import dvc, dvc_cache, git
from convoy.retraining.processes import RoundError

FOLDER = Path(".dvc/tmp/retrain")
"""Files of a round in the caller's repository; DVC and git ignore them."""

WORKTREE = FOLDER / "worktree"

NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")
"""Hooks, such as DVC's own after a checkout, are meant for people's working trees."""

DATA = "data.dvc"


def create(root: Path) -> Path:
    """Check out the caller's HEAD, on no branch, with the caller's DVC cache and remotes.

    A worktree left by a killed round is removed first.
    """
    tree = root / WORKTREE
    remove(root)
    tree.parent.mkdir(parents=True, exist_ok=True)
    git.run(root, *NO_HOOKS, "worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
    dvc_cache.configure(tree, root, dvc_cache.of_repository(root).folder)
    _link_source(root, tree)
    return tree


def remove(root: Path) -> bool:
    """Remove the worktree, or what is left of it; return whether there was any.

    Raises:
        GitError: git still lists it.
    """
    tree = root / WORKTREE
    if not tree.exists() and not _is_registered(root):
        return False
    with suppress(git.GitError):  # damaged; it is removed below
        git.run(root, "worktree", "remove", "--force", "--force", str(tree))
    if tree.exists():
        shutil.rmtree(tree)
    if _is_registered(root):
        git.run(root, "worktree", "remove", "--force", "--force", str(tree))
    return True


def checkout_pinned(tree: Path, *, has_remote: bool) -> list[str]:
    """Check out what DVC keeps and no stage makes, starting weights and data that are not imported again; return its files.

    Raises:
        RoundError: content is neither in DVC's cache nor in its remote.
    """
    tracked = git.ask(tree, "ls-files", "--", "*.dvc").splitlines()
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


def absolute(uri: str, root: Path) -> str:
    """Make the URI of a store with a relative path absolute."""
    scheme, mark, path = uri.partition(":///")
    if mark and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}{mark}{(root / path).resolve()}"
    return uri if ":" in uri else str((root / uri).resolve())


def _is_registered(root: Path) -> bool:
    tree = (root / WORKTREE).resolve()
    listed = git.ask(root, "worktree", "list", "--porcelain").splitlines()
    return f"worktree {tree}" in listed


def _link_source(root: Path, tree: Path) -> None:
    """Link a source inside the repository that git does not track, such as a folder of images."""
    content = yaml.read(tree / DATA) if (tree / DATA).exists() else {}
    for dep in content.get("deps", []):
        path = str(dep.get("path", ""))
        if "://" in path or not path or Path(path).is_absolute():
            continue
        source, link = root / path, tree / path
        if source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source, target_is_directory=source.is_dir())


def _absent(names: list[str], error: Exception, where: str) -> str:
    return (
        f"content of {', '.join(names)} is not in DVC's cache {where}: {error!s:.400}\n"
        "On the machine that has it, run `dvc push` (docs/data.md shows how to add a remote), then run this again."
    )
