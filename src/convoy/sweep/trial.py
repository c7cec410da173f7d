"""One trial: train with some values, report each epoch, stop early when the study prunes it."""

import contextlib
import errno
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from convoy.core.dataset import Dataset
from convoy.core.errors import ConvoyError, TrainingError
from convoy.models.spec import Spec
from convoy.sweep.request import DATASET, Request
from convoy.sweep.space import describe
from convoy.sweep.study import EPOCHS, RUN
from convoy.sweep.worker import Outcome, Reporter
from convoy.tracking import stages
from convoy.tracking.run import Reference, Run
from convoy.training import pretrained
from convoy.training.fit import fit

VALUE = "sweep/value"
STATE = "convoy.trial_state"
BEST = {"val/loss": "val_loss", "val/accuracy": "val_accuracy"}
"""Metric of the sweep to its name in what `fit` returns of the best epoch."""


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


def run(
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
                    return _train(request, values, dataset, tracked, reporter)
        except (OSError, EOFError):  # no fault of the values: the disk is full, or the sweep is gone
            raise
        except Exception as error:
            if "PytorchStreamWriter" in str(error):  # torch reports of a full disk only that writing failed
                raise OSError(errno.ENOSPC, str(error)) from error
            traceback.print_exc(file=log)
            prefix = "" if isinstance(error, ConvoyError) else f"{type(error).__name__}: "
            return Outcome("failed", reason=f"{prefix}{error}")


def _train(
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
            metrics = fit(dataset, spec, train, seed, Path(out), callbacks=[reports], starting=weights)
        outcome = Outcome("complete", float(metrics["best"][BEST[request.sweep.metric]]))
        tracked.log_result({"best": metrics["best"]})
    except Pruned:
        outcome = Outcome("pruned", reports.value)
    except BaseException as error:
        tracked.set_tags({STATE: "failed" if isinstance(error, Exception) else "stopped"})
        raise
    tracked.log_metrics({VALUE: outcome.value, "sweep/seconds": time.monotonic() - began})
    tracked.set_tags({STATE: outcome.state})
    return outcome
