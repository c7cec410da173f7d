import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from convoy.gate.calibration import calibration_error


@pytest.mark.parametrize("seed", range(4))
def test_the_error_is_the_one_of_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(5, 0.3), 700)
    # Right in half of the cases, whatever the certainty: above it in some bins, below it in others.
    labels = np.where(rng.random(700) < 0.5, probabilities.argmax(axis=1), rng.integers(0, 5, 700))
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=5, n_bins=15, norm="l1"
    )
    right = probabilities.argmax(axis=1) == labels
    assert calibration_error(probabilities.max(axis=1), right) == pytest.approx(float(theirs), abs=1e-6)


def test_by_hand():
    sure = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([True, True, True, False, False, False])
    assert calibration_error(sure, right) == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.5)


def test_certainty_that_is_right_has_no_error_and_one_that_is_wrong_has_all():
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert calibration_error(np.full(3, 1 + 1e-7), np.zeros(3, bool)) == pytest.approx(1)


def test_bins_include_their_upper_end_and_do_not_make_up_for_each_other():
    sure = np.array([13 / 15, 13 / 15 + 1e-6, 14 / 15, 14 / 15 + 1e-6])
    right = np.array([True, True, True, False])
    assert calibration_error(sure, right) == pytest.approx(
        (2 / 15 + (2 / 15 + 1 / 15) + 14 / 15) / 4, abs=1e-5
    )
