"""Confidence interval of an accuracy."""

from scipy.stats import binomtest

CONFIDENCE = 0.95
"""Confidence of the interval beside the accuracy."""


def wilson(correct: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the interval of the accuracy that `correct` of `images` support.

    Wilson's score interval: unlike the textbook's p ± 1.96 s it stays inside 0..1
    and is not empty when every image is right.
    """
    interval = binomtest(correct, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
