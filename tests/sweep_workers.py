"""Main functions of worker processes whose trials end otherwise; a process imports them by this module's name."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from convoy.core.errors import TrainingError
from convoy.sweep import run, worker

IGNORES = "ignores-sigterm"
"""File that tells when a worker ignores the signal."""


def data_changed() -> None:
    raise TrainingError("the dataset changed")


def disk_full() -> None:
    raise OSError(28, "No space left on device")


def bug() -> None:
    raise AssertionError("a bug")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignoring_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(IGNORES).touch()
    time.sleep(60)


ENDINGS = (data_changed, disk_full, bug, killed, ignoring_sigterm)


def work(pipe: Any, number: int, *arguments: Any) -> None:
    """Work as a worker does, with a trial that ends as its number says."""
    worker.train_trial = lambda *_: ENDINGS[number]()
    worker_work(pipe, number, *arguments)


worker_work = worker.work


def cannot_start(*_: Any) -> None:
    raise ModuleNotFoundError("No module named 'convoy.sweep'")


def sweep() -> None:
    run.sweep(3, 1, into_params=False, as_json=True)
