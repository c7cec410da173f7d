"""Packed arrays on their way to disk, a row at a time."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

CHUNK_ROWS = 512
"""Images moved at once: 100 MB at 256 px."""

LEAST_STD = 1 / 255
"""Smallest standard deviation written: a constant channel must not be divided by zero."""


class Rows:
    """Hold packed images in an unnamed file, in the order they came, until all are judged.

    Unnamed, so that it is gone whatever ends the process.
    """

    def __init__(self, folder: Path, image_px: int) -> None:
        self.image_px = image_px
        self.count = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, square_u8: npt.NDArray[np.uint8]) -> None:
        """Add one (P, P, 3) image."""
        self._file.write(square_u8.tobytes())
        self.count += 1

    def chunks(self, order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        """Hand out rows in the given order, at most `CHUNK_ROWS` at a time."""
        self._file.flush()
        shape = (self.count, self.image_px, self.image_px, 3)
        rows = np.memmap(self._file, dtype=np.uint8, mode="r", shape=shape)
        for start in range(0, len(order), CHUNK_ROWS):
            yield rows[order[start : start + CHUNK_ROWS]]


class ChannelStatistics:
    """Measure mean and standard deviation per channel, exactly, from histograms."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, images_u8: npt.NDArray[np.uint8]) -> None:
        """Count the values of (n, P, P, 3) images."""
        for channel in range(3):
            self._counts[channel] += np.bincount(images_u8[..., channel].ravel(), minlength=256)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Give both per channel, 0..1."""
        levels = np.arange(256) / 255
        share = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = (share * levels).sum(axis=1)
        spread = np.sqrt((share * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1))
        return mean.tolist(), np.maximum(spread, LEAST_STD).tolist()


def write_images(path: Path, rows: Rows, order: npt.NDArray[np.int64], train_rows: int) -> ChannelStatistics:
    """Write rows in order as one NPY array; measure the first `train_rows` of them."""
    statistics = ChannelStatistics()
    shape = (len(order), rows.image_px, rows.image_px, 3)
    left = train_rows
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for images_u8 in rows.chunks(order):
            file.write(images_u8.tobytes())
            statistics.add(images_u8[: max(left, 0)])
            left -= len(images_u8)
    return statistics


def content_hash(facts: dict[str, object], rows: Sequence[tuple[str, str, str]]) -> str:
    """Hash what a dataset holds as 64 hexadecimal digits, whatever files it came in.

    Args:
        facts: classes, image_px, fit.
        rows: split, label and pixel hash of every row, in order.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for row in rows:
        digest.update("\n".join(row).encode() + b"\0")
    return digest.hexdigest()
