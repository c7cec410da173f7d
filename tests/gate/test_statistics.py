import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

from convoy.gate import statistics


def compare(fixed, regressed, both_right, both_wrong, confidence=0.95):
    ours = [True] * fixed + [False] * regressed + [True] * both_right + [False] * both_wrong
    theirs = [False] * fixed + [True] * regressed + [True] * both_right + [False] * both_wrong
    return statistics.compare(np.array(ours), np.array(theirs), confidence)


def test_pairs_are_counted_as_they_are():
    comparison = compare(5, 2, 80, 13)
    assert (comparison.only_candidate, comparison.only_champion) == (5, 2)
    assert (comparison.both_right, comparison.both_wrong, comparison.images) == (80, 13, 100)
    assert comparison.gain == pytest.approx(0.03)
    assert comparison.images_needed == statistics.images_needed(0.03, 0.07, 0.95)


@pytest.mark.parametrize(
    ("fixed", "regressed", "p"),
    [
        # Twice the tail of a fair coin, by hand: 2 * (sum of binomial coefficients) / 2^n, at most 1.
        (6, 0, 2 * 1 / 64),
        (5, 0, 2 * 1 / 32),
        (7, 1, 2 * (8 + 1) / 256),
        (1, 7, 2 * (8 + 1) / 256),
        (9, 2, 2 * (55 + 11 + 1) / 2048),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_test_is_mcnemar_s_exact_one(fixed, regressed, p):
    assert compare(fixed, regressed, 50, 5).p_value == pytest.approx(p)


@settings(max_examples=300, deadline=None)
@given(
    fixed=st.integers(0, 60),
    regressed=st.integers(0, 60),
    same=st.integers(0, 400),
    confidence=st.sampled_from([0.5, 0.8, 0.9375, 0.95, 0.99, 0.9999]) | st.floats(0.5, 0.9999),
)
def test_the_interval_leaves_zero_out_where_the_test_finds_a_difference(fixed, regressed, same, confidence):
    assume(fixed + regressed + same)
    comparison = compare(fixed, regressed, same, 0, confidence)
    assert (comparison.low > 0 or comparison.high < 0) == (comparison.p_value < 1 - confidence)
    assert -1 <= comparison.low <= comparison.gain <= comparison.high <= 1


def test_the_interval_follows_the_exact_test_where_the_score_test_is_the_stricter():
    """So far out in the tail the normal approximation gives 0.00018 where the exact test gives 0.00012."""
    for comparison in (compare(14, 0, 100, 6, 0.99985), compare(0, 14, 100, 6, 0.99985)):
        assert comparison.p_value == pytest.approx(2 / 2**14)
        assert comparison.low > 0 or comparison.high < 0


def score_by_likelihood(fixed, regressed, images, gain):
    """Tango's score for a gain, the share of regressed pairs found by maximising the likelihood instead of by a formula."""

    def unlikely(share):
        both = share + gain, share, 1 - gain - 2 * share
        counts = fixed, regressed, images - fixed - regressed
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, both, strict=True) if n)

    low, high = max(0.0, -gain), (1 - gain) / 2
    share = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (fixed - regressed - images * gain) / math.sqrt(images * (2 * share + gain * (1 - gain)))


@pytest.mark.parametrize(
    ("fixed", "regressed", "images"),
    [(0, 0, 10), (0, 0, 50), (1, 0, 44), (0, 2, 60), (3, 2, 80), (25, 20, 400)],
)
def test_without_a_difference_the_interval_is_at_least_the_score_interval(fixed, regressed, images):
    low, high = statistics.gain_interval(fixed, regressed, images, 0.95)
    z = norm.isf(0.025)
    for bound, limit in ((low, z), (high, -z)):
        score = score_by_likelihood(fixed, regressed, images, bound)
        assert abs(score) >= abs(limit) - 1e-4
        assert score * limit > 0


def exact_power(images, fixed, regressed, confidence):
    """Probability that the exact test finds the difference, over every number of pairs that may differ."""
    pairs = np.arange(images + 1)
    weight = binom.pmf(pairs, images, fixed + regressed)
    likely = pairs[weight > 1e-9]
    total = 0.0
    for n in likely:
        b = np.arange(n + 1)
        p = np.minimum(1, 2 * binom.sf(np.maximum(b, n - b) - 1, n, 0.5)) if n else np.ones(1)
        significant = (p < 1 - confidence) & (2 * b > n)
        total += weight[n] * binom.pmf(b, n, fixed / (fixed + regressed))[significant].sum()
    return total


@pytest.mark.parametrize(
    ("fixed", "regressed", "confidence"),
    [(0.05, 0.01, 0.95), (0.1, 0.05, 0.95), (0.03, 0.0, 0.95), (0.04, 0.02, 0.99), (0.2, 0.1, 0.8)],
)
def test_so_many_images_show_a_gain_in_four_cases_of_five(fixed, regressed, confidence):
    images = statistics.images_needed(fixed - regressed, fixed + regressed, confidence)
    assert 0.74 <= exact_power(images, fixed, regressed, confidence) <= 0.88
    assert exact_power(images // 2, fixed, regressed, confidence) < 0.6


def test_the_number_of_images_is_connor_s():
    # By hand: (1.959964 * sqrt(0.15) + 0.841621 * sqrt(0.15 - 0.0025))^2 / 0.0025 = 468.7
    assert statistics.images_needed(0.05, 0.15, 0.95) == 469


def test_where_a_split_could_show_a_gain_and_there_is_none_no_number_is_given():
    comparison = compare(5, 5, 80, 10)
    assert comparison.showable
    assert comparison.images_needed is None


def test_a_split_on_which_the_champion_makes_few_mistakes_can_show_no_gain():
    comparison = compare(2, 3, 52, 3)  # 5 mistakes: all fixed gives p = 2 / 32
    assert not comparison.showable
    assert comparison.images_needed == statistics.images_needed(5 / 60, 5 / 60, 0.95)
    assert compare(3, 3, 51, 3).showable  # 6 mistakes: p = 2 / 64


def test_a_champion_without_a_mistake_needs_more_images_by_its_interval():
    comparison = compare(0, 0, 60, 0)
    assert not comparison.showable
    assert 100 < comparison.images_needed < 200
    assert compare(0, 0, 600, 0).images_needed > 1000


def test_the_number_is_never_below_what_the_test_needs_at_all():
    # Everything is fixed: Connor's formula alone gives 4 images, on which p is 2 / 16.
    assert statistics.images_needed(1.0, 1.0, 0.95) == 6
