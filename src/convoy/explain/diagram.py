"""Draw a network as its volumes, from the image to the classes.

Each volume is a box: its height upwards, its width into the page, its channels as thickness. Lengths are in inches
and proportional to the square root, so that 224 and 7 pixels, 3 and 2048 channels fit side by side.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from convoy.explain import figures
from convoy.explain.figures import INK, PAPER
from convoy.explain.table import Row, Table
from convoy.models.layer_types import ACTIVATIONS

_NORMS = ("norm", "group_norm", "layer_norm", "local_response_norm", "LayerNorm", "LayerNorm2d")
SHARING = {*ACTIVATIONS, *_NORMS, "dropout", "scale", "flatten", "parameter", "Permute"}
"""Operations that do not change the volume, or only its memory layout: they share the box of their input."""

TALLEST = 2.4
THICKEST = 0.8
THINNEST = 0.05
THICK_CHANNELS = 64  # of the thickest box, at least: an image's three should look thin in a small network too
SLANT = (0.32, 0.22)  # right and up for each unit into the page
LINE = 15.0  # width of a line of boxes; longer networks are broken into lines of about equal length
LETTER, TITLE_LETTER = 0.075, 0.1  # width of a letter of a caption and of the title
GAP, SMALL_GAP = 0.22, 0.07  # space between boxes, and between equal boxes, which share their caption

FAINT = "#5b6673"
COLOURS = {
    "image": "#9aa5b1",
    "conv": "#4c86c6",
    "whiten": "#4c86c6",
    "pool": "#d9824a",
    "dense": "#5a9e6f",
    "unit": "#8a6fb8",
}


@dataclass(frozen=True)
class Box:
    """A volume (H, W, C) and the operation that makes it; equal neighbours share a caption."""

    caption: str
    colour: str
    volume: tuple[int, int, int]
    flat: bool = False


def draw(table: Table, path: Path) -> Path:
    """Draw the network of a table into a PNG or SVG file."""
    drawn = boxes(table)
    scale = _Scale(drawn)
    lines = _lines(drawn, scale)
    tall = [max(scale.height(run[0]) for run in line) for line in lines]
    title = (
        f"{table.name}: {table.image_px}×{table.image_px} RGB to {table.classes} classes, "
        f"{table.total('parameters'):,} parameters, {table.total('macs'):,} MACs"
    )
    width = max(*(sum(map(scale.room, line)) for line in lines), len(title) * TITLE_LETTER) + GAP
    height = sum(tall) + 0.75 * len(lines) + 0.45
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    axes.text(GAP, height - 0.28, title, color=INK, fontsize=11, parse_math=False)
    top = height - 0.45
    for line, room in zip(lines, tall, strict=True):
        _draw_line(axes, line, scale, middle=top - 0.42 - room / 2)
        top -= room + 0.75
    return figures.write(figure, path)


def boxes(table: Table) -> list[Box]:
    """List the volumes from image to classes: a box for each unit that has weights or changes the volume."""
    listed = [Box("image", "image", (table.image_px, table.image_px, 3))]
    flat = False
    for unit in _units(table.rows):
        row = _essence(unit)
        flat = flat or row.operation in {"flatten", "dense"}
        changes = row.output != listed[-1].volume or row.total("parameters") > 0
        if row.operation not in SHARING and changes:
            listed.append(Box(_caption(row), _colour(row), row.output, flat and row.output[:2] == (1, 1)))
    return listed


def _units(rows: tuple[Row, ...]) -> Iterator[Row]:
    """Expand stages that only hold units; leave out auxiliary heads."""
    for row in rows:
        stage = row.operation in {"group", "repeat"} and all(part.parts for part in row.parts)
        if stage or row.operation == "Sequential":
            yield from _units(row.parts)
        elif not row.auxiliary:
            yield row


def _essence(row: Row) -> Row:
    """Return the only layer of a unit with a box of its own, else the unit."""
    leading = [layer for layer in row.walk() if layer.operation not in SHARING]
    return leading[0] if len(leading) == 1 else row


def _caption(row: Row) -> str:
    words = {"add": "residual", "concat": "inception"}.get(row.operation, row.operation.replace("_", " "))
    return words if row.kernel is None else f"{words}\n{row.kernel[0]}×{row.kernel[1]}"


def _colour(row: Row) -> str:
    if row.parts:
        return "unit"
    return next(
        (kind for kind in ("pool", "dense", "conv", "whiten") if kind in row.operation.lower()), "unit"
    )


class _Scale:
    """Convert volumes to inches."""

    def __init__(self, drawn: list[Box]) -> None:
        self.side = max(max(box.volume[:2]) for box in drawn)
        self.depth = max(THICK_CHANNELS, *(box.volume[2] for box in drawn if not box.flat))
        self.row = max((box.volume[2] for box in drawn if box.flat), default=1)

    def size(self, box: Box) -> tuple[float, float, float]:
        """Return thickness, height and length into the page; a flat row is a thin bar whose height shows its length."""
        height, width, channels = box.volume
        if box.flat:
            return THINNEST, max(TALLEST * 0.6 * math.sqrt(channels / self.row), 3 * THINNEST), THINNEST
        thickness = max(THICKEST * math.sqrt(channels / self.depth), THINNEST)
        tall, deep = (max(TALLEST * math.sqrt(side / self.side), THINNEST) for side in (height, width))
        return thickness, tall, deep

    def height(self, box: Box) -> float:
        """Return the height of the drawing of a box, with its top face."""
        _, tall, deep = self.size(box)
        return tall + deep * SLANT[1]

    def extent(self, run: list[Box]) -> float:
        """Return the width of a run of equal boxes."""
        thickness, _, deep = self.size(run[0])
        return len(run) * thickness + (len(run) - 1) * SMALL_GAP + deep * SLANT[0]

    def room(self, run: list[Box]) -> float:
        """Return the width of a run with its captions, and the gap before the next."""
        words = [*_heading(run).split("\n"), _footing(run[0])]
        return max(self.extent(run), max(map(len, words)) * LETTER) + GAP


def _lines(drawn: list[Box], scale: _Scale) -> list[list[list[Box]]]:
    """Break runs of equal boxes into lines that fit the page."""
    runs = [list(alike) for _, alike in groupby(drawn)]
    whole = sum(map(scale.room, runs))
    lines: list[list[list[Box]]] = [[] for _ in range(math.ceil(whole / LINE))]
    passed = 0.0
    for run in runs:
        middle = passed + scale.room(run) / 2
        lines[int(middle / whole * len(lines))].append(run)
        passed += scale.room(run)
    return [line for line in lines if line]


def _heading(run: list[Box]) -> str:
    times = f"{len(run)} × " if len(run) > 1 else ""
    return times + run[0].caption


def _footing(box: Box) -> str:
    return str(box.volume[2]) if box.flat else "×".join(map(str, box.volume))


def _draw_line(axes: Axes, line: list[list[Box]], scale: _Scale, *, middle: float) -> None:
    """Draw boxes side by side, centred on `middle`."""
    left = GAP
    for run in line:
        room = scale.room(run) - GAP
        x = left + (room - scale.extent(run)) / 2
        size, height = scale.size(run[0]), scale.height(run[0])
        bottom = middle - height / 2
        for index, box in enumerate(run):
            _draw_box(axes, (x + index * (size[0] + SMALL_GAP), bottom), size, COLOURS[box.colour])
        centre = left + room / 2
        words: dict[str, Any] = {"ha": "center", "fontsize": 8, "parse_math": False}
        axes.text(centre, bottom + height + 0.06, _heading(run), va="bottom", color=INK, **words)
        axes.text(centre, bottom - 0.06, _footing(run[0]), va="top", color=FAINT, **words)
        left += room + GAP


def _draw_box(axes: Axes, corner: tuple[float, float], size: tuple[float, float, float], colour: str) -> None:
    """Draw front, top and right face, lit from above."""
    x, y = corner
    thickness, tall, deep = size
    right, up = deep * SLANT[0], deep * SLANT[1]
    front = [(x, y), (x + thickness, y), (x + thickness, y + tall), (x, y + tall)]
    top = [front[3], front[2], (x + thickness + right, y + tall + up), (x + right, y + tall + up)]
    side = [front[1], (x + thickness + right, y + up), top[2], front[2]]
    for corners, light in ((front, 0.25), (top, 0.55), (side, 0.0)):
        shade = tuple(part + (1 - part) * light for part in to_rgb(colour))
        axes.add_patch(Polygon(corners, closed=True, facecolor=shade, edgecolor="white", linewidth=0.5))
