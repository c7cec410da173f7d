"""The weights of the best epoch, kept in memory and in every checkpoint.

A file of their own could be newer than the checkpoint that a training resumes from.
"""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from convoy.training.module import Classifier

MONITOR = "val/loss"
"""What chooses the best epoch: a few hundred validation images tie in accuracy, never in loss."""


class Best(pl.Callback):
    """Copy the weights after each validation that is better than all before.

    Must stand before a callback that averages weights: that one gives the validated
    weights back at the end of the same hook.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.loss = float("inf")
        self.epoch = -1  # 0 for the first
        self.weights: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Copy the weights to the CPU if the loss is the lowest so far; one that is no number is not."""
        loss = float(trainer.callback_metrics[MONITOR])
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch
            state = self.classifier.model.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.loss, self.epoch = state_dict["loss"], state_dict["epoch"]
        self.weights = state_dict["weights"]
