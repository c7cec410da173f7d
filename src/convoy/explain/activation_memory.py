"""What a training step keeps of an image until its gradients are there, by the rules of torch's autograd.

A layer keeps what it was given (a convolution needs it for the gradient of its weights), what it made
(ReLU), something of its own (max pooling's indices), or nothing (a sum). A tensor that two
layers keep is there once. tests/networks/test_kept.py compares with what autograd saves.
"""

from dataclasses import dataclass
from math import prod

from convoy.models.layer_types import (
    Activation,
    AdaptivePool,
    Auxiliary,
    Branches,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    LocalResponseNorm,
    Pool,
    Residual,
)
from convoy.models.shapes import Step, padding

FLOAT = 4
"""Bytes of a float32."""
INDEX = 8
"""Bytes of an index that max pooling keeps."""

_KEEPS_RESULT = ("relu", "sigmoid", "tanh", "softmax", "softmin", "log_softmax", "softmax2d")
"""Activations whose gradient is computed from what they made; of the others, from what they were given."""
_KEEPS_ONE_MORE = ("rrelu", "log_sigmoid", "tanhshrink", "softsign")
"""Activations that keep a tensor of their own beside it: a random slope, an intermediate value."""


@dataclass
class _Tensor:
    """Hold the bytes that a tensor takes per image, and whether any layer keeps it."""

    size: int
    kept: bool = False


class _Ledger:
    """Follow tensors through a network."""

    def __init__(self) -> None:
        self.tensors: list[_Tensor] = []

    def make(self, elements: int, *, kept: bool = False, size: int = FLOAT) -> _Tensor:
        """Note a new tensor."""
        self.tensors.append(_Tensor(elements * size, kept))
        return self.tensors[-1]

    def run(self, steps: tuple[Step, ...], tensor: _Tensor) -> _Tensor:
        """Pass a tensor through a chain."""
        for step in steps:
            tensor = self.pass_through(step, tensor)
        return tensor

    def pass_through(self, step: Step, given: _Tensor) -> _Tensor:
        """Pass a tensor through a layer, or through the layers inside it."""
        layer = step.layer
        if isinstance(layer, Residual | Branches):
            for part in step.parts:
                self.run(part, given)
            return self.make(prod(step.output))
        if isinstance(layer, Auxiliary):
            self.run(step.parts[0], given)
            return given
        for part in step.parts:
            given = self.run(part, given)
        # Flatten looks at the same numbers; dropout of nothing hands on what it was given.
        if step.parts or isinstance(layer, Flatten) or (isinstance(layer, Dropout) and not layer.share):
            return given
        given.kept |= _keeps_input(layer, step)
        for elements, size in _extra(layer, step):
            self.make(elements, kept=True, size=size)
        return self.make(prod(step.output), kept=layer.word in _KEEPS_RESULT)


def kept_bytes(steps: tuple[Step, ...], image_px: int) -> int:
    """Sum what forward keeps for backward, in bytes per image in float32, auxiliary heads included.

    Left out are two numbers per channel and batch that a norm keeps. Dropout's mask counts 4 bytes an element, as on
    a CPU; a GPU keeps 1.
    """
    ledger = _Ledger()
    ledger.run(steps, ledger.make(3 * image_px**2))
    return sum(tensor.size for tensor in ledger.tensors if tensor.kept)


def _keeps_input(layer: Layer, step: Step) -> bool:
    if isinstance(layer, Conv):
        return not _pads_first(layer, step) or layer.padding_mode in {"replicate", "reflect"}
    if isinstance(layer, AdaptivePool | GlobalAvgPool):
        return step.output[1:] != (1, 1) or layer.word == "adaptive_max_pool"  # the mean of all needs nothing
    return not isinstance(layer, Dropout) and layer.word not in {*_KEEPS_RESULT, "tanhshrink"}


def _extra(layer: Layer, step: Step) -> list[tuple[int, int]]:
    """List further tensors that a layer keeps: elements, and bytes of each."""
    made = prod(step.output)
    if isinstance(layer, Conv) and _pads_first(layer, step):
        channels, height, width = step.input
        (top, bottom), (left, right) = padding(layer, (height, width))
        return [(channels * (height + top + bottom) * (width + left + right), FLOAT)]
    if isinstance(layer, Pool | AdaptivePool) and "max" in layer.word:
        return [(made, INDEX)]
    if isinstance(layer, Dropout) or (isinstance(layer, Activation) and layer.word in _KEEPS_ONE_MORE):
        return [(made, FLOAT)]
    if isinstance(layer, LocalResponseNorm):
        # The squares with a margin in depth, their mean, and its power.
        return [(made + (layer.size - 1) * prod(step.input[1:]), FLOAT), (made, FLOAT), (made, FLOAT)]
    return []


def _pads_first(layer: Conv, step: Step) -> bool:
    """Say whether the padded volume is a tensor of its own: torch's convolution adds only zeros, and alike."""
    added = padding(layer, (step.input[1], step.input[2]))
    uneven = any(before != after for before, after in added)
    return uneven or (layer.padding_mode != "zeros" and any(max(axis) > 0 for axis in added))
