"""Assign each image to a split by its pixels.

An image keeps its split when others are added or files are renamed, and identical images
are always in the same split, so that no test image is trained on.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.data.records import Record
from convoy.data.settings import SplitParams

PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")
"""The split that keeps an image delivered in several: measuring comes before training."""


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
