"""Draw a training's curves."""

import csv
from pathlib import Path

from matplotlib.figure import Figure


def draw(history: Path, out: Path) -> Path:
    """Draw loss and accuracy by epoch, training beside validation.

    Args:
        history: the CSV that `fit` writes: `epoch` and columns named `where/what`.
        out: PNG file to write; its folder is made.

    Returns:
        `out`.
    """
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
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out
