import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from convoy.evaluation.calibration import calibration_error


@pytest.mark.parametrize("seed", range(2))
def test_the_calibration_error_is_the_one_of_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(5, 0.3), 700)
    # Right in half of the cases, whatever the certainty: above it in some bins, below it in others.
    labels = np.where(rng.random(700) < 0.5, probabilities.argmax(axis=1), rng.integers(0, 5, 700))
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=5, n_bins=15, norm="l1"
    )
    ours = calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_certain_and_right_has_no_calibration_error_certain_and_wrong_has_all():
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert calibration_error(np.full(3, 1 + 1e-7), np.zeros(3, bool)) == pytest.approx(1)


def test_bins_include_their_upper_end_and_do_not_make_up_for_each_other():
    sure = np.array([13 / 15, 13 / 15 + 1e-6, 14 / 15, 14 / 15 + 1e-6])
    error = calibration_error(sure, np.array([True, True, True, False]))
    assert error == pytest.approx((2 / 15 + (2 / 15 + 1 / 15) + 14 / 15) / 4, abs=1e-5)
