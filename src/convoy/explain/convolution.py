"""A convolution worked by hand: the image and filters that are typed or named, every product, sum and volume, a picture.

H rows and W columns of C channels; F filters of K rows (or columns); P padding; S stride.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from convoy.core.contract import DEFAULT_BACKGROUND
from convoy.core.errors import DataError, RequestError
from convoy.core.params import did_you_mean
from convoy.explain import figures
from convoy.explain.figures import INK, PAPER
from convoy.images.decode import decode

Volume = npt.NDArray[np.float64]
PaddingMode = Literal["zero", "replicate"]

NAMED = {
    "edge": ("-1 -1 -1; -1 8 -1; -1 -1 -1", "pixels that differ from their surroundings"),
    "vertical": ("-1 0 1; -1 0 1; -1 0 1", "edges from dark, left, to bright, right"),
    "horizontal": ("-1 -1 -1; 0 0 0; 1 1 1", "edges from dark, above, to bright, below"),
    "diagonal": ("1 -1 -1; -1 1 -1; -1 -1 1", "strokes from top left to bottom right"),
    "sharpen": ("0 -1 0; -1 5 -1; 0 -1 0", "the image with stronger contrasts"),
    "blur": ("1/16 1/8 1/16; 1/8 1/4 1/8; 1/16 1/8 1/16", "the weighted mean around each pixel"),
    "emboss": ("-2 -1 0; -1 1 1; 0 1 2", "relief, lit from the bottom right"),
    "identity": ("0 0 0; 0 1 0; 0 0 0", "the image itself"),
}
"""Filters by name: weights as typed, and what the filter responds to."""

EXAMPLE = """
0 0 0 0 0 0 0
0 0 0 1 0 0 0
0 0 1 1 0 0 0
0 0 0 1 0 0 0
0 0 0 1 0 0 0
0 0 1 1 1 0 0
0 0 0 0 0 0 0
"""
"""A binary 1: an upright stroke, whose sides give opposite signs with the filter `vertical`."""

POOL = 2  # side and stride of the pooled squares
LONGEST_SIDE_PX = 256  # larger files are shrunk to this, so that single pixels are visible in the picture
MAX_PADDING = 64
LARGEST_NUMBER = 1e6  # up to here every sum is exact enough to be printed
HOW_TO_TYPE = 'Type a matrix like "0 1 0; 1 1 1; 0 1 0", further channels after |'

MAX_SUMS = 36  # up to here all sums are printed, above it only FEW_SUMS
FEW_SUMS = 6
MAX_PRODUCTS = 27
"""Up to here all products of a sum are printed, above it FEW_PRODUCTS: three channels of a 3×3 filter."""
FEW_PRODUCTS = 9
MAX_CELLS = 16  # longest side of a matrix that is printed

MAX_FILTERS = 4  # most filters in the picture; the title counts the others
PANEL_IN = 2.7  # side of one panel, in inches
SMALLEST_PT = 5.0  # smallest readable number, in points; cells without room for it stay empty
DECIMALS = 2  # decimals of a number in a cell of the picture
ACCENT, GRID = "#d9480f", "#b8c0c8"

_prose = partial(textwrap.wrap, width=100, break_long_words=False)


@dataclass(frozen=True)
class GivenImage:
    """An image to convolve: (H, W, C) values, 0..255 from a file, as typed otherwise."""

    values: Volume
    source: str  # where it came from, and how it was changed
    is_rgb: bool = False


@dataclass(frozen=True)
class GivenFilter:
    """A filter: (KH, KW, C) weights; C is 1 for weights that all channels share."""

    name: str
    weights: Volume


@dataclass(frozen=True)
class Worked:
    """A convolution with every volume on the way from an image to its pooled activation.

    Attributes:
        weights: (F, KH, KW, C), of the filters.
        padded: (H + 2P, W + 2P, C), the input of the sums.
        activation: (H', W', F) sums of products, one map per filter.
        rectified: (H', W', F) after ReLU.
        pooled: (H'/2, W'/2, F) rounded down, after max pooling; empty where H' or W' is 1.
    """

    image: GivenImage
    filters: Sequence[GivenFilter]
    padding: int
    mode: PaddingMode
    stride: int
    weights: Volume
    padded: Volume
    activation: Volume
    rectified: Volume
    pooled: Volume

    def as_json(self) -> dict[str, Any]:
        """Return plain data: volumes as nested lists [row][column][channel]; rows and columns count from 1."""
        row, column, channel = largest(self.activation)
        maps = {"activation": self.activation, "relu": self.rectified, "max_pool": self.pooled}
        filters = zip(self.filters, self.weights, strict=True)
        return {
            "operation": "cross-correlation",
            "image": {"source": self.image.source, "shape": list(self.image.values.shape)},
            "filters": [{"name": given.name, "weights": weights.tolist()} for given, weights in filters],
            "padding": self.padding,
            "padding_mode": self.mode,
            "stride": self.stride,
            "largest": {
                "value": float(self.activation[row, column, channel]),
                "row": row + 1,
                "column": column + 1,
                "filter": channel + 1,
            },
            **{name: {"shape": list(map_.shape), "values": map_.tolist()} for name, map_ in maps.items()},
        }


def work_out(
    image: GivenImage, filters: Sequence[GivenFilter], padding: int, mode: PaddingMode, stride: int
) -> Worked:
    """Convolve with filters of the same size, rectify and pool; a single plane of weights serves all channels.

    Raises:
        RequestError: a filter with another number of planes, or as `convolve`.
    """
    channels = image.values.shape[2]
    for given in filters:
        planes = given.weights.shape[2]
        if planes not in (1, channels):
            raise RequestError(
                f"The filter {given.name} has {planes} planes, but the image {channels} channel(s). "
                "Type one plane per channel, separated by |, or a single plane for all channels."
            )
    weights = np.stack([np.repeat(f.weights, channels // f.weights.shape[2], axis=2) for f in filters])
    activation = convolve(image.values, weights, padding, mode, stride)
    rectified = np.maximum(activation, 0.0)
    volumes = weights, pad(image.values, padding, mode), activation, rectified, max_pool(rectified)
    return Worked(image, filters, padding, mode, stride, *volumes)


def convolve(image: Volume, weights: Volume, padding: int, mode: PaddingMode, stride: int) -> Volume:
    """Lay each (KH, KW, C) filter on every window of an (H, W, C) image; multiply and add up.

    The filter is not flipped: like every CNN library, this computes a cross-correlation.

    Returns:
        (H', W', F) with H' = floor((H + 2P - KH) / S) + 1, and W' likewise.

    Raises:
        RequestError: a stride below 1, a padding out of range, or a filter larger than the padded image.
    """
    if stride < 1:
        raise RequestError(f"The stride is {stride}, but must be at least 1: --stride 1")
    if not 0 <= padding <= MAX_PADDING:
        raise RequestError(
            f"The padding is {padding}, but must be from 0 to {MAX_PADDING}. A K×K filter keeps the size with "
            "(K - 1) / 2: --padding 1 for 3×3"
        )
    height, width = image.shape[:2]
    tall, wide = weights.shape[1:3]
    lacking = max(tall - height, wide - width) - 2 * padding
    if lacking > 0:
        raise RequestError(
            f"A {tall}×{wide} filter does not fit into the {height}×{width} image with padding {padding}. "
            f"Choose a smaller filter, or --padding {padding + -(-lacking // 2)}"
        )
    # (H', W', KH, KW, C): the pixels under a filter, window by window.
    windows = sliding_window_view(pad(image, padding, mode), weights.shape[1:])[::stride, ::stride, 0]
    activation: Volume = np.einsum("xyijc,fijc->xyf", windows, weights)
    return activation


def pad(image: Volume, padding: int, mode: PaddingMode) -> Volume:
    """Add rows and columns around an (H, W, C) image: zeros, or copies of its border."""
    around = ((padding, padding), (padding, padding), (0, 0))
    padded: Volume = np.pad(image, around, mode="constant" if mode == "zero" else "edge")
    return padded


def max_pool(volume: Volume) -> Volume:
    """Keep the largest of each 2×2 square of (H, W, C); an odd last row or column is dropped."""
    height, width, channels = volume.shape
    rows, columns = height // POOL, width // POOL
    squares = volume[: rows * POOL, : columns * POOL].reshape(rows, POOL, columns, POOL, channels)
    pooled: Volume = squares.max(axis=(1, 3))
    return pooled


def largest(volume: Volume) -> tuple[int, int, int]:
    """Find the row, column and channel of the largest value, the first of several; from 0."""
    row, column, channel = np.unravel_index(int(volume.argmax()), volume.shape)
    return int(row), int(column), int(channel)


def read_image(text: str | None, background: str = DEFAULT_BACKGROUND) -> GivenImage:
    """Read an image from a file, transparent pixels over `background`, or a typed matrix; None is the built-in example.

    Raises:
        RequestError: the file does not exist, or the matrix cannot be read.
        DataError: the file is not an image.
    """
    if text is None:
        return GivenImage(matrix(EXAMPLE, "The example"), "the built-in example, a 1")
    if _is_typed(text):
        return GivenImage(matrix(text, "The image"), "typed")
    path = Path(text)
    try:
        image_u8 = decode(path.read_bytes(), background=background).image_u8
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read as an image file: {error.strerror}. Name another file. {HOW_TO_TYPE}."
        ) from error
    except DataError as error:
        raise DataError(f"{path} {error}. Name another image, or omit it for the example.") from error
    picture = Image.fromarray(image_u8)
    height, width = image_u8.shape[:2]
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BILINEAR)
    source = str(path) if picture.size == (width, height) else f"{path}, shrunk from {height}×{width}"
    values = np.asarray(picture).astype(np.float64)
    if (values == values[:, :, :1]).all():
        return GivenImage(values[:, :, :1], f"{source}; gray, so one channel")
    return GivenImage(values, source, is_rgb=True)


def read_filters(texts: Sequence[str]) -> list[GivenFilter]:
    """Read filters by name or typed; all of the same size, as in a layer.

    Raises:
        RequestError: an unknown name, a matrix that cannot be read, or sizes that differ.
    """
    filters = []
    for number, text in enumerate(texts, start=1):
        if text in NAMED:
            filters.append(GivenFilter(text, matrix(NAMED[text][0], f"The filter {text}")))
        elif _is_typed(text):
            name = f"typed {number}" if len(texts) > 1 else "typed"
            filters.append(GivenFilter(name, matrix(text, "The filter")))
        else:
            raise RequestError(
                f"There is no filter `{text}`{did_you_mean(text, NAMED)}. "
                'Or type its weights: --filter "0 -1 0; -1 5 -1; 0 -1 0"'
            )
    sizes = sorted({f"{given.weights.shape[0]}×{given.weights.shape[1]}" for given in filters})
    if len(sizes) > 1:
        raise RequestError(
            f"The filters measure {' and '.join(sizes)}, but those of a layer have the same size. "
            "Run the command once for each size."
        )
    return filters


def matrix(text: str, label: str) -> Volume:
    """Parse typed numbers, also fractions such as 1/9, as (H, W, C); `label` starts the message of an error.

    Rows end with `;` or a new line, channels are separated by `|`.

    Raises:
        RequestError: a word that is not a number, rows or channels of different size, no numbers.
    """
    planes = [_plane(plane, label) for plane in text.split("|")]
    sizes = sorted({f"{len(plane)}×{len(plane[0])}" for plane in planes})
    if len(sizes) > 1:
        raise RequestError(
            f"{label} has channels of {' and '.join(sizes)}, but they must have the same size. {HOW_TO_TYPE}."
        )
    return np.moveaxis(np.array(planes, dtype=np.float64), 0, 2)


def _is_typed(text: str) -> bool:
    """Distinguish a matrix, even if it is invalid, from a name: it has rows or starts with a number."""
    return ";" in text or not math.isnan(_number(next(iter(text.split()), "")))


def _plane(text: str, label: str) -> list[list[float]]:
    """Parse the rows of one channel."""
    lines = [line.split() for line in text.replace("\n", ";").split(";")]
    lines = [words for words in lines if words]  # a `;` or a new line at the end starts no row
    if not lines:
        raise RequestError(f"{label} holds no numbers. {HOW_TO_TYPE}.")
    if wrong := [word for words in lines for word in words if math.isnan(_number(word))]:
        raise RequestError(
            f"{label} holds `{wrong[0]}`, which is not a number from {-LARGEST_NUMBER:,.0f} to {LARGEST_NUMBER:,.0f}. "
            f"{HOW_TO_TYPE}."
        )
    for row, words in enumerate(lines, start=1):
        if len(words) != len(lines[0]):
            raise RequestError(
                f"{label} is ragged: row 1 has {len(lines[0])} number(s), row {row} has {len(words)}. {HOW_TO_TYPE}."
            )
    return [[_number(word) for word in words] for words in lines]


def _number(word: str) -> float:
    """Parse a decimal number or a fraction; NaN where it is neither, or too large."""
    above, divided, below = word.partition("/")
    try:
        number = float(above) / float(below) if divided else float(above)
    except (ValueError, ZeroDivisionError):
        return math.nan
    return number if abs(number) <= LARGEST_NUMBER else math.nan


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
        finds = f": {NAMED[given.name][1]}" if given.name in NAMED else ""
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
    top, left, (height, width) = row * worked.stride, column * worked.stride, worked.weights.shape[1:3]
    window = worked.padded[top : top + height, left : left + width]
    pixels, weights = (np.moveaxis(x, 2, 0).ravel() for x in (window, worked.weights[channel]))
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
        "CNN libraries call this convolution, but it is a cross-correlation: the filter is not turned. A "
        "mathematical convolution turns it by 180° first. For a network it makes no difference, since the "
        "weights are learned either way."
    )
    filters = worked.weights[:, ::-1, ::-1]
    turned = convolve(worked.image.values, filters, worked.padding, worked.mode, worked.stride)
    # Sums in another order differ in their last bits.
    if np.allclose(turned, worked.activation, rtol=0, atol=1e-9 * max(1.0, np.abs(turned).max())):
        yield "Here the turned filter gives the same activation."
    else:
        row, column, channel = cell = largest(np.abs(turned - worked.activation))
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
    """Draw a row per filter; the window of its largest sum is framed in the image and in the activation."""
    drawn = min(len(worked.filters), MAX_FILTERS)
    figure = Figure(figsize=(5 * PANEL_IN, drawn * PANEL_IN + 1.1), facecolor=PAPER, layout="constrained")
    sizes = f"{size_of(worked.image.values)} → {size_of(worked.activation)}"
    more = f" (the first {drawn} of {len(worked.filters)} filters)" if drawn < len(worked.filters) else ""
    title = f"convolution with padding {worked.padding} and stride {worked.stride}: {sizes}{more}"
    figure.suptitle(title, color=INK, fontsize=12)
    legend = "framed: the largest sum and its window · red: below 0 · blue: above 0"
    figure.supxlabel(legend, color=INK, fontsize=10)
    panels = figure.subplots(drawn, 5, squeeze=False)
    for row in range(drawn):
        _draw_image(panels[row, 0], worked)
        plane = _stacked(worked.filters[row].weights)
        _draw_cells(panels[row, 1], plane, *_colours(plane, signed=True))
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
        _draw_cells(axes, plane, *_colours(plane))
    if padding and (image.is_rgb or worked.padded.shape[2] == 1):
        height, width = image.values.shape[:2]
        _frame(axes, (padding, padding), width, height, edgecolor=INK, linestyle=":", linewidth=1.2)
    _title(axes, f"image {size_of(image.values)}" + (f", padded by {padding}" if padding else ""))


def _draw_maps(panels: Sequence[Axes], worked: Worked, channel: int) -> None:
    """Draw activation, ReLU and pooling of a filter on the same scale, so that colours compare."""
    colours = _colours(worked.activation[:, :, channel])
    maps = {"activation": worked.activation, "after ReLU": worked.rectified, "2×2 max pooling": worked.pooled}
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        if values.size:
            _draw_cells(axes, values[:, :, channel], *colours)
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


def _colours(values: Volume, *, signed: bool = False) -> tuple[str, Normalize]:
    """Choose a colour map and its scale: 0 is white and both signs are equally strong; gray where no value is negative.

    In a large map the strongest hundredth share one colour, lest a few sums pale all others.
    """
    if not signed and np.nanmin(values) >= 0:  # such as a blurred photo
        return "gray", Normalize(0, np.nanmax(values))
    strengths = np.abs(values[np.isfinite(values)])
    strongest = float(np.quantile(strengths, 0.99) if strengths.size > 1000 else strengths.max())
    reach = 1.25 * (strongest or 1.0)  # leaves out the darkest colours, on which numbers are hard to read
    return "RdBu", Normalize(-reach, reach)  # red below 0, blue above


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=INK, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)
