"""Receptive fields: how much of the image one value of a volume depends on.

One axis at a time, as the pixels that output 0 sees and the step to those of output 1: the recursion of
Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks" (2019).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from convoy.models.layer_types import AdaptivePool, Conv, Dense, Flatten, GlobalAvgPool, Layer, Pool, pair
from convoy.models.shapes import Step, padding


@dataclass(frozen=True)
class Axis:
    """Hold what is seen along height or width, in pixels; the image begins at 0.

    Attributes:
        start: first pixel that output 0 sees; below 0 in the padding.
        end: last pixel that output 0 sees.
        jump: from one output's first pixel to the next one's; adaptive pooling makes fractions.
    """

    start: Fraction
    end: Fraction
    jump: Fraction

    @property
    def length(self) -> int:
        """Count the pixels from the first to the last, those in the padding too."""
        return math.ceil(self.end - self.start) + 1


Field = tuple[Axis, Axis] | None
"""Height and width; None: every value may depend on the whole image."""

PIXEL: Field = (Axis(Fraction(0), Fraction(0), Fraction(1)),) * 2
"""What a pixel of the image sees: itself."""


def through(step: Step, field: Field) -> Field:
    """Follow a field through one layer that holds no others; most layers leave it as it is."""
    layer = step.layer
    if field is None or isinstance(layer, Flatten | Dense | GlobalAvgPool):
        return None
    if isinstance(layer, AdaptivePool):
        if pair(layer.side) == (1, 1):
            return None
        sides = zip(step.input[1:], pair(layer.side), strict=True)
        return _both(field, *(_adaptive(arriving, side) for arriving, side in sides))
    windows = _windows(layer, step)
    return _both(field, *windows) if windows else field


def widest(fields: list[Field]) -> Field:
    """Give what a sum or a concatenation sees: from the first pixel of any to the last of any."""
    known = [field for field in fields if field is not None]
    if len(known) < len(fields):
        return None
    height, width = (
        Axis(
            min(field[axis].start for field in known),
            max(field[axis].end for field in known),
            max(field[axis].jump for field in known),
        )
        for axis in (0, 1)
    )
    return height, width


_Window = tuple[int, Fraction, int]
"""Pixels from a window's first to its last, its stride, and how far the first one stands before the image."""


def _windows(layer: Layer, step: Step) -> list[_Window]:
    if isinstance(layer, Conv):
        added = padding(layer, (step.input[1], step.input[2]))
        axes = zip(pair(layer.kernel), pair(layer.dilation), pair(layer.stride), added, strict=True)
        return [
            (dilation * (kernel - 1), Fraction(stride), before)
            for kernel, dilation, stride, (before, _) in axes
        ]
    if isinstance(layer, Pool):
        strides = pair(layer.kernel if layer.stride is None else layer.stride)
        pools = zip(pair(layer.kernel), strides, pair(layer.padding), strict=True)
        return [(kernel - 1, Fraction(stride), before) for kernel, stride, before in pools]
    return []


def _adaptive(arriving: int, side: int) -> _Window:
    """Take the longest window: they differ by a pixel where `side` does not divide what arrives."""
    longest = max(-(-(n + 1) * arriving // side) - n * arriving // side for n in range(side))
    return longest - 1, Fraction(arriving, side), 0


def _both(field: tuple[Axis, Axis], vertical: _Window, horizontal: _Window) -> Field:
    return _slide(field[0], vertical), _slide(field[1], horizontal)


def _slide(axis: Axis, window: _Window) -> Axis:
    reach, stride, before = window
    return Axis(axis.start - before * axis.jump, axis.end + (reach - before) * axis.jump, axis.jump * stride)
