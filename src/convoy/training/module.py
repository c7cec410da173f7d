"""What Lightning trains: loss, accuracy, optimizer, learning rate.

N images of a batch, H height, W width, K classes.
"""

from collections.abc import Callable
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from convoy.core.errors import TrainingError
from convoy.models.modules import WithAuxiliary
from convoy.models.trained import ModelFacts, NormalizedModel
from convoy.training.blocks import blocks
from convoy.training.data import Batch
from convoy.training.freezing import Plan
from convoy.training.optim import rate
from convoy.training.settings import TrainParams
from convoy.training.weight_files import OURS

CHECK_STEPS = 50
"""Steps between two looks at the loss: each makes a GPU wait, and a loss that is lost stays lost."""


class Classifier(pl.LightningModule):
    """Train a `Deployable` to tell K classes apart, block by block as a plan says.

    What is frozen follows from the epoch alone, so a resumed training is in the phase where it was.
    """

    def __init__(self, model: NormalizedModel, params: TrainParams, facts: ModelFacts) -> None:
        """Make the plan of `params.transfer` for the model's blocks; `facts` travel in every checkpoint.

        Raises:
            RequestError: the plan does not fit the network.
        """
        super().__init__()
        self.model = model
        self.params = params
        self.facts = facts
        self.blocks = blocks(model.network)
        self.plan = Plan.of([block.name for block in self.blocks], params, facts.network)
        self.train_loss = MeanMetric()
        self.train_accuracy = MulticlassAccuracy(len(facts.classes), average="micro")
        for metric in (self.train_loss, self.train_accuracy):
            metric.persistent(mode=True)  # a checkpoint in the middle of an epoch holds its sums so far
        self.val_accuracy = MulticlassAccuracy(len(facts.classes), average="micro")
        self.frozen_norms = {
            name: norm
            for block in self.blocks[:-1]
            for name, norm in block.batch_norms().items()
            if self.plan.norms_frozen
        }
        self._freeze(0)
        self.train()

    def frozen(self, epoch: int) -> dict[str, Tensor]:
        """Collect the tensors that must not move in an epoch, by their names in the network."""
        tensors: dict[str, Tensor] = {}
        for block, frozen in zip(self.blocks, self.plan.frozen(epoch), strict=True):
            if frozen:
                tensors |= block.parameters()
        for name, norm in self.frozen_norms.items():
            inside = (*norm.named_parameters(), *norm.named_buffers())
            tensors |= {f"{name}.{own}": value for own, value in inside}
        return tensors

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        """Switch to training, where a frozen norm keeps to its running statistics instead of a batch's.

        Lightning calls this too, and after a validation gives every module its mode of before back.
        """
        super().train(mode)
        for norm in self.frozen_norms.values():
            norm.eval()
        return self

    def on_train_start(self) -> None:
        """Freeze what the plan says; a training that resumes within an epoch sees no start of it."""
        self._freeze(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Freeze what the plan says; forget the sums that a checkpoint after an epoch still has of it."""
        self._freeze(self.current_epoch)
        self.train_loss.reset()
        self.train_accuracy.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the facts, as text, so that a checkpoint can serve as starting weights elsewhere."""
        checkpoint[OURS] = self.facts.model_dump_json()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the smoothed loss of a batch, a scalar; auxiliary heads add theirs, by weight.

        `train/loss` is that sum, what the optimizer sees; `train/accuracy` is the main head's.

        Raises:
            TrainingError: the loss is no number any more.
        """
        logits, auxiliary = self._answer(batch)
        loss = self._smoothed(logits, batch)
        for weight, aside in auxiliary:
            loss = loss + weight * self._smoothed(aside, batch)
        if batch_idx % CHECK_STEPS == 0:
            self._check(loss)
        self.train_loss.update(loss.detach(), weight=len(batch.labels))
        self.train_accuracy.update(logits, batch.labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Log the main head's loss without smoothing, so that trainings with different smoothing compare."""
        logits = self._answer(batch).logits
        self.val_accuracy.update(logits, batch.labels)
        self.log("val/loss", cross_entropy(logits, batch.labels), batch_size=len(batch.labels))
        self.log("val/accuracy", self.val_accuracy)

    def on_validation_epoch_end(self) -> None:
        """Refuse a loss that is no number; log the head's learning rate at the epoch's first step."""
        self._check(self.trainer.callback_metrics["val/loss"])
        self.log("lr", self.learning_rate(self.current_epoch * int(self.trainer.num_training_batches)))

    def learning_rate(self, step: int) -> float:
        """Compute the head's learning rate at a step, 0 for the first."""
        steps = int(self.trainer.estimated_stepping_batches)
        return self.params.lr * rate(self.params.schedule, self.params.warmup, steps)(step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Group the weights by block, frozen ones too, so that a checkpoint fits in every phase.

        The weights of convolutions and dense layers decay; a norm's scale and every bias are left
        alone. Auxiliary heads, in no block, come last and learn at the head's rate.
        """
        of_blocks = [block.parameters() for block in self.blocks]
        known = {name for parameters in of_blocks for name in parameters}
        rest = {name: value for name, value in self.model.network.named_parameters() if name not in known}
        steps = int(self.trainer.estimated_stepping_batches)
        share = rate(self.params.schedule, self.params.warmup, steps)
        groups: list[dict[str, Any]] = []
        shares: list[Callable[[int], float]] = []
        for parameters, factor in zip([*of_blocks, rest], [*self.plan.factors, 1.0], strict=True):
            weights = [value for value in parameters.values() if value.ndim > 1]
            others = [value for value in parameters.values() if value.ndim <= 1]
            for values, decay in ((weights, self.params.weight_decay), (others, 0.0)):
                if values:
                    groups.append({"params": values, "weight_decay": decay})
                    shares.append(_scaled(share, factor))
        optimizer: Optimizer
        if self.params.optimizer == "sgd":
            optimizer = SGD(groups, lr=self.params.lr, momentum=0.9, nesterov=True)
        else:
            optimizer = AdamW(groups, lr=self.params.lr)
        scheduler = LambdaLR(optimizer, shares)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _freeze(self, epoch: int) -> None:
        """Take the gradients of what is frozen, without which no optimizer moves or decays a weight."""
        frozen = self.frozen(epoch)
        for name, value in self.model.network.named_parameters():
            value.requires_grad_(name not in frozen)

    def _answer(self, batch: Batch) -> WithAuxiliary:
        """Run the network; all logits in float32: a loss in bf16 would round its differences away."""
        answer: Tensor | WithAuxiliary = self.model(batch.pixels_u8.float())
        if isinstance(answer, Tensor):
            return WithAuxiliary(answer.float(), ())
        auxiliary = tuple((weight, logits.float()) for weight, logits in answer.auxiliary)
        return WithAuxiliary(answer.logits.float(), auxiliary)

    def _smoothed(self, logits: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(logits, batch.labels, label_smoothing=self.params.label_smoothing)

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: the steps are too large. "
                f"Lower train.lr (now {self.params.lr}) or lengthen train.warmup (now {self.params.warmup})."
            )


def _scaled(share: Callable[[int], float], factor: float) -> Callable[[int], float]:
    return lambda step: factor * share(step)
