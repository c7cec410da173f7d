"""Images in rows, in groups with headings, each with a few words below it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convoy.gate.looks import WIDTH, Look

COLUMNS = 6
"""Images in one row."""
SIDE, ROW, HEAD, EDGE = 1.25, 1.85, 0.45, 0.1
"""Of an image, of a row with its words, of a heading, and of the margin, in inches."""
GAP, LINE = 0.055, 0.153
"""Between an image and its words, and from line to line, in inches."""


@dataclass(frozen=True)
class Cell:
    """Show one image with its lines, each in a colour; an image that is None is drawn as a gap."""

    image_u8: npt.NDArray[np.uint8] | None  # (H, W, 3) RGB
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Group:
    """Show images under a heading, of which `total` says how many there are in all."""

    title: str
    color: str
    total: int
    cells: Sequence[Cell]

    @property
    def height(self) -> float:
        """Give the height in inches."""
        return HEAD + ROW * -(-len(self.cells) // COLUMNS)


def draw(groups: Sequence[Group], look: Look) -> Figure | None:
    """Draw groups below each other; None where there are none."""
    if not groups:
        return None
    height = sum(group.height for group in groups)
    figure = Figure(figsize=(WIDTH, height), facecolor=look.paper)
    top = height  # inches above the lower edge
    for group in groups:
        images = "image" if group.total == 1 else "images"
        without_credentials = (
            "" if len(group.cells) == group.total else f", of which {len(group.cells)} are shown"
        )
        heading = f"{group.title}: {group.total:,} {images}{without_credentials}"
        at = (EDGE / WIDTH, (top - EDGE) / height)
        figure.text(*at, heading, color=group.color, fontsize=12, weight="bold", va="top")
        for number, cell in enumerate(group.cells):
            row, column = divmod(number, COLUMNS)
            left, low = EDGE + column * (WIDTH - EDGE) / COLUMNS, top - HEAD - row * ROW - SIDE
            _image(figure.add_axes((left / WIDTH, low / height, SIDE / WIDTH, SIDE / height)), cell, look)
            # Below the square, not below the image: a wide one is less high.
            for line, (text, color) in enumerate(cell.lines):
                at = (left / WIDTH, (low - GAP - line * LINE) / height)
                figure.text(*at, text, color=color, fontsize=7.5, va="top", parse_math=False)
        top -= group.height
    return figure


def _image(place: Axes, cell: Cell, look: Look) -> None:
    place.set_axis_off()
    if cell.image_u8 is None:
        place.text(0.5, 0.5, "no image", color=look.soft, ha="center", va="center", transform=place.transAxes)
    else:
        place.imshow(cell.image_u8, interpolation="nearest")
