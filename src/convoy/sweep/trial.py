"""One trial: train with some values, report each epoch, stop early what is worse than half of the others."""

import contextlib
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
from optuna.trial import Trial, TrialState

from convoy.core.dataset import Dataset
from convoy.core.errors import ConvoyError, TrainingError
from convoy.models.spec import Spec
from convoy.sweep.request import DATASET
from convoy.sweep.space import describe
from convoy.sweep.study import EPOCHS, REASON, RUN, Study
from convoy.tracking import stages
from convoy.tracking.run import Reference, Run
from convoy.training import pretrained
from convoy.training.fit import fit

VALUE = "sweep/value"
STATE = "convoy.trial_state"
KEPT = {"val/loss": "val_loss", "val/accuracy": "val_accuracy"}
"""Metric of the sweep to its name in what `fit` returns of the epoch that it kept."""


class Watch(pl.Callback):
    """Report every epoch to the study and to the run, and stop a trial that is pruned."""

    def __init__(self, trial: Trial, run: Run, metric: str) -> None:
        self.trial = trial
        self.run = run
        self.metric = metric
        self.value = float("nan")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Report; nothing is saved by pruning a trial in its last epoch, so that one counts as complete.

        Raises:
            optuna.TrialPruned: the trial is worse than the median of the others.
        """
        epoch = trainer.current_epoch + 1
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.run.log_metrics(values, epoch)
        self.value = values[self.metric]
        self.trial.report(self.value, epoch)
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            raise optuna.TrialPruned


@dataclass(frozen=True)
class Result:
    """Say how a trial ended."""

    state: TrialState
    value: float | None
    reason: str = ""


def run(study: Study, trial: Trial, parent: Reference) -> None:
    """Train a trial, write its log, its run in MLflow and its result in the study.

    Raises:
        OSError: there is no room on the disk; the trial stays as running, for `recover`.
        DataError, TrainingError: the dataset is not that of the study any more.
        KeyboardInterrupt: the worker is to stop.
    """
    request = study.request
    values = {one.key: one.value(trial.params[one.key]) for one in request.space}
    dataset = Dataset.load(DATASET)
    if dataset.hash != request.inputs["data"]:
        raise TrainingError(
            f"{DATASET} changed while it was swept. Type `convoy sweep` again: another study begins."
        )
    tags = {"convoy.sweep": request.name, "convoy.trial": str(trial.number)}
    log = study.folder / f"trial-{trial.number:04}.log"
    result = Result(TrialState.FAIL, None)
    with log.open("w", encoding="utf-8") as file:
        try:
            with stages.standalone(f"trial {trial.number} · {describe(values)}", tags, parent) as tracked:
                tracked.set_tags({STATE: "running"})
                with contextlib.redirect_stdout(file):
                    result = _train(study, trial, values, dataset, tracked)
        except (
            ConvoyError,
            RuntimeError,
            ValueError,
            ArithmeticError,
            TypeError,
            LookupError,
            MemoryError,
        ) as error:
            # Networks, optimizers and devices refuse values in words of their own; the sweep goes on with others.
            _raise_if_full(error)
            traceback.print_exc(file=file)
            known = isinstance(error, ConvoyError)
            result = Result(
                TrialState.FAIL, None, str(error) if known else f"{type(error).__name__}: {error}"
            )
    if result.reason:
        trial.set_user_attr(REASON, result.reason)
    study.optuna.tell(trial, result.value, result.state)


def _train(study: Study, trial: Trial, values: Mapping[str, Any], dataset: Dataset, tracked: Run) -> Result:
    """Train into a folder that is thrown away."""
    request = study.request
    chosen, train, seed = request.settings(values)
    trial.set_user_attr(RUN, tracked.reference.run_id)
    trial.set_user_attr(EPOCHS, train.epochs)
    tracked.log_params({"network.name": chosen.name} | dict(values))
    spec = Spec.model_validate(request.specs[chosen.name])
    watch = Watch(trial, tracked, request.sweep.metric)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=study.folder, prefix="out-") as out:
            weights = pretrained.load(chosen.weights, spec)
            metrics = fit(dataset, spec, train, seed, Path(out), callbacks=[watch], starting=weights)
    except optuna.TrialPruned:
        tracked.log_metrics({VALUE: watch.value, "sweep/seconds": time.monotonic() - began})
        tracked.set_tags({STATE: "pruned"})
        return Result(TrialState.PRUNED, None)
    except BaseException as error:
        tracked.set_tags({STATE: "failed" if isinstance(error, Exception) else "stopped"})
        raise
    value = float(metrics["best"][KEPT[request.sweep.metric]])
    tracked.log_metrics({VALUE: value, "sweep/seconds": time.monotonic() - began})
    tracked.log_result({"best": metrics["best"]})
    tracked.set_tags({STATE: "complete"})
    return Result(TrialState.COMPLETE, value)


def _raise_if_full(error: Exception) -> None:
    """Hand a full disk on as what it is: torch says only that writing failed."""
    if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):
        raise OSError(str(error)) from error
