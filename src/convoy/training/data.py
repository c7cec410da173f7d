"""Batches of training and validation images, cut from the packed arrays as whole tensors and augmented as such.

No code runs per image. N images of a batch, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.core.dataset import Dataset
from convoy.training.class_balance import balanced_order
from convoy.training.settings import Augmentation, TrainParams

_ORDER, _AUGMENT = 0, 1  # streams of random numbers that must not repeat each other


class Batch(NamedTuple):
    """Hold some images, their labels, and the index of the batch in its epoch."""

    pixels_u8: Tensor  # (N, 3, H, W) uint8, channels-last in memory as the packed array is
    labels: Tensor  # (N,) int64
    step: int  # 0 for the first batch of the epoch


class Batches:
    """Iterate over a split in a given order, in batches whose sizes differ by at most one."""

    def __init__(
        self,
        images_u8: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        batch_size: int,
        order: Callable[[], npt.NDArray[np.int64]],
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        """Take memory-mapped arrays; each pass calls `order` for the rows and `start` for its first batch."""
        self.images_u8 = images_u8
        self.labels = labels
        self.order = order
        self.start = start
        self.steps = -(-len(labels) // batch_size)

    def __len__(self) -> int:
        return self.steps

    @property
    def smallest(self) -> int:
        """Number of images of the smallest batch."""
        return len(self.labels) // self.steps

    def __iter__(self) -> Iterator[Batch]:
        start = self.start()
        for step, rows in enumerate(np.array_split(self.order(), self.steps)[start:], start=start):
            rows.sort()  # the order inside a batch changes nothing, and a sorted read is sequential on disk
            pixels_u8 = torch.from_numpy(self.images_u8[rows]).permute(0, 3, 1, 2)
            yield Batch(pixels_u8, torch.from_numpy(self.labels[rows]), step)


class DataModule(pl.LightningDataModule):
    """Serve training batches, augmented on the device, and validation batches unchanged."""

    def __init__(self, dataset: Dataset, params: TrainParams, seed: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.params = params
        self.seed = seed
        self.position = (0, 0)
        """Epoch, and batch in it, that training starts with; a checkpoint restores it."""

    def train_dataloader(self) -> Batches:
        """Serve the training split in an order that depends only on seed, epoch and `train.sampler`."""
        images_u8, labels = self.dataset.images("train"), self.dataset.labels("train")
        return Batches(
            images_u8,
            labels,
            self.params.batch_size,
            lambda: self._order(labels),
            lambda: self.position[1] if self.position[0] == self._epoch() else 0,
        )

    def val_dataloader(self) -> Batches:
        """Serve the validation split in its stored order."""
        images_u8, labels = self.dataset.images("val"), self.dataset.labels("val")
        return Batches(images_u8, labels, self.params.batch_size, lambda: np.arange(len(labels)))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002 (Lightning's signature)
        """Augment a training batch on its device."""
        if self.trainer is None or not self.trainer.training:
            return batch
        random = np.random.default_rng([self.seed, self._epoch(), batch.step, _AUGMENT])
        pixels_u8 = augment(batch.pixels_u8, self.params.augment, self.params.crop_padding, random)
        return batch._replace(pixels_u8=pixels_u8)

    def _order(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.params.sampler == "balanced":
            return balanced_order(labels, np.random.default_rng([self.seed, self._epoch(), _ORDER]))
        return shuffled(len(labels), self.seed, self._epoch())

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0


def shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order rows for one epoch, as a pure function, so that a resumed run gets the same batches."""
    return np.random.default_rng([seed, epoch, _ORDER]).permutation(count)


def augment(
    pixels_u8: Tensor, names: Sequence[Augmentation], crop_padding: int, random: np.random.Generator
) -> Tensor:
    """Shift and mirror the images of a batch, each in its own way, as one gather on their device.

    The random numbers are drawn on the CPU, so that every device changes the images alike.

    Args:
        pixels_u8: (N, 3, H, W), best in channels-last memory, where nothing is copied beforehand.
        names: `crop` shifts each image by up to `crop_padding` pixels in each direction, as cropping it
            from a frame of its own reflection would; `flip` mirrors half of them left to right.
        crop_padding: largest shift, in pixels.
        random: state that decides everything; advanced by the same amount for the same N.

    Returns:
        (N, 3, H, W) uint8 in channels-last memory.
    """
    if not names:
        return pixels_u8
    count, _, height, width = pixels_u8.shape
    rows = np.arange(height)[None, :].repeat(count, axis=0)
    columns = np.arange(width)[None, :].repeat(count, axis=0)
    if "crop" in names:
        shifts = random.integers(-crop_padding, crop_padding + 1, size=(2, count, 1))
        rows = _reflect(rows + shifts[0], height)
        columns = _reflect(columns + shifts[1], width)
    if "flip" in names:
        mirrored = random.random((count, 1)) < 0.5
        columns = np.where(mirrored, columns[:, ::-1], columns)
    # One index per pixel of the flattened batch: a gather along one axis is several times as fast as three.
    pixels = (np.arange(count)[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    flat = pixels_u8.permute(0, 2, 3, 1).reshape(count * height * width, 3)
    gathered = flat.index_select(0, torch.from_numpy(pixels.reshape(-1)).to(flat.device))
    return gathered.view(count, height, width, 3).permute(0, 3, 1, 2)


def _reflect(positions: np.ndarray, side: int) -> np.ndarray:
    """Fold positions outside 0..side-1 back in, as between two mirrors; the edge pixel is not repeated."""
    period = 2 * (side - 1)
    folded: np.ndarray = (side - 1) - np.abs((side - 1) - positions % period)
    return folded
