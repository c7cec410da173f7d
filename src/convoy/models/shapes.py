"""Infer the volume that every layer of a spec takes and makes, by arithmetic, without torch.

Errors name file and line of the layer, and the smallest image side that works. A volume is (C, H, W) in code and
H×W×C in messages; a flat row is (C,). Shapes equal those of torch's modules: tests/models/test_shapes.py compares
the two on random layers.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from convoy.core.errors import NetworkError
from convoy.models import layer_types
from convoy.models.layer_types import Layer, pair
from convoy.models.spec import Spec

LARGEST_PX = 1024  # largest image side that the search for a working side tries: the limit of `data.image_px`

Volume = tuple[int, ...]


class TooSmallError(Exception):
    """The volume is too small for a layer; callers turn this into a NetworkError with a side that works."""


@dataclass(frozen=True)
class Step:
    """A layer within a network, with its shapes.

    Attributes:
        name: of the module, such as conv1; unique among its siblings.
        layer: of the spec.
        input: the volume that enters.
        output: the volume passed on; for an auxiliary head its unchanged input.
        parts: the chains inside: body and shortcut, each branch, the layers of a group, each
            repetition, those of an auxiliary head; empty for a plain layer.
    """

    name: str
    layer: Layer
    input: Volume
    output: Volume
    parts: tuple[tuple["Step", ...], ...] = ()


def infer(spec: Spec, classes: int, image_px: int) -> tuple[Step, ...]:
    """Infer the shapes of a network made of layers, whose head is K `classes` wide.

    Raises:
        NetworkError: the images are too small, naming the layer, its input and the
            smallest side that works; or layers that do not fit each other at any size.
    """
    image = (3, image_px, image_px)
    try:
        steps = chain(spec.layers, image, classes)
    except TooSmallError as error:
        raise too_small(spec, image_px, error, smallest_px(spec.layers, classes, image_px + 1)) from error
    _check_head(spec.name, _output(steps, image), classes)
    return steps


def smallest_px(layers: tuple[Layer, ...], classes: int, start: int) -> int | None:
    """Find the smallest image side from `start` on, up to LARGEST_PX, that the layers accept.

    Raises:
        NetworkError: no side works, and at the first that is large enough the layers do not fit each other.
    """
    mismatch: NetworkError | None = None
    for side in range(start, LARGEST_PX + 1):
        try:
            chain(layers, (3, side, side), classes)
        except TooSmallError:
            continue
        except NetworkError as error:  # perhaps at this side only: branches may differ at odd sides
            mismatch = mismatch or error
            continue
        return side
    if mismatch:
        raise mismatch
    return None


def too_small(spec: Spec, image_px: int, cause: Exception, works: int | None) -> NetworkError:
    """Make the error about images that are too small, with the remedy."""
    remedy = (
        f"The smallest that works is {works}: set data.image_px to it, or choose another network.name."
        if works
        else f"No side up to {LARGEST_PX} works: correct the layer, or choose another network.name."
    )
    trunk = tuple(layer for layer in spec.layers if not isinstance(layer, layer_types.Auxiliary))
    if len(trunk) < len(spec.layers):
        without_heads = smallest_px(trunk, 2, image_px)
        if without_heads and without_heads != works:
            remedy += (
                f" Without its auxiliary heads {without_heads} works: remove them in a copy of the spec."
            )
    return NetworkError(f"{spec.name} does not take images of {image_px} px: {cause}. {remedy}")


def chain(layers: tuple[Layer, ...], volume: Volume, classes: int, path: str = "") -> tuple[Step, ...]:
    """Infer the shapes of consecutive layers, naming each by its word and its number among its kind.

    `path` leads to the layers in messages.

    Raises:
        TooSmallError: the volume is too small for a layer.
        NetworkError: a layer cannot take such a volume at any size.
    """
    steps: list[Step] = []
    seen: Counter[str] = Counter()
    for number, layer in enumerate(layers, start=1):
        kind = (layer.block or "group") if isinstance(layer, layer_types.Group) else layer.word
        seen[kind] += 1
        name = layer.name or f"{kind}{seen[kind]}"
        label = layer.location or f"{path}layer {number} ({layer.word})"
        if any(step.name == name for step in steps):
            raise NetworkError(f"{label}: another layer in this list is named `{name}`. Rename one of them.")
        output, parts = _RULES[type(layer)](layer, volume, classes, label)
        steps.append(Step(name, layer, volume, output, parts))
        volume = output
    return tuple(steps)


def describe(volume: Volume) -> str:
    """Format a volume as H×W×C, a flat row as its length."""
    if len(volume) == 1:
        return f"a row of {volume[0]}"
    return "×".join(str(side) for side in (*volume[1:], volume[0]))


def padding(layer: layer_types.Conv, sides: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the pixels added (above, below), (left, right) of an input of `sides` (height, width).

    With `same` the output side is ceil(side / stride), the odd pixel at the end: TensorFlow's rule.
    """
    if layer.padding != "same":
        height, width = (0, 0) if layer.padding == "valid" else pair(layer.padding)
        return (height, height), (width, width)
    added = []
    axes = zip(sides, pair(layer.kernel), pair(layer.stride), pair(layer.dilation), strict=True)
    for side, kernel, stride, dilation in axes:
        total = max((-(-side // stride) - 1) * stride + dilation * (kernel - 1) + 1 - side, 0)
        added.append((total // 2, total - total // 2))
    return added[0], added[1]


def _output(steps: tuple[Step, ...], volume: Volume) -> Volume:
    """Return the output of a chain; an empty chain passes its input on."""
    return steps[-1].output if steps else volume


def _check_head(label: str, output: Volume, classes: int) -> None:
    if output != (classes,):
        raise NetworkError(
            f"{label} ends in {describe(output)}, not in one number for each of the {classes} classes. "
            "End it with `- flatten` and `- dense: classes`."
        )


def _deep(volume: Volume, label: str) -> Volume:
    """Refuse a flat row."""
    if len(volume) != 3:
        raise NetworkError(
            f"{label} needs a volume, but its input is {describe(volume)}. Put it before `- flatten`."
        )
    return volume


def _window_misfit(label: str, volume: Volume, reason: str) -> TooSmallError:
    return TooSmallError(f"{label} cannot take the volume {describe(volume)} ({reason})")


_Inferred = tuple[Volume, tuple[tuple[Step, ...], ...]]
"""A layer's output, and the chains inside it."""


def _activation(layer: layer_types.Activation, volume: Volume, _classes: int, label: str) -> _Inferred:
    if layer.word == "softmax2d":
        _deep(volume, label)
    if layer.word != "glu":
        return volume, ()
    if volume[0] % 2:
        raise NetworkError(
            f"{label} halves the channels and needs an even number, but its input is {describe(volume)}."
        )
    return (volume[0] // 2, *volume[1:]), ()


def _conv(layer: layer_types.Conv, volume: Volume, _classes: int, label: str) -> _Inferred:
    channels, *sides = _deep(volume, label)
    if channels % layer.groups or layer.filters % layer.groups:
        raise NetworkError(
            f"{label}: groups {layer.groups} must divide the {channels} input channels and the {layer.filters} filters"
        )
    output = []
    added = padding(layer, tuple(sides))
    axes = zip(sides, pair(layer.kernel), pair(layer.stride), pair(layer.dilation), added, strict=True)
    for side, kernel, stride, dilation, (before, after) in axes:
        reach = dilation * (kernel - 1) + 1
        widest = max(before, after)
        if layer.padding_mode == "reflect" and widest >= side:
            raise _window_misfit(label, volume, f"a reflection of {widest} pixels needs a longer side")
        if layer.padding_mode == "circular" and widest > side:
            raise _window_misfit(label, volume, f"circular padding of {widest} pixels needs a side as long")
        room = side + before + after
        if room < reach:
            raise _window_misfit(label, volume, f"a window of {reach} pixels does not fit into {room}")
        output.append((room - reach) // stride + 1)
    return (layer.filters, *output), ()


def _pool(layer: layer_types.Pool, volume: Volume, _classes: int, label: str) -> _Inferred:
    channels, *sides = _deep(volume, label)
    output = []
    strides = pair(layer.kernel if layer.stride is None else layer.stride)
    for side, kernel, stride, margin in zip(
        sides, pair(layer.kernel), strides, pair(layer.padding), strict=True
    ):
        room = side + 2 * margin - kernel
        if room < 0 and not (layer.ceil and room > -stride):
            reason = f"a window of {kernel} pixels does not fit into {side + 2 * margin}"
            raise _window_misfit(label, volume, reason)
        count = (-(-room // stride) if layer.ceil else room // stride) + 1
        if layer.ceil and (count - 1) * stride >= side + margin:
            count -= 1  # torch drops a last window that would start in the padding behind the image
        output.append(count)
    return (channels, *output), ()


def _dense(layer: layer_types.Dense, volume: Volume, classes: int, label: str) -> _Inferred:
    if len(volume) != 1:
        raise NetworkError(
            f"{label} needs a flat row, but its input is the volume {describe(volume)}. Put `- flatten` before it."
        )
    return (classes if layer.units == "classes" else layer.units,), ()


def _residual(layer: layer_types.Residual, volume: Volume, classes: int, label: str) -> _Inferred:
    body = chain(layer.body, volume, classes, f"{label}, body ")
    shortcut = chain(layer.shortcut, volume, classes, f"{label}, shortcut ")
    output, passed = _output(body, volume), _output(shortcut, volume)
    if output != passed:
        raise NetworkError(
            f"{label} cannot add {describe(passed)} to the {describe(output)} of its body. "
            f"Add a `shortcut` whose output is {describe(output)}, such as a conv with kernel 1."
        )
    return output, (body, shortcut)


def _group_norm(layer: layer_types.GroupNorm, volume: Volume, _classes: int, label: str) -> _Inferred:
    channels = _deep(volume, label)[0]
    if channels % layer.groups:
        fitting = ", ".join(str(count) for count in range(1, channels + 1) if channels % count == 0)
        raise NetworkError(
            f"{label}: groups {layer.groups} must divide the {channels} input channels. Groups that do: {fitting}"
        )
    if prod(volume) == layer.groups:
        raise _window_misfit(label, volume, "each group has a single number, which a norm makes 0")
    return volume, ()


def _multiply(layer: layer_types.Multiply, volume: Volume, classes: int, label: str) -> _Inferred:
    steps = chain(layer.layers, volume, classes, f"{label}, ")
    output = _output(steps, volume)
    wide = (*output, 1, 1) if len(output) < len(volume) else output  # a row of C numbers stands for 1×1×C
    if len(wide) != len(volume) or any(own not in {1, side} for own, side in zip(wide, volume, strict=True)):
        gate = describe((volume[0], 1, 1)) if len(volume) == 3 else describe(volume)
        raise NetworkError(
            f"{label} cannot multiply its input, {describe(volume)}, by {describe(output)}. "
            f"Its layers must end in {' or '.join(dict.fromkeys((gate, describe(volume))))}."
        )
    return volume, (steps,)


def _branches(layer: layer_types.Branches, volume: Volume, classes: int, label: str) -> _Inferred:
    _deep(volume, label)
    parts = tuple(
        chain(layers, volume, classes, f"{label}, {name} ") for name, layers in layer.branches.items()
    )
    outputs = [_output(part, volume) for part in parts]
    if len({(len(output), *output[1:]) for output in outputs}) > 1:
        shapes = ", ".join(
            f"{name} {describe(output)}" for name, output in zip(layer.branches, outputs, strict=True)
        )
        raise NetworkError(
            f"{label} cannot concatenate branches of different height or width: {shapes}. "
            "Use the same strides in each, and padding `same`."
        )
    return (sum(output[0] for output in outputs), *outputs[0][1:]), parts


def _group(layer: layer_types.Group, volume: Volume, classes: int, label: str) -> _Inferred:
    steps = chain(layer.layers, volume, classes, f"{label}, ")
    return _output(steps, volume), (steps,)


def _repeat(layer: layer_types.Repeat, volume: Volume, classes: int, label: str) -> _Inferred:
    parts = []
    for _ in range(layer.times):
        parts.append(chain(layer.layers, volume, classes, f"{label}, "))
        volume = _output(parts[-1], volume)
    return volume, tuple(parts)


def _auxiliary(layer: layer_types.Auxiliary, volume: Volume, classes: int, label: str) -> _Inferred:
    head = chain(layer.layers, volume, classes, f"{label}, ")
    _check_head(label, _output(head, volume), classes)
    return volume, (head,)


_RULES: dict[type[Layer], Callable[[Any, Volume, int, str], _Inferred]] = {
    layer_types.Activation: _activation,
    layer_types.Norm: lambda _layer, volume, _classes, label: (_deep(volume, label), ()),
    layer_types.LocalResponseNorm: lambda _layer, volume, _classes, label: (_deep(volume, label), ()),
    layer_types.GroupNorm: _group_norm,
    layer_types.LayerNorm: lambda _layer, volume, _classes, _label: (volume, ()),
    layer_types.Dropout: lambda _layer, volume, _classes, _label: (volume, ()),
    layer_types.Scale: lambda _layer, volume, _classes, _label: (volume, ()),
    layer_types.Conv: _conv,
    layer_types.Whiten: lambda layer, volume, classes, label: _conv(layer.conv(), volume, classes, label),
    layer_types.Pool: _pool,
    layer_types.AdaptivePool: lambda layer, volume, _classes, label: (
        (_deep(volume, label)[0], *pair(layer.side)),
        (),
    ),
    layer_types.GlobalAvgPool: lambda _layer, volume, _classes, label: ((_deep(volume, label)[0], 1, 1), ()),
    layer_types.Flatten: lambda _layer, volume, _classes, _label: ((prod(volume),), ()),
    layer_types.Dense: _dense,
    layer_types.Residual: _residual,
    layer_types.Multiply: _multiply,
    layer_types.Branches: _branches,
    layer_types.Group: _group,
    layer_types.Repeat: _repeat,
    layer_types.Auxiliary: _auxiliary,
}
