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

from convoy.core.console import ProgressBar
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


class TrainingProgress(pl.Callback):
    """Print a line per epoch (losses, accuracy, images per second, time left); in a terminal, a bar below them."""

    def __init__(self, images: int) -> None:
        """Take the number of training images of an epoch."""
        self.images = images
        self._stack = ExitStack()
        self._bar = ProgressBar("train")
        self._started = self._epoch_started = self._epoch_trained = 0.0
        self._epoch_images = 0  # trained on in this process
        self._share_before = 0.0  # of the whole training, done by earlier processes

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Start the bar where the training resumes."""
        epochs = trainer.max_epochs or 1
        # Lightning announces no start of a resumed epoch.
        self._started = self._epoch_started = time.monotonic()
        steps = trainer.num_training_batches // trainer.accumulate_grad_batches * epochs
        self._share_before = trainer.global_step / steps
        images = self.images * epochs
        done = round(images * self._share_before)
        self._bar = self._stack.enter_context(ProgressBar("train", images, done=done, plain_seconds=math.inf))

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Show the epoch."""
        self._epoch_started, self._epoch_images = time.monotonic(), 0
        self._bar.update(description=f"train: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self, _trainer: object, _module: object, _outputs: object, batch: Batch, *_: object
    ) -> None:
        """Count the images of the batch."""
        self._epoch_images += len(batch.labels)
        self._bar.advance(len(batch.labels))

    def on_validation_start(self, *_: object) -> None:
        """Note the end of the epoch's steps, so that the rate leaves validation out."""
        self._epoch_trained = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Print the epoch's line."""
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        metrics = trainer.callback_metrics
        rate = self._epoch_images / (self._epoch_trained - self._epoch_started)
        line = (
            f"epoch {done}/{total}  train loss {metrics['train/loss']:.4f}  val loss {metrics['val/loss']:.4f}  "
            f"val accuracy {metrics['val/accuracy']:.4f}  {rate:,.0f} images/s"
        )
        if done < total:
            elapsed = time.monotonic() - self._started
            line += f"  ETA {elapsed / (done / total - self._share_before) * (1 - done / total):,.0f} s"
        self._bar.print(line)

    def on_train_end(self, *_: object) -> None:
        """Remove the bar."""
        self._stack.close()

    def on_exception(self, *_: object) -> None:
        """Remove the bar, so that the error stands alone."""
        self._stack.close()
