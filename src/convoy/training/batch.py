"""The unit that training computes on."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor


class Batch(NamedTuple):
    """Hold N images of K classes, their labels, and the index of the batch in its epoch."""

    pixels_u8: Tensor  # (N, 3, H, W) uint8, channels-last in memory as the packed array is
    labels: Tensor  # (N,) int64; of a mixed image the label that counts most
    step: int  # 0 for the first batch of the epoch
    rows: npt.NDArray[np.int64]  # (N,) rows of the images in their split, on the CPU
    targets: Tensor | None = None  # (N, K) float32, rows of sum 1, where mixup or cutmix mixed labels
