"""Prove that what was frozen did not move."""

import hashlib
from collections.abc import Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.core.console import info
from convoy.core.errors import TrainingError
from convoy.training.module import Classifier


class FrozenProof(pl.Callback):
    """Hash every frozen tensor when training starts, after a checkpoint was loaded, and once it may move.

    A tensor is compared when its block is released, or else at the end.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.before: dict[str, str] = {}
        self.proven: dict[str, str] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Hash what is frozen in the epoch that training starts with."""
        frozen = self.classifier.frozen(trainer.current_epoch)
        self.before = {name: sha256(tensor) for name, tensor in frozen.items()}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Compare what this epoch releases, before its first step."""
        self._compare(self.before.keys() - self.classifier.frozen(trainer.current_epoch).keys())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Compare what stayed frozen, and say what was proven."""
        self._compare(self.before.keys())
        if self.proven:
            together = hashlib.sha256("".join(self.proven[name] for name in sorted(self.proven)).encode())
            info(
                f"frozen: {len(self.proven)} tensors unchanged while they were (sha256 {together.hexdigest()[:12]})"
            )

    def _compare(self, names: Iterable[str]) -> None:
        """Compare tensors with their hashes, which are then done with.

        Raises:
            TrainingError: naming the tensors that moved.
        """
        done = sorted(names)
        network = self.classifier.model.network
        now = dict(network.named_parameters()) | dict(network.named_buffers())
        hashes = {name: self.before.pop(name) for name in done}
        moved = [name for name, digest in hashes.items() if sha256(now[name]) != digest]
        if moved:
            raise TrainingError(
                f"{len(moved)} frozen tensors moved: {', '.join(moved)}. Something other than the optimizer wrote to "
                "them, such as a callback or the network's own forward; correct it, or take their blocks out of "
                "train.transfer.freeze (a norm's: set train.transfer.batch_norm to adapt)."
            )
        self.proven |= hashes


def sha256(tensor: Tensor) -> str:
    """Hash a tensor's bytes, in row-major order wherever it lies in memory; 64 hexadecimal digits."""
    flat = tensor.detach().cpu().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
