"""Draw a convolution: image, filter, activation, what ReLU leaves of it and what pooling keeps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convoy.explain import figures
from convoy.explain.convolution import Volume, Worked, largest
from convoy.explain.convolution_input import GivenFilter, GivenImage
from convoy.explain.convolution_text import number, volume

MOST_FILTERS = 4
"""Most filters with a row of their own; the title counts the others."""
PANEL_IN = 2.7
"""Side of one panel, in inches."""
SMALLEST_PT = 5.0
"""Smallest number that is still read, in points; below it a cell stays without one."""
DECIMALS = 2
"""Decimals of a number in a cell, where the text has more."""

INK, PAPER, ACCENT = "#1c2530", "#ffffff", "#d9480f"
SIGNED = "RdBu"  # red below 0, white at 0, blue above


def draw(image: GivenImage, filters: Sequence[GivenFilter], worked: Worked, out: Path) -> None:
    """Draw one row per filter; the window of its largest sum is framed in the image and in the activation.

    Raises:
        RequestError: the file cannot be written.
    """
    without_credentials = min(len(filters), MOST_FILTERS)
    figure = Figure(
        figsize=(5 * PANEL_IN, without_credentials * PANEL_IN + 1.1), facecolor=PAPER, layout="constrained"
    )
    more = (
        f" (the first {without_credentials} of {len(filters)} filters)"
        if without_credentials < len(filters)
        else ""
    )
    figure.suptitle(
        f"convolution with padding {worked.padding} and stride {worked.stride}: "
        f"{volume(image.values)} → {volume(worked.activation)}{more}",
        color=INK,
        fontsize=12,
    )
    figure.supxlabel(
        "framed: the largest sum and its window · red: below 0 · blue: above 0", color=INK, fontsize=10
    )
    grid = figure.add_gridspec(without_credentials, 5)
    for row in range(without_credentials):
        panels = [figure.add_subplot(grid[row, column]) for column in range(5)]
        _draw_image(panels[0], image, worked)
        _draw_filter(panels[1], filters[row], worked.filters[row])
        _draw_maps(panels[2:], worked, row)
        _frame_largest(panels[0], panels[2], worked, row, is_rgb=image.is_rgb)
    figures.write(figure, out)


def _draw_image(axes: Axes, image: GivenImage, worked: Worked) -> None:
    padding = worked.padding
    if image.is_rgb:
        axes.imshow(worked.padded.astype(np.uint8), interpolation="nearest")
    else:
        plane = _beneath(worked.padded)
        span = (np.nanmin(plane), np.nanmax(plane))
        if span[0] < 0:
            _cells(axes, plane, SIGNED, _around_zero(plane))
        else:
            _cells(axes, plane, "gray", Normalize(0, span[1]))
    if padding and (image.is_rgb or worked.padded.shape[2] == 1):
        height, width = image.values.shape[:2]
        inside = (padding - 0.5, padding - 0.5)
        axes.add_patch(
            Rectangle(inside, width, height, fill=False, edgecolor=INK, linestyle=":", linewidth=1.2)
        )
    _title(axes, f"image {volume(image.values)}" + (f", padded by {padding}" if padding else ""))


def _draw_filter(axes: Axes, given: GivenFilter, weights: Volume) -> None:
    plane = _beneath(given.weights)
    _cells(axes, plane, SIGNED, _around_zero(plane))
    _title(axes, f"filter {given.name}, {volume(weights)}")


def _draw_maps(panels: Sequence[Axes], worked: Worked, channel: int) -> None:
    """Draw activation, ReLU and pooling of one filter on one scale, so that colours compare."""
    activation = worked.activation[:, :, channel]
    # A map without a sign, such as a blurred photo, reads best as the image that it is.
    unsigned = activation.min() >= 0
    colours = "gray" if unsigned else SIGNED
    scale = Normalize(0, activation.max()) if unsigned else _around_zero(activation)
    steps = (("activation", worked.activation), ("after ReLU", worked.rectified))
    for axes, (name, values) in zip(panels, steps, strict=False):
        _cells(axes, values[:, :, channel], colours, scale)
        _title(axes, f"{name} {values.shape[0]}×{values.shape[1]}")
    if worked.pooled.size:
        _cells(panels[2], worked.pooled[:, :, channel], colours, scale)
        _title(panels[2], f"2×2 max pooling {worked.pooled.shape[0]}×{worked.pooled.shape[1]}")
    else:
        panels[2].set_axis_off()
        _title(panels[2], "too small to pool 2×2")


def _frame_largest(image: Axes, activation: Axes, worked: Worked, channel: int, *, is_rgb: bool) -> None:
    """Frame the largest sum and the window that it came from."""
    row, column, _ = largest(worked.activation[:, :, channel : channel + 1])
    height, width = worked.filters.shape[1:3]
    planes = 1 if is_rgb else worked.padded.shape[2]
    for plane in range(planes):  # one beneath the other, an empty row between them
        top = plane * (worked.padded.shape[0] + 1) + row * worked.stride
        corner = (column * worked.stride - 0.5, top - 0.5)
        image.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=ACCENT, linewidth=2))
    activation.add_patch(
        Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2)
    )


def _cells(axes: Axes, plane: Volume, colours: str, scale: Normalize) -> None:
    """Draw a matrix as coloured cells, each with its number where there is room."""
    without_credentials = axes.imshow(plane, cmap=colours, norm=scale, interpolation="nearest")
    rows, columns = plane.shape
    labels = [[number(cell, DECIMALS) if np.isfinite(cell) else "" for cell in row] for row in plane]
    longest = max(len(label) for row in labels for label in row)
    cell_pt = 0.85 * PANEL_IN * 72 / max(rows, columns)
    size = min(12.0, cell_pt / (0.62 * max(longest, 2)))
    if size < SMALLEST_PT:
        return
    for (i, j), value in np.ndenumerate(plane):
        red, green, blue, _ = without_credentials.to_rgba(np.asarray(value))
        ink = PAPER if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
        axes.text(j, i, labels[i][j], ha="center", va="center", color=ink, fontsize=size)
    axes.set_xticks(np.arange(0.5, columns - 1), minor=True)
    axes.set_yticks(np.arange(0.5, rows - 1), minor=True)
    axes.grid(which="minor", color="#b8c0c8", linewidth=0.6)


def _beneath(values: Volume) -> Volume:
    """Lay the channels of (H, W, C) one beneath the other, an empty row between them."""
    gap = np.full((1, values.shape[1]), np.nan)
    planes = [values[:, :, channel] for channel in range(values.shape[2])]
    return np.concatenate([part for plane in planes for part in (plane, gap)][:-1])


def _around_zero(values: Volume) -> Normalize:
    """Scale colours so that 0 is white and both signs are equally strong.

    In a large map the strongest hundredth share one colour, lest a few sums pale all others.
    """
    strengths = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(strengths, 0.99) if strengths.size > 1000 else strengths.max())
    reach = 1.25 * (most or 1.0)  # leaves out the darkest colours, on which numbers are hard to read
    return Normalize(-reach, reach)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=INK, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color("#b8c0c8")
