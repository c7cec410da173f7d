"""The verdict as an HTML page with its figures; the figures are readable on light and on dark pages."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convoy.core import files, templates
from convoy.core.escaping import short, visible
from convoy.explain import figures
from convoy.gate import text
from convoy.gate.result import Comparison, GateResult, Share

MOST_CLASSES = 40  # that a figure has room for; of more, those whose recall fell most are drawn
MOST_FLIPS = 12  # images drawn of each kind
LONGEST_LABEL = 22  # characters of a class name in a figure
LONGEST_NAME = 80  # characters of a name on the page; its tooltip has the whole
NEAR = 25  # points below the lowest figure down to which a limit is drawn

INK, SOFT, LINE = "#76818d", "#8b95a1", "#8b95a140"
CHAMPION, CANDIDATE, GOOD, BAD = "#9a86c8", "#3f87d9", "#2f9e63", "#dd574e"
"""Colours on a transparent background, each readable on white and on dark pages."""

COLUMNS = 6  # images in a row of a grid
WIDTH, SIDE, ROW, HEAD, EDGE, GAP = 9.0, 1.25, 1.85, 0.45, 0.1, 0.055
"""Of a figure, an image, a row with its caption, a heading, the margin, and between image and caption; in inches."""


def write(path: Path, result: GateResult, pictures: Sequence[Path]) -> None:
    """Write the page with the PNG files of `draw` embedded."""
    embedded = {
        picture.stem: f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        for picture in pictures
    }
    context = {
        "result": result,
        "headline": text.headline(result),
        "sections": list(text.sections(result, most_classes=len(result.classes), most_flips=100)),
        "conditions": text.conditions_table(result),
        "pictures": embedded,
    }
    filters = {
        "visible": visible,
        "short": lambda name: short(name, LONGEST_NAME),
        "is_name": lambda cell: isinstance(cell, text.Name),
    }
    files.write_text(path, templates.render("convoy.gate", "verdict.html.j2", context, filters))


def draw(result: GateResult, thumbnails: Mapping[str, npt.NDArray[np.uint8]], out: Path) -> tuple[Path, ...]:
    """Draw gain.png, classes.png and flips.png into `out`; a figure with nothing to show is left out, and removed.

    Thumbnails are (H, W, 3) RGB of flipped images, by path; where an image is missing there is a gap.

    Raises:
        RequestError: the folder cannot be written.
    """
    drawn = {"gain": _gain(result), "classes": _classes(result), "flips": _flips(result, thumbnails)}
    paths = [save(out / f"{name}.png", figure) for name, figure in drawn.items()]
    return tuple(path for path in paths if path)


def save(path: Path, figure: Figure | None) -> Path | None:
    """Write a figure; remove an earlier file where there is nothing to draw."""
    if figure is None:
        path.unlink(missing_ok=True)
        return None
    return figures.write(figure, path)


# Bars and dots


def _gain(result: GateResult) -> Figure | None:
    """Draw accuracies and, where there is a champion to compare with, the gain; each with its interval."""
    comparison, measured = result.comparison, text.shares(result)
    if not measured:
        return None
    heights = [0.9 + 0.42 * len(measured)] + [1.35] * (comparison is not None)
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor="none", layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _accuracies(axes[0], measured, result)
    if comparison is not None:
        _difference(axes[1], comparison)
    return figure


def _accuracies(ax: Axes, measured: Sequence[tuple[str, Share]], result: GateResult) -> None:
    _style(ax, f"Accuracy on the same images, in % ({text.confidence(result)} interval)")
    rows = list(reversed(measured))  # from the lower edge
    for row, (_, share) in enumerate(rows):
        label = f"{text.number(share.accuracy, 'share')} ({text.interval(share)})"
        _bar(ax, row, (share.low, share.accuracy, share.high), CHAMPION if row else CANDIDATE, label)
    ax.set_yticks(range(len(rows)), [short(name, LONGEST_LABEL) for name, _ in rows], parse_math=False)
    low = min(100 * share.low for _, share in rows)
    ends = [low, *(100 * share.high for _, share in rows), *_limit(ax, result, "accuracy", low)]
    low, high = min(ends), max(ends)
    margin = max(0.12 * (high - low), 0.5)
    _percents(ax, low - margin, high + margin)
    ax.set_ylim(-0.6, len(rows) - 0.4)


def _difference(ax: Axes, comparison: Comparison) -> None:
    """Draw the gain beside 0, in a colour that shows whether it is significant."""
    _style(ax, "Gain of the candidate, in points; 0 is no difference")
    low, middle, high = comparison.low, comparison.gain, comparison.high
    label = f"{text.gain(middle)} ({text.gain(low)} to {text.gain(high)})"
    _bar(ax, 0, (low, middle, high), GOOD if low > 0 else BAD if high < 0 else SOFT, label)
    ax.axvline(0, color=INK, linewidth=1)
    widest = 1.15 * max(abs(100 * low), abs(100 * high), 1.0)
    ax.set(xlim=(-widest, widest), ylim=(-0.6, 0.6))
    ax.set_yticks([0], ["gain"])


def _classes(result: GateResult) -> Figure | None:
    """Draw each class's recall under both, the champion's hollow, joined by a line."""
    measured = [row for row in result.classes if (row.candidate, row.champion) != (None, None)]
    if not measured:
        return None
    rows = list(reversed(text.most_fallen(measured, MOST_CLASSES)))  # from the lower edge
    figure = Figure(figsize=(WIDTH, 1.5 + 0.27 * len(rows)), facecolor="none", layout="constrained")
    ax = figure.subplots()
    title = "Recall per class, in % (images); "
    title += "hollow: champion, full: candidate" if result.comparison else "candidate"
    if len(rows) < len(measured):
        title += f"; the {len(rows)} of {len(measured)} classes that fell most"
    _style(ax, title)
    for height, row in enumerate(rows):
        if row.candidate is not None and row.champion is not None:
            color = BAD if row.candidate < row.champion else GOOD
            ends = [100 * row.champion, 100 * row.candidate]
            ax.plot(ends, [height, height], color=color, linewidth=3, alpha=0.55)
        if row.champion is not None:
            ax.plot([100 * row.champion], [height], "o", mfc="none", mec=CHAMPION, mew=2, markersize=9)
        if row.candidate is not None:
            ax.plot([100 * row.candidate], [height], "o", color=CANDIDATE, markersize=6.5)
    names = [f"{short(row.name, LONGEST_LABEL)}  ({row.images:,})" for row in rows]
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    low = min(100 * recall for row in rows for recall in (row.candidate, row.champion) if recall is not None)
    low = min([low, *_limit(ax, result, "class_recall", low)])
    ax.set_ylim(-0.7, len(rows) - 0.3)
    _percents(ax, low - 0.05 * (100 - low) - 1, 101)
    return figure


def _bar(ax: Axes, row: float, shares: tuple[float, float, float], color: str, label: str) -> None:
    """Draw an interval as a bar with its figure as a dot, and the label beside it."""
    low, middle, high = (100 * share for share in shares)
    ax.plot([low, high], [row, row], color=color, linewidth=6, alpha=0.35, solid_capstyle="round")
    ax.plot([middle], [row], "o", color=color, markersize=9)
    ax.text(1.02, row, label, color=INK, va="center", transform=ax.get_yaxis_transform())


def _percents(ax: Axes, low: float, high: float) -> None:
    """Show a part of 0..100 with a little room, and no tick outside of it."""
    ax.set_xlim(max(low, -1), min(high, 101))
    ends = ax.get_xlim()
    ax.set_xticks([tick for tick in ax.get_xticks() if max(ends[0], 0) <= tick <= min(ends[1], 100)])


def _limit(ax: Axes, result: GateResult, name: str, low: float) -> list[float]:
    """Draw a limit near the lowest figure, and return it; far below it would push the figures together."""
    limits = [criterion.limit for criterion in result.criteria if criterion.name == name]
    near = [100 * limit for limit in limits if limit is not None and 100 * limit >= low - NEAR]
    for x in near:
        ax.axvline(x, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        ax.text(x, 1, f" limit {x:g} %", color=BAD, fontsize=8, va="top", transform=ax.get_xaxis_transform())
    return near


def _style(ax: Axes, title: str) -> None:
    ax.set_title(title, color=INK, loc="left")
    ax.set_facecolor("none")
    ax.tick_params(colors=INK, length=0)
    ax.grid(axis="x", color=LINE)
    ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_visible(False)


# Grids of images


class Cell(NamedTuple):
    """Hold an (H, W, 3) RGB image with its caption; an image that is None is drawn as a gap."""

    image_u8: npt.NDArray[np.uint8] | None
    caption: str


class Group(NamedTuple):
    """Hold images under a heading; `total` counts those that are not shown too."""

    title: str
    color: str
    total: int
    cells: Sequence[Cell]


def _flips(result: GateResult, thumbnails: Mapping[str, npt.NDArray[np.uint8]]) -> Figure | None:
    """Draw changed predictions, regressions first, with the label and both predictions."""
    groups = []
    for kind, title in text.FLIP_TITLES.items():
        cells = []
        for flip in [flip for flip in result.flips if flip.kind == kind][:MOST_FLIPS]:
            champion = f"champion: {short(flip.champion, 8)} {flip.champion_probability:.2f}"
            candidate = f"candidate: {short(flip.candidate, 8)} {flip.candidate_probability:.2f}"
            caption = f"label: {short(flip.label, 16)}\n{champion}\n{candidate}"
            cells.append(Cell(thumbnails.get(flip.path), caption))
        groups.append(Group(title, BAD if kind == "broken" else GOOD, text.flip_count(result, kind), cells))
    return image_grid(groups)


def image_grid(groups: Sequence[Group]) -> Figure | None:
    """Draw groups of images below each other; None where there is no image."""
    groups = [group for group in groups if group.cells]
    if not groups:
        return None
    heights = [HEAD + ROW * math.ceil(len(group.cells) / COLUMNS) for group in groups]
    height = sum(heights)
    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    top = height  # inches above the lower edge
    for group, used in zip(groups, heights, strict=True):
        images = "image" if group.total == 1 else "images"
        shown = "" if len(group.cells) == group.total else f", {len(group.cells)} shown"
        heading = f"{group.title}: {group.total:,} {images}{shown}"
        x, y = EDGE / WIDTH, (top - EDGE) / height
        figure.text(x, y, heading, color=group.color, fontsize=12, weight="bold", va="top")
        for number, cell in enumerate(group.cells):
            row, column = divmod(number, COLUMNS)
            left, low = EDGE + column * (WIDTH - EDGE) / COLUMNS, top - HEAD - row * ROW - SIDE
            ax = figure.add_axes((left / WIDTH, low / height, SIDE / WIDTH, SIDE / height))
            ax.set_axis_off()
            if cell.image_u8 is None:
                ax.text(0.5, 0.5, "no image", color=SOFT, ha="center", va="center", transform=ax.transAxes)
            else:
                ax.imshow(cell.image_u8, interpolation="nearest")
            # Below the square, not below the image: a wide image is less high.
            x, y = left / WIDTH, (low - GAP) / height
            figure.text(x, y, cell.caption, color=INK, fontsize=7.5, va="top", parse_math=False)
        top -= used
    return figure
