"""Explain a worked convolution: as text, with every product and sum, and as a picture."""

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convoy.explain import figures
from convoy.explain.convolution import NAMED, POOL, Volume, Worked, convolve, largest
from convoy.explain.figures import INK, PAPER

MAX_SUMS = 36
"""Up to here all sums are printed, above it only FEW_SUMS."""
FEW_SUMS = 6
MAX_PRODUCTS = 27
"""Up to here all products of a sum are printed, above it FEW_PRODUCTS: three channels of a 3×3 filter."""
FEW_PRODUCTS = 9
MAX_CELLS = 16
"""Longest side of a matrix that is printed."""

MAX_FILTERS = 4
"""Most filters in the picture; the title counts the others."""
PANEL_IN = 2.7
"""Side of one panel, in inches."""
SMALLEST_PT = 5.0
"""Smallest readable number, in points; cells without room for it stay empty."""
DECIMALS = 2
"""Decimals of a number in a cell of the picture."""
ACCENT, GRID = "#d9480f", "#b8c0c8"
SIGNED = "RdBu"  # red below 0, white at 0, blue above

_prose = partial(textwrap.wrap, width=100, break_long_words=False)


def lesson(worked: Worked, *, every_sum: bool) -> Iterator[str]:
    """Yield the lines that explain a convolution; `every_sum` prints each product, however many there are."""
    sums = _sums(worked, every_sum=every_sum)
    for section in (_inputs(worked), sums, _size(worked), _agreement(worked), _relu_and_pooling(worked)):
        yield from section
        yield ""
    yield from _flipped(worked)


def number(value: float, decimals: int = 4) -> str:
    """Format a number without trailing zeros."""
    return f"{round(value, decimals):z.10g}"


def size_of(values: Volume) -> str:
    """Format a volume's size as H×W×C."""
    return "×".join(map(str, values.shape))


def _inputs(worked: Worked) -> Iterator[str]:
    image = worked.image
    yield f"Image {size_of(image.values)} (height × width × channels): {image.source}"
    if worked.padding:
        content = "zeros" if worked.mode == "zero" else "copies of its border"
        yield f"  with {worked.padding} row(s) and column(s) of {content} on every side: {size_of(worked.padded)}"
    yield from _grid(worked.padded, "channel")
    for given, weights in zip(worked.filters, worked.weights, strict=True):
        shared = given.weights.shape[2] < weights.shape[2]
        same = ", the same weights for each channel" if shared else ""
        finds = f": {NAMED[given.name].finds}" if given.name in NAMED else ""
        yield f"Filter {given.name}, {size_of(weights)}{finds}{same}"
        yield from _grid(given.weights, "channel")


def _sums(worked: Worked, *, every_sum: bool) -> Iterator[str]:
    rows, columns, count = worked.activation.shape
    order = ", channel by channel" if worked.weights.shape[3] > 1 else ""
    yield from _prose(
        f"The filter is laid on every window of the image, moving by {worked.stride}. Each pixel is "
        f"multiplied by the weight on top of it, and the products are added up{order}:"
    )
    total = rows * columns * count
    shown = total if every_sum or total <= MAX_SUMS else FEW_SUMS
    for flat in range(shown):
        channel, cell = divmod(flat, rows * columns)
        if cell == 0 and count > 1:
            yield f"  filter {channel + 1}, {worked.filters[channel].name}:"
        yield _sum(worked, (*divmod(cell, columns), channel), every_product=every_sum)
    if shown < total:
        yield f"  … and {total - shown:,} more sums; the largest is"
        yield _sum(worked, largest(worked.activation), every_product=every_sum)
    if not every_sum and (shown < total or worked.weights[0].size > MAX_PRODUCTS):
        yield "  --all prints every product of every sum."


def _sum(worked: Worked, cell: tuple[int, int, int], *, every_product: bool) -> str:
    """Format one sum of products, channel by channel, each row by row."""
    row, column, channel = cell
    pixels = np.moveaxis(worked.window(row, column), 2, 0).ravel()
    weights = np.moveaxis(worked.weights[channel], 2, 0).ravel()
    products = [f"{_factor(pixel)}·{_factor(weight)}" for pixel, weight in zip(pixels, weights, strict=True)]
    if len(products) > MAX_PRODUCTS and not every_product:
        products[FEW_PRODUCTS:] = [f"… {len(products) - FEW_PRODUCTS} more"]
    rows, columns, _ = worked.activation.shape
    label = f"row {row + 1}, column {column + 1}:".ljust(len(f"row {rows}, column {columns}:"))
    return f"  {label}  {' + '.join(products)} = {number(worked.activation[cell])}"


def _size(worked: Worked) -> Iterator[str]:
    yield "Size of the activation: floor((size + 2·padding - kernel) / stride) + 1"
    sizes = zip(worked.image.values.shape, worked.weights.shape[1:3], worked.activation.shape, strict=False)
    for side, (size, kernel, output) in zip(("height", "width"), sizes, strict=False):
        formula = f"floor(({size} + 2·{worked.padding} - {kernel}) / {worked.stride}) + 1"
        yield f"  {side + ':':<7} {formula} = {output}"
    each = worked.weights[0].size
    yield f"  depth:  one map per filter = {len(worked.weights)}"
    yield from _prose(
        f"Activation volume {size_of(worked.activation)}: {worked.activation.size:,} sums from "
        f"{worked.weights.size:,} weights, since each filter uses the same {each} weights in every window. "
        "A layer of a network also learns one bias per filter, which is added to each of its sums; here it is 0."
    )
    yield from _grid(worked.activation, "map")


def _agreement(worked: Worked) -> Iterator[str]:
    row, column, channel = largest(worked.activation)
    value = worked.activation[row, column, channel]
    times = int((worked.activation == value).sum())
    if times == worked.activation.size:
        yield f"Every sum is {number(value)}: all windows agree with the filter equally."
    else:
        name = f" of filter {worked.filters[channel].name}" if len(worked.filters) > 1 else ""
        again = f" and {times - 1:,} more time(s)" if times > 1 else ""
        yield from _prose(
            f"The largest sum{name} is {number(value)}, at row {row + 1}, column {column + 1}{again}: large pixels "
            "lie under large weights there. The sum is largest where image and filter agree."
        )


def _relu_and_pooling(worked: Worked) -> Iterator[str]:
    negative = int((worked.activation < 0).sum())
    yield (
        f"ReLU, max(0, x): {negative:,} of {worked.activation.size:,} sums are negative and become 0; "
        f"the volume stays {size_of(worked.rectified)}"
    )
    yield from _grid(worked.rectified, "map")
    rows, columns = worked.rectified.shape[:2]
    title = f"{POOL}×{POOL} max pooling"
    if not worked.pooled.size:
        yield f"{title} needs {POOL} rows and {POOL} columns, and {rows}×{columns} is too small."
    else:
        odd = [f"{side} {size}" for side, size in (("row", rows), ("column", columns)) if size % POOL]
        dropped = f"; {' and '.join(odd)} fill no square and are dropped" if odd else ""
        yield f"{title}, stride {POOL}: the largest value of each square, {size_of(worked.pooled)}{dropped}"
        yield from _grid(worked.pooled, "map")


def _flipped(worked: Worked) -> Iterator[str]:
    yield from _prose(
        "CNN libraries call this convolution, but it is a cross-correlation: the filter is not turned. The "
        "convolution of mathematics turns it by 180° first. For a network there is no difference, since it learns "
        "its weights either way."
    )
    turned = convolve(
        worked.image.values, worked.weights[:, ::-1, ::-1], worked.padding, worked.mode, worked.stride
    )
    cell = largest(np.abs(turned - worked.activation))
    # Sums in another order differ in their last bits.
    if np.allclose(turned, worked.activation, rtol=0, atol=1e-9 * max(1.0, np.abs(turned).max())):
        yield "Here the turned filter gives the same activation."
    else:
        row, column, channel = cell
        name = f" of map {channel + 1}" if worked.activation.shape[2] > 1 else ""
        yield (
            f"Here the turned filter would give {number(turned[cell])} instead of "
            f"{number(worked.activation[cell])} at row {row + 1}, column {column + 1}{name}."
        )


def _factor(value: float) -> str:
    return f"({number(value)})" if value < 0 else number(value)


def _grid(values: Volume, label: str) -> Iterator[str]:
    """Print each channel's matrix in aligned columns; nothing for volumes that would fill the screen."""
    if max(values.shape[:2]) > MAX_CELLS or values.size > MAX_CELLS**2 * 3:
        return
    for channel in range(values.shape[2]):
        if values.shape[2] > 1:
            yield f"  {label} {channel + 1}:"
        cells = [[number(cell) for cell in row] for row in values[:, :, channel]]
        width = max(len(cell) for row in cells for cell in row)
        for row in cells:
            yield "    " + " ".join(f"{cell:>{width}}" for cell in row)


def draw(worked: Worked, out: Path) -> None:
    """Draw a row per filter; the window of its largest sum is framed in the image and in the activation.

    Raises:
        RequestError: the file cannot be written.
    """
    drawn = min(len(worked.filters), MAX_FILTERS)
    figure = Figure(figsize=(5 * PANEL_IN, drawn * PANEL_IN + 1.1), facecolor=PAPER, layout="constrained")
    more = f" (the first {drawn} of {len(worked.filters)} filters)" if drawn < len(worked.filters) else ""
    figure.suptitle(
        f"convolution with padding {worked.padding} and stride {worked.stride}: "
        f"{size_of(worked.image.values)} → {size_of(worked.activation)}{more}",
        color=INK,
        fontsize=12,
    )
    figure.supxlabel(
        "framed: the largest sum and its window · red: below 0 · blue: above 0", color=INK, fontsize=10
    )
    panels = figure.subplots(drawn, 5, squeeze=False)
    for row in range(drawn):
        _draw_image(panels[row, 0], worked)
        plane = _stacked(worked.filters[row].weights)
        _draw_cells(panels[row, 1], plane, SIGNED, _around_zero(plane))
        _title(panels[row, 1], f"filter {worked.filters[row].name}, {size_of(worked.weights[row])}")
        _draw_maps(list(panels[row, 2:]), worked, row)
        _frame_largest(panels[row, 0], panels[row, 2], worked, row)
    figures.write(figure, out)


def _draw_image(axes: Axes, worked: Worked) -> None:
    image, padding = worked.image, worked.padding
    if image.is_rgb:
        axes.imshow(worked.padded.astype(np.uint8), interpolation="nearest")
    else:
        plane = _stacked(worked.padded)
        signed = np.nanmin(plane) < 0
        scale = _around_zero(plane) if signed else Normalize(0, np.nanmax(plane))
        _draw_cells(axes, plane, SIGNED if signed else "gray", scale)
    if padding and (image.is_rgb or worked.padded.shape[2] == 1):
        height, width = image.values.shape[:2]
        _frame(axes, (padding, padding), width, height, edgecolor=INK, linestyle=":", linewidth=1.2)
    _title(axes, f"image {size_of(image.values)}" + (f", padded by {padding}" if padding else ""))


def _draw_maps(panels: Sequence[Axes], worked: Worked, channel: int) -> None:
    """Draw activation, ReLU and pooling of a filter on the same scale, so that colours compare."""
    activation = worked.activation[:, :, channel]
    # A map without a sign, such as a blurred photo, reads best as a gray image.
    unsigned = activation.min() >= 0
    colours = "gray" if unsigned else SIGNED
    scale = Normalize(0, activation.max()) if unsigned else _around_zero(activation)
    maps = {"activation": worked.activation, "after ReLU": worked.rectified, "2×2 max pooling": worked.pooled}
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        if values.size:
            _draw_cells(axes, values[:, :, channel], colours, scale)
            _title(axes, f"{name} {values.shape[0]}×{values.shape[1]}")
        else:
            axes.set_axis_off()
            _title(axes, "too small to pool 2×2")


def _frame_largest(image: Axes, activation: Axes, worked: Worked, channel: int) -> None:
    """Frame the largest sum and its window."""
    row, column, _ = largest(worked.activation[:, :, channel : channel + 1])
    height, width = worked.weights.shape[1:3]
    for plane in range(1 if worked.image.is_rgb else worked.padded.shape[2]):
        top = plane * (worked.padded.shape[0] + 1) + row * worked.stride
        _frame(image, (column * worked.stride, top), width, height, edgecolor=ACCENT, linewidth=2)
    _frame(activation, (column, row), 1, 1, edgecolor=ACCENT, linewidth=2)


def _frame(axes: Axes, cell: tuple[int, int], width: int, height: int, **style: Any) -> None:  # noqa: ANN401 (as Rectangle takes them)
    corner = (cell[0] - 0.5, cell[1] - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, **style))


def _draw_cells(axes: Axes, plane: Volume, colours: str, scale: Normalize) -> None:
    """Draw a matrix as coloured cells, with numbers where there is room."""
    image = axes.imshow(plane, cmap=colours, norm=scale, interpolation="nearest")
    rows, columns = plane.shape
    labels = [[number(cell, DECIMALS) if np.isfinite(cell) else "" for cell in row] for row in plane]
    longest = max(len(label) for row in labels for label in row)
    cell_pt = 0.85 * PANEL_IN * 72 / max(rows, columns)
    size = min(12.0, cell_pt / (0.62 * max(longest, 2)))
    if size < SMALLEST_PT:
        return
    for (i, j), value in np.ndenumerate(plane):
        red, green, blue, _ = image.to_rgba(np.asarray(value))
        ink = PAPER if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
        axes.text(j, i, labels[i][j], ha="center", va="center", color=ink, fontsize=size)
    axes.set_xticks(np.arange(0.5, columns - 1), minor=True)
    axes.set_yticks(np.arange(0.5, rows - 1), minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)


def _stacked(values: Volume) -> Volume:
    """Lay the channels of (H, W, C) below each other, separated by an empty row."""
    gapped = np.pad(values, ((0, 1), (0, 0), (0, 0)), constant_values=np.nan)
    return np.moveaxis(gapped, 2, 0).reshape(-1, values.shape[1])[:-1]


def _around_zero(values: Volume) -> Normalize:
    """Scale colours so that 0 is white and both signs are equally strong.

    In a large map the strongest hundredth share one colour, lest a few sums pale all others.
    """
    strengths = np.abs(values[np.isfinite(values)])
    strongest = float(np.quantile(strengths, 0.99) if strengths.size > 1000 else strengths.max())
    reach = 1.25 * (strongest or 1.0)  # leaves out the darkest colours, on which numbers are hard to read
    return Normalize(-reach, reach)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=INK, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)
