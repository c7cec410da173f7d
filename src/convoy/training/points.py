"""The points of a training's curves, held back until a checkpoint has them.

A tracking server cannot take a point back. So points are published once a checkpoint that
comes after them is on the disk: what is computed again after a crash was not published yet.
The checkpoint holds them too, in case the crash falls between the two.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from convoy.training.data import Batch
from convoy.training.module import Classifier


class Point(NamedTuple):
    """Hold a value of a curve; `step` counts optimizer steps or epochs, from 1."""

    name: str
    value: float
    step: int
    time_ms: int


Publish = Callable[[Sequence[Point]], None]


class MetricBuffer(pl.Callback):
    """Collect each epoch's metrics, and loss and learning rate of every so many steps."""

    def __init__(self, classifier: Classifier, publish: Publish, step_interval: int) -> None:
        """Hand points on to `publish`; an interval of 0 leaves steps out."""
        self.classifier = classifier
        self.publish = publish
        self.step_interval = step_interval
        # A loss stays a tensor until it is needed: reading it would make a GPU wait.
        self._waiting: list[tuple[str, float | Tensor, int, int]] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 (Lightning's signature)
        outputs: STEP_OUTPUT,
        batch: Batch,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Take loss and rate of the step that was done."""
        step = trainer.global_step
        if self.step_interval and step % self.step_interval == 0 and isinstance(outputs, dict):
            now = _now_ms()
            self._waiting.append(("step/loss", outputs["loss"].detach(), step, now))
            self._waiting.append(("step/lr", self.classifier.learning_rate(step - 1), step, now))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Take the epoch's metrics; validation has run by then."""
        now, epoch = _now_ms(), trainer.current_epoch + 1
        for name, value in trainer.callback_metrics.items():
            self._waiting.append((name, float(value), epoch, now))

    def state_dict(self) -> dict[str, Any]:
        """Give the points that wait for this checkpoint."""
        return {"waiting": [list(point) for point in self._points()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Publish what the checkpoint held; whoever publishes leaves out what is there already."""
        self.publish([Point(*point) for point in state_dict["waiting"]])

    def flush(self) -> None:
        """Publish what waits; to be called once a checkpoint with it is on the disk."""
        points = self._points()
        self._waiting.clear()
        self.publish(points)

    def _points(self) -> list[Point]:
        return [Point(name, float(value), step, when) for name, value, step, when in self._waiting]


def _now_ms() -> int:
    return int(time.time() * 1000)
