"""DVC's file of locks: keep a second experiment out of the workspace of a running stage, and repair files that were cut."""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from convoy.core import files, pipeline, stage
from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.repo import git
from convoy.repo.dvc import DvcError, config
from convoy.repo.identity import PIPELINES
from convoy.repo.locks import AlreadyRunning

CONFLICT = b"<<<<<<<"  # begins what git cannot merge
GUARD_SECONDS = 3.0  # longest wait for the guard of DVC's file of locks, as long as DVC waits


def repair(root: Path) -> None:
    """Repair what a kill, a full disk or a loss of power has cut, since DVC refuses every command because of it.

    DVC's files of locks are removed. A dvc.lock that was cut, since DVC empties it before it writes, is restored as
    committed: DVC finds newer results in its run cache. A conflict of a merge stays for its owner.
    """
    for name in ("rwlock", "exps/rwlock"):
        path = root / ".dvc" / "tmp" / name
        with suppress(OSError, Timeout), FileLock(f"{path}.lock", timeout=GUARD_SECONDS):
            try:
                files.read_json(path)
            except ValueError:
                path.unlink()
                info(
                    f"Removed {path.relative_to(root)}, which was cut when DVC was killed, the disk was full or the power failed."
                )
    lock = root / pipeline.LOCK
    try:
        pipeline.locked(root)
    except RequestError:
        if CONFLICT in lock.read_bytes():
            return
        committed = git.contents(root, [f"HEAD:./{pipeline.LOCK}"])
        lock.unlink()
        for content in committed.values():
            lock.write_bytes(content)
        state = "restored as committed" if committed else "removed"
        info(
            f"{pipeline.LOCK} was cut when DVC was killed, the disk was full or the power failed; it is {state}. DVC takes newer results "
            "from its run cache."
        )


@contextmanager
def experiments_refused(*, alone: bool = False, keep: bool = False) -> Iterator[None]:
    """Have DVC refuse `dvc exp run` in the current workspace while this process works there; `--queue` stays possible.

    It would replace params.yaml under a stage, and DVC would record the other experiment's values. DVC locks a name
    before it touches the workspace; this process enters itself as the owner of that name in DVC's file of locks, from
    which DVC removes processes that are gone. `--temp`, which takes the same lock, is refused as well. Where the lock
    cannot be had, a line gives the cause: the comparison of inputs (`core.inputs`) still holds.

    Args:
        alone: raise where another process has the lock.
        keep: leave the lock to the DVC that runs this command of a stage, until the stage's next command.

    Raises:
        AlreadyRunning: names the other process, for `alone`.
    """
    if not Path(".dvc").is_dir():
        yield
        return
    words = (
        f"{stage.name()} works in this folder. Wait for it, or: dvc exp run --queue ..., then dvc queue start"
    )
    above = {process.pid: process for process in psutil.Process().parents()}
    runner = next((pid for pid, process in above.items() if _is_dvc(process)), None)
    mine = {"pid": os.getpid(), "cmd": words}
    try:
        _hand_lock({os.getpid()}, set(above), mine)
    except AlreadyRunning as error:
        if alone:
            raise
        _report_unlocked(str(error))
    except DvcError as error:
        _report_unlocked(str(error))
    try:
        yield
    except BaseException:
        keep = False
        raise
    finally:
        rest = {"pid": runner, "cmd": words} if keep and runner else None
        with suppress(AlreadyRunning, DvcError):
            _hand_lock({os.getpid(), runner}, set(above) - {runner}, rest)


def _report_unlocked(cause: str) -> None:
    info(f"DVC does not refuse experiments meanwhile: {cause}. Start none here before {stage.name()} ends.")


def _is_dvc(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(Path(word).name in PIPELINES for word in process.cmdline()[:3])
    return False


def _hand_lock(owners: Collection[int | None], above: Collection[int], entry: dict[str, Any] | None) -> None:
    """Make `entry` the owner of the lock of experiments, or nobody, if it is free or belongs to one of `owners`.

    Nothing changes where a process `above` this one has it.

    Raises:
        AlreadyRunning: another process has it.
        DvcError: DVC's file of locks is busy or cannot be written; half a sentence.
    """
    from dvc.lock import LockError, make_lock  # type: ignore[import-untyped] # noqa: PLC0415 (0.05 s)

    name, folder = "refs/exps/stash", Path(".dvc", "tmp", "exps")
    path, guard = folder / "rwlock", str(folder / "rwlock.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hardlink = config(Path.cwd())["core"].get("hardlink_lock", False)
        with make_lock(guard, tmp_dir=str(folder), hardlink_lock=hardlink):
            content = files.read_json(path) if path.exists() else {}
            entries = content.get("write") or {}
            owner = entries.pop(name, None)
            if owner and owner["pid"] not in owners and psutil.pid_exists(owner["pid"]):
                if owner["pid"] in above:
                    return
                raise AlreadyRunning(f"process {owner['pid']}: {owner['cmd']}")
            files.write_text(
                path, json.dumps({**content, "write": entries | ({name: entry} if entry else {})})
            )
    except LockError as error:
        raise DvcError(f"another process keeps {guard} locked") from error
    except (OSError, ValueError) as error:
        raise DvcError(f"{path} cannot be written ({error})") from error
