"""A process for each trial: one that runs out of memory takes no other with it."""

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol, Self

from convoy.core import stage
from convoy.core.errors import ConvoyError, TrainingError
from convoy.sweep.request import Request, code
from convoy.sweep.study import WORKER
from convoy.tracking.run import Reference

PATIENCE_S = 15.0
"""Seconds that a worker has to end after SIGTERM: a step of a large network is not interrupted."""

LOG = "workers.log"
"""What workers print outside trials, such as the reason of a crash."""


@dataclass(frozen=True)
class Outcome:
    """Describe how a trial ended."""

    state: Literal["complete", "pruned", "failed"]
    value: float = float("nan")  # of the metric, in the best epoch, or in the last one of a pruned trial
    reason: str = ""  # why it failed


class Reporter(Protocol):
    """What a trial reports to."""

    def started(self, attributes: Mapping[str, Any]) -> None:
        """Take attributes of the trial: its run in MLflow, its epochs, its process."""

    def report(self, epoch: int, value: float) -> bool:
        """Take the metric of an epoch, counted from 1; return whether to prune the trial."""


class WorkerDied(Exception):  # noqa: N818 (its trial may be tried again)
    """A worker was killed by a signal, such as `SIGKILL` when memory is exhausted."""


class Workers:
    """Train trials in processes that end with this one, however it ends."""

    def __init__(self, request: Request, parent: Reference, count: int) -> None:
        """Prepare for `count` trials at once, which share the cores evenly, in runs under `parent`."""
        self.count = count
        self.cause: BaseException | None = None  # why all work was stopped; None while it goes on
        self._request = request
        self._arguments = (request.folder, _threads(count), parent)
        # Forks a process that has imported torch, so that a trial starts in no time.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["convoy.sweep.trial"])
        self._processes: set[Any] = set()
        self._timer = threading.Timer(PATIENCE_S, self._signal_all, [signal.SIGKILL])
        self._timer.daemon = True
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Stop workers at SIGINT and SIGTERM; remove what killed workers left."""
        for path in self._request.folder.glob("out-*"):
            shutil.rmtree(path, ignore_errors=True)
        (self._request.folder / LOG).unlink(missing_ok=True)
        self._request.save()
        self._handlers = {
            kind: signal.signal(kind, self._interrupted) for kind in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers; no worker is left, since `train` waits for its own."""
        self._timer.cancel()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def train(self, number: int, values: Mapping[str, Any], reporter: Reporter) -> Outcome:
        """Train a trial in a process; may be called from several threads.

        Raises:
            WorkerDied: by a signal.
            KeyboardInterrupt: all work was stopped.
            ConvoyError, OSError: a cause that concerns every trial.
        """
        if self.cause:
            raise KeyboardInterrupt
        pipe, other = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(other, number, dict(values), self._arguments), daemon=True
        )
        process.start()
        other.close()  # so that the end of the process is the end of the pipe
        self._processes.add(process)
        if self.cause:  # meanwhile
            process.terminate()
        try:
            while True:
                message = pipe.recv()
                if isinstance(message, Outcome):
                    return message
                if isinstance(message, BaseException):
                    raise message
                method, arguments = message
                pipe.send(getattr(reporter, method)(*arguments))
        except (EOFError, ConnectionError):
            process.join()
            raise self._death(process.exitcode or 0) from None
        finally:
            process.join()
            self._processes.discard(process)

    def stop(self, cause: BaseException) -> None:
        """Have every worker end; those that do not within `PATIENCE_S` are killed."""
        if self.cause is None:
            self.cause = cause
            self._timer.start()
            self._signal_all(signal.SIGTERM)

    def _interrupted(self, _signal: int, _frame: FrameType | None) -> None:
        if self.cause:  # a second Ctrl-C does not wait
            self._signal_all(signal.SIGKILL)
            return
        print("stopping the workers; Ctrl-C again kills them", file=sys.stderr, flush=True)
        self.stop(KeyboardInterrupt())

    def _signal_all(self, kind: signal.Signals) -> None:
        for process in list(self._processes):
            (process.terminate if kind == signal.SIGTERM else process.kill)()

    def _death(self, status: int) -> BaseException:
        if self.cause:
            return KeyboardInterrupt()
        if status < 0:
            known = -status in set(signal.Signals)
            return WorkerDied(signal.Signals(-status).name if known else f"signal {-status}")
        log = (self._request.folder / LOG).read_text(encoding="utf-8", errors="replace").strip()
        return TrainingError(f"a worker ended with exit code {status}: {log[-2000:] or 'no output'}")


class _Parent:
    """Stand for the study in a worker: what is called here is called there."""

    def __init__(self, pipe: Any) -> None:  # noqa: ANN401 (its class is generic in some versions of Python only)
        self._pipe = pipe

    def started(self, attributes: Mapping[str, Any]) -> None:
        self._pipe.send(("started", [dict(attributes) | {WORKER: os.getpid()}]))
        self._pipe.recv()

    def report(self, epoch: int, value: float) -> bool:
        self._pipe.send(("report", [epoch, value]))
        return bool(self._pipe.recv())


def work(
    pipe: Any,  # noqa: ANN401 (see above)
    number: int,
    values: Mapping[str, Any],
    arguments: tuple[Path, int, Reference],
) -> None:
    """Train a trial: the main function of a worker process."""
    folder, threads, parent = arguments
    # A terminal's Ctrl-C reaches the parent, which sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    stage.silence_dependencies()
    try:
        import torch  # noqa: PLC0415 (not in the parent, which this module is imported into)

        from convoy.sweep import trial  # noqa: PLC0415 (torch)

        torch.set_num_threads(threads)
        request = Request.load(folder)
        if request.inputs["code"] != code():
            raise TrainingError(
                "Convoy's code changed during the sweep. Run `convoy sweep` again, which begins a new study."
            )
        pipe.send(trial.run(request, number, values, parent, _Parent(pipe)))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return
    except ConvoyError as error:
        pipe.send(error)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        pipe.send(error)


def _end_with_the_parent() -> None:
    """Exit at once when the parent is gone: the trial is lost, the study is whole."""
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def _threads(workers: int) -> int:
    """Give each worker its share of the cores that this process may use, at most `OMP_NUM_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(limit) if limit.isdigit() else cores))
