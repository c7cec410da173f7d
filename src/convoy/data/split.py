"""Assign each image to a split by its pixels.

An image keeps its split when others are added or files are renamed, and identical images
are always in the same split, so that no test image is trained on.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.data.settings import SplitParams

Status = Literal["ok", "quarantined", "left_out", "ignored"]
"""Use of a delivered file. Quarantined: it should be an image of a class and cannot be used. Left out: its pixels
are in another split too. Ignored: not an image, and not in a class folder."""

PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")
"""The split that keeps an image delivered in several: measuring comes before training."""


@dataclass(frozen=True, slots=True)
class Record:
    """Describe one delivered file.

    Attributes:
        path: inside the folder or archive.
        label: its class; None outside class folders.
        split: the delivered split; after `assign` the split that uses it; None for neither.
        reason: why the file is not used; empty for status `ok`.
        sha256: of the file; empty if it was not decoded.
        width: in pixels, upright; 0 if it was not decoded, as height.
        mode: Pillow's mode of the file; empty if it was not decoded.
        pixels: `pixel_hash`; empty if it was not decoded.
        index: number of its image among those kept, in the order of the records; -1 if none was kept.
    """

    path: str
    label: str | None
    split: Split | None
    status: Status = "ok"
    reason: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    pixels: str = ""
    index: int = -1


def pixel_hash(image_u8: npt.NDArray[np.uint8]) -> str:
    """Hash size and pixels of an (H, W, 3) image as 64 hexadecimal digits."""
    height, width, _ = image_u8.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(image_u8).data)
    return digest.hexdigest()


def cut(pixels: str, shares: SplitParams, missing: Collection[Split]) -> Split:
    """Choose the split of an image that was not delivered in val or test.

    The hash is read as a number in 0..1; test takes the lower end and val the upper one,
    so that changing one share does not move an image of the other.
    """
    fraction = int(pixels[:13], 16) / 16**13
    if "test" in missing and fraction < shares.test:
        return "test"
    if "val" in missing and fraction >= 1 - shares.val:
        return "val"
    return "train"


def assign(records: Sequence[Record], shares: SplitParams, missing: Collection[Split]) -> list[Record]:
    """Set the split of each usable image; the missing splits are cut from train.

    Identical pixels under two labels are quarantined under both. Where identical pixels were
    delivered in several splits, the first of `PRECEDENCE` keeps them.
    """
    same: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "ok":
            same[record.pixels].append(record)
    return [
        _assign(record, same[record.pixels], shares, missing) if record.status == "ok" else record
        for record in records
    ]


def _assign(
    record: Record, same: Sequence[Record], shares: SplitParams, missing: Collection[Split]
) -> Record:
    for other in same:
        if other.label != record.label:
            reason = f"has the pixels of {other.path}, with another label ({record.label}, {other.label})"
            return replace(record, split=None, status="quarantined", reason=reason)
    delivered = record.split or "train"
    for split in PRECEDENCE[: PRECEDENCE.index(delivered)]:
        for other in same:
            if other.split == split:
                reason = f"its pixels are in {split} too: {other.path}"
                return replace(record, split=None, status="left_out", reason=reason)
    return replace(record, split=cut(record.pixels, shares, missing) if delivered == "train" else delivered)
