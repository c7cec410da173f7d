"""A network as a table: what each layer computes, sees and costs, measured by one training step on the meta device.

The meta device computes shapes without numbers, so nothing is allocated. N images, H height, W width, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import ceil, prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convoy.core import console
from convoy.models import layer_types
from convoy.models.build import Padded, assemble
from convoy.models.layer_types import ACTIVATIONS, pair
from convoy.models.shapes import Step, infer, padding
from convoy.models.spec import Spec

Sides = tuple[int, int]
Margins = tuple[Sides, Sides]
Summed = Literal["parameters", "macs", "activation_bytes"]

FLOAT = 4  # bytes of a float32
BYTES_PER_PARAMETER = 3 * FLOAT  # in training with SGD: the weight, its gradient, its momentum

COMBINING = {"add", "concat", "multiply"}
"""Operations of units that compute a volume from those of the layers inside."""

OPERATIONS = {
    **{class_name: word for word, (class_name, _) in ACTIVATIONS.items()},
    "Conv2d": "conv",
    "BatchNorm2d": "norm",
    "MaxPool2d": "max_pool",
    "AvgPool2d": "avg_pool",
    "AdaptiveAvgPool2d": "adaptive_avg_pool",
    "AdaptiveMaxPool2d": "adaptive_max_pool",
    "Dropout": "dropout",
    "Flatten": "flatten",
    "Linear": "dense",
}
"""Words of the spec grammar for torch's classes; other modules of torchvision's go by their class."""


@dataclass(frozen=True)
class Row:
    """A layer, or a unit with the layers inside it.

    Attributes:
        name: of the torch module, such as residual1.body.conv1.
        operation: the spec's word; `add` and `concat` for residuals and branches.
        output: height, width and channels; a flat row of C numbers is (1, 1, C).
        parameters: its own, without those of `parts`; likewise `macs` and `activation_bytes`.
        macs: multiply-accumulate operations per image, of convolutions and matrix products.
        activation_bytes: of its output, per image in float32; 0 where it returns its input.
        receptive_field: height and width in pixels; None: the whole image, or unknown.
        padding: pixels (above, below), (left, right).
        computes: whether it has an operation of its own; a group only holds others.
    """

    name: str
    operation: str
    output: tuple[int, int, int]
    parameters: int = 0
    macs: int = 0
    activation_bytes: int = 0
    kernel: Sides | None = None
    stride: Sides | None = None
    padding: Margins | None = None
    dilation: Sides | None = None
    groups: int | None = None
    receptive_field: Sides | None = None
    auxiliary: bool = False
    computes: bool = True
    parts: tuple["Row", ...] = ()

    def walk(self) -> Iterator["Row"]:
        """Iterate over the rows that compute, in the order of the computation."""
        for part in self.parts:
            yield from part.walk()
        if self.computes:
            yield self

    def total(self, what: Summed) -> int:
        """Sum its own value and those of the layers inside it."""
        return sum(getattr(row, what) for row in self.walk())


@dataclass(frozen=True)
class Table:
    """A network's rows and sums.

    Attributes:
        saved_bytes: what a training step saves per image for backward, in float32.
    """

    name: str
    image_px: int
    classes: int
    rows: tuple[Row, ...]
    saved_bytes: int

    @cached_property
    def layers(self) -> tuple[Row, ...]:
        """List the rows that compute, in the order of the computation."""
        return tuple(layer for row in self.rows for layer in row.walk())

    def total(self, what: Summed, *, auxiliary: bool = False) -> int:
        """Sum over the network that is served, or over its auxiliary heads."""
        return sum(getattr(row, what) for row in self.layers if row.auxiliary == auxiliary)

    def training_memory_bytes(self, batch_size: int) -> int:
        """Estimate the memory of a step of SGD with momentum in float32: weights, and tensors saved for backward."""
        weights = sum(row.parameters for row in self.layers)
        return BYTES_PER_PARAMETER * weights + batch_size * self.saved_bytes


def tabulate(spec: Spec, classes: int, image_px: int) -> Table:
    """List a network's layers with shapes and costs.

    A classifier of torchvision's or timm's is listed by its innermost modules. Modules whose code reads weights of others, such
    as attention, have a row with everything inside. A module that is called again has another row, without its
    parameters. Operations between modules, such as the sum of a residual block, have no row.

    Raises:
        NetworkError: the images are too small, or layers do not fit each other.
    """
    network = assemble(spec, classes, image_px, auxiliary=True)
    units: dict[str, _Unit] = {}
    if spec.classifier is None:
        _describe(infer(spec, classes, image_px), "", (Axis(), Axis()), units)
        modules = {name: network.get_submodule(name) for name in units}
    else:
        modules = {
            name: module
            for name, module in network.named_modules()
            if name and not isinstance(module, nn.Identity)
        }
    calls, macs, saved = _train_one_step(network, modules, image_px)
    parameters = {
        name: sum(value.numel() for value in module.parameters()) for name, module in modules.items()
    }
    seen: set[str] = set()
    rows = tuple(_row(call, (parameters, macs), units, seen) for call in calls)
    return Table(spec.name, image_px, classes, (*_loose(network, rows), *rows), saved)


@dataclass(frozen=True)
class Axis:
    """The receptive field along height or width: the pixels that output 0 depends on, and the step to those of output 1.

    Pixels count from the edge of the image, negative in the padding; adaptive pooling makes fractions. The recursion
    is that of Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks" (2019).
    """

    start: Fraction = Fraction(0)
    end: Fraction = Fraction(0)
    jump: Fraction = Fraction(1)

    @property
    def length(self) -> int:
        """Count the pixels from the first to the last, padding included."""
        return ceil(self.end - self.start) + 1

    def slide(self, reach: int, stride: Fraction | int, before: int) -> "Axis":
        """Pass through a window, `reach` pixels from its first to its last, with padding before the image."""
        start, end = self.start - before * self.jump, self.end + (reach - before) * self.jump
        return Axis(start, end, self.jump * stride)


Field = tuple[Axis, Axis] | None
"""Height and width; None: every value may depend on the whole image."""


class _Unit(NamedTuple):
    """Properties of a spec's module that the module itself does not have."""

    operation: str
    field: Field
    auxiliary: bool


def _describe(
    steps: tuple[Step, ...], prefix: str, field: Field, units: dict[str, _Unit], *, auxiliary: bool = False
) -> Field:
    """Collect the units of a chain by module name, given the field of its input; return that of its output."""
    for step in steps:
        layer, name = step.layer, f"{prefix}{step.name}"
        if isinstance(layer, layer_types.Residual | layer_types.Branches):
            operation = "concat" if isinstance(layer, layer_types.Branches) else "add"
            names = tuple(layer.branches) if isinstance(layer, layer_types.Branches) else layer.bodies
            parts = zip(names, step.parts, strict=True)
            seen = _widest(
                [_describe(part, f"{name}.{own}.", field, units, auxiliary=auxiliary) for own, part in parts]
            )
        elif isinstance(layer, layer_types.Repeat):
            operation, seen = "repeat", field
            for number, part in enumerate(step.parts):
                seen = _describe(part, f"{name}.{number}.", seen, units, auxiliary=auxiliary)
                units[f"{name}.{number}"] = _Unit("group", seen, auxiliary)
        elif isinstance(layer, layer_types.Multiply):
            gate = _describe(step.parts[0], f"{name}.", field, units, auxiliary=auxiliary)
            operation, seen = layer.word, _widest([field, gate])
        elif isinstance(layer, layer_types.Group):
            operation = layer.block or "group"
            seen = _describe(step.parts[0], f"{name}.", field, units, auxiliary=auxiliary)
        elif isinstance(layer, layer_types.Auxiliary):
            operation = layer.word
            head = _describe(step.parts[0], f"{name}.", field, units, auxiliary=True)
            units[name] = _Unit(operation, head, auxiliary=True)
            continue  # the next layer gets the head's input
        else:
            operation, seen = layer.word, _through(step, field)
        units[name] = _Unit(operation, seen, auxiliary)
        field = seen
    return field


@dataclass
class _Call:
    """A call of a module, and the calls inside it."""

    name: str
    module: nn.Module
    output: tuple[int, int, int] = (0, 0, 0)
    activation_bytes: int = 0
    calls: list["_Call"] = field(default_factory=list)


def _train_one_step(
    network: nn.Module, modules: dict[str, nn.Module], image_px: int
) -> tuple[list[_Call], dict[str, int], int]:
    """Run the forward pass of a training step on one image.

    Returns:
        The calls, MACs per image by module (those inside it included), and the bytes per image that autograd
        saves: every tensor once, without parameters, buffers and the two numbers per channel of a norm.
    """
    root = _Call("", network)
    open_calls = [root]
    saved: dict[int, torch.UntypedStorage] = {}
    channels_last = False

    def enter(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        call = _Call(names[module], module)
        open_calls[-1].calls.append(call)
        open_calls.append(call)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as modules return)
        nonlocal channels_last
        call = open_calls.pop()
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.dim() > 2:
            channels_last = _channels_last(module, before=channels_last)
        call.output = _sides(tuple(tensor.shape[1:]), channels_last=channels_last)
        given = {_storage(value) for value in inputs if isinstance(value, Tensor)}
        overwrites = getattr(module, "inplace", False)  # counted as its own output, as elsewhere
        new = overwrites or _storage(tensor) not in given
        call.activation_bytes = new * FLOAT * prod(tensor.shape[1:])

    def save(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1:
            saved[_storage(tensor)] = tensor.untyped_storage()  # held, so that its identity is not used again
        return tensor

    names = {module: name for name, module in modules.items()}
    for module in names:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    counter = FlopCounterMode(display=False)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # in training it refuses one value per channel; it saves the same tensors
    image = torch.empty((1, 3, image_px, image_px), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), counter:
        output = network(image)
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    saved_bytes = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    del output  # holds the graph, and with it the saved tensors, until here
    flops, prefix = counter.get_flop_counts(), type(network).__name__
    macs = {name: sum(flops.get(f"{prefix}.{name}", {}).values()) // 2 for name in modules}
    return root.calls, macs, saved_bytes


def _row(call: _Call, totals: tuple[dict[str, int], ...], units: dict[str, _Unit], seen: set[str]) -> Row:
    """Make the row of a call; costs go to the innermost module called that has them, at its first call."""
    inside = {inner.name for inner in call.calls}
    parameters, macs = (
        0 if call.name in seen else costs[call.name] - sum(costs[name] for name in inside) for costs in totals
    )
    seen.add(call.name)
    parts = tuple(_row(inner, totals, units, seen) for inner in call.calls)
    kind = type(call.module).__name__
    unit = units.get(call.name) or _Unit(OPERATIONS.get(kind, kind), None, auxiliary=False)
    combines = unit.operation in COMBINING
    return Row(
        call.name,
        unit.operation,
        call.output,
        parameters,
        macs,
        activation_bytes=call.activation_bytes if combines or not parts else 0,
        receptive_field=unit.field and (unit.field[0].length, unit.field[1].length),
        auxiliary=unit.auxiliary,
        computes=combines or not parts or parameters + macs > 0,
        parts=parts,
        **_window(call.module),
    )


def _loose(network: nn.Module, rows: Iterable[Row]) -> Iterator[Row]:
    """Make a row for every parameter that no listed module holds."""
    held = {name for row in rows for name, _ in network.get_submodule(row.name).named_parameters(row.name)}
    for name, value in network.named_parameters():
        if name not in held:
            output = _sides(tuple(value.shape), channels_last=True)
            yield Row(name, "parameter", output, value.numel())


def _window(module: nn.Module) -> dict[str, Any]:
    """Read kernel, stride and padding off a convolution or a pooling layer."""
    margins: Margins | None = None
    if isinstance(module, Padded):
        left, right, top, bottom = module.padding.padding  # type: ignore[misc]  # four ints, of torch's padding layers
        margins, module = ((top, bottom), (left, right)), module.conv
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return {}
    vertical, horizontal = pair(module.padding)  # type: ignore[arg-type]  # no build uses torch's "same"
    window: dict[str, Any] = {
        "kernel": pair(module.kernel_size),
        "stride": pair(module.stride),
        "padding": margins or ((vertical, vertical), (horizontal, horizontal)),
    }
    if isinstance(module, nn.Conv2d):
        window |= {"dilation": pair(module.dilation), "groups": module.groups}
    return window


def _channels_last(module: nn.Module, *, before: bool) -> bool:
    """Return whether a module's output has its channels last, as in transformers; most modules keep the order."""
    kind = type(module).__name__
    if kind in {"Linear", "LayerNorm", "WindowPartition"}:
        return True
    if kind == "Permute":
        return list(module.dims) == [0, 2, 3, 1]  # type: ignore[arg-type]  # torchvision's, a list of four
    return before and kind not in {"Conv2d", "BatchNorm2d", "WindowDepartition"}


def _sides(shape: tuple[int, ...], *, channels_last: bool) -> tuple[int, int, int]:
    """Return (H, W, C) of an output without its batch; a sequence of L tokens is (1, L, C)."""
    if len(shape) == 3 and not channels_last:
        return shape[1], shape[2], shape[0]
    height, width, channels = (1, 1, 1, *shape)[-3:]
    return height, width, channels


def _storage(tensor: Tensor) -> int:
    """Identify the memory behind a tensor, which views share."""
    return id(
        tensor.untyped_storage()
    )  # meta tensors have no address; torch keeps one object per living storage


def _through(step: Step, field: Field) -> Field:
    """Return the field of a plain layer's output from that of its input; most layers do not change it."""
    layer = step.layer.conv() if isinstance(step.layer, layer_types.Whiten) else step.layer
    whole_image = (layer_types.Flatten, layer_types.Dense, layer_types.GlobalAvgPool)
    if field is None or isinstance(layer, whole_image):
        return None
    windows: Iterable[tuple[int, Fraction | int, int]]
    if isinstance(layer, layer_types.Conv):
        reaches = [
            d * (kernel - 1) for d, kernel in zip(pair(layer.dilation), pair(layer.kernel), strict=True)
        ]
        before = [first for first, _ in padding(layer, step.input[1:])]
        windows = zip(reaches, pair(layer.stride), before, strict=True)
    elif isinstance(layer, layer_types.Pool):
        reaches = [kernel - 1 for kernel in pair(layer.kernel)]
        strides = pair(layer.kernel if layer.stride is None else layer.stride)
        windows = zip(reaches, strides, pair(layer.padding), strict=True)
    elif isinstance(layer, layer_types.AdaptivePool):
        if pair(layer.side) == (1, 1):
            return None
        windows = [_adaptive(*sides) for sides in zip(step.input[1:], pair(layer.side), strict=True)]
    else:
        return field
    height, width = (axis.slide(*window) for axis, window in zip(field, windows, strict=True))
    return height, width


def _adaptive(given: int, side: int) -> tuple[int, Fraction, int]:
    """Return the longest window: they differ by a pixel where `side` does not divide the input's."""
    longest = max(-(-(n + 1) * given // side) - n * given // side for n in range(side))
    return longest - 1, Fraction(given, side), 0


def _widest(fields: list[Field]) -> Field:
    """Return the field of a sum or a concatenation: from the first pixel of any part to the last of any."""
    known = [field for field in fields if field is not None]
    if len(known) < len(fields):
        return None
    height, width = (
        Axis(
            min(axis.start for axis in axes), max(axis.end for axis in axes), max(axis.jump for axis in axes)
        )
        for axes in zip(*known, strict=True)
    )
    return height, width


COLUMNS = ("layer", "operation", "kernel", "stride", "pad", "output", "params", "MACs", "memory", "sees")
UNITS = ("B", "KiB", "MiB", "GiB")


def lines(table: Table, batch_size: int, *, units: bool) -> list[str]:
    """Format a table as text: a line per layer, indented below the unit that holds it, then sums and a legend.

    `batch_size` counts the images of a training step, whose memory is estimated; `units` leaves out the layers inside.
    """
    # The receptive fields of torchvision's networks are unknown.
    columns = len(COLUMNS) if any(row.receptive_field for row in table.layers) else len(COLUMNS) - 1
    cells = [_cells(*row)[:columns] for row in _visible(table.rows, units=units)]
    header, *body = console.table(COLUMNS[:columns], cells, right=range(2, columns)).splitlines()
    rule = "─" * max(map(len, (header, *body)))
    legend = [
        "MACs: multiply-accumulate operations, of convolutions and matrix products only.",
        "memory: output of a layer, per image in float32; blank where it returns its input.",
    ]
    if columns == len(COLUMNS):
        legend.append("sees: receptive field in pixels, beyond the image's edge too; all: the whole image.")
    if any(row.parts for row in table.rows):
        legend.append("Σ: parameters, MACs and memory are sums over the layers inside.")
    return [header, rule, *body, rule, *_sums(table, batch_size), "", *legend]


def as_json(table: Table, batch_size: int) -> dict[str, Any]:
    """Return the table as plain data: `layers` holds what computes, in order; a flat row is [1, 1, N]."""
    keys = (
        *("name", "operation", "kernel", "stride", "padding", "dilation", "groups", "output", "parameters"),
        *("macs", "receptive_field", "activation_bytes", "auxiliary"),
    )
    return {
        "name": table.name,
        "image_px": table.image_px,
        "classes": table.classes,
        "parameters": table.total("parameters"),
        "auxiliary_parameters": table.total("parameters", auxiliary=True),
        "macs": table.total("macs"),
        "auxiliary_macs": table.total("macs", auxiliary=True),
        "activation_bytes": table.total("activation_bytes"),
        "kept_bytes_per_image": table.saved_bytes,
        "batch_size": batch_size,
        "training_memory_bytes": table.training_memory_bytes(batch_size),
        "layers": [{key: getattr(row, key) for key in keys} for row in table.layers],
    }


def amount(size: int) -> str:
    """Format bytes to three digits."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if value >= 100 or unit == 0 else 1
    return f"{value:,.{digits}f} {UNITS[unit]}"


def _visible(
    rows: tuple[Row, ...], *, units: bool, depth: int = 0, within: str = ""
) -> Iterator[tuple[Row, int, str]]:
    """List the rows to print, each with its depth and its name within the unit above."""
    for outer in rows:
        # A unit that only holds another unit shares its line.
        inner = outer.parts[0] if len(outer.parts) == 1 and not (units or outer.auxiliary or depth) else outer
        row = inner if inner.parts and not outer.computes else outer
        yield row, depth, row.name.removeprefix(within)
        if not units:
            yield from _visible(row.parts, units=units, depth=depth + 1, within=f"{row.name}.")


def _cells(row: Row, depth: int, label: str) -> tuple[str, ...]:
    parameters, macs, memory = (row.total(what) for what in ("parameters", "macs", "activation_bytes"))
    operation = [f"Σ {row.operation}" if row.parts else row.operation]
    if row.groups not in {None, 1}:
        operation.append(f"groups {row.groups}")
    if row.dilation not in {None, (1, 1)}:
        operation.append(f"dilation {_short(row.dilation)}")
    # One number for equal margins, else before+after.
    pads = [str(first) if first == last else f"{first}+{last}" for first, last in row.padding or ()]
    return (
        f"{'  ' * depth}{label}",
        ", ".join(operation),
        _short(row.kernel),
        _short(row.stride),
        _short(pads),
        "×".join(map(str, row.output)),
        f"{parameters:,}" if parameters else "",
        f"{macs:,}" if macs else "",
        amount(memory) if memory else "",
        _short(row.receptive_field) or "all",
    )


def _short(sides: Sequence[object] | None) -> str:
    """Format height and width as one number where they are equal, as height×width elsewhere."""
    return "×".join(dict.fromkeys(map(str, sides or ())))


def _sums(table: Table, batch_size: int) -> list[str]:
    weights, saved = table.training_memory_bytes(0), batch_size * table.saved_bytes
    parameters, macs = (table.total(what) for what in ("parameters", "macs"))
    head_parameters, head_macs = (table.total(what, auxiliary=True) for what in ("parameters", "macs"))
    note = macs_note = ""
    if head_parameters:
        note = f" ({parameters + head_parameters:,} in training, with the auxiliary heads)"
        macs_note = f" ({macs + head_macs:,} in training)"
    return [
        f"parameters  {parameters:,}{note}",
        f"MACs        {macs:,} per image{macs_note}",
        f"memory      {amount(table.total('activation_bytes'))} per image, if nothing were freed",
        f"training    about {amount(weights + saved)} with {batch_size} images per step:",
        f"            {amount(weights)} for weights, gradients and momentum; {amount(saved)} saved for backward",
        "            (estimated for SGD in float32; the workspace of single operations comes on top)",
    ]
