"""What `prepare` holds about each delivered file, and what its checks find."""

import mmap
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.data.settings import Action
from convoy.images.formats import Fault

Status = Literal["ok", "quarantined", "left_out", "passed_over"]
"""Use of a delivered file. Quarantined: it should be an image of a class and cannot be used. Left out: a check or the
splits have no use for it. Passed over: it is not an image, or nothing states its class."""


@dataclass(frozen=True, slots=True)
class Record:
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
        index: number of its image among those kept, in the order of the records; -1 if none was kept.
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
    index: int = -1


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
    """Read arrays of one shape from a file, without keeping in memory what was read, however many there are."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        """Map a file that holds at least one array of bytes.

        Args:
            file: what was written so far is read.
            shape: of each array.
        """
        file.flush()
        self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._mapped, np.uint8).reshape(-1, *shape)
        self.shape = self._rows.shape

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._rows)

    def __getitem__(self, rows: int | slice | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Copy rows, as of an array."""
        found = np.array(self._rows[rows])
        if hasattr(mmap, "MADV_DONTNEED"):  # pages of a file that were read count as this process's memory
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return found
