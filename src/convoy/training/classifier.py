"""What Lightning trains: loss, accuracy, optimizer, learning rate.

N images of a batch, H height, W width, K classes.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from convoy.errors import TrainingError
from convoy.networks.deployable import Deployable
from convoy.training.batches import Batch
from convoy.training.schedule import rate
from convoy.training.settings import TrainParams

CHECK_STEPS = 50
"""Steps between two looks at the loss: each makes a GPU wait, and a loss that is lost stays lost."""


class Classifier(pl.LightningModule):
    """Train a `Deployable` to tell K classes apart."""

    def __init__(self, model: Deployable, params: TrainParams, classes: int) -> None:
        super().__init__()
        self.model = model
        self.params = params
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")

    def on_train_epoch_start(self) -> None:
        """Log the learning rate of the epoch's first step."""
        self.log("lr", self._scheduler().get_last_lr()[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the smoothed loss of a batch, a scalar.

        Raises:
            TrainingError: the loss is no number any more.
        """
        logits = self._logits(batch)
        loss = cross_entropy(logits, batch.labels, label_smoothing=self.params.label_smoothing)
        if batch_idx % CHECK_STEPS == 0:
            self._check(loss)
        self.train_accuracy.update(logits, batch.labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Log the loss without smoothing, so that trainings with different smoothing compare."""
        logits = self._logits(batch)
        self.val_accuracy.update(logits, batch.labels)
        self.log("val/loss", cross_entropy(logits, batch.labels), batch_size=len(batch.labels))
        self.log("val/accuracy", self.val_accuracy)

    def on_validation_epoch_end(self) -> None:
        """Refuse a loss that is no number before a checkpoint of it is taken for the best."""
        self._check(self.trainer.callback_metrics["val/loss"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Decay the weights of convolutions and dense layers; a norm's scale and every bias are left alone."""
        weights = [value for value in self.parameters() if value.ndim > 1]
        others = [value for value in self.parameters() if value.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": self.params.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer: Optimizer
        if self.params.optimizer == "sgd":
            optimizer = SGD(groups, lr=self.params.lr, momentum=0.9, nesterov=True)
        else:
            optimizer = AdamW(groups, lr=self.params.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, rate(self.params.schedule, self.params.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _logits(self, batch: Batch) -> Tensor:
        """Run the network, (N, K) float32: a loss in bf16 would round its differences away."""
        logits: Tensor = self.model(batch.pixels_u8.float())
        return logits.float()

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: the steps are too large. "
                f"Lower train.lr (now {self.params.lr}) or lengthen train.warmup (now {self.params.warmup})."
            )

    def _scheduler(self) -> LambdaLR:
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, LambdaLR):
            raise TypeError(f"one learning-rate schedule was configured, not {scheduler}")
        return scheduler
