"""Turn each layer of a spec into a torch module for the volume that arrives.

N images, C channels, H height, W width, K classes. A volume is (C, H, W) in code
and H×W×C in messages; a flat row is (C,).
"""

from collections import Counter
from functools import singledispatch

import torch
from torch import Tensor, nn

from convoy.errors import NetworkError
from convoy.networks.spec import (
    ACTIVATIONS,
    Activation,
    AvgPool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    MaxPool,
    Norm,
    Residual,
)

Volume = tuple[int, ...]


class MisfitError(Exception):
    """Carry the layer that could not take the volume that arrived, up to where a side that works is sought."""


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


def describe(volume: Volume) -> str:
    """Write a volume as H×W×C, a flat row as its length."""
    if len(volume) == 1:
        return f"a row of {volume[0]}"
    return "×".join(str(side) for side in (*volume[1:], volume[0]))


def sequence(
    layers: tuple[Layer, ...], volume: Volume, classes: int, where: str
) -> tuple[nn.Sequential, Volume]:
    """Chain layers, naming each by its word and its number among its kind: conv1, relu1, conv2."""
    chain = nn.Sequential()
    seen: Counter[str] = Counter()
    for place, layer in enumerate(layers, start=1):
        seen[layer.word] += 1
        label = f"{where}layer {place} ({layer.word})"
        try:
            module = _module(layer, volume, classes, label).eval()
            arrived, volume = volume, passed_on(module, volume)
        except (RuntimeError, ValueError) as error:
            raise MisfitError(
                f"{label} cannot take the volume {describe(volume)} ({reason(error)})"
            ) from error
        if 0 in volume:
            raise MisfitError(f"{label} makes nothing of the volume {describe(arrived)}")
        chain.add_module(f"{layer.word}{seen[layer.word]}", module)
    return chain, volume


def passed_on(module: nn.Module, volume: Volume) -> Volume:
    """Run a meta module on a batch of two, which even a batch norm over 1×1 accepts."""
    return tuple(module(torch.empty((2, *volume), device="meta")).shape[1:])


@singledispatch
def _module(layer: Layer, volume: Volume, classes: int, label: str) -> nn.Module:
    """Make the module of one layer for the volume that arrives; one function below per layer class."""
    raise NotImplementedError(f"{label}: {type(layer).__name__} for {volume}, {classes} classes")


@_module.register
def _(layer: Conv, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    channels = _deep(volume, label)
    padding = 0 if layer.padding == "valid" else layer.padding
    if channels % layer.groups or layer.filters % layer.groups:
        raise NetworkError(
            f"{label}: groups {layer.groups} must divide the {channels} channels that arrive and the {layer.filters} filters"
        )
    conv = nn.Conv2d(
        channels,
        layer.filters,
        layer.kernel,
        stride=layer.stride,
        padding=0 if padding == "same" else padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias,
    )
    if padding != "same":
        return conv
    top, bottom = _same(volume[1], layer)
    left, right = _same(volume[2], layer)
    if top == bottom and left == right:
        conv.padding = (top, left)
        return conv
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


@_module.register
def _(layer: Norm, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    return nn.BatchNorm2d(_deep(volume, label))


@_module.register
def _(layer: Activation, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    module: nn.Module = getattr(nn, ACTIVATIONS[layer.word])()
    return module


@_module.register
def _(layer: MaxPool, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    _deep(volume, label)
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)


@_module.register
def _(layer: AvgPool, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    _deep(volume, label)
    return nn.AvgPool2d(layer.kernel, layer.stride, layer.padding)


@_module.register
def _(layer: GlobalAvgPool, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    _deep(volume, label)
    return nn.AdaptiveAvgPool2d(1)


@_module.register
def _(layer: Dropout, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    return nn.Dropout(layer.share)


@_module.register
def _(layer: Flatten, volume: Volume, classes: int, label: str) -> nn.Module:  # noqa: ARG001
    return nn.Flatten()


@_module.register
def _(layer: Dense, volume: Volume, classes: int, label: str) -> nn.Module:
    if len(volume) != 1:
        raise NetworkError(
            f"{label} needs a flat row, but the volume {describe(volume)} arrives. Put `- flatten` before it."
        )
    return nn.Linear(volume[0], classes if layer.units == "classes" else layer.units, bias=layer.bias)


@_module.register
def _(layer: Residual, volume: Volume, classes: int, label: str) -> nn.Module:
    body, made = sequence(layer.body, volume, classes, f"{label}, body ")
    shortcut, kept = sequence(layer.shortcut, volume, classes, f"{label}, shortcut ")
    if made != kept:
        raise NetworkError(
            f"{label} cannot add {describe(kept)} to the {describe(made)} that its body makes. "
            f"Give it a `shortcut` that makes {describe(made)}, such as a conv with kernel 1."
        )
    return Sum(body, shortcut)


def _deep(volume: Volume, label: str) -> int:
    """Count the channels of a volume, refusing a flat row."""
    if len(volume) != 3:
        raise NetworkError(
            f"{label} needs a volume, but {describe(volume)} arrives. Put it before `- flatten`."
        )
    return volume[0]


def _same(side: int, layer: Conv) -> tuple[int, int]:
    """Pad so that the output side is ceil(side / stride), the odd pixel at the end: TensorFlow's rule."""
    reach = layer.dilation * (layer.kernel - 1) + 1
    total = max((-(-side // layer.stride) - 1) * layer.stride + reach - side, 0)
    return total // 2, total - total // 2


def reason(error: Exception) -> str:
    """Keep torch's reason, without its trace."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
