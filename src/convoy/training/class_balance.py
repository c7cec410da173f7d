"""Remedies against class imbalance: weights in the loss, or a sampler that draws every class alike.

K classes, N training images.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convoy.core.console import table
from convoy.training.settings import ClassWeights, TrainParams

BETA = 0.999
"""Of the effective number of images: those beyond 1 / (1 - BETA) = 1000 add little to a class."""

SHOWN = 7
"""Classes that the effect is listed of, at most; of more, those with the fewest and with the most images."""


def weights(images: npt.NDArray[np.int64], kind: ClassWeights) -> npt.NDArray[np.float64] | None:
    """Compute the factor on the loss of an image of each class; their mean over the N images is 1.

    So the loss, and with it the learning rate, keeps its scale. `balanced` is inverse to the images of a class: all classes weigh
    alike. `effective` is inverse to their effective number, (1 - BETA^n) / (1 - BETA) of n images (Cui et al.,
    Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019): nearly `balanced` for small classes, while
    classes of thousands of images weigh alike per image.

    Args:
        images: (K,) of each class, all above 0.
        kind: `train.class_weights`.

    Returns:
        (K,) factors; None for `none`.
    """
    if kind == "none":
        return None
    share = images if kind == "balanced" else 1 - BETA**images
    inverse: npt.NDArray[np.float64] = 1 / share
    factors: npt.NDArray[np.float64] = inverse * (images.sum() / (images * inverse).sum())
    return factors


def balanced_order(labels: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Order N rows for one epoch so that the draws of any two classes differ by one at most.

    A class with more images than draws shows a random part of them, none twice; one with fewer repeats them, each equally
    often or once more.

    Args:
        labels: (N,) class numbers.
        random: state that decides everything.
    """
    present, images = np.unique(labels, return_counts=True)
    draws = np.full(len(present), len(labels) // len(present))
    draws[random.permutation(len(present))[: len(labels) % len(present)]] += 1
    rows: list[npt.NDArray[np.int64]] = []
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(images)[:-1])
    for own, wanted in zip(members, draws.tolist(), strict=True):
        times, rest = divmod(wanted, len(own))
        rows += [np.repeat(own, times), random.permutation(own)[:rest]]
    return random.permutation(np.concatenate(rows))


def effect(classes: Sequence[str], labels: npt.NDArray[np.int64], params: TrainParams) -> str:
    """Describe in at most ten lines what `train.class_weights` or `train.sampler` does to each class; empty for neither."""
    images = np.bincount(labels, minlength=len(classes))
    factors = weights(images, params.class_weights)
    if factors is not None:
        beta = f", beta {BETA}" if params.class_weights == "effective" else ""
        title = f"class weights ({params.class_weights}{beta}): factor on the loss of an image; its mean is 1"
        header, figures = "weight", [f"{factor:.3g}" for factor in factors]
    elif params.sampler == "balanced":
        title = f"balanced sampler: each epoch draws {len(labels) / len(classes):,.4g} images of every class"
        header, figures = "draws per image", [f"{len(labels) / len(classes) / n:.3g}" for n in images]
    else:
        return ""
    order = np.argsort(images, kind="stable").tolist()
    rows = [(classes[k], f"{images[k]:,}", figures[k]) for k in order]
    if len(rows) > SHOWN:
        half = SHOWN // 2
        between = (f"and {len(rows) - 2 * half:,} more", "", "")
        rows = [*rows[:half], between, *rows[-half:]]
    return f"{title}\n{table(('class', 'images', header), rows, right=(1, 2), indent=2)}"
