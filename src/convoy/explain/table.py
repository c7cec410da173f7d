"""A network as a table: what each layer makes, sees and costs, by formulas; no torch, no weights.

A volume is (C, H, W) in code and (H, W, C) in a row; F filters, kernels of kh × kw, K classes.
tests/networks/table/test_tabulate.py compares with the modules, run by torch.
"""

from dataclasses import replace
from functools import singledispatch
from math import prod
from typing import Any

from convoy.explain.activation_memory import FLOAT, kept_bytes
from convoy.explain.field import PIXEL, Field, through, widest
from convoy.explain.rows import Row, Sides, Table
from convoy.models import shapes
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
from convoy.models.shapes import Step, Volume, padding
from convoy.models.spec import Spec


def tabulate(spec: Spec, classes: int, image_px: int) -> Table:
    """List what a network does; torch is imported only where the spec names one of torchvision's.

    Raises:
        NetworkError: the images are too small, or layers do not fit each other.
    """
    if spec.torchvision is not None:
        from convoy.explain.torchvision_table import watch  # noqa: PLC0415 (needs torch, which layers do not)

        return watch(spec, classes, image_px)
    steps = shapes.infer(spec, classes, image_px)
    rows, _ = _rows(steps, "", PIXEL)
    return Table(spec.name, image_px, classes, rows, kept_bytes(steps, image_px))


def height_width_channels(volume: Volume) -> tuple[int, int, int]:
    """Turn (C, H, W) into (H, W, C), a flat row (C,) into (1, 1, C)."""
    return (volume[1], volume[2], volume[0]) if len(volume) == 3 else (1, 1, volume[0])


def _rows(steps: tuple[Step, ...], prefix: str, seen: Field) -> tuple[tuple[Row, ...], Field]:
    """Make the rows of a chain; `seen` is the field of what arrives, then of what leaves."""
    rows = []
    for step in steps:
        name = f"{prefix}{step.name}"
        if isinstance(step.layer, Residual | Branches):
            row, seen = _side_by_side(step, name, seen)
        elif isinstance(step.layer, Auxiliary):
            head, _ = _rows(step.parts[0], f"{name}.", seen)
            marked = tuple(_mark(row) for row in head)
            row = _holder(name, "auxiliary", marked, auxiliary=True)
        elif isinstance(step.layer, Group):
            inner, seen = _rows(step.parts[0], f"{name}.", seen)
            row = _holder(name, step.layer.block or "group", inner)
        elif isinstance(step.layer, Repeat):
            times = []
            for number, steps_inside in enumerate(step.parts):
                inner, seen = _rows(steps_inside, f"{name}.{number}.", seen)
                times.append(_holder(f"{name}.{number}", "group", inner))
            row = _holder(name, "repeat", tuple(times))
        else:
            seen = through(step, seen)
            row = _plain(step, name, seen)
        rows.append(row)
    return tuple(rows), seen


def _plain(step: Step, name: str, seen: Field) -> Row:
    row = Row(
        name,
        step.layer.word,
        height_width_channels(step.output),
        activation_bytes=FLOAT * prod(step.output),
        receptive_field=_lengths(seen),
    )
    return replace(row, **_facts(step.layer, step))


def _side_by_side(step: Step, name: str, seen: Field) -> tuple[Row, Field]:
    """Make the row of a sum or a concatenation, which sees what any of its parts sees."""
    layer = step.layer
    names = tuple(layer.branches) if isinstance(layer, Branches) else layer.bodies
    parts: list[Row] = []
    fields = []
    for part, steps in zip(names, step.parts, strict=True):
        rows, after = _rows(steps, f"{name}.{part}.", seen)
        parts += rows
        fields.append(after)
    seen = widest(fields)
    row = Row(
        name,
        "concat" if isinstance(layer, Branches) else "add",
        height_width_channels(step.output),
        activation_bytes=FLOAT * prod(step.output),
        receptive_field=_lengths(seen),
        parts=tuple(parts),
    )
    return row, seen


def _holder(name: str, operation: str, parts: tuple[Row, ...], *, auxiliary: bool = False) -> Row:
    """Make the row of a unit that only holds others; what its last layer makes and sees is its own."""
    last = parts[-1]
    return Row(
        name,
        operation,
        last.output,
        receptive_field=last.receptive_field,
        auxiliary=auxiliary,
        computes=False,
        parts=parts,
    )


def _mark(row: Row) -> Row:
    return replace(row, auxiliary=True, parts=tuple(_mark(part) for part in row.parts))


def _lengths(seen: Field) -> Sides | None:
    return (seen[0].length, seen[1].length) if seen else None


@singledispatch
def _facts(layer: Layer, step: Step) -> dict[str, Any]:
    """Say what a layer costs and how its window stands; one function below per layer class."""
    raise NotImplementedError(f"{type(layer).__name__} at {step.name}")


@_facts.register(Activation)
def _activation(layer: Activation, step: Step) -> dict[str, Any]:  # noqa: ARG001 (as dispatched)
    return {"parameters": 1 if layer.word == "prelu" else 0}


@_facts.register(LocalResponseNorm)
@_facts.register(GlobalAvgPool)
@_facts.register(AdaptivePool)
def _nothing(layer: Layer, step: Step) -> dict[str, Any]:  # noqa: ARG001 (as dispatched)
    return {}


@_facts.register(Dropout)
def _dropout(layer: Dropout, step: Step) -> dict[str, Any]:  # noqa: ARG001 (as dispatched)
    return {} if layer.share else {"activation_bytes": 0}


@_facts.register(Flatten)
def _flatten(layer: Flatten, step: Step) -> dict[str, Any]:  # noqa: ARG001 (as dispatched)
    return {"activation_bytes": 0}  # the same numbers, seen as a row


@_facts.register(Norm)
def _norm(layer: Norm, step: Step) -> dict[str, Any]:  # noqa: ARG001 (as dispatched)
    return {"parameters": 2 * step.input[0]}


@_facts.register(Conv)
def _conv(layer: Conv, step: Step) -> dict[str, Any]:
    channels, *sides = step.input
    weights = layer.filters * channels // layer.groups * prod(pair(layer.kernel))
    return {
        "parameters": weights + layer.filters * layer.bias,
        "macs": weights * prod(step.output[1:]),
        "kernel": pair(layer.kernel),
        "stride": pair(layer.stride),
        "padding": padding(layer, (sides[0], sides[1])),
        "dilation": pair(layer.dilation),
        "groups": layer.groups,
    }


@_facts.register(Pool)
def _pool(layer: Pool, step: Step) -> dict[str, Any]:  # noqa: ARG001 (as dispatched)
    vertical, horizontal = pair(layer.padding)
    return {
        "kernel": pair(layer.kernel),
        "stride": pair(layer.kernel if layer.stride is None else layer.stride),
        "padding": ((vertical, vertical), (horizontal, horizontal)),
    }


@_facts.register(Dense)
def _dense(layer: Dense, step: Step) -> dict[str, Any]:
    weights = step.input[0] * step.output[0]
    return {"parameters": weights + step.output[0] * layer.bias, "macs": weights}
