"""What `prepare` holds about each delivered file, and what its checks find."""

import math
import os
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.data.settings import Action
from convoy.images.formats import Fault

SPOOL_BYTES = 2**20
"""Bytes that are written at once to a file of arrays: of few, the kernel makes small pages, and takes a multiple of the time."""

Status = Literal["ok", "quarantined", "left_out", "passed_over"]
"""Use of a delivered file. Quarantined: it should be an image of a class and cannot be used. Left out: a check or the
splits have no use for it. Passed over: it is not an image, or nothing states its class."""


class Record(NamedTuple):
    """Describe one delivered file.

    Attributes:
        path: inside the folder or archive.
        label: its class; None outside the classes.
        split: the delivered split; after `split.assign` the split that uses it; None for neither.
        group: images of one group stay in one split; None for an image of its own.
        reason: why the file is not used, or the kind of a file passed over; empty for status `ok`.
        fault: kind of the reason of a file that is quarantined; None for any other.
        sha256: of the file; empty if it was not decoded.
        width: in pixels, upright; 0 if it was not decoded, as height.
        mode: Pillow's mode of the file; empty if it was not decoded, as format.
        format: Pillow's format, such as `JPEG`.
        size: of the file, in bytes; 0 if it was not decoded.
        pixels: `split.pixel_hash`; empty if it was not decoded.
        kept: number of its image among those kept, in the order of the records; -1 if none was kept.
    """

    path: str
    label: str | None
    split: Split | None
    group: str | None = None
    status: Status = "ok"
    reason: str = ""
    fault: Fault | None = None
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    size: int = 0
    pixels: str = ""
    kept: int = -1


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold two images that show nearly the same.

    Attributes:
        first: index of a record.
        second: index of a later record.
        correlation: of the aligned gray levels, -1..1.
        mirrored: whether one is the other's mirror image.
    """

    first: int
    second: int
    correlation: float
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Hold what a check found.

    Attributes:
        check: key in `data.checks`, or `class_names`, `passed_over` and the like for checks without a limit.
        figure: what was measured: a number of images, or the largest value of a check of the dataset.
        limit: the value in params.yaml; None for a check without a limit.
        action: what follows from it.
        text: one sentence with numbers and names.
        paths: delivered paths of the files concerned, the most suspicious first.
    """

    check: str
    figure: float
    limit: float | None
    action: Action
    text: str
    paths: tuple[str, ...] = ()


class Rows:
    """Read arrays of one shape from an open file, of which nothing stays in memory, however many there are.

    A mapped file would be slower by a multiple where it was written in small pieces, for which the kernel maps each page by itself.
    """

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        """Look at a file of arrays of bytes.

        Args:
            file: what was written so far is read; must stay open.
            shape: of each array.
        """
        file.flush()
        self._file, self._each = file.fileno(), math.prod(shape)
        self.shape = (os.fstat(self._file).st_size // self._each, *shape)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return self.shape[0]

    def __getitem__(self, rows: int | slice | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Read rows, as of an array that cannot be written."""
        numbers = rows if isinstance(rows, np.ndarray) else np.arange(len(self))[rows]
        chosen = np.atleast_1d(numbers)
        first = np.flatnonzero(np.diff(chosen, prepend=-2) != 1)  # of each run of neighbours in the file
        counts = np.diff(first, append=len(chosen))
        runs = zip(chosen[first].tolist(), counts.tolist(), strict=True)
        content = [os.pread(self._file, count * self._each, start * self._each) for start, count in runs]
        return np.frombuffer(b"".join(content), np.uint8).reshape(*numbers.shape, *self.shape[1:])
