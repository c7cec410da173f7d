"""Lead a sweep: start workers, say what they did, replace those that die, stop them all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import convoy
from convoy.core.errors import TrainingError
from convoy.sweep import worker
from convoy.sweep.results import Results
from convoy.sweep.show import Show
from convoy.sweep.study import REQUEST, Study
from convoy.tracking.run import Reference

LOOK_S = 0.3
"""Seconds between two looks at the study."""

PATIENCE_S = 15.0
"""Seconds that a worker has to end after SIGTERM: a step of a large network is not interrupted."""

GO_ON = "The study is kept; `convoy sweep` goes on with it."


def lead(study: Study, target: int, workers: int, parent: Reference, show: Show) -> None:
    """Run workers until the study has `target` trials.

    Args:
        study: held by this process alone.
        target: trials in all.
        workers: processes at once.
        parent: the run that gathers those of the trials.
        show: where progress goes.

    Raises:
        TrainingError: the disk is full; a worker ended for a reason that concerns them all.
        KeyboardInterrupt: after the workers ended.
    """
    _clean(study.folder)
    study.request.save(study.folder / REQUEST)
    with _stopping(show) as running:
        threads = _threads(workers)
        for number in range(workers):
            running.append(_start(study.folder, target, threads, parent, number))
        while running:
            time.sleep(LOOK_S)
            show.update(Results.of(study.request, study.trials()))
            for process in [one for one in running if one.poll() is not None]:
                running.remove(process)
                if process.returncode == 0:
                    continue
                if process.returncode > 0:
                    raise TrainingError(_why(study.folder, process))
                lost = study.recover([one.pid for one in running])
                show.say(_died(process, lost))
                running.append(_start(study.folder, target, threads, parent, len(running)))
    show.update(Results.of(study.request, study.trials()))


def _start(
    folder: Path, target: int, threads: int, parent: Reference, number: int
) -> subprocess.Popen[bytes]:
    words = [str(folder), str(target), str(threads), json.dumps(asdict(parent))]
    with (folder / f"worker-{number}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 (this program itself)
            [sys.executable, "-m", "convoy.sweep.worker", *words],
            stdin=subprocess.PIPE,  # held open as long as this process lives, which the worker watches
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(_path())},
        )
    (folder / f"worker-{number}.log").rename(folder / f"worker-{process.pid}.log")
    return process


@contextmanager
def _stopping(show: Show) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Hand out a list for workers; those that are left in it at the end, however that comes, are stopped."""
    running: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield running
    except KeyboardInterrupt:
        show.say("stopping the workers; Ctrl-C again kills them")
        raise
    finally:
        for process in running:
            process.terminate()
        until = time.monotonic() + PATIENCE_S
        try:
            for process in running:
                process.wait(timeout=max(0.0, until - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C waits no longer
            for process in running:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)


def _threads(workers: int) -> int:
    """Give each worker its share of the cores that this process may use; `OMP_NUM_THREADS` may ask for less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(asked) if asked.isdigit() else cores))


def _path() -> list[str]:
    """Have workers import the code that runs here."""
    own = str(Path(convoy.__file__).parents[1])
    return [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _clean(folder: Path) -> None:
    """Remove what dead workers left: models of unfinished trials, and their last words."""
    for path in folder.glob("out-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("worker-*.log"):
        path.unlink(missing_ok=True)


def _why(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Phrase why a worker ended in a way that the next would, too."""
    if process.returncode == worker.FULL:
        return f"the disk that holds {folder} is full. Make room; then `convoy sweep` goes on where it was."
    said = (folder / f"worker-{process.pid}.log").read_text(encoding="utf-8", errors="replace").strip()
    return f"a worker ended with {process.returncode}: {said or 'it said nothing'}\n{GO_ON}"


def _died(process: subprocess.Popen[bytes], lost: list[int]) -> str:
    try:
        how = signal.Signals(-process.returncode).name
    except ValueError:
        how = f"signal {-process.returncode}"
    what = f"trial {', '.join(map(str, lost))} is tried again" if lost else "it had no trial"
    return f"a worker died of {how}: {what}"
