"""A network's table as lines for people and as JSON for programs."""

from collections.abc import Iterator
from typing import Any

from convoy.explain.rows import Margins, Row, Sides, Table

COLUMNS = {
    "layer": "<",
    "operation": "  <",
    "kernel": "  >",
    "stride": " >",
    "pad": " >",
    "output": "  >",
    "parameters": "  >",
    "MACs": "  >",
    "memory": "  >",
    "sees": "  >",
}
"""Headings; the gap before each column, where deep networks just fit into 120; words left, numbers right."""
UNITS = ("B", "KiB", "MiB", "GiB")


def lines(table: Table, batch_size: int, *, units: bool) -> list[str]:
    """Lay the table out as plain text, one line per layer, indented below the unit that holds it.

    Args:
        table: what to print.
        batch_size: images per training step, for the estimate of its memory.
        units: whether to leave out what units hold inside.
    """
    # torchvision's networks have no receptive fields here, and so no column of them.
    columns = len(COLUMNS) - (not any(row.receptive_field for row in table.layers))
    cells = [tuple(COLUMNS), *(_cells(*row) for row in _visible(table.rows, units=units))]
    widths = [max(len(line[column]) for line in cells) for column in range(columns)]
    laid_out = [_lay_out(line, widths) for line in cells]
    rule = "─" * max(map(len, laid_out))
    legend = _legend(table, fields=columns == len(COLUMNS))
    return [laid_out[0], rule, *laid_out[1:], rule, *_sums(table, batch_size), "", *legend]


def facts(table: Table, batch_size: int) -> dict[str, Any]:
    """Give the table as JSON takes it: `layers` holds what computes, in order; a flat row is [1, 1, N]."""
    return {
        "name": table.name,
        "image_px": table.image_px,
        "classes": table.classes,
        "parameters": table.parameters,
        "auxiliary_parameters": table.auxiliary_parameters,
        "macs": table.macs,
        "auxiliary_macs": table.auxiliary_macs,
        "activation_bytes": table.activation_bytes,
        "kept_bytes_per_image": table.kept_bytes,
        "batch_size": batch_size,
        "training_memory_bytes": table.training_memory_bytes(batch_size),
        "layers": [_json(row) for row in table.layers],
    }


def amount(size: int) -> str:
    """Write bytes to three digits."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if value >= 100 or unit == 0 else 1
    return f"{value:,.{digits}f} {UNITS[unit]}"


def _json(row: Row) -> dict[str, Any]:
    keys = (
        *("name", "operation", "kernel", "stride", "padding", "dilation", "groups", "output", "parameters"),
        *("macs", "receptive_field", "activation_bytes", "auxiliary"),
    )
    return {key: getattr(row, key) for key in keys}


def _visible(
    rows: tuple[Row, ...], *, units: bool, depth: int = 0, within: str = ""
) -> Iterator[tuple[Row, int, str]]:
    """List what is printed: each row, how deep it stands, and its name within the unit above."""
    for outer in rows:
        # A unit that holds one other and nothing else is one line with it.
        inner = outer.parts[0] if len(outer.parts) == 1 and not (units or outer.auxiliary or depth) else outer
        row = inner if inner.parts and not outer.computes else outer
        yield row, depth, row.name.removeprefix(within)
        if not units:
            yield from _visible(row.parts, units=units, depth=depth + 1, within=f"{row.name}.")


def _cells(row: Row, depth: int, label: str) -> tuple[str, ...]:
    height, width, channels = row.output
    parameters, macs, made = (row.total(what) for what in ("parameters", "macs", "activation_bytes"))
    return (
        f"{'  ' * depth}{label}",
        _operation(row),
        _sides(row.kernel),
        _sides(row.stride),
        _margins(row.padding),
        f"{height}×{width}×{channels}",
        f"{parameters:,}" if parameters else "",
        f"{macs:,}" if macs else "",
        amount(made) if made else "",
        _sides(row.receptive_field) or "all",
    )


def _lay_out(line: tuple[str, ...], widths: list[int]) -> str:
    """Put as many cells beside each other as there are widths."""
    laid_out = (
        f"{how[:-1]}{cell:{how[-1]}{width}}"
        for cell, how, width in zip(line, COLUMNS.values(), widths, strict=False)
    )
    return "".join(laid_out).rstrip()


def _operation(row: Row) -> str:
    words = [f"Σ {row.operation}" if row.parts else row.operation]
    if row.groups not in {None, 1}:
        words.append(f"groups {row.groups}")
    if row.dilation not in {None, (1, 1)}:
        words.append(f"dilation {_sides(row.dilation)}")
    return ", ".join(words)


def _sides(sides: Sides | None) -> str:
    if sides is None:
        return ""
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}×{sides[1]}"


def _margins(padding: Margins | None) -> str:
    """Write one number, height×width, or before+after where those differ."""
    if padding is None:
        return ""
    axes = [str(before) if before == after else f"{before}+{after}" for before, after in padding]
    return axes[0] if axes[0] == axes[1] else "×".join(axes)


def _sums(table: Table, batch_size: int) -> list[str]:
    heads = table.auxiliary_parameters
    weights = table.training_memory_bytes(0)
    of_images = batch_size * table.kept_bytes
    return [
        f"parameters  {table.parameters:,}"
        + (f" ({table.parameters + heads:,} in training, with the auxiliary heads)" if heads else ""),
        f"MACs        {table.macs:,} per image"
        + (f" ({table.macs + table.auxiliary_macs:,} in training)" if heads else ""),
        f"memory      {amount(table.activation_bytes)} per image, if nothing were freed",
        f"training    about {amount(weights + of_images)} with {batch_size} images per step:",
        f"            {amount(weights)} for weights, gradients and momentum; {amount(of_images)} kept for backward",
        "            (an estimate for SGD in float32; the workspace of single operations comes on top)",
    ]


def _legend(table: Table, *, fields: bool) -> list[str]:
    """Explain the columns of this table that do not explain themselves."""
    said = [
        "MACs: multiplications with addition, in convolutions and matrix products alone.",
        "memory: what a layer makes, per image in float32; blank where it hands on what it was given.",
    ]
    if fields:
        said.append("sees: receptive field in pixels, beyond the image's edge too; all: the whole image.")
    if any(row.parts for row in table.rows):
        said.append("Σ: parameters, MACs and memory are the sums over what is inside.")
    return said
