"""Build the torch modules of a network's layers.

N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from convoy.core.errors import NetworkError
from convoy.models import layer_types
from convoy.models.layer_types import ACTIVATIONS, OVER_CHANNELS, pair
from convoy.models.shapes import Step, padding

PADS: dict[str, type[nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "replicate": nn.ReplicationPad2d,
    "reflect": nn.ReflectionPad2d,
    "circular": nn.CircularPad2d,
}

OVERWRITABLE = (
    layer_types.Conv,
    layer_types.Norm,
    layer_types.Dense,
    layer_types.Residual,
    layer_types.Branches,
)
"""Layers whose output is a new tensor that backward does not need, so that a ReLU straight after may overwrite it:
ResNet-18 trains 5 % faster. Other layers pass their input on, or save their output."""


class WithAuxiliary(NamedTuple):
    """The output, in training mode, of a network with auxiliary heads."""

    logits: Tensor  # (N, K)
    auxiliary: tuple[tuple[float, Tensor], ...]  # weight in the loss and (N, K) logits of each head


class Group(nn.Sequential):
    """Chain layers under one name: a unit of the network, which transfer freezes as a whole."""


class Auxiliary(nn.Sequential):
    """An auxiliary head: helps to train the layers before it; the network passes its input on unchanged."""

    def __init__(self, weight: float) -> None:
        """Set the head's weight in the loss; layers are added by name."""
        super().__init__()
        self.weight = weight


class Network(nn.Sequential):
    """Chain layers from image to logits; auxiliary heads run in training mode only."""

    def forward(self, volume: Tensor) -> Tensor | WithAuxiliary:
        """Map (N, 3, H, W) to (N, K) logits, with those of auxiliary heads in training mode."""
        heads = []
        for module in self:
            if not isinstance(module, Auxiliary):
                volume = module(volume)
            elif self.training:
                heads.append((module.weight, module(volume)))
        return WithAuxiliary(volume, tuple(heads)) if heads else volume


class Sum(nn.Module):
    """Add the outputs of `body` and `shortcut`: the residual unit."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the body's output."""
        total: Tensor = self.body(volume) + self.shortcut(volume)
        return total


class Branches(nn.Module):
    """Run branches in parallel and concatenate their outputs in depth: the inception unit."""

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, sum of the branches' channels, H', W'), in the order of the branches."""
        return torch.cat([branch(volume) for branch in self.children()], dim=1)


class Padded(nn.Module):
    """Pad unevenly before a convolution; torch's own convolution pads both sides alike."""

    def __init__(self, padding: nn.Module, conv: nn.Conv2d) -> None:
        super().__init__()
        self.padding = padding
        self.conv = conv

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the convolution's output."""
        output: Tensor = self.conv(self.padding(volume))
        return output


S = TypeVar("S", bound=nn.Sequential)


def network(steps: tuple[Step, ...], *, auxiliary: bool) -> Network:
    """Chain the modules of a network, with fresh weights on torch's default device.

    Args:
        steps: from `shapes.chain`.
        auxiliary: whether to build auxiliary heads.

    Raises:
        NetworkError: a layer or a branch has the name of an attribute of torch's modules.
    """
    whole = _fill(Network(), steps)
    if not auxiliary:
        for step in steps:
            if isinstance(step.layer, layer_types.Auxiliary):
                delattr(whole, step.name)
    return whole


def _fill(sequence: S, steps: tuple[Step, ...]) -> S:
    """Add a chain's modules to a sequence, by name."""
    previous: layer_types.Layer | None = None
    for step in steps:
        module = _MAKERS[type(step.layer)](step.layer, step)
        if isinstance(module, nn.ReLU) and isinstance(previous, OVERWRITABLE):
            module.inplace = True
        _add(sequence, step.name, module, step)
        previous = step.layer
    return sequence


def _add(parent: nn.Module, name: str, child: nn.Module, step: Step) -> None:
    if hasattr(parent, name):
        label = step.layer.location or step.layer.word
        raise NetworkError(f"{label}: `{name}` is an attribute of torch's modules. Choose another name.")
    parent.add_module(name, child)


def _activation(layer: layer_types.Activation, _step: Step) -> nn.Module:
    arguments = dict(layer.values) | ({"dim": 1} if layer.word in OVER_CHANNELS else {})
    module: nn.Module = getattr(nn, ACTIVATIONS[layer.word][0])(**arguments)
    return module


def _conv(layer: layer_types.Conv, step: Step) -> nn.Module:
    channels, *sides = step.input
    (top, bottom), (left, right) = padding(layer, tuple(sides))
    even = top == bottom and left == right
    conv = nn.Conv2d(
        channels,
        layer.filters,
        pair(layer.kernel),
        stride=pair(layer.stride),
        padding=(top, left) if even else 0,
        dilation=pair(layer.dilation),
        groups=layer.groups,
        bias=layer.bias,
        padding_mode=layer.padding_mode if even else "zeros",
    )
    return conv if even else Padded(PADS[layer.padding_mode]((left, right, top, bottom)), conv)


def _pool(layer: layer_types.Pool, _step: Step) -> nn.Module:
    kind = nn.MaxPool2d if layer.word == "max_pool" else nn.AvgPool2d
    stride = pair(layer.kernel if layer.stride is None else layer.stride)
    return kind(pair(layer.kernel), stride, pair(layer.padding), ceil_mode=layer.ceil)


def _adaptive_pool(layer: layer_types.AdaptivePool, _step: Step) -> nn.Module:
    kind = nn.AdaptiveMaxPool2d if layer.word == "adaptive_max_pool" else nn.AdaptiveAvgPool2d
    return kind(pair(layer.side))


def _branches(layer: layer_types.Branches, step: Step) -> nn.Module:
    module = Branches()
    for name, part in zip(layer.branches, step.parts, strict=True):
        _add(module, name, _fill(nn.Sequential(), part), step)
    return module


_MAKERS: dict[type[layer_types.Layer], Callable[[Any, Step], nn.Module]] = {
    layer_types.Conv: _conv,
    layer_types.Norm: lambda layer, step: nn.BatchNorm2d(step.input[0], eps=layer.eps),
    layer_types.LocalResponseNorm: lambda layer, _step: nn.LocalResponseNorm(
        layer.size, layer.alpha, layer.beta, layer.k
    ),
    layer_types.Activation: _activation,
    layer_types.Pool: _pool,
    layer_types.AdaptivePool: _adaptive_pool,
    layer_types.GlobalAvgPool: lambda _layer, _step: nn.AdaptiveAvgPool2d(1),
    layer_types.Dropout: lambda layer, _step: nn.Dropout(layer.share),
    layer_types.Flatten: lambda _layer, _step: nn.Flatten(),
    layer_types.Dense: lambda layer, step: nn.Linear(step.input[0], step.output[0], bias=layer.bias),
    layer_types.Residual: lambda _layer, step: Sum(*(_fill(nn.Sequential(), part) for part in step.parts)),
    layer_types.Branches: _branches,
    layer_types.Group: lambda _layer, step: _fill(Group(), step.parts[0]),
    layer_types.Repeat: lambda _layer, step: nn.Sequential(*(_fill(Group(), part) for part in step.parts)),
    layer_types.Auxiliary: lambda layer, step: _fill(Auxiliary(layer.weight), step.parts[0]),
}
