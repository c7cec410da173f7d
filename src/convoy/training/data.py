"""Cut batches from the packed arrays as whole tensors; no code runs per image.

N images of a batch, H height, W width.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.core.dataset import Dataset
from convoy.training.augment import augment
from convoy.training.settings import TrainParams

_ORDER, _AUGMENT = 0, 1
"""Purposes of random numbers: streams of one seed, epoch and step that must not repeat each other."""


class Batch(NamedTuple):
    """Hold some images, their labels, and the place of the batch in its epoch."""

    pixels_u8: Tensor  # (N, 3, H, W) uint8, channels-last in memory as the packed array is
    labels: Tensor  # (N,) int64
    step: int  # 0 for the first batch of the epoch


class Batches:
    """Iterate over a split in a given order; every batch has nearly the same size.

    Sizes differ by at most one, so that no step sees a single image, which batch
    normalisation cannot take.
    """

    def __init__(
        self,
        images_u8: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        batch_size: int,
        order: Callable[[], npt.NDArray[np.int64]],
        first: Callable[[], int] = lambda: 0,
    ) -> None:
        """Take the arrays as they are mapped.

        At the start of every pass `order` is asked for the rows, and `first` for the batch to begin with.
        """
        self.images_u8 = images_u8
        self.labels = labels
        self.order = order
        self.first = first
        self.steps = -(-len(labels) // batch_size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        first = self.first()
        for step, rows in enumerate(np.array_split(self.order(), self.steps)[first:], start=first):
            rows.sort()  # the order inside a batch changes nothing, and a sorted read is sequential on disk
            pixels_u8 = torch.from_numpy(self.images_u8[rows]).permute(0, 3, 1, 2)
            yield Batch(pixels_u8, torch.from_numpy(self.labels[rows]), step)


class Batcher(pl.LightningDataModule):
    """Serve training batches, augmented on the device, and validation batches as they are."""

    def __init__(self, dataset: Dataset, params: TrainParams, seed: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.params = params
        self.seed = seed
        self.first = (0, 0)
        """Epoch, and batch in it, that training begins with: where a checkpoint was written."""

    def train_dataloader(self) -> Batches:
        """Serve the training split in an order that depends on seed and epoch alone."""
        images_u8, labels = self.dataset.images("train"), self.dataset.labels("train")
        return Batches(
            images_u8,
            labels,
            self.params.batch_size,
            lambda: shuffled(len(labels), self.seed, self._epoch()),
            lambda: self.first[1] if self.first[0] == self._epoch() else 0,
        )

    def val_dataloader(self) -> Batches:
        """Serve the validation split as it lies."""
        images_u8, labels = self.dataset.images("val"), self.dataset.labels("val")
        return Batches(images_u8, labels, self.params.batch_size, lambda: np.arange(len(labels)))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Augment a training batch where it arrived."""
        if self.trainer is None or not self.trainer.training:
            return batch
        random = np.random.default_rng([self.seed, self._epoch(), batch.step, _AUGMENT])
        pixels_u8 = augment(batch.pixels_u8, self.params.augment, self.params.crop_padding, random)
        return batch._replace(pixels_u8=pixels_u8)

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0


def shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order rows for one epoch, as a pure function, so that a resumed training sees the same batches."""
    return np.random.default_rng([seed, epoch, _ORDER]).permutation(count)
