"""What the predictions of one split amount to.

N images, K classes; labels and predictions are class numbers in 0..K-1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from convoy.core.intervals import wilson


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
