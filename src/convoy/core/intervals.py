"""Confidence intervals of an accuracy, and of the difference of two on the same images."""

import math
from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95
"""Confidence of the interval beside the accuracy."""


def wilson(correct: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the interval of the accuracy that `correct` of `images` support.

    Wilson's score interval (JASA 22, 1927, page 209): unlike the textbook's p ± 1.96 s it stays inside 0..1
    and is not empty when every image is right. `scipy.stats` has it too, but every stage that measures would
    spend 0.5 s of CPU on that import.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = correct / images, 1 + z**2 / images
    centre = (share + z**2 / (2 * images)) / scale
    half = z / scale * sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def gain_interval(fixed: int, regressed: int, images: int, confidence: float) -> tuple[float, float]:
    """Bound the gain in accuracy, -1..1.

    Clopper-Pearson's interval for the share of discordant pairs that are fixed inverts McNemar's exact
    test, so it shows on which side of 0 the gain lies. It takes the number of discordant pairs for given: on
    few of them it is far too narrow, and empty where there are none. So it is widened to Tango's score
    interval (Statistics in Medicine 17:891-908, 1998), but never across 0 against the test.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 (as above)

    pairs = fixed + regressed
    exact_low = exact_high = 0.0
    if pairs:
        share = binomtest(fixed, pairs).proportion_ci(confidence, method="exact")
        exact_low, exact_high = ((2 * bound - 1) * pairs / images for bound in (share.low, share.high))
    score_low, score_high = _score_interval(fixed, regressed, images, confidence)
    low = exact_low if exact_low > 0 >= score_low else min(exact_low, score_low)
    high = exact_high if exact_high < 0 <= score_high else max(exact_high, score_high)
    return float(low), float(high)


def _score_interval(fixed: int, regressed: int, images: int, confidence: float) -> tuple[float, float]:
    """Collect the gains that a score test does not refuse (Tango, 1998)."""
    from scipy.optimize import brentq  # noqa: PLC0415 (as above)

    limit = NormalDist().inv_cdf((1 + confidence) / 2)

    def score(gain: float) -> float:
        """Compute by how many standard deviations the counts exceed this gain."""
        # Maximum-likelihood share of regressed pairs under this gain: the root of a quadratic.
        a = 2 * images
        b = -fixed - regressed + (2 * images - fixed + regressed) * gain
        c = -regressed * gain * (1 - gain)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = images * (2 * share + gain * (1 - gain))
        above = fixed - regressed - images * gain
        if variance <= 0:
            return math.copysign(math.inf, above) if above else 0.0
        return above / math.sqrt(variance)

    gain = (fixed - regressed) / images
    low = -1.0 if gain <= -1 else brentq(lambda x: min(score(x), 1e9) - limit, -1.0, gain)
    high = 1.0 if gain >= 1 else brentq(lambda x: max(score(x), -1e9) + limit, gain, 1.0)
    return float(low), float(high)
