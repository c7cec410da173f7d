import numpy as np
import pytest

from convoy.export.comparison import Comparison
from convoy.export.settings import ExportParams

LIMITS = ExportParams(max_label_flips=0, max_probability_gap=0.01, latency_runs=10)


@pytest.fixture
def comparison():
    return Comparison("all", LIMITS)


def _rows(*rows):
    return np.array(rows, np.float32)


def test_equal_answers_are_within_any_limits(comparison):
    same = _rows([0.7, 0.3], [0.1, 0.9])
    comparison.add(["a", "b"], same, same)
    assert comparison.within
    assert (comparison.images, comparison.flips, comparison.gap) == (2, 0, 0.0)


def test_figures_add_up_over_batches(comparison):
    comparison.add(["a"], _rows([0.6, 0.4]), _rows([0.4, 0.6]))
    comparison.add(["b", "c"], _rows([0.9, 0.1], [0.5, 0.5]), _rows([0.4, 0.6], [0.5, 0.5]))
    assert (comparison.images, comparison.flips) == (3, 2)
    assert comparison.gap == pytest.approx(0.5)
    assert not comparison.within


def test_a_gap_alone_exceeds_and_a_flip_alone_exceeds(comparison):
    comparison.add(["a"], _rows([0.9, 0.1]), _rows([0.8, 0.2]))
    assert not comparison.within
    flip = Comparison("all", LIMITS)
    flip.add(["a"], _rows([0.501, 0.499]), _rows([0.499, 0.501]))
    assert flip.gap < LIMITS.max_probability_gap
    assert not flip.within


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_within_no_limits(number):
    for expected, found in (
        ([number, 0.5], [0.5, 0.5]),
        ([0.5, 0.5], [0.5, number]),
        ([number] * 2, [number] * 2),
    ):
        comparison = Comparison(
            "all", LIMITS.model_copy(update={"max_label_flips": 9, "max_probability_gap": 1.0})
        )
        with np.errstate(invalid="ignore"):
            comparison.add(["a"], _rows(expected), _rows(found))
        assert not comparison.within
        assert "no numbers (NaN)" in comparison.explain(["x", "y"])


def test_the_worst_image_is_a_flip_before_it_is_a_gap(comparison):
    comparison.add(["gap"], _rows([0.99, 0.01]), _rows([0.60, 0.40]))
    comparison.add(["flip"], _rows([0.51, 0.49]), _rows([0.49, 0.51]))
    comparison.add(["small"], _rows([0.51, 0.49]), _rows([0.51, 0.49]))
    verdict, *worst = comparison.explain(["cat", "dog"]).splitlines()
    assert verdict == (
        "all: 1 of 3 images change class (export.max_label_flips is 0), the largest probability gap is 0.39 "
        "(export.max_probability_gap is 0.01)."
    )
    assert worst == [
        "Worst image: flip",
        "  expected cat 0.510000, dog 0.490000",
        "  found    dog 0.510000, cat 0.490000",
    ]
