"""Give a round a working tree of its own, which shares the caller's DVC cache and remotes, and take it away.

Nothing of the caller's is written but what git needs to know of the worktree, and that goes with it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from convoy.core import stage, yaml
from convoy.repo import dvc, dvc_cache, git
from convoy.retraining import processes
from convoy.retraining.processes import RoundError

FOLDER = Path(".dvc/tmp/retrain")
"""Everything that a round keeps for itself in the caller's repository; DVC and git look past it."""

WORKTREE = FOLDER / "worktree"

NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")
"""A hook of the team, such as DVC's own after a checkout, is made for people's working trees."""

DATA = "data.dvc"


def create(root: Path) -> Path:
    """Check the caller's HEAD out, on no branch, and share DVC's cache and remotes with it.

    A worktree that a killed round left behind is removed first.
    """
    place = root / WORKTREE
    remove(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    processes.git(root, *NO_HOOKS, "worktree", "add", "--quiet", "--detach", str(place), "HEAD")
    dvc_cache.configure(place, root, dvc_cache.of_repository(root).folder)
    _link_source(root, place)
    return place


def remove(root: Path) -> bool:
    """Remove the worktree, also one of which only half is left; tell whether there was one.

    Raises:
        RoundError: git still knows it.
    """
    place = root / WORKTREE
    if not place.exists() and not _is_registered(root):
        return False
    with suppress(RoundError):  # half a worktree is none for git, and is removed below
        processes.git(root, "worktree", "remove", "--force", "--force", str(place))
    if place.exists():
        shutil.rmtree(place)
    if _is_registered(root):
        processes.git(root, "worktree", "remove", "--force", "--force", str(place))
    return True


def pinned(place: Path, *, has_remote: bool) -> list[str]:
    """Put in place what DVC keeps and no stage makes: starting weights, data that are not imported anew.

    Returns:
        The .dvc files.

    Raises:
        RoundError: content is neither in DVC's cache nor in its remote.
    """
    tracked = git.ask(place, "ls-files", "--", "*.dvc").splitlines()
    names = [name for name in tracked if not follows_source(place / name)]
    if not names:
        return []
    try:
        dvc.run(place, "checkout", *names)
    except dvc.DvcError as error:
        if not has_remote:
            raise RoundError(_absent(names, error, "and there is no DVC remote")) from error
        try:
            dvc.run(place, "fetch", *names)
            dvc.run(place, "checkout", *names)
        except dvc.DvcError as again:
            raise RoundError(_absent(names, again, "nor in the DVC remote")) from again
    return names


def follows_source(path: Path) -> bool:
    """Tell an import whose source is looked at from one that is frozen, and from files that `dvc add` tracks."""
    content = yaml.read(path) if path.exists() else {}
    return bool(content.get("deps")) and not content.get("frozen", False)


@contextmanager
def inside(root: Path, place: Path) -> Iterator[None]:
    """Work in the worktree, with the store, the outbox and the checkpoints of the caller."""
    before = {name: os.environ.get(name) for name in (stage.REPOSITORY, "MLFLOW_TRACKING_URI")}
    os.environ.update(environment(root))
    try:
        with chdir(place):
            yield
    finally:
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


def environment(root: Path) -> dict[str, str]:
    """Name the caller's repository and store, in words that mean the same in the worktree."""
    said = {stage.REPOSITORY: str(root)}
    if store := os.environ.get("MLFLOW_TRACKING_URI"):
        said["MLFLOW_TRACKING_URI"] = absolute(store, root)
    return said


def absolute(store: str, root: Path) -> str:
    """Spell a store whose address is a relative path so that it is the same from everywhere."""
    scheme, mark, path = store.partition(":///")
    if mark and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}{mark}{(root / path).resolve()}"
    return store if ":" in store else str((root / store).resolve())


def _is_registered(root: Path) -> bool:
    place = (root / WORKTREE).resolve()
    listed = git.ask(root, "worktree", "list", "--porcelain").splitlines()
    return f"worktree {place}" in listed


def _link_source(root: Path, place: Path) -> None:
    """Make a source inside the repository that git does not hold, such as a folder of images, reachable."""
    content = yaml.read(place / DATA) if (place / DATA).exists() else {}
    for dep in content.get("deps", []):
        path = str(dep.get("path", ""))
        if "://" in path or not path or Path(path).is_absolute():
            continue
        there, here = root / path, place / path
        if there.exists() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there, target_is_directory=there.is_dir())


def _absent(names: list[str], error: Exception, where: str) -> str:
    return (
        f"what {', '.join(names)} name is not in DVC's cache {where}: {error!s:.400}\n"
        "Where it was made, type `dvc push` (docs/data.md says how to add a remote), then run this again."
    )
