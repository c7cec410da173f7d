"""Make torch modules of placed layers."""

from functools import singledispatch
from typing import TypeVar, cast

from torch import nn

from convoy.core.errors import NetworkError
from convoy.models import layer_types
from convoy.models.assembled import Auxiliary, Branches, Group, Network, Padded, Sum
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
"""Layers whose volume is new and not needed to go backward, so that a ReLU straight after may write over it:
ResNet-18 takes its steps 5 % faster. Others hand on what arrived, or keep what they made."""

S = TypeVar("S", bound=nn.Sequential)


def network(steps: tuple[Step, ...], *, auxiliary: bool) -> Network:
    """Chain the modules of a network, with fresh weights on torch's default device.

    Args:
        steps: as `volumes.chain` places them.
        auxiliary: whether to make auxiliary heads too.

    Raises:
        NetworkError: a layer or a branch is called what torch's modules call something of their own.
    """
    whole = _fill(Network(), steps)
    if not auxiliary:
        for step in steps:
            if isinstance(step.layer, layer_types.Auxiliary):
                delattr(whole, step.name)
    return whole


def _fill(sequence: S, steps: tuple[Step, ...]) -> S:
    """Add a chain's modules to a sequence, by name."""
    before: layer_types.Layer | None = None
    for step in steps:
        module = _module(step.layer, step)
        if isinstance(module, nn.ReLU) and isinstance(before, OVERWRITABLE):
            module.inplace = True
        _add(sequence, step.name, module, step)
        before = step.layer
    return sequence


def _add(parent: nn.Module, name: str, child: nn.Module, step: Step) -> None:
    if hasattr(parent, name):
        raise NetworkError(
            f"{step.layer.place or step.layer.word}: torch's modules have a `{name}` of their own. Choose another name."
        )
    parent.add_module(name, child)


@singledispatch
def _module(layer: layer_types.Layer, step: Step) -> nn.Module:
    """Make the module of one layer; one function below per layer class."""
    raise NotImplementedError(f"{type(layer).__name__} at {step.name}")


@_module.register
def _(layer: layer_types.Conv, step: Step) -> nn.Module:
    channels, height, width = step.arrives
    (top, bottom), (left, right) = padding(layer, (height, width))
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


@_module.register
def _(layer: layer_types.Norm, step: Step) -> nn.Module:
    return nn.BatchNorm2d(step.arrives[0], eps=layer.eps)


@_module.register
def _(layer: layer_types.LocalResponseNorm, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    return nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)


@_module.register
def _(layer: layer_types.Activation, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    arguments = dict(layer.values) | ({"dim": 1} if layer.word in OVER_CHANNELS else {})
    return cast("nn.Module", getattr(nn, ACTIVATIONS[layer.word][0])(**arguments))


@_module.register
def _(layer: layer_types.Pool, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    kind = nn.MaxPool2d if layer.word == "max_pool" else nn.AvgPool2d
    stride = pair(layer.kernel if layer.stride is None else layer.stride)
    return kind(pair(layer.kernel), stride, pair(layer.padding), ceil_mode=layer.ceil)


@_module.register
def _(layer: layer_types.AdaptivePool, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    kind = nn.AdaptiveMaxPool2d if layer.word == "adaptive_max_pool" else nn.AdaptiveAvgPool2d
    return kind(pair(layer.side))


@_module.register
def _(layer: layer_types.GlobalAvgPool, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    return nn.AdaptiveAvgPool2d(1)


@_module.register
def _(layer: layer_types.Dropout, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    return nn.Dropout(layer.share)


@_module.register
def _(layer: layer_types.Flatten, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    return nn.Flatten()


@_module.register
def _(layer: layer_types.Dense, step: Step) -> nn.Module:
    return nn.Linear(step.arrives[0], step.leaves[0], bias=layer.bias)


@_module.register
def _(layer: layer_types.Residual, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    body, shortcut = (_fill(nn.Sequential(), part) for part in step.parts)
    return Sum(body, shortcut)


@_module.register
def _(layer: layer_types.Branches, step: Step) -> nn.Module:
    side_by_side = Branches()
    for name, part in zip(layer.branches, step.parts, strict=True):
        _add(side_by_side, name, _fill(nn.Sequential(), part), step)
    return side_by_side


@_module.register
def _(layer: layer_types.Group, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    return _fill(Group(), step.parts[0])


@_module.register
def _(layer: layer_types.Repeat, step: Step) -> nn.Module:  # noqa: ARG001 (as dispatched)
    return nn.Sequential(*(_fill(Group(), part) for part in step.parts))


@_module.register
def _(layer: layer_types.Auxiliary, step: Step) -> nn.Module:
    return _fill(Auxiliary(layer.weight), step.parts[0])
