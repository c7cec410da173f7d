"""The folder of journals in a repository, and the courier that empties it.

Two locks, both let go by the system when their holder dies: `courier.lock` is held by the
courier while it lives; `outbox.lock` for a moment, by whoever opens, ends or removes a
journal. The courier decides to leave while it holds both, so a journal that is opened is
either seen by it or finds its lock free.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import psutil

import convoy
from convoy.core import stage
from convoy.core.console import info
from convoy.core.errors import without_credentials
from convoy.repo import identity
from convoy.tracking.journal import FILE, Journal, Sent, state
from convoy.tracking.settings import SQLITE, uri

WAIT_SECONDS = 30.0
"""How long the last command of a pipeline waits for what it left to be delivered."""

POLL_SECONDS = 0.1
START_SECONDS = 5.0
"""Time in which a courier that was started has taken its lock."""

HELD_SECONDS = 10.0
"""How long `outbox.lock` is waited for; it is held for milliseconds, but by a process that is stopped for ever."""

SAID = "said"
"""File beside a journal that notes that people were told about its store."""

WAKE = "wake"
"""File whose time tells a courier that somebody waits, so that it tries a failing store at once."""


def folder() -> Path:
    """Locate the outbox of this repository."""
    return stage.repository() / "outbox"


def journals(outbox: Path) -> list[Path]:
    """List the folders of the journals, the oldest run first."""
    return sorted(path.parent for path in outbox.glob(f"*/{FILE}"))


@contextmanager
def held(outbox: Path) -> Iterator[None]:
    """Keep others from opening, ending or removing a journal.

    Raises:
        OSError: somebody has held it for long, or the disk is full.
    """
    outbox.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(outbox / "outbox.lock", timeout=HELD_SECONDS):
        yield


def uploader_lock(outbox: Path) -> filelock.BaseFileLock:
    """Make the lock that says that a courier is at work; it is not taken yet."""
    return filelock.FileLock(outbox / "courier.lock", timeout=0)


def is_at_work(outbox: Path) -> bool:
    """Tell whether a courier holds its lock."""
    lock = uploader_lock(outbox)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    lock.release()
    return False


def start_uploader(outbox: Path, owner: str = "") -> None:
    """Start a courier unless one is at work; it outlives this process and holds none of its pipes.

    Its code is the repository's own: an experiment's workspace is removed when the experiment ends.

    Args:
        outbox: the folder of journals.
        owner: a process, as `identity.name` names it, that will have runs: the courier waits for them.
    """
    try:
        if not is_at_work(outbox):
            _start(outbox, owner)
    except OSError as error:
        info(
            f"No courier could be started ({error!s:.300}); `convoy sync` delivers what is kept in {outbox.name}/."
        )


def prepare_store(outbox: Path) -> None:
    """Where the store is a file that does not exist yet, have a courier make it while the first stages work."""
    if uri().startswith(SQLITE) and not Path(uri().removeprefix(SQLITE)).exists():
        start_uploader(outbox, writer())


def close_orphan(outbox: Path, path: Path, *, between_stages: bool) -> bool:
    """End a journal whose writer is gone: after kill -9 nobody else does.

    Inside a stage the run was KILLED. Between stages it is FINISHED: DVC had the later ones in
    its cache already, or was not asked for them.

    Args:
        outbox: the folder of journals.
        path: the journal's folder.
        between_stages: whether to end a run that a later stage could still go on with.

    Returns:
        Whether it was ended now.
    """
    with held(outbox):
        found = state(path)
        if not found.opened or found.ended or found.is_alive(path / FILE):
            return False
        if found.between_stages and not between_stages:
            return False
        last_sign = int((path / FILE).stat().st_mtime * 1000)
        status = "FINISHED" if found.between_stages else "KILLED"
        journal = Journal(path)
        try:
            journal.append({"kind": "end", "status": status, "time_ms": last_sign}, sync=True)
        finally:
            journal.close()
        return True


def end_all_dead(outbox: Path, but: str = "") -> list[str]:
    """End every journal whose writer is gone, but that of a run which goes on; name their runs."""
    others = [path for path in journals(outbox) if path.name != but]
    return [path.name for path in others if close_orphan(outbox, path, between_stages=True)]


def writer() -> str:
    """Name this process as the one that writes to a journal."""
    return identity.name(psutil.Process())


def wait_until_uploaded(runs: list[str], outbox: Path, seconds: float | None) -> dict[str, str]:
    """Wait until ended runs are delivered or cannot be, showing progress after two seconds.

    Args:
        runs: the run ids.
        outbox: the folder of journals.
        seconds: longest time to wait; None to wait as long as the courier gets on.

    Returns:
        A sentence for each run that is not delivered: why, where it is kept, what to type.
    """
    began = time.time()
    reasons: dict[str, str] = {}
    waiting = _undelivered(runs, outbox)
    if waiting:
        with suppress(OSError), held(outbox):  # a full disk: it is only a matter of time
            (outbox / WAKE).touch()
        start_uploader(outbox)
    progress = Progress(outbox, waiting)
    while waiting:
        time.sleep(POLL_SECONDS)
        gone = time.time() - began > START_SECONDS and not is_at_work(outbox)
        late = seconds is not None and time.time() - began > seconds
        for run in _undelivered(waiting, outbox):
            sent = Sent.load(outbox / run)
            if sent.error and (gone or sent.tried_ms >= began * 1000):
                reasons[run] = sent.error
            elif gone:
                reasons[run] = f"nothing: the courier ended early, {outbox.name}/courier.log says why"
            elif late:
                reasons[run] = f"too slowly: not everything within {seconds:.0f} s"
        waiting = [run for run in _undelivered(waiting, outbox) if run not in reasons]
        progress.show(waiting)
    return {run: _refusal(run, outbox, reason) for run, reason in reasons.items()}


def warn_once(run: str, outbox: Path) -> None:
    """Say once, of a run, that its store does not take it; nothing where all goes well."""
    if error := Sent.load(outbox / run).error:
        say_once({run: _refusal(run, outbox, error)}, outbox)


def say_once(sentences: Mapping[str, str], outbox: Path) -> None:
    """Say what is wrong with runs, unless it was said of them already."""
    for run, sentence in sentences.items():
        if (outbox / run).is_dir():
            try:
                (outbox / run / SAID).touch(exist_ok=False)
            except FileExistsError:
                continue
            except OSError:  # a full disk: better twice than never
                pass
        info(sentence)


class Progress:
    """Say every two seconds how much is delivered, and how long the rest takes."""

    def __init__(self, outbox: Path, runs: list[str]) -> None:
        self._outbox = outbox
        self._runs = runs
        self._began = self._spoke = time.monotonic()
        self._size = {run: (outbox / run / FILE).stat().st_size for run in runs}
        self._start = self._done(runs)

    def show(self, waiting: list[str]) -> None:
        """Say it, if it is time; `waiting` names the runs that are not delivered."""
        now = time.monotonic()
        if not waiting or now - self._spoke < 2:
            return
        self._spoke = now
        total = sum(self._size.values())
        done = self._done(waiting)
        rate = (done - self._start) / (now - self._began)
        left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        info(f"deliver {len(self._runs)} run(s): {done / 1e3:,.0f} of {total / 1e3:,.0f} kB of entries{left}")

    def _done(self, waiting: list[str]) -> int:
        """Add up what is delivered; a journal that was removed is wholly so."""
        return sum(
            Sent.load(self._outbox / run).size if run in waiting else self._size[run] for run in self._runs
        )


def _start(outbox: Path, owner: str) -> None:
    """Start the process."""
    outbox.mkdir(exist_ok=True)
    own = outbox.parent / "src"
    source = own if (own / "convoy/tracking/courier.py").exists() else Path(convoy.__file__).parents[1]
    # A run that `mlflow run` offers, and what DVC says of a stage, are not for the courier to see.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_RUN_ID"))}
    with (outbox / "courier.log").open("wb") as log:
        subprocess.Popen(  # noqa: S603 (own words)
            [sys.executable, "-m", "convoy.tracking.courier", *filter(None, [owner])],
            cwd=outbox.parent,
            env=env | {"PYTHONPATH": str(source)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _refusal(run: str, outbox: Path, reason: str) -> str:
    """Phrase in one line what was not delivered, why, where it is kept and how it gets there."""
    store = without_credentials(state(outbox / run).opened.get("uri", "the store"))
    return (
        f"Not tracked yet: {store} answered {reason}. "
        f"Run {run} is kept in {outbox.name}/{run}; `convoy sync` delivers it."
    )


def _undelivered(runs: list[str], outbox: Path) -> list[str]:
    return [run for run in runs if (outbox / run / FILE).exists()]
