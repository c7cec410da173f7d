"""What the predictions of one split amount to.

N images, K classes; labels and predictions are class numbers in 0..K-1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

CONFIDENCE = 0.95
"""Confidence of the interval beside the accuracy."""


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Bound the accuracy that so many images support, at 95 % confidence.

    Wilson's score interval: unlike the textbook's p ± 1.96 s it stays inside 0..1
    and is not empty when every image is right.
    """
    interval = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def summarise(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """Compute accuracy with its interval, macro F1, and each class's precision, recall, F1 and images.

    A class that is never predicted has precision 0; `images` counts labels.
    """
    correct = int((labels == predicted).sum())
    low, high = wilson(correct, len(labels))
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    return {
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "images": len(labels),
        "macro_f1": float(np.mean(f1)),
        "per_class": {
            name: {
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
                "images": int(images[k]),
            }
            for k, name in enumerate(classes)
        },
    }


def confusion(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """Count images as (K, K): row = actual class, column = predicted class."""
    counts: npt.NDArray[np.int64] = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return counts
