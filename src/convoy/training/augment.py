"""Change a whole batch of images at once, each image in its own way.

N images, H height, W width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convoy.training.settings import Augmentation


def augment(
    pixels_u8: Tensor, names: Sequence[Augmentation], crop_padding: int, random: np.random.Generator
) -> Tensor:
    """Shift and mirror images, as one gather on the device that holds them.

    The random numbers are drawn on the CPU, so that every device changes the images alike.

    Args:
        pixels_u8: (N, 3, H, W), best in channels-last memory, where nothing is copied beforehand.
        names: `crop` shifts each image by up to `crop_padding` pixels either way, as cropping it
            from a frame of its own reflection would; `flip` mirrors half of them left to right.
        crop_padding: largest shift, in pixels.
        random: state that decides everything; advanced by the same amount for the same N.

    Returns:
        (N, 3, H, W) uint8 in channels-last memory.
    """
    if not names:
        return pixels_u8
    count, _, height, width = pixels_u8.shape
    rows = np.arange(height)[None, :].repeat(count, axis=0)
    columns = np.arange(width)[None, :].repeat(count, axis=0)
    if "crop" in names:
        shifts = random.integers(-crop_padding, crop_padding + 1, size=(2, count, 1))
        rows = _reflect(rows + shifts[0], height)
        columns = _reflect(columns + shifts[1], width)
    if "flip" in names:
        mirrored = random.random((count, 1)) < 0.5
        columns = np.where(mirrored, columns[:, ::-1], columns)
    # One number per pixel of the flattened batch: a gather along one axis is several times as fast as three.
    places = (np.arange(count)[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    flat = pixels_u8.permute(0, 2, 3, 1).reshape(count * height * width, 3)
    taken = flat.index_select(0, torch.from_numpy(places.reshape(-1)).to(flat.device))
    return taken.view(count, height, width, 3).permute(0, 3, 1, 2)


def _reflect(places: np.ndarray, side: int) -> np.ndarray:
    """Fold places outside 0..side-1 back in, as between two mirrors; the edge pixel is not repeated."""
    period = 2 * (side - 1)
    folded: np.ndarray = (side - 1) - np.abs((side - 1) - places % period)
    return folded
