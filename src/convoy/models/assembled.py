"""The modules that a spec needs beyond torch's own.

N images, C channels, H height, W width, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class WithAuxiliary(NamedTuple):
    """Hold what a network with auxiliary heads answers in training mode."""

    logits: Tensor  # (N, K)
    auxiliary: tuple[tuple[float, Tensor], ...]  # weight in the loss and (N, K) logits of each head


class Group(nn.Sequential):
    """Chain layers under one name: a unit of the network, which transfer freezes as a whole."""


class Auxiliary(nn.Sequential):
    """Hold a head that helps to train what lies before it; its input goes on unchanged."""

    def __init__(self, weight: float) -> None:
        """Take the head's weight in the loss; layers are added by name."""
        super().__init__()
        self.weight = weight


class Network(nn.Sequential):
    """Chain layers from image to logits; auxiliary heads answer in training mode alone."""

    def forward(self, volume: Tensor) -> Tensor | WithAuxiliary:
        """Map (N, 3, H, W) to (N, K) logits, with those of auxiliary heads in training mode."""
        answers = []
        for module in self:
            if not isinstance(module, Auxiliary):
                volume = module(volume)
            elif self.training:
                answers.append((module.weight, module(volume)))
        return WithAuxiliary(volume, tuple(answers)) if answers else volume


class Sum(nn.Module):
    """Add what arrives, through `shortcut`, to what `body` makes of it."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the body's volume."""
        total: Tensor = self.body(volume) + self.shortcut(volume)
        return total


class Branches(nn.Module):
    """Run branches side by side and concatenate what they make in depth: the inception unit."""

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, sum of the branches' channels, H', W'), in the order of the branches."""
        return torch.cat([branch(volume) for branch in self.children()], dim=1)


class Padded(nn.Module):
    """Pad unevenly before a convolution, which itself pads alike on both sides only."""

    def __init__(self, padding: nn.Module, conv: nn.Conv2d) -> None:
        super().__init__()
        self.padding = padding
        self.conv = conv

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the convolution's volume."""
        made: Tensor = self.conv(self.padding(volume))
        return made
