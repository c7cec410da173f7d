"""Write drawn figures as PNG or SVG files that are equal for equal contents."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from convoy.core.errors import RequestError

FORMATS = (".png", ".svg")
DOTS = 144
"""Pixels per inch of a PNG."""


def check_name(out: Path) -> None:
    """Refuse a picture of a format that is not drawn.

    Raises:
        RequestError: the name ends in something else.
    """
    if out.suffix.lower() not in FORMATS:
        raise RequestError(
            f"{out} is no {' or '.join(FORMATS)} file, which is what is drawn. "
            f"Try --picture {out.with_suffix('.png')}"
        )


def write(figure: Figure, out: Path) -> Path:
    """Write a figure in the format that the file's name ends in.

    Raises:
        RequestError: the file cannot be written.
    """
    # Without these, equal figures would give files that differ in date, in matplotlib's version and in ids.
    metadata = {"Software": None} if out.suffix.lower() == ".png" else {"Date": None}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": "convoy"}):
            figure.savefig(out, dpi=DOTS, metadata=metadata)
    except OSError as error:
        raise RequestError(
            f"The picture {out} cannot be written: {error.strerror}. Name another place, or make room there."
        ) from error
    return out
