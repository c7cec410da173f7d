"""The judgement in pictures: gain and recalls with what they are compared with, and the images that flipped.

Each is drawn twice, for light pages (`gain.png`) and for dark ones (`gain-dark.png`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convoy.gate import grid, written
from convoy.gate.grid import Cell, Group
from convoy.gate.looks import WIDTH, Look, twice
from convoy.gate.names import short
from convoy.gate.result import ClassFigures, Comparison, GateResult, Share

MOST_CLASSES = 40
"""Most classes that have room; of more, those are drawn that changed most."""
MOST_FLIPS = 12
"""Most images drawn of each kind of flip."""
LONGEST_NAME = 22
"""Characters of a class name that a label has room for."""
NEAR = 25
"""Points below the lowest figure down to which a limit is drawn."""


def draw(
    judgement: GateResult, thumbnails: Mapping[str, npt.NDArray[np.uint8]], out: Path
) -> tuple[Path, ...]:
    """Draw gain.png, classes.png and flips.png; one that would have nothing to show is left out, and removed.

    Args:
        judgement: what was found.
        thumbnails: (H, W, 3) RGB by path, of images that flipped; one that is missing is drawn as a gap.
        out: folder of the pictures; made where there is none.

    Returns:
        The files, each light one before its dark one.

    Raises:
        RequestError: the folder cannot be written.
    """
    return (
        *twice(out, "gain", lambda look: _gain(judgement, look)),
        *twice(out, "classes", lambda look: _classes(judgement, look)),
        *twice(out, "flips", lambda look: _flips(judgement, thumbnails, look)),
    )


def _gain(judgement: GateResult, look: Look) -> Figure | None:
    """Draw accuracies and, where there is a champion to compare with, the gain; each with its interval."""
    both, measured = judgement.comparison, written.shares(judgement)
    if not measured:
        return None
    heights = [0.9 + 0.42 * len(measured)] + [1.35] * (both is not None)
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor=look.paper, layout="constrained")
    places = np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=True))
    _accuracies(places[0], measured, judgement, look)
    if both is not None:
        _difference(places[1], both, look)
    return figure


def _accuracies(
    place: Axes, measured: Sequence[tuple[str, Share]], judgement: GateResult, look: Look
) -> None:
    """Draw the accuracies below each other, the candidate's last."""
    _bare(place, look, "Accuracy on the same images, in % (with its interval)")
    rows = list(reversed(measured))  # from the lower edge
    for row, (_, share) in enumerate(rows):
        color = look.champion if row else look.candidate
        _bar(place, row, (share.low, share.accuracy, share.high), color)
        _beside(place, row, written.interval(share), look)
    place.set_yticks(range(len(rows)), [short(name, LONGEST_NAME) for name, _ in rows], parse_math=False)
    low, high = min(100 * share.low for _, share in rows), max(100 * share.high for _, share in rows)
    limit = _limit(place, judgement, "accuracy", low, look)
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    margin = max(0.12 * (high - low), 0.5)
    _percents(place, low - margin, high + margin)
    place.set_ylim(-0.6, len(rows) - 0.4)


def _difference(place: Axes, both: Comparison, look: Look) -> None:
    """Draw the gain beside 0, in a colour that says whether it is one."""
    _bare(place, look, "Gain of the candidate, in points; 0 is no difference")
    color = look.good if both.low > 0 else look.bad if both.high < 0 else look.soft
    _bar(place, 0, (both.low, both.gain, both.high), color)
    said = f"{written.gain(both.gain)} ({written.gain(both.low)} to {written.gain(both.high)})"
    _beside(place, 0, said, look)
    place.axvline(0, color=look.ink, linewidth=1)
    widest = 1.15 * max(abs(100 * both.low), abs(100 * both.high), 1.0)
    place.set(xlim=(-widest, widest), ylim=(-0.6, 0.6))
    place.set_yticks([0], ["gain"])


def _bar(place: Axes, row: float, shares: tuple[float, float, float], color: str) -> None:
    """Draw an interval as a bar with its figure as a dot."""
    low, middle, high = (100 * share for share in shares)
    place.plot([low, high], [row, row], color=color, linewidth=6, alpha=0.35, solid_capstyle="round")
    place.plot([middle], [row], "o", color=color, markersize=9)


def _beside(place: Axes, row: float, text: str, look: Look) -> None:
    place.text(1.02, row, text, color=look.ink, va="center", transform=place.get_yaxis_transform())


def _percents(place: Axes, low: float, high: float) -> None:
    """Show a part of 0..100 with a little room, and no tick outside of it."""
    place.set_xlim(max(low, -1), min(high, 101))
    ends = place.get_xlim()
    place.set_xticks([tick for tick in place.get_xticks() if max(ends[0], 0) <= tick <= min(ends[1], 100)])


def _classes(judgement: GateResult, look: Look) -> Figure | None:
    """Draw each class's recall under both, the champion's hollow, joined by a line."""
    shown = [one for one in judgement.classes if (one.candidate, one.champion) != (None, None)]
    if not shown:
        return None
    rows = _most_changed(shown)
    figure = Figure(figsize=(WIDTH, 1.5 + 0.27 * len(rows)), facecolor=look.paper, layout="constrained")
    place = figure.subplots()
    part = "" if len(rows) == len(shown) else f"; the {len(rows)} of {len(shown)} classes that changed most"
    key = "hollow: champion, full: candidate" if written.rivals(judgement) else "of the candidate"
    _bare(place, look, f"Recall per class, in % (images); {key}{part}")
    for row, one in enumerate(reversed(rows)):
        if one.candidate is not None and one.champion is not None:
            fell = one.candidate < one.champion
            ends = [100 * one.champion, 100 * one.candidate]
            place.plot(ends, [row, row], color=look.bad if fell else look.good, linewidth=3, alpha=0.55)
        if one.champion is not None:
            place.plot(
                [100 * one.champion], [row], "o", mfc=look.paper, mec=look.champion, mew=2, markersize=9
            )
        if one.candidate is not None:
            place.plot([100 * one.candidate], [row], "o", color=look.candidate, markersize=6.5)
    names = [f"{short(one.name, LONGEST_NAME)}  ({one.images:,})" for one in reversed(rows)]
    place.set_yticks(range(len(rows)), names, parse_math=False)
    low = min(100 * recall for one in rows for recall in (one.candidate, one.champion) if recall is not None)
    limit = _limit(place, judgement, "class_recall", low, look)
    low = low if limit is None else min(low, limit)
    place.set_ylim(-0.7, len(rows) - 0.3)
    _percents(place, low - 0.05 * (100 - low) - 1, 101)
    return figure


def _most_changed(classes: Sequence[ClassFigures]) -> list[ClassFigures]:
    """Choose the classes that are drawn: falls first where there are too many; in their own order."""
    if len(classes) <= MOST_CLASSES:
        return list(classes)

    def weight(one: ClassFigures) -> tuple[float, float]:
        mine, theirs = one.candidate or 0.0, one.champion
        return (-abs(mine - theirs) if theirs is not None else 0.0, mine)

    first = sorted(range(len(classes)), key=lambda n: weight(classes[n]))[:MOST_CLASSES]
    return [classes[n] for n in sorted(first)]


def _flips(
    judgement: GateResult, thumbnails: Mapping[str, npt.NDArray[np.uint8]], look: Look
) -> Figure | None:
    """Draw images that one of the two gets wrong, broken ones first, with the label and both answers."""
    groups = []
    for kind, title, total, flips in written.flips(judgement):
        champion, candidate = (look.good, look.bad) if kind == "broken" else (look.bad, look.good)
        cells = [
            Cell(
                thumbnails.get(flip.path),
                (
                    (f"is {short(flip.label, 18)}", look.ink),
                    (f"champion: {_answer(flip.champion, flip.champion_probability)}", champion),
                    (f"candidate: {_answer(flip.candidate, flip.candidate_probability)}", candidate),
                ),
            )
            for flip in flips[:MOST_FLIPS]
        ]
        groups.append(Group(title, candidate, total, cells))
    return grid.draw(groups, look)


def _answer(name: str, probability: float) -> str:
    return f"{short(name, 8)} {probability:.2f}"


def _limit(place: Axes, judgement: GateResult, name: str, low: float, look: Look) -> float | None:
    """Draw a limit where it is near the lowest figure; far below, it would push the figures together."""
    limit = next((one.limit for one in judgement.criteria if one.name == name), None)
    if limit is None or 100 * limit < low - NEAR:
        return None
    at = 100 * limit
    place.axvline(at, color=look.bad, linewidth=1, linestyle=(0, (4, 3)))
    above = place.get_xaxis_transform()
    place.text(at, 1, f" limit {at:g} %", color=look.bad, fontsize=8, va="top", transform=above)
    return at


def _bare(place: Axes, look: Look, title: str) -> None:
    place.set_title(title, color=look.ink, loc="left")
    place.set_facecolor(look.paper)
    place.tick_params(colors=look.ink, length=0)
    place.grid(axis="x", color=look.line)
    place.set_axisbelow(True)
    for spine in place.spines.values():
        spine.set_visible(False)
