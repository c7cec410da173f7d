"""Test-time views: the network sees an image and changed copies of it, and the mean of the logits is its answer.

N images, V views of each, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from convoy.core.contract import Tta

WEIGHTS: dict[Tta, tuple[float, ...]] = {
    "none": (1.0,),
    "flip": (0.5, 0.5),
    "views": (0.25, 0.25, 0.125, 0.125, 0.125, 0.125),
}
"""Weights of the views: the image and its mirror image; with `views` also both, shifted by a pixel up and left, and down and right.

Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024.
"""


def of(pixels: Tensor, tta: Tta) -> Tensor:
    """Make the views of (N, C, H, W) images: (V·N, C, H, W), the images themselves first."""
    sides = [pixels]
    if tta == "views":
        framed = pad(pixels, (1, 1, 1, 1), mode="reflect")
        sides += [framed[:, :, :-2, :-2], framed[:, :, 2:, 2:]]
    return torch.cat([view for side in sides for view in (side, side.flip(3))])


def mean(logits: Tensor, tta: Tta) -> Tensor:
    """Average (V·N, K) logits of the views, by their weights, to (N, K)."""
    weights = WEIGHTS[tta]
    each = logits.view(len(weights), -1, logits.shape[1])
    total = weights[0] * each[0]
    for view, weight in enumerate(weights[1:], start=1):
        total = total + weight * each[view]
    return total
