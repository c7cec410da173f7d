"""Pack squares of images as the arrays that training maps into memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core.dataset import IMAGES, Split
from convoy.data.records import SPOOL_BYTES, Rows
from convoy.data.settings import DataParams
from convoy.images.resize import Geometry

CHUNK_BYTES = 2**22
"""Pixels copied at once."""

LEAST_STD = 1 / 255
"""Smallest standard deviation written: a constant channel must not cause a division by zero."""

Squares = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Spool:
    """Hold the squares of all usable images in unnamed files until their splits are known.

    Attributes:
        px: side of the squares that are served, and of those that training stores.
        geometry: makes the former, by the rule of serving.
        larger: makes the latter, of the whole image; None where the squares that are served are stored.
    """

    px: tuple[int, int]
    geometry: Geometry
    larger: Geometry | None
    _files: tuple[IO[bytes], IO[bytes]]

    def shrink(self, image_u8: npt.NDArray[np.uint8]) -> Squares:
        """Convert an (H, W, 3) image to its square, followed by the larger one, if there is one, as one flat array."""
        square_u8 = self.geometry(image_u8)
        if self.larger is None:
            return square_u8
        return np.concatenate([square_u8.ravel(), self.larger(image_u8).ravel()])

    def keep(self, squares_u8: Squares) -> None:
        """Append what `shrink` made of an image."""
        pixels_u8 = squares_u8.reshape(-1)
        end = 3 * self.px[0] ** 2
        for file, part_u8 in zip(self._files, (pixels_u8[:end], pixels_u8[end:]), strict=True):
            file.write(part_u8.data)

    @cached_property
    def served(self) -> Rows:
        """Map the (n, P, P, 3) squares that are served, once all are kept."""
        return Rows(self._files[0], (self.px[0], self.px[0], 3))

    @cached_property
    def stored(self) -> Rows:
        """Map those that training stores."""
        return Rows(self._files[1], (self.px[1], self.px[1], 3)) if self.larger else self.served

    def write(
        self, out: Path, order: Mapping[Split, npt.NDArray[np.int64]]
    ) -> tuple[list[float], list[float]]:
        """Write an NPY array for each split, of the squares that `order` numbers.

        Returns:
            Mean and std per channel of the images of train as they are served, 0..1.
        """
        (out / IMAGES).mkdir()
        histogram = np.zeros((3, 256), np.int64)  # exact, whatever the number of images
        for split, numbers in order.items():
            squares = self.stored if split == "train" else self.served
            rows = max(1, CHUNK_BYTES // (3 * squares.shape[1] ** 2))
            with (out / IMAGES / f"{split}.npy").open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(numbers), *squares.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(numbers), rows):
                    part = numbers[start : start + rows]
                    chunk_u8 = squares[part]
                    file.write(chunk_u8.data)
                    if split == "train":
                        served_u8 = self.served[part] if self.larger else chunk_u8
                        size = served_u8.shape[1], served_u8.shape[0] * served_u8.shape[1]
                        strip = Image.frombuffer("RGB", size, served_u8, "raw", "RGB", 0, 1)
                        histogram += np.reshape(strip.histogram(), (3, 256))
        levels = np.arange(256) / 255
        shares = histogram / histogram.sum(axis=1, keepdims=True)
        mean = (shares * levels).sum(axis=1)
        std = np.sqrt((shares * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1))
        return mean.tolist(), np.maximum(std, LEAST_STD).tolist()


@contextmanager
def spool(folder: Path, params: DataParams) -> Iterator[Spool]:
    """Make a spool in a folder; its files are gone whatever ends the process."""
    larger = Geometry(params.train_px, params.fit) if params.train_px > params.image_px else None
    with (
        TemporaryFile(dir=folder, buffering=SPOOL_BYTES) as served,
        TemporaryFile(dir=folder, buffering=SPOOL_BYTES) as stored,
    ):
        geometry = Geometry(params.image_px, params.fit, params.crop_share)
        yield Spool((params.image_px, params.train_px), geometry, larger, (served, stored))
