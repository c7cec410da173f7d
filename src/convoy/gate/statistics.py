"""Statistics of the gate: McNemar's test of two models on the same images, and the gain's interval.

Only images on which a single model is right distinguish them: the discordant pairs, `fixed` and `regressed`
under the candidate.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from convoy.core.intervals import wilson
from convoy.gate.result import Comparison

POWER = 0.8  # probability that a real gain is significant on `images_needed` images


def compare(
    candidate: npt.NDArray[np.bool_], champion: npt.NDArray[np.bool_], confidence: float
) -> Comparison:
    """Count which of both models' (n,) predictions are correct, n >= 1, and test the difference."""
    images, mistakes = len(candidate), int((~champion).sum())
    fixed, regressed = int((candidate & ~champion).sum()), int((~candidate & champion).sum())
    low, high = gain_interval(fixed, regressed, images, confidence)
    showable = _p_value(mistakes, 0) < 1 - confidence
    gain = (fixed - regressed) / images
    needed = None
    if gain > 0:
        needed = images_needed(gain, (fixed + regressed) / images, confidence)
    elif not showable:
        # A champion without a mistake on so few images still makes some: at most that share.
        most = mistakes / images or wilson(0, images, confidence)[1]
        needed = images_needed(most, most, confidence)
    return Comparison(
        images=images,
        both_right=int((candidate & champion).sum()),
        only_candidate=fixed,
        only_champion=regressed,
        both_wrong=int((~candidate & ~champion).sum()),
        gain=gain,
        low=low,
        high=high,
        p_value=_p_value(fixed, regressed),
        images_needed=needed,
        showable=showable,
    )


def gain_interval(fixed: int, regressed: int, images: int, confidence: float) -> tuple[float, float]:
    """Bound the gain in accuracy, -1..1.

    Clopper-Pearson's interval for the share of discordant pairs that are fixed inverts McNemar's exact
    test, so it shows on which side of 0 the gain lies. It takes the number of discordant pairs for given: on
    few of them it is far too narrow, and empty where there are none. So it is widened to Tango's score
    interval (Statistics in Medicine 17:891-908, 1998), but never across 0 against the test.
    """
    pairs = fixed + regressed
    exact_low = exact_high = 0.0
    if pairs:
        share = binomtest(fixed, pairs).proportion_ci(confidence, method="exact")
        exact_low, exact_high = ((2 * bound - 1) * pairs / images for bound in (share.low, share.high))
    score_low, score_high = _score_interval(fixed, regressed, images, confidence)
    low = exact_low if exact_low > 0 >= score_low else min(exact_low, score_low)
    high = exact_high if exact_high < 0 <= score_high else max(exact_high, score_high)
    return float(low), float(high)


def images_needed(gain: float, discordant: float, confidence: float) -> int:
    """Compute on how many images a gain is significant in McNemar's test, with 80 % power.

    Connor, Biometrics 43:207-211, 1987; never fewer than the exact test needs for any significance.

    Args:
        gain: share fixed minus share regressed, 0 < gain <= discordant.
        discordant: share of images on which a single model is right, 0..1.
        confidence: of the test, 0..1.
    """
    alpha = 1 - confidence
    noise = float(norm.isf(alpha / 2)) * math.sqrt(discordant)
    noise += float(norm.isf(1 - POWER)) * math.sqrt(discordant - gain**2)
    fewest = next(pairs for pairs in range(1, 1000) if _p_value(pairs, 0) < alpha)
    return max(math.ceil((noise / gain) ** 2), math.ceil(fewest / discordant))


def _p_value(fixed: int, regressed: int) -> float:
    """Test whether a discordant pair is as often fixed as regressed (McNemar, exact, two-sided)."""
    if fixed + regressed == 0:
        return 1.0
    return float(binomtest(fixed, fixed + regressed).pvalue)


def _score_interval(fixed: int, regressed: int, images: int, confidence: float) -> tuple[float, float]:
    """Collect the gains that a score test does not refuse (Tango, 1998)."""
    limit = norm.isf((1 - confidence) / 2)

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
