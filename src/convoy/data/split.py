"""Which image belongs to which part, decided by its pixels.

An image keeps its part when others are added or files are renamed, and identical images
are always in the same part, so that no test image has been learnt from.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.data.settings import SplitParams

OK = "ok"
LEFT_OUT = "left out: "
"""Begins the verdict on a readable image that is not used, because another part has it."""

PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")
"""Which part keeps an image that several were delivered with: measuring comes before learning."""


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image as the split sees it.

    Attributes:
        pixels: `pixel_hash` of it.
        delivered: the part it was delivered in; None where the delivery has none.
    """

    path: str
    pixels: str
    label: str
    delivered: Split | None


@dataclass(frozen=True, slots=True)
class Assigned:
    """The part of an image, or None and the reason why it is not used."""

    split: Split | None
    verdict: str


def pixel_hash(image_u8: npt.NDArray[np.uint8]) -> str:
    """Hash size and pixels of an (H, W, 3) image as 64 hexadecimal digits."""
    height, width, _ = image_u8.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(image_u8).data)
    return digest.hexdigest()


def cut(pixels: str, shares: SplitParams, missing: Collection[Split]) -> Split:
    """Choose the part of an image that was not delivered in val or test.

    The hash is read as a number in 0..1; test takes the lower end and val the upper one,
    so that changing one share does not move an image of the other.
    """
    fraction = int(pixels[:13], 16) / 16**13
    if "test" in missing and fraction < shares.test:
        return "test"
    if "val" in missing and fraction >= 1 - shares.val:
        return "val"
    return "train"


def assign(images: Sequence[Image], shares: SplitParams, missing: Collection[Split]) -> list[Assigned]:
    """Give each image its part, in the order given; the missing parts are cut from train.

    Identical pixels under two labels are used under neither. Where identical pixels were
    delivered in several parts, `PRECEDENCE` says which keeps them.
    """
    same: defaultdict[str, list[Image]] = defaultdict(list)
    for image in images:
        same[image.pixels].append(image)
    return [_judge(image, same[image.pixels], shares, missing) for image in images]


def _judge(image: Image, same: Sequence[Image], shares: SplitParams, missing: Collection[Split]) -> Assigned:
    for other in same:
        if other.label != image.label:
            return Assigned(
                None, f"has the pixels of {other.path}, under another label ({image.label}, {other.label})"
            )
    own = image.delivered or "train"
    for split in PRECEDENCE[: PRECEDENCE.index(own)]:
        for other in same:
            if other.delivered == split:
                return Assigned(None, f"{LEFT_OUT}its pixels are in {split} too: {other.path}")
    return Assigned(cut(image.pixels, shares, missing) if own == "train" else own, OK)
