"""The folder of journals in a repository, and the uploader process that empties it.

Two locks, both released by the system when their holder dies: `uploader.lock` is held by the
uploader while it runs; `outbox.lock` for a moment, by whoever opens, ends or removes a journal. The
uploader decides to exit while it holds both, so a journal that is opened is either seen by it or
finds its lock free.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import filelock
import psutil

import convoy
from convoy.core import files, stage
from convoy.core.console import ProgressBar, info
from convoy.core.errors import without_credentials
from convoy.repo import identity
from convoy.tracking.journal import FILE, Journal, Sent, state
from convoy.tracking.settings import SQLITE, uri

WAIT_SECONDS = 30.0  # how long the last command of a pipeline waits for the delivery of its runs
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 2.0
REPORTED_BYTES = 1_000_000  # from which plain lines of progress are worth their place in a log

LOCK_SECONDS = 10.0  # longest wait for `outbox.lock`, held for milliseconds unless its holder was suspended
ATTEMPTS = "attempts"  # folder with a file per stage and training: the stage began, and has not succeeded
WARNED = "warned"  # file beside a journal: a warning about its store was printed
WAKE = "wake"  # file whose time makes the uploader retry a failing store at once: a command waits


def folder() -> Path:
    """Return the outbox of this repository."""
    return stage.repository() / "outbox"


def make_folder(outbox: Path) -> None:
    """Create the outbox, closed to other users, or close an existing one: runs may hold what nobody else may read."""
    outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError):  # another user's, or a file system without modes
        outbox.chmod(0o700)


def journals(outbox: Path) -> list[Path]:
    """List the folders of the journals, the oldest run first."""
    return sorted(path.parent for path in outbox.glob(f"*/{FILE}"))


def writer() -> str:
    """Name this process as the writer of a journal."""
    return identity.name(psutil.Process())


@contextmanager
def locked(outbox: Path) -> Iterator[None]:
    """Keep other processes from opening, ending or removing a journal.

    Raises:
        OSError: another process has held the lock for long, or the disk is full.
    """
    make_folder(outbox)
    with filelock.FileLock(outbox / "outbox.lock", timeout=LOCK_SECONDS):
        yield


def uploader_lock(outbox: Path) -> filelock.BaseFileLock:
    """Create the lock that an uploader holds while it runs; it is not acquired yet."""
    return filelock.FileLock(outbox / "uploader.lock", timeout=0)


def is_uploader_running(outbox: Path) -> bool:
    """Check whether an uploader holds its lock."""
    with suppress(filelock.Timeout), uploader_lock(outbox):
        return False
    return True


def start_uploader(outbox: Path, owner: str = "") -> "subprocess.Popen[bytes] | None":
    """Start an uploader unless one is running; it outlives this process and holds none of its pipes.

    Its code is the repository's own: an experiment's workspace is removed when the experiment ends. It waits for
    the runs of `owner`, a process as `identity.name` names it. Returns None if no process was started.
    """
    try:
        return None if is_uploader_running(outbox) else _start(outbox, owner)
    except OSError as error:
        info(
            f"Cannot start the uploader ({error!s:.300}). Runs stay in {outbox.name}/; run `convoy sync` later."
        )
        return None


def _start(outbox: Path, owner: str) -> "subprocess.Popen[bytes]":
    make_folder(outbox)
    own = outbox.parent / "src"
    source = own if (own / "convoy/tracking/uploader.py").exists() else Path(convoy.__file__).parents[1]
    # The uploader serves every run: what DVC and `mlflow run` set for this stage is not for it.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_RUN_ID"))}
    with (outbox / "uploader.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 (no shell)
            [sys.executable, "-m", "convoy.tracking.uploader", *filter(None, [owner])],
            cwd=outbox.parent,
            env=env | {"PYTHONPATH": str(source)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def attempt(outbox: Path, name: str, training: str) -> Path:
    """Return the file that names the run in which a stage last began for the training of a run; absent after success."""
    return outbox / ATTEMPTS / f"{name}-{training}.json"


def failed_attempt(outbox: Path, name: str, training: str, params: str) -> dict[str, str]:
    """Find the run in which an earlier attempt at a stage did not succeed, and which the next attempt may continue.

    MLflow keeps the first value of a param, so an attempt with other `params`, a digest, needs a run of its own. Returns
    what the attempt recorded, `run_id`, `training` and `params`; empty if there is no such run.
    """
    try:
        found: dict[str, str] = files.read_json(attempt(outbox, name, training))
        path = outbox / found["run_id"]
        other_params = found["params"] != params
    except (OSError, ValueError, KeyError):
        return {}
    journaled = state(path)  # empty once the run was delivered
    if journaled.opened and not journaled.ended and journaled.is_alive(path / FILE):
        return {}  # another process works on that stage
    if other_params:
        info(
            f"The earlier attempt at {name} in run {found['run_id']} had other params, so {name} opens another run of the "
            "same training."
        )
        return {}
    return found


def prepare_store(outbox: Path) -> None:
    """Have an uploader create a store in a file that does not exist yet, while the first stages work."""
    if uri().startswith(SQLITE) and not Path(uri().removeprefix(SQLITE)).exists():
        start_uploader(outbox, writer())


def close_orphan(outbox: Path, path: Path, *, between_stages: bool, gone: str = "") -> bool:
    """End a journal whose writer is gone, as after `kill -9`.

    Inside a stage the run was KILLED. Between stages it is FINISHED: DVC had the later stages in its
    cache, or did not run them; `between_stages` allows that although a later stage could still continue the run.
    """
    with locked(outbox):
        run = state(path)
        kept = run.between_stages and not between_stages
        if not run.opened or run.ended or kept or run.is_alive(path / FILE, gone):
            return False
        last_write_ms = int((path / FILE).stat().st_mtime * 1000)
        status = "FINISHED" if run.between_stages else "KILLED"
        with closing(Journal(path)) as journal:
            journal.append({"kind": "end", "status": status, "time_ms": last_write_ms}, sync=True)
        return True


def close_orphans(outbox: Path, but: str = "", gone: str = "") -> list[str]:
    """End every journal whose writer is gone, or the process `gone`, except that of a run which continues; return their runs."""
    return [
        path.name
        for path in journals(outbox)
        if path.name != but and close_orphan(outbox, path, between_stages=True, gone=gone)
    ]


def wait_until_uploaded(runs: list[str], outbox: Path, seconds: float | None) -> dict[str, str]:
    """Wait until all entries of these runs are delivered or cannot be, while the uploader runs or so many seconds.

    Shows progress. An ended run is delivered when its journal is removed, an open run when its last entry is sent.

    Returns:
        Run ids that were not delivered, each with a message: the reason and the remedy.
    """
    began = time.time()
    reasons: dict[str, str] = {}
    waiting = _undelivered(runs, outbox)
    if not waiting:
        return {}
    with suppress(OSError), locked(outbox):  # a full disk: the retry only comes later
        (outbox / WAKE).touch()
    process = start_uploader(outbox)
    sizes = {run: _size(outbox / run / FILE) for run in waiting}
    what, total = "upload to MLflow, bytes", sum(sizes.values())
    done = _delivered_bytes(sizes, outbox)
    plain_seconds = PROGRESS_SECONDS if total >= REPORTED_BYTES else math.inf
    with ProgressBar(what, total, done=done, plain_seconds=plain_seconds) as progress:
        while waiting:
            time.sleep(POLL_SECONDS)
            # A process that was started but does not hold the lock yet is still importing: no fixed time is enough.
            gone = (process is None or process.poll() is not None) and not is_uploader_running(outbox)
            late = seconds is not None and time.time() - began > seconds
            for run in _undelivered(waiting, outbox):
                sent = Sent.load(outbox / run)
                if sent.error and (gone or sent.tried_ms >= began * 1000):
                    reasons[run] = sent.error
                elif gone:
                    reasons[run] = f"the uploader ended early, see {outbox.name}/uploader.log"
                elif late:
                    reasons[run] = f"not everything was delivered within {seconds:.0f} s"
            waiting = [run for run in _undelivered(waiting, outbox) if run not in reasons]
            progress.update(done=_delivered_bytes(sizes, outbox))
    return {run: _failure(run, outbox, reason) for run, reason in reasons.items()}


def _undelivered(runs: list[str], outbox: Path) -> list[str]:
    present = [run for run in runs if (outbox / run / FILE).exists()]
    return [
        run
        for run in present
        if Sent.load(outbox / run).size < _size(outbox / run / FILE) or state(outbox / run).ended
    ]


def _size(path: Path) -> int:
    """Return the size of a file that the uploader may remove meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _delivered_bytes(sizes: Mapping[str, int], outbox: Path) -> int:
    """Add up the delivered bytes; a journal that was removed is delivered."""
    waiting = _undelivered(list(sizes), outbox)
    return sum(Sent.load(outbox / run).size if run in waiting else size for run, size in sizes.items())


def _failure(run: str, outbox: Path, reason: str) -> str:
    """Format why a run was not delivered, where it is kept and the command that delivers it."""
    store = without_credentials(state(outbox / run).opened.get("uri", "the store"))
    return (
        f"Not synced to {store}: {reason}. "
        f"Run {run} is kept in {outbox.name}/{run}; `convoy sync` delivers it."
    )


def warn_if_failing(run: str, outbox: Path) -> None:
    """Print, once per run, that its store does not take it."""
    if error := Sent.load(outbox / run).error:
        warn_once({run: _failure(run, outbox, error)}, outbox)


def warn_once(messages: Mapping[str, str], outbox: Path) -> None:
    """Print messages about runs, except of runs that were warned about before."""
    for run, message in messages.items():
        if (outbox / run).is_dir():
            try:
                (outbox / run / WARNED).touch(exist_ok=False)
            except FileExistsError:
                continue
            except OSError:  # a full disk: better twice than never
                pass
        info(message)
