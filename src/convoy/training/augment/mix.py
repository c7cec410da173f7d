"""The transforms `mixup` and `cutmix`: two images and their labels become one example.

The own image counts at least half, as in fastai, so the label that counts most is always the image's own. That loses nothing: for
each pair of a batch the mix with swapped shares is as likely.
"""

import numpy as np
from pydantic import Field

from convoy.training.augment.draws import Draw, Floats, Ints, Mask, Transform


class Mixup(Transform):
    """Average each chosen image and its label with another of the batch. Source: Zhang et al., mixup, ICLR 2018."""

    alpha: float = Field(0.2, gt=0, le=10, description="the share is from Beta(alpha, alpha)")
    p: float = Field(0.5, gt=0, le=1, description="probability")


class Cutmix(Transform):
    """Paste a rectangle of another image of the batch into each chosen one; the label is mixed by area.

    Source: Yun et al., CutMix, ICCV 2019.
    """

    alpha: float = Field(1.0, gt=0, le=10, description="the share is from Beta(alpha, alpha)")
    p: float = Field(0.5, gt=0, le=1, description="probability")


def partners(draw: Draw) -> Ints:
    """Draw for each image another of the batch: (N,); its own number only where N is 1."""
    order = draw.random.permutation(len(draw))
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -1)
    return partner


def shares(draw: Draw, alpha: float) -> Floats:
    """Draw the shares of the own images: (N,), 0.5 to 1."""
    drawn = draw.random.beta(alpha, alpha, len(draw))
    return np.maximum(drawn, 1 - drawn)


def boxes(draw: Draw, own: Floats, chosen: Mask, px: int) -> tuple[Ints, Floats]:
    """Draw rectangles that cover about 1 - `own` of chosen images.

    Returns:
        (4, N) top, bottom, left and right (the ends are outside), empty where none is pasted; and (N,) the exact own shares.
    """
    half = np.where(chosen, px * np.sqrt(1 - own) / 2, 0)
    centers = draw.random.random((2, len(draw))) * px
    starts = np.rint(np.clip(centers - half, 0, px)).astype(np.int64)
    ends = np.where(chosen, np.rint(np.clip(centers + half, 0, px)), starts).astype(np.int64)
    pasted = (ends - starts).prod(axis=0)
    return np.stack([starts[0], ends[0], starts[1], ends[1]]), 1 - pasted / px**2
