"""Tell a convolution as a lesson: every product and sum, then how the size follows, ReLU and pooling."""

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from convoy.explain.convolution import POOL, Volume, Worked, convolve, largest
from convoy.explain.convolution_input import GivenFilter, GivenImage
from convoy.explain.filters import NAMED, PaddingMode

MOST_SUMS = 36
"""Most sums that are all printed."""
FEW_SUMS = 6
"""Sums printed of more."""
MOST_PRODUCTS = 27
"""Most products that are all printed in one sum: three channels of a 3×3 filter."""
FEW_PRODUCTS = 9
"""Products printed of more."""
MOST_CELLS = 16
"""Longest side of a matrix that is printed."""
WIDTH = 100
"""Characters of a line of prose."""


def lesson(
    image: GivenImage, filters: Sequence[GivenFilter], worked: Worked, mode: PaddingMode, *, every_sum: bool
) -> Iterator[str]:
    """Write the lines that explain one convolution.

    Args:
        image: what was convolved.
        filters: in the order of the activation's channels.
        worked: what came of it.
        mode: what the padding holds.
        every_sum: print each product of each sum, however many there are.
    """
    yield from _what_is_given(image, filters, worked, mode)
    yield from _sums(filters, worked, every_sum=every_sum)
    yield from _size(image.values, worked)
    yield from _agreement(filters, worked)
    yield from _relu_and_pooling(worked)
    yield from _flipped(image.values, worked, mode)


def number(value: float, decimals: int = 4) -> str:
    """Write a number without trailing zeros."""
    return f"{round(value, decimals) + 0.0:.10g}"  # + 0.0 makes -0 a 0


def volume(values: Volume) -> str:
    """Write a volume's size as H×W×C."""
    return "×".join(map(str, values.shape))


def _what_is_given(
    image: GivenImage, filters: Sequence[GivenFilter], worked: Worked, mode: PaddingMode
) -> Iterator[str]:
    yield f"Image {volume(image.values)} (height × width × channels): {image.source}"
    if worked.padding:
        what = "zeros" if mode is PaddingMode.ZERO else "copies of its border"
        yield f"  with {worked.padding} row(s) and column(s) of {what} on every side: {volume(worked.padded)}"
    yield from _grid(worked.padded, "channel")
    for one, weights in zip(filters, worked.filters, strict=True):
        shared = one.weights.shape[2] < weights.shape[2]
        same = ", the same weights for each channel" if shared else ""
        finds = f": {NAMED[one.name].finds}" if one.name in NAMED else ""
        yield f"Filter {one.name}, {volume(weights)}{finds}{same}"
        yield from _grid(one.weights, "channel")
    yield ""


def _sums(filters: Sequence[GivenFilter], worked: Worked, *, every_sum: bool) -> Iterator[str]:
    rows, columns, count = worked.activation.shape
    order = ", channel by channel" if worked.filters.shape[3] > 1 else ""
    yield from _prose(
        f"The filter is laid on every window of the image, moving by {worked.stride}. Each pixel is "
        f"multiplied by the weight that lies on it, and the products are added up{order}:"
    )
    total = rows * columns * count
    shown = total if every_sum or total <= MOST_SUMS else FEW_SUMS
    for flat in range(shown):
        channel, place = divmod(flat, rows * columns)
        if place == 0 and count > 1:
            yield f"  filter {channel + 1}, {filters[channel].name}:"
        row, column = divmod(place, columns)
        yield _sum(worked, (row, column, channel), every_product=every_sum)
    if shown < total:
        yield f"  … and {total - shown:,} more sums, the largest of which is"
        yield _sum(worked, largest(worked.activation), every_product=every_sum)
        yield "  --all prints every product of every sum."
    elif worked.filters[0].size > MOST_PRODUCTS and not every_sum:
        yield "  --all prints every product of every sum."
    yield ""


def _sum(worked: Worked, place: tuple[int, int, int], *, every_product: bool) -> str:
    """Write one sum of products, channel by channel, each row by row."""
    row, column, channel = place
    pixels = np.moveaxis(worked.window(row, column), 2, 0).ravel()
    weights = np.moveaxis(worked.filters[channel], 2, 0).ravel()
    products = [f"{_factor(x)}·{_factor(w)}" for x, w in zip(pixels, weights, strict=True)]
    if len(products) > MOST_PRODUCTS and not every_product:
        products[FEW_PRODUCTS:] = [f"… {len(products) - FEW_PRODUCTS} more"]
    rows, columns, _ = worked.activation.shape
    where = f"row {row + 1}, column {column + 1}:".ljust(len(f"row {rows}, column {columns}:"))
    return f"  {where}  {' + '.join(products)} = {number(worked.activation[row, column, channel])}"


def _size(image: Volume, worked: Worked) -> Iterator[str]:
    kernels, padding, stride = worked.filters.shape[1:3], worked.padding, worked.stride
    yield "Size of the activation: floor((size + 2·padding - kernel) / stride) + 1"
    for side, size, kernel, got in zip(
        ("height", "width"), image.shape, kernels, worked.activation.shape, strict=False
    ):
        yield f"  {side + ':':<7} floor(({size} + 2·{padding} - {kernel}) / {stride}) + 1 = {got}"
    rows, columns, count = worked.activation.shape
    each = worked.filters[0].size
    yield f"  depth:  one map per filter = {count}"
    yield from _prose(
        f"Activation volume {volume(worked.activation)}: {rows * columns * count:,} sums from "
        f"{count * each:,} weights, since each filter keeps its {each} weights in every window. "
        "A layer of a network also learns one bias per filter, which is added to each of its sums; here it is 0."
    )
    yield from _grid(worked.activation, "map")
    yield ""


def _agreement(filters: Sequence[GivenFilter], worked: Worked) -> Iterator[str]:
    row, column, channel = largest(worked.activation)
    most = worked.activation[row, column, channel]
    top, times = number(most), int((worked.activation == most).sum())
    if times == worked.activation.size:
        yield f"Every sum is {top}: no window agrees with the filter more than another."
    else:
        name = f" of filter {filters[channel].name}" if len(filters) > 1 else ""
        again = f" and {times - 1:,} more time(s)" if times > 1 else ""
        yield from _prose(
            f"The largest sum{name} is {top}, at row {row + 1}, column {column + 1}{again}: "
            "large pixels lie under large weights there. The sum is largest where image and filter agree."
        )
    yield ""


def _relu_and_pooling(worked: Worked) -> Iterator[str]:
    negative = int((worked.activation < 0).sum())
    yield (
        f"ReLU, max(0, x): {negative:,} of {worked.activation.size:,} sums are negative and become 0; "
        f"the volume stays {volume(worked.rectified)}"
    )
    yield from _grid(worked.rectified, "map")
    rows, columns = worked.rectified.shape[:2]
    if not worked.pooled.size:
        yield (
            f"{POOL}×{POOL} max pooling needs {POOL} rows and {POOL} columns, and {rows}×{columns} is too small."
        )
    else:
        odd = [f"{side} {size}" for side, size in (("row", rows), ("column", columns)) if size % POOL]
        left_out = f"; {' and '.join(odd)} fill no square and are left out" if odd else ""
        yield (
            f"{POOL}×{POOL} max pooling, stride {POOL}: the largest of each square, "
            f"{volume(worked.pooled)}{left_out}"
        )
        yield from _grid(worked.pooled, "map")
    yield ""


def _flipped(image: Volume, worked: Worked, mode: PaddingMode) -> Iterator[str]:
    yield from _prose(
        "What the field, and every CNN library, calls convolution is cross-correlation: the filter is laid "
        "on as it stands. Mathematics turns it by 180° first. A network does not mind, because it learns "
        "its weights either way."
    )
    turned = convolve(image, worked.filters[:, ::-1, ::-1], worked.padding, mode, worked.stride)
    apart = np.abs(turned - worked.activation)
    row, column, channel = largest(apart)
    # Sums in another order differ in their last bits.
    if np.allclose(turned, worked.activation, rtol=0, atol=1e-9 * max(1.0, np.abs(turned).max())):
        yield "Here the turned filter gives the same activation."
    else:
        name = f" of map {channel + 1}" if worked.activation.shape[2] > 1 else ""
        yield (
            f"Here the turned filter would give {number(turned[row, column, channel])} instead of "
            f"{number(worked.activation[row, column, channel])} at row {row + 1}, column {column + 1}{name}."
        )


def _prose(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False)


def _factor(value: float) -> str:
    return f"({number(value)})" if value < 0 else number(value)


def _grid(values: Volume, what: str) -> Iterator[str]:
    """Print each channel's matrix, its columns aligned; nothing of volumes that would fill the screen."""
    if max(values.shape[:2]) > MOST_CELLS or values.size > MOST_CELLS**2 * 3:
        return
    for channel in range(values.shape[2]):
        if values.shape[2] > 1:
            yield f"  {what} {channel + 1}:"
        cells = [[number(cell) for cell in row] for row in values[:, :, channel]]
        width = max(len(cell) for row in cells for cell in row)
        for row in cells:
            yield "    " + " ".join(f"{cell:>{width}}" for cell in row)
