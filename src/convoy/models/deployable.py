"""Pixels to logits: the one place where pixels are normalised."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalizedModel(nn.Module):
    """Wrap a network so that it takes pixels as they are stored.

    Training, evaluation, timing and the exported graph all run this module, so that
    none of them can normalise differently from the others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take a network and the statistics of the images it learns from.

        Args:
            network: (N, 3, H, W) normalised float32 to (N, K) logits.
            mean: of each channel, in 0..1 units.
            std: of each channel, in 0..1 units; a channel that never varies has 0, which becomes
                1/255, one step of an 8-bit pixel.
        """
        super().__init__()
        self.network = network
        # They belong to model.json, not to the weights: a value is stored once.
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel([max(value, 1 / 255) for value in std]), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, 3, H, W) float32 pixels in 0..255 to (N, K) logits."""
        logits: Tensor = self.network((pixels / 255 - self.mean) / self.std)
        return logits


def _per_channel(values: Sequence[float]) -> Tensor:
    """Shape three values so that they broadcast over (N, 3, H, W)."""
    return torch.tensor(list(values), dtype=torch.float32).view(1, 3, 1, 1)
