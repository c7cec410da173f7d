"""How much a share of so many images can be trusted."""

from scipy.stats import binomtest

CONFIDENCE = 0.95
"""Confidence of the interval beside the accuracy."""


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Bound the accuracy that so many images support, at 95 % confidence.

    Wilson's score interval: unlike the textbook's p ± 1.96 s it stays inside 0..1
    and is not empty when every image is right.
    """
    interval = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
