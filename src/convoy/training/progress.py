"""How far a training is: a bar over the whole of it in a terminal, a line per epoch elsewhere."""

import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from convoy.core.console import RateColumn, info
from convoy.training.data import Batch


class TrainingProgress(pl.Callback):
    """Show epoch, losses, accuracy, images per second and the time left."""

    def __init__(self, images: int) -> None:
        """Take the number of training images of an epoch."""
        self.images = images
        self.bar: Progress | None = None
        self.started = self.epoch_started = self.epoch_trained = 0.0
        self.seen = 0  # images of this epoch, in this process
        self.share_before = 0.0  # of the whole training, done by processes before

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock and, in a terminal, the bar; a training that resumes starts in the middle."""
        self.started = self.epoch_started = time.monotonic()
        images = self.images * (trainer.max_epochs or 1)
        batches = trainer.num_training_batches * (trainer.max_epochs or 1)
        self.share_before = trainer.global_step / batches
        if sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %"),
                RateColumn(),
                TimeRemainingColumn(compact=True),
            )
            self.bar = Progress(*columns, transient=True)
            self.bar.add_task("train", total=images, completed=round(images * self.share_before))
            self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Note when the epoch began."""
        self.epoch_started = time.monotonic()
        self.seen = 0
        if self.bar:
            name = f"train: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.update(self.bar.task_ids[0], description=name)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: STEP_OUTPUT,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count the images of the batch."""
        self.seen += len(batch.labels)
        if self.bar:
            self.bar.advance(self.bar.task_ids[0], len(batch.labels))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Note when the training part of the epoch ended, so that the rate leaves validation out."""
        self.epoch_trained = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Print the epoch's line; in a terminal it stands above the bar."""
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        share = done / total
        left = (time.monotonic() - self.started) / (share - self.share_before) * (1 - share)
        line = describe(trainer.callback_metrics, done, total)
        rate = self.seen / (self.epoch_trained - self.epoch_started)
        line += f"  {rate:,.0f} images/s" + (f"  ETA {left:,.0f} s" if done < total else "")
        if self.bar:
            self.bar.console.print(line, highlight=False)
        else:
            info(line)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Take the bar away."""
        self._stop()

    def on_exception(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Take the bar away, so that the error stands alone."""
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def describe(metrics: dict[str, Tensor], epoch: int, epochs: int) -> str:
    """Put an epoch's metrics in one line."""
    return (
        f"epoch {epoch}/{epochs}  train loss {metrics['train/loss']:.4f}  "
        f"val loss {metrics['val/loss']:.4f}  val accuracy {metrics['val/accuracy']:.4f}"
    )
