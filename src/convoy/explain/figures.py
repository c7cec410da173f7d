"""Write drawn figures as PNG or SVG files, byte for byte equal for equal contents; draw the curves of a run."""

import csv
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from convoy.core import lettering
from convoy.core.errors import RequestError

FORMATS = (".png", ".svg")
DPI = 144
INK, PAPER = "#1c2530", "#ffffff"


def check_name(out: Path) -> None:
    """Refuse a picture in an unsupported format.

    Raises:
        RequestError: the name ends in neither .png nor .svg.
    """
    if out.suffix.lower() not in FORMATS:
        raise RequestError(
            f"{out} is not a {' or '.join(FORMATS)} file. Try --picture {out.with_suffix('.png')}"
        )


def write(figure: Figure, out: Path) -> Path:
    """Write a figure in the format of the file's name, without dates, versions and random ids.

    Raises:
        RequestError: the file cannot be written.
    """
    lettering.fit(figure)
    metadata = {"Software": None} if out.suffix.lower() == ".png" else {"Date": None}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": "convoy"}):
            figure.savefig(out, dpi=DPI, metadata=metadata)
    except OSError as error:
        raise RequestError(
            f"The picture {out} cannot be written: {error.strerror}. Choose another file, or free some space."
        ) from error
    return out


def draw_curves(history: Path, out: Path) -> Path:
    """Draw loss and accuracy of training and validation by epoch, from the CSV that `fit` writes."""
    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for where in ("train", "val"):
            axes.plot(epochs, [float(row[f"{where}/{what}"]) for row in rows], marker=".", label=where)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    return write(figure, out)
