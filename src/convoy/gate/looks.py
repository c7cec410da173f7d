"""How pictures of a verdict look, on light pages and on dark ones."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from convoy.explain import figures

DARK_ENDING = "-dark"
"""Ends the name of a picture for dark pages, before `.png`."""

WIDTH = 9.0
"""Of each picture, in inches."""


@dataclass(frozen=True)
class Look:
    """Choose the colours of a picture."""

    ink: str
    soft: str
    paper: str
    line: str
    champion: str
    candidate: str
    good: str
    bad: str


LIGHT = Look("#1c2530", "#5b6876", "#ffffff", "#dfe4ea", "#7a8797", "#1a5fb4", "#1b7f4b", "#b3261e")
DARK = Look("#dfe6ee", "#93a1b1", "#161c24", "#28323e", "#93a1b1", "#78aeed", "#6fd39b", "#ff8a80")


def twice(out: Path, name: str, figure_of: Callable[[Look], Figure | None]) -> tuple[Path, ...]:
    """Write a picture for light pages (`name.png`) and for dark ones (`name-dark.png`).

    Where there is nothing to draw, those of an earlier time are removed.

    Raises:
        RequestError: the folder cannot be written.
    """
    drawn = []
    for ending, look in (("", LIGHT), (DARK_ENDING, DARK)):
        path = out / f"{name}{ending}.png"
        figure = figure_of(look)
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        with warnings.catch_warnings():
            # Letters that matplotlib's font lacks become boxes; a warning for each would say no more.
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
            drawn.append(figures.write(figure, path))
    return tuple(drawn)
