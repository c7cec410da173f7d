"""Find held-out images whose label is probably wrong, by confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial Intelligence
Research 70 (2021), pages 1373 to 1411. cleanlab 2.9 finds the same images (`filter_by="confident_learning"`), but every
evaluation would import pandas and scikit-learn for these lines.

N images, K classes; labels are class numbers in 0..K-1.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LOWEST_ACCURACY = 0.85
"""Held-out accuracy below which most suspects are mistakes of the network (docs/training.md has the measurement)."""

ROUNDING = 1e-6  # by which float32 probabilities may miss a threshold that is their own mean


@dataclass(frozen=True)
class Suspects:
    """Hold the images whose label is suspected to be wrong, the clearest first.

    Attributes:
        rows: (M,) row of each image.
        likely: (M,) the class that it more probably shows.
        margins: (M,) -1..0: the label's probability less the largest of another class.
        accuracy: share of all images whose most probable class is their label.
    """

    rows: npt.NDArray[np.int64]
    likely: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]
    accuracy: float

    @property
    def is_meaningful(self) -> bool:
        """Return whether the network is accurate enough for its doubts to be about the labels."""
        return self.accuracy >= LOWEST_ACCURACY


def find(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> Suspects:
    """List the images that are confidently of another class than their label's.

    The threshold of a class is the mean probability that its own images have for it. An image is confidently of the most
    probable class whose threshold it reaches (equations 1 and 2 of the paper); a class without an image has no threshold.
    The list is in the order of the normalised margin. `probabilities` are (N, K), predicted by a network
    that was not trained on these N images: it would repeat the wrong labels that it has learnt.
    """
    count, classes = probabilities.shape
    images, wide = np.arange(count), probabilities.astype(np.float64)
    own = wide[images, labels]
    totals = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds = np.where(totals > 0, sums / np.maximum(totals, 1), np.inf)
    confident = np.where(wide >= thresholds - ROUNDING, wide, -1.0)
    likely = confident.argmax(axis=1)
    suspected = (likely != labels) & (confident.max(axis=1) >= 0)
    others = wide.copy()
    others[images, labels] = -1.0
    margins = own - others.max(axis=1)
    rows = np.flatnonzero(suspected)
    rows = rows[np.argsort(margins[rows], kind="stable")]
    accuracy = float((wide.argmax(axis=1) == labels).mean())
    return Suspects(rows, likely[rows], margins[rows], accuracy)
