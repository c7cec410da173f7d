"""Statistics of the gate: McNemar's test of two models on the same images, and the gain's interval.

Only images on which a single model is right distinguish them: the discordant pairs, `fixed` and `regressed`
under the candidate.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

from convoy.core.intervals import gain_interval, wilson
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
