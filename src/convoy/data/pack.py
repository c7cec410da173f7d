"""Pack images as what training reads: arrays of squares that are mapped into memory, or the delivered files in shards."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core.dataset import IMAGES, Split, Store
from convoy.core.shards import Writer
from convoy.data.records import SPOOL_BYTES, Record, Rows
from convoy.data.settings import DataParams
from convoy.images.delivery import Delivery
from convoy.images.resize import Geometry

CHUNK_BYTES = 2**22
"""Pixels copied at once."""

LEAST_STD = 1 / 255
"""Smallest standard deviation written: a constant channel must not cause a division by zero."""

MOST_PIXEL_BYTES = 8 * 2**30
"""Pixels, in bytes, of all delivered files, above which `store: auto` keeps the files: about what the page cache of a small training machine
holds. Beyond it, pixels are read from the disk at random in every epoch, several times as many bytes as their JPEG. The same on every machine,
so that equal data give equal datasets."""

Squares = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Spool:
    """Hold the squares of all usable images in unnamed files until their splits are known.

    Attributes:
        px: side of the squares that are served, and of those that training stores.
        geometry: makes the former, by the rule of serving.
        larger: makes the latter, of the whole image; None where the squares that are served are stored, or none.
        store: how the images of train are stored.
    """

    px: tuple[int, int]
    geometry: Geometry
    larger: Geometry | None
    store: Store
    _files: tuple[IO[bytes], IO[bytes]]

    def shrink(self, image_u8: npt.NDArray[np.uint8]) -> Squares:
        """Convert an (H, W, 3) image to its square, followed by the larger one, if there is one, as one flat array."""
        square_u8 = self.geometry(image_u8)
        if self.larger is None:
            return square_u8
        return np.concatenate([square_u8.ravel(), self.larger(image_u8).ravel()])

    def keep(self, squares_u8: Squares) -> None:
        """Append what `shrink` made of an image."""
        if self.larger is None:
            self._files[0].write(squares_u8.data)
            return
        end = 3 * self.px[0] ** 2
        for file, part_u8 in zip(self._files, (squares_u8[:end], squares_u8[end:]), strict=True):
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
            if split != "train" or self.store == "pixels":
                _write_array(
                    out / IMAGES / f"{split}.npy", self.stored if split == "train" else self.served, numbers
                )
        for chunk_u8 in _chunks(self.served, np.sort(order["train"])):  # neighbours are read at once
            size = chunk_u8.shape[1], chunk_u8.shape[0] * chunk_u8.shape[1]
            strip = Image.frombuffer("RGB", size, chunk_u8, "raw", "RGB", 0, 1)
            histogram += np.reshape(strip.histogram(), (3, 256))
        levels = np.arange(256) / 255
        shares = histogram / histogram.sum(axis=1, keepdims=True)
        mean = (shares * levels).sum(axis=1)
        std = np.sqrt((shares * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1))
        return mean.tolist(), np.maximum(std, LEAST_STD).tolist()


def _write_array(path: Path, squares: Rows, numbers: npt.NDArray[np.int64]) -> None:
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(numbers), *squares.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk_u8 in _chunks(squares, numbers):
            file.write(chunk_u8.data)


def _chunks(squares: Rows, numbers: npt.NDArray[np.int64]) -> Iterator[Squares]:
    rows = max(1, CHUNK_BYTES // (3 * squares.shape[1] ** 2))
    for start in range(0, len(numbers), rows):
        yield squares[numbers[start : start + rows]]


def chosen_store(params: DataParams, delivery: Delivery) -> Store:
    """Choose how the images of train are stored: as files where pixels are too many, and more than the delivery has bytes."""
    if params.store != "auto":
        return params.store
    pixels = len(delivery.names()) * 3 * params.train_px**2
    if pixels <= MOST_PIXEL_BYTES:
        return "pixels"
    paths = delivery.path.rglob("*") if delivery.path.is_dir() else [delivery.path]
    return "encoded" if sum(path.stat().st_size for path in paths if path.is_file()) < pixels else "pixels"


def write_files(delivery: Delivery, records: Sequence[Record], out: Path) -> None:
    """Write the delivered files of records into shards, in the order of the records.

    Raises:
        DataError: the delivery has changed since they were read.
    """
    rows = {record.path: row for row, record in enumerate(records)}
    files = {record.path: record.sha256 for record in records}
    with Writer(out, [record.size for record in records]) as shards:
        for path, content in delivery.originals(files, "store files", len(delivery.names())):
            shards.add(rows[path], content)


@contextmanager
def spool(folder: Path, params: DataParams, store: Store) -> Iterator[Spool]:
    """Make a spool in a folder; its files are gone whatever ends the process."""
    is_larger = params.train_px > params.image_px and store == "pixels"
    larger = Geometry(params.train_px, params.fit) if is_larger else None
    with (
        TemporaryFile(dir=folder, buffering=SPOOL_BYTES) as served,
        TemporaryFile(dir=folder, buffering=SPOOL_BYTES) as stored,
    ):
        geometry = Geometry(params.image_px, params.fit, params.crop_share)
        yield Spool((params.image_px, params.train_px), geometry, larger, store, (served, stored))
