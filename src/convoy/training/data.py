"""Batches of training and validation images, cut from the packed arrays as whole tensors and augmented as such on the device.

No code runs per image. N images of a batch, H height, W width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.core.dataset import Dataset, cropped_side
from convoy.training import prefetch
from convoy.training.augment import pixels, policy
from convoy.training.augment.augmenter import Augmenter
from convoy.training.augment.draws import Frame
from convoy.training.batch import Batch
from convoy.training.class_balance import balanced_order
from convoy.training.progressive import side_px
from convoy.training.settings import TrainParams
from convoy.training.stored import Images, train_images

ORDER = 0  # stream of random numbers; augmentation draws from another


class Batches:
    """Iterate over a split in a given order, in batches whose sizes differ by at most one."""

    def __init__(
        self,
        images_u8: Images,
        labels: npt.NDArray[np.int64],
        batch_size: int,
        order: Callable[[], npt.NDArray[np.int64]],
        start: Callable[[], int] = lambda: 0,
        *,
        accumulate: int = 1,
    ) -> None:
        """Take memory-mapped arrays; each pass calls `order` for the rows and `start` for its first batch."""
        self.images_u8 = images_u8
        self.source: Images | Tensor = images_u8  # that batches are cut from, such as a copy on a GPU
        self.labels = labels
        self.order = order
        self.start = start
        self.steps = steps_of(len(labels), batch_size, accumulate)

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
            pixels_u8 = torch.as_tensor(self.source[rows]).permute(0, 3, 1, 2)
            yield Batch(pixels_u8, torch.from_numpy(self.labels[rows]), step, rows)


class Loader:
    """Serve batches on a device, prepared for the network; on a GPU ahead of their use."""

    def __init__(
        self, batches: Batches, device: torch.device, prepare: Callable[[Batch], Batch] = lambda batch: batch
    ) -> None:
        """Take batches and what is to be done with each on the device."""
        self.batches = batches
        self.batches.source = prefetch.resident(batches.images_u8, device)
        self.device = device
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        left = len(self.batches) - self.batches.start()
        return prefetch.on_device(self.batches, left, self.device, self.prepare)


@dataclass(frozen=True)
class Served:
    """Show larger stored images as serving shows them: the middle, resized to (image_px, image_px)."""

    stored_u8: Images
    image_px: int
    crop_share: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the array that this stands for."""
        return len(self), self.image_px, self.image_px, 3

    def __len__(self) -> int:
        return len(self.stored_u8)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Read rows: (n, image_px, image_px, 3)."""
        pixels_u8 = torch.from_numpy(self.stored_u8[rows]).permute(0, 3, 1, 2)
        px = pixels_u8.shape[-1]
        middle = Frame.centered(len(pixels_u8), px, cropped_side(px, self.crop_share))
        shown_u8: npt.NDArray[np.uint8] = (
            pixels.framed(pixels_u8, middle, self.image_px).permute(0, 2, 3, 1).numpy()
        )
        return shown_u8


def served_train_images(dataset: Dataset) -> Images:
    """Open the training images as arrays of `image_px`, whatever they are stored at."""
    images_u8 = train_images(dataset)
    if dataset.store_px == dataset.image_px:
        return images_u8
    return Served(images_u8, dataset.image_px, dataset.crop_share)


def check_augment(dataset: Dataset, params: TrainParams) -> None:
    """Refuse a `train.augment` that cannot apply to the images or batches of a dataset.

    Raises:
        RequestError: with the argument, the limit, and what to set.
    """
    images = len(dataset.labels("train"))
    policy.check(
        params.augment,
        image_px=dataset.image_px,
        store_px=dataset.store_px,
        batch_size=params.batch_size,
        smallest=images // steps_of(images, params.batch_size, params.accumulate),
    )


def steps_of(images: int, batch_size: int, accumulate: int) -> int:
    """Count the batches of an epoch: a multiple of `accumulate`, so that no step of the optimizer gets fewer."""
    return -(-images // (batch_size * accumulate)) * accumulate


class DataModule(pl.LightningDataModule):
    """Serve training batches, augmented on the device, and validation batches unchanged."""

    def __init__(self, dataset: Dataset, params: TrainParams, seed: int) -> None:
        """Read the params and the sizes of the dataset.

        Raises:
            RequestError: `train.augment` cannot apply to images or batches of this size.
        """
        super().__init__()
        self.dataset = dataset
        self.train_images = train_images(dataset)
        self.params = params
        self.seed = seed
        check_augment(dataset, params)
        self.augmenter = Augmenter(
            params.augment,
            seed=seed,
            image_px=dataset.image_px,
            classes=len(dataset.classes),
            mean=dataset.mean,
            crop_share=dataset.crop_share,
        )
        self.position = (0, 0)
        """Epoch, and batch in it, that training starts with; a checkpoint restores it."""

    def train_batches(self) -> Batches:
        """Cut the training split in an order that depends only on seed, epoch and `train.sampler`."""
        labels = self.dataset.labels("train")
        return Batches(
            self.train_images,
            labels,
            self.params.batch_size,
            lambda: self._order(labels),
            lambda: self.position[1] if self.position[0] == self._epoch() else 0,
            accumulate=self.params.accumulate,
        )

    def val_batches(self) -> Batches:
        """Cut the validation split in its stored order."""
        images_u8, labels = self.dataset.images("val"), self.dataset.labels("val")
        return Batches(images_u8, labels, self.params.batch_size, lambda: np.arange(len(labels)))

    def train_dataloader(self) -> Loader:
        """Serve the training batches, augmented, and in the first epochs of `train.progressive` smaller."""
        return Loader(self.train_batches(), self._device(), self._prepared)

    def val_dataloader(self) -> Loader:
        """Serve the validation batches."""
        return Loader(self.val_batches(), self._device())

    def _prepared(self, batch: Batch) -> Batch:
        batch = self.augmenter.apply(batch, self._epoch())
        side = side_px(self.params, self.dataset.image_px, self._epoch())
        return batch._replace(pixels_u8=pixels.shrunk(batch.pixels_u8, side))

    def _order(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.params.sampler == "balanced":
            return balanced_order(labels, np.random.default_rng([self.seed, self._epoch(), ORDER]))
        return shuffled(len(labels), self.seed, self._epoch())

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0


def shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order rows for one epoch, as a pure function, so that a resumed run gets the same batches."""
    return np.random.default_rng([seed, epoch, ORDER]).permutation(count)
