"""Open the training images of a dataset, however they are stored: as pixels, or as files that are decoded as they are needed."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

import numpy as np
import numpy.typing as npt

from convoy.core.cpus import usable_cpus
from convoy.core.dataset import Dataset
from convoy.core.shards import Reader


class Images(Protocol):
    """Images of a split, such as a mapped array of (n, P, P, 3) uint8 RGB: indexing with rows reads them."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102 (as of an array)

    def __len__(self) -> int: ...

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[np.uint8]: ...


def train_images(dataset: Dataset) -> Images:
    """Open the (n, store_px, store_px, 3) images of train, of which rows are read as they are asked for."""
    return EncodedImages(dataset) if dataset.store == "encoded" else dataset.images("train")


class EncodedImages:
    """Decode training images as rows are asked for, on every usable core, as an array of their pixels would give them.

    A JPEG is decoded at the smallest scale of its DCT (1, 1/2, 1/4 or 1/8) at which it still has the stored side, so the pixels of a
    much larger one differ a little from those that `data.store: pixels` keeps. They are a function of the file, so every
    epoch and every resumed run gets the same.
    """

    def __init__(self, dataset: Dataset) -> None:
        """Open the index of a dataset; no file is decoded yet."""
        from convoy.images.resize import Geometry  # noqa: PLC0415 (onnxruntime, which pixels do not need)

        share = dataset.crop_share if dataset.store_px == dataset.image_px else 1.0
        self._geometry = Geometry(dataset.store_px, dataset.fit, share)
        self._background = dataset.background
        self._files = Reader(dataset.folder)
        self._pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the array that this stands for."""
        return len(self._files), self._geometry.image_px, self._geometry.image_px, 3

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Decode rows: (n, store_px, store_px, 3).

        Raises:
            DataError: a shard is damaged or missing; naming it.
        """
        squares_u8 = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for at, square_u8 in enumerate(self._pool.map(self._square, rows.tolist())):
            squares_u8[at] = square_u8
        return squares_u8

    def _square(self, row: int) -> npt.NDArray[np.uint8]:
        from convoy.images.decode import decode  # noqa: PLC0415 (Pillow, likewise)

        with ExitStack() as held:
            decoded = decode(
                self._files[row],
                held,
                background=self._background,
                max_truncated=1.0,  # `prepare` has judged it
                enough=self._geometry.enough,
            )
            return self._geometry(decoded.image_u8)
