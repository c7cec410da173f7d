"""The seconds of a training, over all the processes that it took."""

import time
from typing import Any

import pytorch_lightning as pl


class TrainingTimer(pl.Callback):
    """Count from the first step on; what a process did after its last checkpoint is lost with it, and its time too."""

    def __init__(self) -> None:
        self._before = 0.0  # of processes before this one
        self._began: float | None = None  # None: not running

    @property
    def seconds(self) -> float:
        """Give the seconds so far."""
        return self._before + (time.monotonic() - self._began if self._began is not None else 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Start."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Hold the count where it is, so that a checkpoint of the end has the very figure that is reported."""
        self._before, self._began = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Give the seconds for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the seconds of a checkpoint."""
        self._before = state_dict["seconds"]
