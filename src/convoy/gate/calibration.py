"""Whether a model is right as often as it is sure: of answers given with 80 %, four in five should be right."""

import numpy as np
import numpy.typing as npt

BINS = 15


def calibration_error(probability: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> float:
    """Average how far sureness and accuracy lie apart, 0..1 (expected calibration error).

    Of the most probable class, over 15 equal bins, each weighted with its images (Guo et al.,
    On Calibration of Modern Neural Networks, ICML 2017).

    Args:
        probability: (n,) of the answer that was given, 0..1; n >= 1.
        right: (n,) whether it is right.
    """
    # Bins include their upper end; what rounding puts above 1 belongs to the last.
    number = np.clip(np.ceil(probability.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    sure = np.bincount(number, probability, BINS)
    held = np.bincount(number, right, BINS)
    return float(np.abs(sure - held).sum() / len(right))
