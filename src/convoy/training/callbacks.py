"""The callbacks of a training: best weights, seconds, history, points of curves and progress.

All but the progress keep their state in checkpoints, so that a resumed run ends with the same results.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor

from convoy.core.console import STEADY_SECONDS, Heartbeat, ProgressBar, rate
from convoy.core.files import write_text
from convoy.training.batch import Batch
from convoy.training.module import Classifier
from convoy.training.settings import Best

COLUMNS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr")
"""Metrics of an epoch that the history holds."""


class BestWeights(pl.Callback):
    """Copy the weights to the CPU after the validation of the best epoch so far, by `train.best`.

    `val/loss` takes the lowest loss, `val/accuracy` the highest accuracy and of equal ones the lowest loss (a few hundred
    validation images often tie), `last` the last epoch. A loss that is NaN is never the best.

    Must stand before a callback that averages weights, which swaps the validated weights back in the same
    hook. The copy is part of every checkpoint: a file of its own could be newer than the checkpoint that a
    run resumes from.
    """

    def __init__(self, classifier: Classifier, best: Best) -> None:
        self.classifier = classifier
        self.best = best
        self.rank = [math.inf, math.inf]  # of the copied weights; the lowest is the best
        self.epoch = -1  # 0 for the first
        self.weights: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Copy the weights if they are the best so far."""
        epoch, loss = trainer.current_epoch, float(trainer.callback_metrics["val/loss"])
        if self.best == "last":
            better = epoch + 1 == trainer.max_epochs
        else:
            accuracy = float(trainer.callback_metrics["val/accuracy"])
            rank = [loss, 0.0] if self.best == "val/loss" else [-accuracy, loss]
            better = not math.isnan(loss) and rank < self.rank
            self.rank = rank if better else self.rank
        if better:
            self.epoch = epoch
            state = self.classifier.model.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return rank, epoch and weights for a checkpoint."""
        return {"rank": self.rank, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.rank, self.epoch, self.weights = (state_dict[key] for key in ("rank", "epoch", "weights"))


class TrainingTimer(pl.Callback):
    """Count the seconds from the first step on, over all processes of a training.

    The time between a process's last checkpoint and its end is lost with the work of that time.
    """

    def __init__(self) -> None:
        self._before = 0.0  # of processes before this one
        self._began: float | None = None  # None: not running

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self._before + (time.monotonic() - self._began if self._began is not None else 0.0)

    def on_train_start(self, *_: object) -> None:
        """Start counting."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Stop counting, so that the last checkpoint holds exactly the figure that is reported."""
        self._before, self._began = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the seconds of a checkpoint."""
        self._before = state_dict["seconds"]


class History(pl.Callback):
    """Keep the metrics of every epoch, in memory and in a CSV file that is complete after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Add the epoch's row; validation has run by then."""
        self.rows.append({name: float(trainer.callback_metrics[name]) for name in COLUMNS})
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows, and the file, which DVC has removed."""
        self.rows = state_dict["rows"]
        self._write()

    def _write(self) -> None:
        """Write the table with every digit, so that DVC shows what MLflow does."""
        lines = [",".join(("epoch", *COLUMNS))]
        for epoch, row in enumerate(self.rows, start=1):
            lines.append(",".join([str(epoch), *(repr(row[name]) for name in COLUMNS)]))
        write_text(self.path, "\n".join(lines) + "\n")


class Point(NamedTuple):
    """Hold a value of a curve; `step` counts optimizer steps or epochs, from 1."""

    name: str
    value: float
    step: int
    time_ms: int


Publish = Callable[[Sequence[Point]], None]


class MetricBuffer(pl.Callback):
    """Collect each epoch's metrics, and loss and learning rate every so many steps, until a checkpoint is written.

    A tracking server cannot delete a point. So points are published once a checkpoint that comes after
    them is on the disk: what is computed again after a crash was not published yet. The checkpoint holds
    them too, in case the crash falls between the two.
    """

    def __init__(self, classifier: Classifier, publish: Publish, step_interval: int) -> None:
        """Pass points on to `publish`; with an interval of 0 only those of epochs."""
        self.classifier = classifier
        self.publish = publish
        self.step_interval = step_interval
        # A loss stays a tensor until it is needed: reading it would make a GPU wait.
        self._pending: list[tuple[str, float | Tensor, int, int]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, _module: object, outputs: object, batch: Batch, *_: object
    ) -> None:
        """Collect loss and learning rate of a step, after its last batch."""
        step, batches = trainer.global_step, trainer.accumulate_grad_batches
        if (batch.step + 1) % batches:
            return
        if self.step_interval and step % self.step_interval == 0 and isinstance(outputs, dict):
            rate, now_ms = self.classifier.learning_rate(step - 1), int(time.time() * 1000)
            self._pending += [
                ("step/loss", outputs["loss"].detach() * batches, step, now_ms),
                ("step/lr", rate, step, now_ms),
            ]

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Collect the epoch's metrics; validation has run by then."""
        epoch, now_ms = trainer.current_epoch + 1, int(time.time() * 1000)
        metrics = trainer.callback_metrics
        self._pending += [(name, float(value), epoch, now_ms) for name, value in metrics.items()]

    def flush(self) -> None:
        """Publish what is pending; to be called once a checkpoint with it is on the disk."""
        points = self._points()
        self._pending.clear()
        self.publish(points)

    def state_dict(self) -> dict[str, Any]:
        """Return the pending points for a checkpoint."""
        return {"pending": [list(point) for point in self._points()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Publish the points of a checkpoint; `publish` ignores those that it has already."""
        self.publish([Point(*point) for point in state_dict["pending"]])

    def _points(self) -> list[Point]:
        return [Point(name, float(value), step, when) for name, value, step, when in self._pending]


TRAINED = 3
"""Work of training on an image as a multiple of that of validating it: the gradients cost as much as two predictions."""


class TrainingProgress(pl.Callback):
    """Show how far a training is: a bar in a terminal, elsewhere a line at least every ten seconds; and a line per epoch.

    The time left follows from the work that this process has done, validation included.
    """

    def __init__(self, images: int, val_images: int) -> None:
        """Take the numbers of training and of validation images of an epoch."""
        self.images = images
        self.val_images = val_images
        self._stack = ExitStack()
        self._bar = ProgressBar("train")
        self._heartbeat: Heartbeat | None = None  # None: a terminal has the bar
        self._epoch = ""  # such as `epoch 2/10`
        self._started = self._epoch_started = self._epoch_trained = 0.0
        self._resumed = 0  # images of the epoch that earlier processes trained on
        self._trained = self._validated = 0  # images of the epoch in this process
        self._work = self._total_work = (
            0  # in validated images: what this process has done, and has to do in all
        )

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Start the bar where the training resumes; Lightning announces no start of a resumed epoch."""
        epochs, epoch = trainer.max_epochs or 1, trainer.current_epoch
        steps = trainer.num_training_batches // trainer.accumulate_grad_batches
        self._resumed = round(self.images * (trainer.global_step / steps - epoch))
        self._total_work = (TRAINED * self.images + self.val_images) * (
            epochs - epoch
        ) - TRAINED * self._resumed
        done, total = self.images * epoch + self._resumed, self.images * epochs
        bar = ProgressBar("train", total, done=done, plain_seconds=math.inf, unit="images")
        self._bar = self._stack.enter_context(bar)
        if not self._bar.in_terminal:
            beat = Heartbeat(lambda _: self._line(), STEADY_SECONDS, STEADY_SECONDS)
            self._heartbeat = self._stack.enter_context(beat)
        self._started = time.monotonic()
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Show the epoch."""
        if self._trained:  # else this is the first of the process
            self._resumed = 0
            self._begin(trainer)

    def on_train_batch_end(
        self, _trainer: object, _module: object, _outputs: object, batch: Batch, *_: object
    ) -> None:
        """Count the images of the batch."""
        self._trained += len(batch.labels)
        self._work += TRAINED * len(batch.labels)
        self._bar.advance(len(batch.labels))

    def on_validation_start(self, *_: object) -> None:
        """Note the end of the epoch's steps, so that the rate leaves validation out."""
        self._epoch_trained = time.monotonic()
        self._bar.update(description=f"train: {self._epoch}, validation")

    def on_validation_batch_end(
        self, _trainer: object, _module: object, _outputs: object, batch: Batch, *_: object
    ) -> None:
        """Count the images of the batch."""
        self._validated += len(batch.labels)
        self._work += len(batch.labels)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Print the epoch's line."""
        metrics = trainer.callback_metrics
        line = (
            f"{self._epoch}  train loss {metrics['train/loss']:.4f}  val loss {metrics['val/loss']:.4f}  "
            f"val accuracy {metrics['val/accuracy']:.4f}  {self._rate()}"
        )
        if trainer.current_epoch + 1 < (trainer.max_epochs or 1):
            line += f"  ETA {self._seconds_left():,.0f} s"
        self._bar.print(line)
        if self._heartbeat:
            self._heartbeat.restart()

    def on_train_end(self, *_: object) -> None:
        """Remove the bar."""
        self._stack.close()

    def on_exception(self, *_: object) -> None:
        """Remove the bar, so that the error stands alone."""
        self._stack.close()

    def _begin(self, trainer: pl.Trainer) -> None:
        """Begin an epoch."""
        self._trained = self._validated = 0
        self._epoch_started = self._epoch_trained = time.monotonic()
        self._epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._bar.update(description=f"train: {self._epoch}")

    def _line(self) -> str:
        """Describe where the training is, within an epoch."""
        if self._validated or self._epoch_trained > self._epoch_started:
            done = f"validation, {self._validated:,} of {self.val_images:,} images"
        else:
            done = f"{self._resumed + self._trained:,} of {self.images:,} images"
        known = f", {self._rate()}, ETA {self._seconds_left():,.0f} s" if self._work else ""
        return f"{self._epoch}: {done}{known}"

    def _rate(self) -> str:
        """Compute the rate of the epoch's steps."""
        until = self._epoch_trained if self._epoch_trained > self._epoch_started else time.monotonic()
        return rate(self._trained / (until - self._epoch_started), "images")

    def _seconds_left(self) -> float:
        elapsed_s = time.monotonic() - self._started
        return elapsed_s / self._work * (self._total_work - self._work)
