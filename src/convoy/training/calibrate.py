"""Temperature scaling: divide all logits by a number that makes the probabilities fit the validation images.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Dividing by a positive number changes how sure the
network is, never which class it predicts. N images, K classes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEAST_IMAGES = 50
"""Validation images below which the temperature stays 1: of fewer, a single mistake decides it."""

BOUNDS = (0.05, 20.0)
"""Temperatures that are tried, at most 20 times surer or less sure than the network was trained to be."""

HALVINGS = 60  # of the interval in which the inverse temperature lies: more than float64 can tell apart


class Calibration(NamedTuple):
    """Hold a temperature, and the mean loss of the validation images without and with it."""

    temperature: float
    loss_before: float
    loss: float
    reason: str = ""  # why the temperature stays 1

    def line(self, images: int) -> str:
        """Describe it for the log of a training of so many validation images."""
        if self.reason:
            return f"temperature: 1, {self.reason}"
        return (
            f"temperature: {self.temperature:.3f}, fitted on {images:,} validation images "
            f"(val loss {self.loss_before:.4f} before, {self.loss:.4f} after)"
        )


def calibrate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Calibration:
    """Find the temperature of the lowest loss.

    The targets are not certain: the true class has the probability (N + 1) / (N + 2), the others share the rest, as in
    Platt's scaling (Probabilistic Outputs for Support Vector Machines, 1999). Otherwise images that are all classified
    correctly would have a temperature of 0, and every answer the probability 1.

    Args:
        logits: (N, K) of validation images, at temperature 1.
        labels: (N,) class numbers.
    """
    if not np.isfinite(logits).all():
        return Calibration(1.0, np.nan, np.nan, "since some logits of validation images are not finite")
    before = mean_loss(logits, labels)
    if len(labels) < LEAST_IMAGES:
        few = f"since {len(labels)} validation images are too few to fit it; {LEAST_IMAGES} would do"
        return Calibration(1.0, before, before, few)
    # The loss is convex in the inverse temperature: its derivative, which rises, is bisected.
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    classes = scores.shape[1]
    wrong = 1 / (len(labels) + 2)
    own = scores[np.arange(len(labels)), labels]
    others = (scores.sum(axis=1) - own) / max(classes - 1, 1)
    target = float(((1 - wrong) * own + wrong * others).mean())
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        weights = np.exp(middle * scores)
        expected = float(((weights * scores).sum(axis=1) / weights.sum(axis=1)).mean())
        low, high = (middle, high) if expected < target else (low, middle)
    temperature = round(2 / (low + high), 6)
    return Calibration(temperature, before, mean_loss(logits, labels, temperature))


def mean_loss(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], temperature: float = 1.0
) -> float:
    """Compute the mean cross-entropy of (N, K) logits, divided by a temperature."""
    scores = logits.astype(np.float64) / temperature
    top = scores.max(axis=1)
    sums = np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top
    return float((sums - scores[np.arange(len(labels)), labels]).mean())
