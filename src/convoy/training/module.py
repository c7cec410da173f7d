"""The Lightning module: loss, accuracy, optimizer, learning rate and frozen layers of a training.

N images of a batch, H height, W width, K classes.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from convoy.core.errors import TrainingError
from convoy.models.build import Whitening, WithAuxiliary
from convoy.models.trained import ModelFacts, NormalizedModel
from convoy.training.batch import Batch
from convoy.training.freezing import Plan, blocks
from convoy.training.losses import classification_loss, distillation_loss
from convoy.training.optim import make_optimizer, schedule_of
from convoy.training.precision import keep_slow_in_float32
from convoy.training.pretrained import MODEL_FACTS
from convoy.training.settings import TrainParams
from convoy.training.small_maps import use_products
from convoy.training.teacher import Teacher

CHECK_STEPS = 50  # steps between two checks of the loss: each makes a GPU wait, and a NaN loss stays NaN


class Sums(Metric):
    """Add up losses and correct answers on the device.

    torchmetrics' own mean and accuracy look for NaN and unknown classes, for which a GPU waits at every step.
    """

    loss: Tensor
    right: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the mean loss of a batch, and how many of its (N, K) logits are highest at the label."""
        self.loss += loss.detach() * len(labels)
        self.right += (logits.argmax(dim=1) == labels).sum()
        self.images += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return mean loss and accuracy of all images so far."""
        return {"loss": self.loss / self.images, "accuracy": self.right / self.images}


class Classifier(pl.LightningModule):
    """Train a `NormalizedModel` to classify, block by block as a plan states.

    What is frozen follows from the epoch alone, so a resumed run is in the phase in which it stopped.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: NormalizedModel,
        params: TrainParams,
        facts: ModelFacts,
        steps_per_epoch: int,
        class_weights: npt.NDArray[np.float64] | None = None,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        """Make the plan of `params.transfer` for the model's blocks; `facts` go into every checkpoint.

        `class_weights` are (K,) factors on the training loss of the images of each class. With a `teacher`, the share
        `params.teacher_weight` of the training loss is the divergence from its answers.

        Raises:
            RequestError: the plan does not fit the network.
        """
        super().__init__()
        self.model = model
        self.params = params
        self.facts = facts
        self.teacher = teacher
        self.steps_per_epoch = steps_per_epoch
        self.lr_schedule = schedule_of(params, steps_per_epoch)
        self.blocks = blocks(model.network)
        self.plan = Plan.of([block.name for block in self.blocks], params, facts.network)
        self.train_sums, self.val_sums = Sums(), Sums()
        self.train_sums.persistent(mode=True)  # a checkpoint within an epoch holds the sums so far
        weights = None if class_weights is None else torch.from_numpy(class_weights).float()
        self.register_buffer(
            "class_weights", weights, persistent=False
        )  # they follow from the dataset and params
        self.frozen_norms = {
            name: norm
            for block in self.blocks[:-1]
            for name, norm in block.batch_norms().items()
            if self.plan.norms_frozen
        }
        self._freeze(0)
        self.train()

    def frozen(self, epoch: int) -> dict[str, Tensor]:
        """Collect the tensors that must not change in an epoch, by their names in the network."""
        tensors: dict[str, Tensor] = {}
        for block, frozen in zip(self.blocks, self.plan.frozen(epoch), strict=True):
            if frozen:
                tensors |= block.parameters()
        for name, norm in self.frozen_norms.items():
            tensors |= dict([*norm.named_parameters(name), *norm.named_buffers(name)])
        for name, module in self.model.network.named_modules():
            if isinstance(module, Whitening):
                tensors[f"{name}.weight"] = module.weight
        return tensors

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        """Switch to training, in which a frozen norm keeps using its running statistics.

        Lightning calls this too, and gives every module its earlier mode back after a validation.
        """
        super().train(mode)
        for norm in self.frozen_norms.values():
            norm.eval()
        return self

    def on_fit_start(self) -> None:
        """Choose the number format of layers that are slow in bf16, and how others compute their gradients."""
        if self.device.type == "cpu" and self.trainer.precision == "bf16-mixed":
            keep_slow_in_float32(self.model.network)
            use_products(self.model.network)

    def on_train_start(self) -> None:
        """Apply the plan; a run that resumes within an epoch has no start of it."""
        self._freeze(self.current_epoch)
        if self.teacher:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Apply the plan; reset the sums of the epoch before, which a checkpoint between epochs still holds."""
        self._freeze(self.current_epoch)
        self.train_sums.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the facts, as text, so that a checkpoint can serve as starting weights elsewhere."""
        checkpoint[MODEL_FACTS] = self.facts.model_dump_json()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the training loss of a batch, a scalar; auxiliary heads add theirs, by weight.

        `train/loss` is that sum, which the optimizer minimises, class weights and a teacher's part included; `train/accuracy` is the main head's,
        in which each image that was drawn counts alike, and a mixed image with the label that counts most.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        logits, auxiliary = self._predict(batch)
        taught = self.teacher.logits(batch.pixels_u8) if self.teacher else None
        loss = self._loss(logits, batch, taught)
        for weight, aside in auxiliary:
            loss = loss + weight * self._loss(aside, batch, taught)
        if batch_idx % CHECK_STEPS == 0:
            self._check(loss)
        self.train_sums.update(loss, logits, batch.labels)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """Log the epoch's loss and accuracy after its last batch; each call costs a fraction of a millisecond."""
        if self.trainer.is_last_batch:
            self._log_means("train", self.train_sums)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the validation before."""
        self.val_sums.reset()

    def validation_step(self, batch: Batch) -> None:
        """Add the main head's cross-entropy, without what changes the training loss, so that it compares between params."""
        logits = self._predict(batch).logits
        self.val_sums.update(cross_entropy(logits, batch.labels), logits, batch.labels)

    def on_validation_batch_end(self, _outputs: object, batch: Batch, *_: object) -> None:
        """Log loss and accuracy after the last batch."""
        if batch.step + 1 == self.trainer.num_val_batches[0]:
            self._log_means("val", self.val_sums)

    def on_validation_epoch_end(self) -> None:
        """Check the validation loss; log the head's learning rate at the epoch's first step."""
        self._check(self.trainer.callback_metrics["val/loss"])
        self.log("lr", self.learning_rate(self.current_epoch * self.steps_per_epoch))

    def learning_rate(self, step: int) -> float:
        """Compute the head's learning rate at a step, 0 for the first."""
        return self.params.lr * self.lr_schedule(step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Group the parameters by block; auxiliary heads, in no block, come last and learn at the head's rate."""
        parameters = [block.parameters() for block in self.blocks]
        in_blocks = {name for block in parameters for name in block}
        rest = {n: value for n, value in self.model.network.named_parameters() if n not in in_blocks}
        optimizer, scheduler = make_optimizer(
            [*parameters, rest], [*self.plan.factors, 1.0], self.params, self.lr_schedule
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _freeze(self, epoch: int) -> None:
        """Disable the gradients of frozen parameters, without which no optimizer changes or decays a weight."""
        frozen = self.frozen(epoch)
        for name, value in self.model.network.named_parameters():
            value.requires_grad_(name not in frozen)

    def _predict(self, batch: Batch) -> WithAuxiliary:
        """Run the network; all logits in float32: a loss in bf16 would round its differences away."""
        output: Tensor | WithAuxiliary = self.model(batch.pixels_u8.float())
        logits, auxiliary = (output, ()) if isinstance(output, Tensor) else output
        return WithAuxiliary(logits.float(), tuple((weight, aside.float()) for weight, aside in auxiliary))

    def _log_means(self, split: str, sums: Sums) -> None:
        for name, value in sums.compute().items():
            self.log(f"{split}/{name}", value, on_step=False, on_epoch=True, batch_size=1)

    def _loss(self, logits: Tensor, batch: Batch, taught: Tensor | None) -> Tensor:
        loss = classification_loss(
            logits,
            batch.labels if batch.targets is None else batch.targets,
            smoothing=self.params.label_smoothing,
            class_weights=self.class_weights,
            gamma=self.params.focal_gamma if self.params.loss == "focal" else None,
        )
        if taught is None:
            return loss
        weight, temperature = self.params.teacher_weight, self.params.teacher_temperature
        return (1 - weight) * loss + weight * distillation_loss(logits, taught, temperature)

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: the steps are too large. "
                f"Lower train.lr (now {self.params.lr}) or lengthen train.warmup (now {self.params.warmup})."
            )
