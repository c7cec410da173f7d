"""Predict class probabilities of packed images, in full float32.

N images, P pixels a side, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from convoy.core import console
from convoy.models.trained import NormalizedModel


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute matrix products and convolutions in IEEE float32 within the context, whatever training set.

    TF32 keeps 10 bits of the mantissa: enough to train with, not to measure with.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def predict_probabilities(
    model: NormalizedModel, images_u8: npt.NDArray[np.uint8], batch_size: int
) -> npt.NDArray[np.float32]:
    """Predict on a GPU if there is one, else on the CPU.

    Args:
        model: is left in evaluation mode, on the device that was used.
        images_u8: (N, P, P, 3) RGB; read batch by batch, so it may be mapped from a file.
        batch_size: images per forward pass.

    Returns:
        (N, K) probabilities; not finite where the network's output is not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    batches: list[npt.NDArray[np.float32]] = []
    starts = range(0, len(images_u8), batch_size)
    with torch.inference_mode(), full_float32():
        for start in console.track(starts, "predict batches", len(starts)):
            batch = torch.from_numpy(np.array(images_u8[start : start + batch_size]))
            pixels = batch.to(device).permute(0, 3, 1, 2).float()
            batches.append(model(pixels).softmax(dim=1).cpu().numpy())
    return np.concatenate(batches)
