"""A trial, trained in a process of its own: if it runs out of memory, no other trial ends."""

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, Self

import pytorch_lightning as pl
import torch

from convoy.core import stage
from convoy.core.console import info
from convoy.core.cpus import usable_cpus
from convoy.core.dataset import Dataset
from convoy.core.errors import ConvoyError, TrainingError
from convoy.models.spec import Spec
from convoy.sweep.space import describe
from convoy.sweep.study import DATASET, EPOCHS, REQUEST, RUN, WORKER, Request, code
from convoy.tracking import stages
from convoy.tracking.run import Reference, Run
from convoy.training import pretrained, teacher
from convoy.training.fit import fit

PATIENCE_S = 15.0  # for a worker to end after SIGTERM: a step of a large network is not interrupted
LOG = "workers.log"  # what workers print outside trials, such as the reason of a crash
STATE = "convoy.trial_state"
BEST = {
    "val/loss": "val_loss",
    "val/accuracy": "val_accuracy",
}  # metric of the sweep to its name in what `fit` returns


@dataclass(frozen=True)
class Outcome:
    """Describe how a trial ended."""

    state: Literal["complete", "pruned", "failed"]
    value: float = float("nan")  # of the metric, in the best epoch, or in the last epoch of a pruned trial
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
        self._context.set_forkserver_preload(["convoy.sweep.worker"])
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

    def __exit__(self, *_: object) -> None:
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
        info("stopping the workers; Ctrl-C again kills them", stderr=True)
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
        path = self._request.folder / LOG
        if not path.exists():
            return TrainingError(f"a worker could not start (exit code {status}); its traceback is above")
        log = path.read_text(encoding="utf-8", errors="replace").strip()
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
        torch.set_num_threads(threads)
        request = Request.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))
        if request.inputs["code"] != code():
            raise TrainingError(
                "Convoy's code changed during the sweep. Run `convoy sweep` again, which begins a new study."
            )
        pipe.send(train_trial(request, number, values, parent, _Parent(pipe)))
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
    cores = usable_cpus()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(limit) if limit.isdigit() else cores))


class Pruned(Exception):  # noqa: N818 (not an error: the other trials were better)
    """End a training whose trial is worse than the median of the others."""


class ReportEpochs(pl.Callback):
    """Report every epoch to the study and to the run, and stop a trial that is pruned."""

    def __init__(self, run: Run, metric: str, reporter: Reporter) -> None:
        self.run = run
        self.metric = metric
        self.reporter = reporter
        self.value = float("nan")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Report; a trial is never pruned after its last epoch, which would save nothing."""
        epoch = trainer.current_epoch + 1
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.run.log_metrics(values, epoch)
        self.value = values[self.metric]
        if self.reporter.report(epoch, self.value) and epoch < (trainer.max_epochs or 0):
            raise Pruned


def train_trial(
    request: Request, number: int, values: Mapping[str, Any], parent: Reference, reporter: Reporter
) -> Outcome:
    """Train a trial, write its log and its run in MLflow, under the run `parent`.

    Raises:
        OSError: the disk is full.
        DataError, TrainingError: the dataset changed since the sweep began.
        KeyboardInterrupt: the worker is stopped.
    """
    dataset = Dataset.load(DATASET)
    if dataset.hash != request.inputs["data"]:
        raise TrainingError(
            f"{DATASET} changed during the sweep. Run `convoy sweep` again, which begins a new study."
        )
    tags = {"convoy.sweep": request.name, "convoy.trial": str(number)}
    with (request.folder / f"trial-{number:04}.log").open("w", encoding="utf-8") as log:
        try:
            with stages.standalone(f"trial {number} · {describe(values)}", tags, parent) as tracked:
                tracked.set_tags({STATE: "running"})
                with contextlib.redirect_stdout(log):
                    return _fit(request, values, dataset, tracked, reporter)
        except (OSError, EOFError):  # no fault of the values: the disk is full, or the sweep is gone
            raise
        except Exception as error:
            if "PytorchStreamWriter" in str(error):  # torch reports of a full disk only that writing failed
                raise OSError(errno.ENOSPC, str(error)) from error
            traceback.print_exc(file=log)
            prefix = "" if isinstance(error, ConvoyError) else f"{type(error).__name__}: "
            return Outcome("failed", reason=f"{prefix}{error}")


def _fit(
    request: Request, values: Mapping[str, Any], dataset: Dataset, tracked: Run, reporter: Reporter
) -> Outcome:
    """Train into a temporary folder."""
    network, train, seed = request.settings(values)
    reporter.started({RUN: tracked.reference.run_id, EPOCHS: train.epochs})
    tracked.log_params({"network.name": network.name} | dict(values))
    spec = Spec.model_validate(request.specs[network.name])
    reports = ReportEpochs(tracked, request.sweep.metric, reporter)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=request.folder, prefix="out-") as out:
            weights = pretrained.load(network.weights, spec)
            taught_by = teacher.load(train.teacher, dataset.classes)
            metrics = fit(
                dataset,
                spec,
                train,
                seed,
                Path(out),
                callbacks=[reports],
                starting=weights,
                teacher=taught_by,
            )
        outcome = Outcome("complete", float(metrics["best"][BEST[request.sweep.metric]]))
        tracked.log_result({"best": metrics["best"]})
    except Pruned:
        outcome = Outcome("pruned", reports.value)
    except BaseException as error:
        tracked.set_tags({STATE: "failed" if isinstance(error, Exception) else "stopped"})
        raise
    tracked.log_metrics({"sweep/value": outcome.value, "sweep/seconds": time.monotonic() - began})
    tracked.set_tags({STATE: outcome.state})
    return outcome
