"""Make a clone in the state in which a run was made, so that `dvc repro` has nothing to do there."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.lineage.chain import DIFF, Places
from convoy.lineage.runs import COMMIT, Record
from convoy.repo import dvc, git
from convoy.repo.dvc_cache import RestoreError, fill_cache

FILES = ("params.yaml", "dvc.yaml", "data.dvc", "dvc.lock")
"""What a run keeps of its pipeline, in the folder `pipeline` of its artifacts."""

SCRATCH = Path(".git/restoring")
"""Where a clone's downloads lie for a moment: DVC would read a dvc.yaml that it found elsewhere."""


def restore(record: Record, places: Places, target: Path) -> None:
    """Clone this repository as a run saw it: commit, uncommitted changes, params, data, outputs.

    Everything is made beside the target and renamed at the end, so that a failure leaves nothing.

    Args:
        record: the run.
        places: of this repository.
        target: a folder that does not exist or is empty.

    Raises:
        RequestError: the target cannot be used.
        RestoreError: the commit, the lock or data are nowhere, or the result is not as the run was.
    """
    _check_target(target, places.root)
    number = _check_commit(record, places)
    artifacts = places.records.listed(record, "pipeline")
    if "pipeline/dvc.lock" not in artifacts:
        raise RestoreError(_no_lock(record))
    with _making(target) as clone:
        _clone(places.root, clone, number, record.run_id)
        said = f"commit {number[:10]}"
        if DIFF in artifacts:
            _apply(_fetched(record, places, DIFF, clone), clone, record)
            said += " and the changes that were not committed"
        for name in FILES:
            if f"pipeline/{name}" in artifacts:
                shutil.copyfile(_fetched(record, places, f"pipeline/{name}", clone), clone / name)
        freeze(clone / "data.dvc")
        info(f"cloned at {said}")
        fill_cache(clone, places.root, f"run {record.run_id}")
        dvc.run(clone, "checkout", "--force")
        _check_state(clone, record, has_diff=DIFF in artifacts)
        info("data and outputs are in place; `dvc status` finds nothing changed")


def freeze(path: Path) -> None:
    """Freeze an import, as `dvc freeze` does: its source is not looked at any more."""
    text = path.read_text(encoding="utf-8")
    if "\nfrozen: true" not in f"\n{text}" and "\ndeps:" in f"\n{text}":
        path.write_text(f"{text.rstrip()}\nfrozen: true\n", encoding="utf-8")


def _check_target(target: Path, root: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()):
            raise RequestError(
                f"{target} is not empty. Name a folder that does not exist, such as ../restored"
            )
    elif target.exists() or target.is_symlink():
        raise RequestError(f"{target} is a file. Name a folder that does not exist, such as ../restored")
    if root in [target.resolve(), *target.resolve().parents]:
        raise RequestError(
            f"{target} lies inside this repository. Name a folder beside it, such as ../restored"
        )


def _check_commit(record: Record, places: Places) -> str:
    number = record.tag(COMMIT)
    if not number:
        raise RestoreError(f"run {record.run_id} names no commit: it was made outside a git repository")
    if not git.commit(places.root, number):
        raise RestoreError(
            f"commit {number} of run {record.run_id} is not in this repository: it was never fetched, or amended or "
            "rebased away and removed.\nType `git fetch --all --tags`, or restore from a clone that still has it. "
            "What the run was given is kept with it: the artifacts in pipeline/ (params.yaml, dvc.yaml, dvc.lock)"
        )
    return number


def _no_lock(record: Record) -> str:
    if record.status in ("FAILED", "KILLED", "RUNNING", "SCHEDULED"):
        return (
            f"run {record.run_id} is {record.status}: it has no final dvc.lock, so its outputs are not known.\n"
            f"Choose a run that finished, or make its code and params yourself: git checkout {record.tag(COMMIT)[:10]}"
        )
    return (
        f"run {record.run_id} has no dvc.lock. It is attached once DVC has ended, from the workspace or the "
        "experiment; where the run was made, type `convoy sync`, then try again."
    )


@contextmanager
def _making(target: Path) -> Iterator[Path]:
    """Make a folder under a temporary name beside its place; whatever fails, it is removed."""
    resolved = target.resolve()
    clone = resolved.with_name(f".{resolved.name}.{os.getpid()}")
    resolved.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield clone
        shutil.rmtree(clone / SCRATCH, ignore_errors=True)
        if resolved.exists():
            resolved.rmdir()
        clone.rename(resolved)
    except BaseException:  # Ctrl-C as well
        dvc.remove(clone)
        raise


def _clone(root: Path, clone: Path, number: str, run_id: str) -> None:
    """Clone with a branch at the commit, so that git keeps it there even where nothing else holds it."""
    _git(root, "clone", "--quiet", "--no-checkout", str(root), str(clone))
    if not git.commit(clone, number):  # a shallow repository gives a clone only what its branches hold
        _git(clone, "config", "receive.shallowUpdate", "true")
        _git(root, "push", "--quiet", str(clone), f"{number}:refs/heads/restored")
        _git(clone, "branch", "--quiet", "--move", "restored", f"restored/{run_id}")
        _git(clone, "checkout", "--quiet", f"restored/{run_id}")
    else:
        _git(clone, "checkout", "--quiet", "--no-track", "-b", f"restored/{run_id}", number)
    for key in ("user.name", "user.email"):
        if known := git.ask(root, "config", "--local", key):
            _git(clone, "config", key, known)


def _apply(diff: Path, clone: Path, record: Record) -> None:
    try:
        _git(clone, "apply", "--binary", "--whitespace=nowarn", str(diff))
    except RestoreError as error:
        raise RestoreError(
            f"the changes kept with run {record.run_id} do not fit its commit: {error}. Was {DIFF} changed since?"
        ) from error


def _fetched(record: Record, places: Places, name: str, clone: Path) -> Path:
    folder = clone / SCRATCH
    folder.mkdir(exist_ok=True)
    found = places.records.download(record, name, folder)
    if found is None:
        raise RestoreError(
            f"run {record.run_id} lists {name} among its artifacts, but the store does not give it"
        )
    return found


def _check_state(clone: Path, record: Record, *, has_diff: bool) -> None:
    """Make sure that `dvc repro` has nothing to do."""
    status = json.loads(dvc.run(clone, "status", "--json"))
    if not status:
        return
    dirty = record.tag("convoy.git_dirty") == "true"
    why = (
        "Files differed from the commit when it was made, and what differed was not kept."
        if dirty and not has_diff
        else "Its commit, params and dvc.lock do not belong together."
    )
    stages = "; ".join(f"{name}: {json.dumps(found)}" for name, found in status.items())
    raise RestoreError(
        f"run {record.run_id} cannot be restored as it was: `dvc status` finds {stages:.600}\n"
        f"{why} Commit before a run that matters; of this one, the artifacts are what is left."
    )


def _git(folder: Path, *words: str) -> None:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607 (no shell)
    if done.returncode:
        raise RestoreError(f"`git {words[0]}` failed: {done.stderr.strip()[:400]}")
