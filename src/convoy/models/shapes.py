"""Follow the volume through a network's layers, by arithmetic alone.

A volume is (C, H, W) in code and H×W×C in messages; a flat row is (C,). Shapes are those of
torch's modules; tests/networks/test_volumes.py compares the two on random layers.
"""

from collections import Counter
from dataclasses import dataclass
from functools import singledispatch

from convoy.core.errors import NetworkError
from convoy.models.layer_types import (
    Activation,
    AdaptivePool,
    Auxiliary,
    Branches,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Group,
    Layer,
    LocalResponseNorm,
    Norm,
    Pool,
    Repeat,
    Residual,
    pair,
)

Volume = tuple[int, ...]
Image = tuple[int, int, int]


class MisfitError(Exception):
    """Carry the layer that could not take the volume that arrived, up to where a side that works is sought."""


@dataclass(frozen=True)
class Step:
    """Place one layer in a network.

    Attributes:
        name: of the module, such as conv1; unique among its siblings.
        layer: what the spec says.
        arrives: the volume that comes in.
        leaves: the volume that goes on; an auxiliary head's is what arrived.
        parts: the chains inside: body and shortcut, each branch, the layers of a group, each
            repetition, those of an auxiliary head; none for a plain layer.
    """

    name: str
    layer: Layer
    arrives: Volume
    leaves: Volume
    parts: tuple[tuple["Step", ...], ...] = ()


def chain(layers: tuple[Layer, ...], volume: Volume, classes: int, where: str = "") -> tuple[Step, ...]:
    """Place layers one after the other, naming each by its word and its number among its kind.

    Args:
        layers: of the spec.
        volume: what arrives at the first.
        classes: K, which `dense: classes` makes.
        where: leads to the layers in messages.

    Raises:
        MisfitError: the volume is too small for a layer.
        NetworkError: a layer cannot take such a volume at any size.
    """
    steps: list[Step] = []
    seen: Counter[str] = Counter()
    for number, layer in enumerate(layers, start=1):
        kind = (layer.block or "group") if isinstance(layer, Group) else layer.word
        seen[kind] += 1
        name = layer.name or f"{kind}{seen[kind]}"
        label = layer.place or f"{where}layer {number} ({layer.word})"
        if any(step.name == name for step in steps):
            raise NetworkError(
                f"{label}: another layer beside it is called `{name}`. Give one of them another name."
            )
        leaves, parts = _place(layer, volume, classes, label)
        steps.append(Step(name, layer, volume, leaves, parts))
        volume = leaves
    return tuple(steps)


def leaving(steps: tuple[Step, ...], arrives: Volume) -> Volume:
    """Give the volume that leaves a chain; an empty one passes on what arrives."""
    return steps[-1].leaves if steps else arrives


def describe(volume: Volume) -> str:
    """Write a volume as H×W×C, a flat row as its length."""
    if len(volume) == 1:
        return f"a row of {volume[0]}"
    return "×".join(str(side) for side in (*volume[1:], volume[0]))


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Pad so that the output side is ceil(side / stride), the odd pixel at the end: TensorFlow's rule."""
    total = max((-(-side // stride) - 1) * stride + dilation * (kernel - 1) + 1 - side, 0)
    return total // 2, total - total // 2


def padding(layer: Conv, sides: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give the pixels added above and below, left and right of an input of `sides` (height, width)."""
    if layer.padding == "same":
        axes = zip(sides, pair(layer.kernel), pair(layer.stride), pair(layer.dilation), strict=True)
        vertical, horizontal = (same_padding(*axis) for axis in axes)
        return vertical, horizontal
    height, width = (0, 0) if layer.padding == "valid" else pair(layer.padding)
    return (height, height), (width, width)


Placed = tuple[Volume, tuple[tuple[Step, ...], ...]]


@singledispatch
def _place(layer: Layer, volume: Volume, classes: int, label: str) -> Placed:
    """Say what leaves a layer, and place the layers inside it; one function below per layer class."""
    raise NotImplementedError(f"{label}: {type(layer).__name__} for {volume}, {classes} classes")


@_place.register(Activation)
def _activation(layer: Activation, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    if layer.word == "softmax2d":
        _deep(volume, label)
    if layer.word != "glu":
        return volume, ()
    if volume[0] % 2:
        raise NetworkError(
            f"{label} halves the channels, but {describe(volume)} arrives. Make their number even."
        )
    return (volume[0] // 2, *volume[1:]), ()


@_place.register(Norm)
@_place.register(LocalResponseNorm)
def _norm(layer: Layer, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    _deep(volume, label)
    return volume, ()


@_place.register(Dropout)
def _dropout(layer: Dropout, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    return volume, ()


@_place.register(Conv)
def _conv(layer: Conv, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    channels, *sides = _deep(volume, label)
    if channels % layer.groups or layer.filters % layer.groups:
        raise NetworkError(
            f"{label}: groups {layer.groups} must divide the {channels} channels that arrive and the {layer.filters} filters"
        )
    added = padding(layer, (sides[0], sides[1]))
    made = []
    axes = zip(sides, pair(layer.kernel), pair(layer.stride), pair(layer.dilation), added, strict=True)
    for side, kernel, stride, dilation, (before, after) in axes:
        reach = dilation * (kernel - 1) + 1
        if max(before, after) >= side and layer.padding_mode == "reflect":
            raise MisfitError(
                f"{label} cannot take the volume {describe(volume)} (a reflection of {max(before, after)} pixels needs "
                "a longer side)"
            )
        if max(before, after) > side and layer.padding_mode == "circular":
            raise MisfitError(
                f"{label} cannot take the volume {describe(volume)} (it cannot wrap around {max(before, after)} pixels)"
            )
        if side + before + after < reach:
            raise MisfitError(
                f"{label} cannot take the volume {describe(volume)} (a window of {reach} pixels does not fit into "
                f"{side + before + after})"
            )
        made.append((side + before + after - reach) // stride + 1)
    return (layer.filters, *made), ()


@_place.register(Pool)
def _pool(layer: Pool, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    channels, *sides = _deep(volume, label)
    made = []
    strides = pair(layer.kernel if layer.stride is None else layer.stride)
    for side, kernel, stride, margin in zip(
        sides, pair(layer.kernel), strides, pair(layer.padding), strict=True
    ):
        room = side + 2 * margin - kernel
        if room < 0 and not (layer.ceil and room > -stride):
            raise MisfitError(
                f"{label} cannot take the volume {describe(volume)} (a window of {kernel} pixels does not fit into "
                f"{side + 2 * margin})"
            )
        count = (-(-room // stride) if layer.ceil else room // stride) + 1
        # torch drops a last window that would begin in the padding behind the image.
        if layer.ceil and (count - 1) * stride >= side + margin:
            count -= 1
        made.append(count)
    return (channels, *made), ()


@_place.register(AdaptivePool)
def _adaptive(layer: AdaptivePool, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    return (_deep(volume, label)[0], *pair(layer.side)), ()


@_place.register(GlobalAvgPool)
def _global(layer: GlobalAvgPool, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    return (_deep(volume, label)[0], 1, 1), ()


@_place.register(Flatten)
def _flatten(layer: Flatten, volume: Volume, classes: int, label: str) -> Placed:  # noqa: ARG001 (as dispatched)
    length = 1
    for side in volume:
        length *= side
    return (length,), ()


@_place.register(Dense)
def _dense(layer: Dense, volume: Volume, classes: int, label: str) -> Placed:
    if len(volume) != 1:
        raise NetworkError(
            f"{label} needs a flat row, but the volume {describe(volume)} arrives. Put `- flatten` before it."
        )
    return (classes if layer.units == "classes" else layer.units,), ()


@_place.register(Residual)
def _residual(layer: Residual, volume: Volume, classes: int, label: str) -> Placed:
    body = chain(layer.body, volume, classes, f"{label}, body ")
    shortcut = chain(layer.shortcut, volume, classes, f"{label}, shortcut ")
    made, kept = leaving(body, volume), leaving(shortcut, volume)
    if made != kept:
        raise NetworkError(
            f"{label} cannot add {describe(kept)} to the {describe(made)} that its body makes. "
            f"Give it a `shortcut` that makes {describe(made)}, such as a conv with kernel 1."
        )
    return made, (body, shortcut)


@_place.register(Branches)
def _branches(layer: Branches, volume: Volume, classes: int, label: str) -> Placed:
    _deep(volume, label)
    parts = tuple(
        chain(layers, volume, classes, f"{label}, {name} ") for name, layers in layer.branches.items()
    )
    made = dict(zip(layer.branches, (leaving(part, volume) for part in parts), strict=True))
    if len({(len(volume), *volume[1:]) for volume in made.values()}) > 1:
        found = ", ".join(f"{name} {describe(volume)}" for name, volume in made.items())
        raise NetworkError(
            f"{label} cannot put its branches behind each other, since heights and widths differ: {found}. "
            "Give their layers the same strides, and padding `same`."
        )
    first = next(iter(made.values()))
    return (sum(volume[0] for volume in made.values()), *first[1:]), parts


@_place.register(Group)
def _group(layer: Group, volume: Volume, classes: int, label: str) -> Placed:
    steps = chain(layer.layers, volume, classes, f"{label}, ")
    return leaving(steps, volume), (steps,)


@_place.register(Repeat)
def _repeat(layer: Repeat, volume: Volume, classes: int, label: str) -> Placed:
    parts = []
    for _ in range(layer.times):
        parts.append(chain(layer.layers, volume, classes, f"{label}, "))
        volume = leaving(parts[-1], volume)
    return volume, tuple(parts)


@_place.register(Auxiliary)
def _auxiliary(layer: Auxiliary, volume: Volume, classes: int, label: str) -> Placed:
    head = chain(layer.layers, volume, classes, f"{label}, ")
    made = leaving(head, volume)
    if made != (classes,):
        raise NetworkError(
            f"{label} ends in {describe(made)}, not in one number for each of the {classes} classes. "
            "Let its last layers be `- flatten` and `- dense: classes`."
        )
    return volume, (head,)


def _deep(volume: Volume, label: str) -> Image:
    """Take channels, height and width of a volume, refusing a flat row."""
    if len(volume) != 3:
        raise NetworkError(
            f"{label} needs a volume, but {describe(volume)} arrives. Put it before `- flatten`."
        )
    return volume[0], volume[1], volume[2]
