"""Receptive fields: the region of the image that one value of a volume depends on.

Computed axis by axis, from the pixels that output 0 sees and their distance to those of output 1: the recursion of
Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks" (2019).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from convoy.models.layer_types import AdaptivePool, Conv, Dense, Flatten, GlobalAvgPool, Layer, Pool, pair
from convoy.models.shapes import Step, padding


@dataclass(frozen=True)
class Axis:
    """The receptive field along height or width, in pixels; the image starts at 0."""

    start: Fraction  # first pixel that output 0 sees; negative in the padding
    end: Fraction  # last pixel that output 0 sees
    jump: Fraction  # between the first pixels of neighbouring outputs; adaptive pooling makes fractions

    @property
    def length(self) -> int:
        """Count the pixels from the first to the last, padding included."""
        return math.ceil(self.end - self.start) + 1


Field = tuple[Axis, Axis] | None
"""Height and width; None: every value may depend on the whole image."""

PIXEL: Field = (Axis(Fraction(0), Fraction(0), Fraction(1)),) * 2
"""The receptive field of a pixel: itself."""


def through(step: Step, field: Field) -> Field:
    """Return the field of a plain layer's output from that of its input; most layers do not change it."""
    layer = step.layer
    if field is None or isinstance(layer, Flatten | Dense | GlobalAvgPool):
        return None
    if isinstance(layer, AdaptivePool):
        if pair(layer.side) == (1, 1):
            return None
        windows = [_adaptive(*sides) for sides in zip(step.input[1:], pair(layer.side), strict=True)]
    else:
        windows = _windows(layer, step)
    return (_slide(field[0], windows[0]), _slide(field[1], windows[1])) if windows else field


def widest(fields: list[Field]) -> Field:
    """Return the field of a sum or a concatenation: from the first pixel of any part to the last of any."""
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
"""Distance from a window's first pixel to its last, its stride, and the padding before the image."""


def _windows(layer: Layer, step: Step) -> list[_Window]:
    if isinstance(layer, Conv):
        added = padding(layer, step.input[1:])
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


def _adaptive(given: int, side: int) -> _Window:
    """Return the longest window: they differ by a pixel where `side` does not divide the input's."""
    longest = max(-(-(n + 1) * given // side) - n * given // side for n in range(side))
    return longest - 1, Fraction(given, side), 0


def _slide(axis: Axis, window: _Window) -> Axis:
    reach, stride, before = window
    return Axis(axis.start - before * axis.jump, axis.end + (reach - before) * axis.jump, axis.jump * stride)
