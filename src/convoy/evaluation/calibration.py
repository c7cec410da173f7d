"""Calibration error: how far probabilities are from the share of images on which they are right."""

import numpy as np
import numpy.typing as npt

BINS = 15


def calibration_error(probability: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> float:
    """Compute the expected calibration error, 0..1: mean gap between probability and accuracy of n >= 1 images.

    Of the (n,) probabilities of the predicted class, over 15 equal bins, each weighted with its images (Guo et al.,
    On Calibration of Modern Neural Networks, ICML 2017).
    """
    # Bins include their upper end; what rounding puts above 1 belongs to the last.
    bins = np.clip(np.ceil(probability.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    confidence, accuracy = np.bincount(bins, probability, BINS), np.bincount(bins, correct, BINS)
    return float(np.abs(confidence - accuracy).sum() / len(correct))
