"""Draw training images beside their augmented versions: what the network sees."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from convoy.core.dataset import Dataset
from convoy.explain import figures
from convoy.explain.figures import INK, PAPER
from convoy.training.augment import policy
from convoy.training.batch import Batch
from convoy.training.data import DataModule
from convoy.training.settings import TrainParams
from convoy.training.stored import train_images

IMAGES = 6
VERSIONS = 7
SIDE, CAPTION, MARGIN = 1.2, 0.46, 0.1  # inches
LETTERS = 27  # of a line of a caption
LINES = 4


def draw(dataset: Dataset, params: TrainParams, seed: int, path: Path) -> Path:
    """Draw one training image of up to six classes, as stored and as augmented in seven epochs, with what was applied.

    The images form a batch, so that those of `mixup` and `cutmix` are mixed with each other.
    """
    augmenter = DataModule(dataset, params, seed).augmenter
    labels = dataset.labels("train")
    rows = _examples(labels)
    stored = torch.from_numpy(train_images(dataset)[rows]).permute(0, 3, 1, 2)
    batch = Batch(stored, torch.from_numpy(labels[rows]), 0, rows)
    columns = [(stored, [dataset.classes[label] for label in labels[rows]])]
    for epoch in range(VERSIONS if params.augment else 0):
        notes: list[list[str]] = [[] for _ in rows]
        changed = augmenter.apply(batch, epoch, notes).pixels_u8
        columns.append((changed, [", ".join(note) or "as stored" for note in notes]))
    step, line = SIDE + MARGIN, SIDE + CAPTION
    title = _wrapped(f"train.augment: {policy.described(params.augment)}", 150, 4)
    top = 0.2 * (title.count("\n") + 1) + 0.15
    width, height = (
        max(7.0, (VERSIONS + 1 if params.augment else 1) * step + MARGIN),
        len(rows) * line + top + MARGIN,
    )
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(MARGIN, height - 0.1, title, color=INK, fontsize=8, va="top", parse_math=False)
    for column, (images, captions) in enumerate(columns):
        for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
            left, upper = MARGIN + column * step, height - top - row * line
            axes.imshow(
                image.permute(1, 2, 0).numpy(),
                extent=(left, left + SIDE, upper - SIDE, upper),
                interpolation="nearest" if image.shape[-1] < SIDE * figures.DPI else "antialiased",
            )
            axes.text(
                left,
                upper - SIDE - 0.03,
                _wrapped(caption, LETTERS, LINES),
                color=INK,
                fontsize=6,
                va="top",
                weight="bold" if column == 0 else "normal",
                parse_math=False,
            )
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_aspect("auto")
    return figures.write(figure, path)


def _examples(labels: np.ndarray) -> np.ndarray:
    """Choose rows of up to `IMAGES` images: of as many classes as possible, spread over all of them, in the order of classes."""
    classes = np.unique(labels)
    if len(classes) >= IMAGES:
        classes = classes[np.linspace(0, len(classes) - 1, IMAGES).round().astype(int)]
    share = -(-IMAGES // len(classes))
    rows = [np.flatnonzero(labels == label)[:share] for label in classes]
    return np.concatenate(rows)[:IMAGES]


def _wrapped(text: str, letters: int, lines: int) -> str:
    """Break a text into lines at spaces, and cut it where there are too many."""
    broken = [""]
    for word in text.split(" "):
        if broken[-1] and len(broken[-1]) + 1 + len(word) > letters:
            broken.append(word)
        else:
            broken[-1] = f"{broken[-1]} {word}".strip()
    broken = [line if len(line) <= letters else f"{line[: letters - 1]}…" for line in broken]
    return "\n".join(broken if len(broken) <= lines else [*broken[: lines - 1], f"{broken[lines - 1]} …"])
