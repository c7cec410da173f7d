"""Train a CNN and a dense network on images whose pixels are in place, and on the same images shuffled.

N images, P side of a sheet in pixels, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from convoy.core.dataset import Dataset
from convoy.explain.position_verdict import CNN, DENSE, Pair, Verdict
from convoy.models.build import build
from convoy.models.spec import Spec
from convoy.models.trained import NormalizedModel
from convoy.training.data import augment
from convoy.training.optim import lr_schedule

LARGEST_PX = 12
"""Side that larger images are shrunk to, so that twelve trainings take seconds."""
LEARNT = 500
"""Most images to learn from: the fewer there are, the more what a network takes for granted counts."""
MEASURED = 1500
"""Sheets to measure on; fewer images take turns, each time at another place."""
SEEDS = 3
"""Trainings per arm."""
EPOCHS = 40
BATCH = 32
LR = 0.003
WARMUP = 0.2


def _convolution(filters: int) -> list[Any]:
    return [{"conv": {"filters": filters, "kernel": 3, "padding": "same", "bias": False}}, "norm", "relu"]


NETWORKS: dict[str, list[Any]] = {
    CNN: [
        *_convolution(16),
        {"max_pool": 2},
        *_convolution(32),
        {"max_pool": 2},
        *_convolution(64),
        "global_avg_pool",
        "flatten",
        {"dense": "classes"},
    ],
    DENSE: ["flatten", {"dense": 256}, "relu", {"dense": 256}, "relu", {"dense": "classes"}],
}
"""What is compared, in the grammar of networks/*.yaml."""

IN_WORDS = (
    "CNN: three 3×3 convolutions of 16, 32 and 64 filters, max pooling between, the mean of each map, a dense "
    "layer. Dense network: two layers of 256 and the classes."
)
"""The same for people."""


@dataclass(frozen=True)
class Sheets:
    """Hold images that lie on black sheets, and the one order that all of them are shuffled by.

    Attributes:
        source: where the images come from.
        classes: K.
        image_px: side of an image, in pixels.
        shift: most pixels that an image lies off the middle of its sheet.
        learnt_u8: (N, 3, P, P) uint8, images in the middle; the training shifts them anew at each step.
        learnt_labels: (N,) int64.
        measured_u8: (MEASURED, 3, P, P) uint8, each image shifted once.
        measured_labels: (MEASURED,) int64.
        order: (P * P,) int64: place i of a shuffled sheet shows the pixel of place `order[i]`.
    """

    source: str
    classes: int
    image_px: int
    shift: int
    learnt_u8: Tensor
    learnt_labels: Tensor
    measured_u8: Tensor
    measured_labels: Tensor
    order: Tensor

    @property
    def px(self) -> int:
        """Give P."""
        return int(self.learnt_u8.shape[-1])

    def as_json(self) -> dict[str, Any]:
        """Give plain data."""
        return {
            "source": self.source,
            "classes": self.classes,
            "learnt": len(self.learnt_labels),
            "measured": len(self.measured_labels),
            "image_px": self.image_px,
            "sheet_px": self.px,
            "shift": self.shift,
        }


def digits(seed: int) -> Sheets:
    """Take the UCI digits that scikit-learn carries, those of samples/digits: they need no file."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (a second that a packed dataset does not need)

    found = load_digits()
    gray_u8 = np.round(found.images * (255 / found.images.max())).astype(np.uint8)
    images_u8 = np.repeat(gray_u8[..., np.newaxis], 3, axis=3)
    random = np.random.default_rng(seed)
    learnt, measured = np.split(random.permutation(len(images_u8)), [LEARNT])
    labels = found.target.astype(np.int64)
    return _sheets(
        f"{len(learnt):,} of the {len(labels):,} UCI digits, the other {len(measured):,} to measure on",
        len(found.target_names),
        (images_u8[learnt], labels[learnt]),
        (images_u8[measured], labels[measured]),
        random,
    )


def packed(folder: Path, seed: int) -> Sheets:
    """Take images of a packed dataset: train to learn from, val to measure on; test stays unseen.

    Raises:
        DataError: the folder holds no dataset that `prepare` wrote.
    """
    dataset = Dataset.load(folder)
    random = np.random.default_rng(seed)
    images, labels = dataset.images("train"), dataset.labels("train")
    learnt = np.sort(random.permutation(len(labels))[:LEARNT])
    others, others_labels = dataset.images("val"), dataset.labels("val")
    measured = np.sort(random.permutation(len(others_labels))[:MEASURED])
    return _sheets(
        f"{len(learnt):,} train images of {folder}, {len(measured):,} val images to measure on",
        len(dataset.classes),
        (images[learnt], labels[learnt]),
        (others[measured], others_labels[measured]),
        random,
    )


def trainings(sheets: Sheets, seed: int) -> Iterator[tuple[str, bool, float]]:
    """Train each network in place and shuffled, `SEEDS` times each; yield network, shuffled, accuracy 0..1.

    A seed decides starting weights, batches and shifts, and does so alike in all four arms.
    """
    for name, layers in NETWORKS.items():
        spec = Spec.model_validate({"name": name, "layers": layers})
        for shuffled in (False, True):
            for one in range(seed, seed + SEEDS):
                with _one_thread():
                    accuracy = train(spec, sheets, one, shuffled=shuffled)
                yield name, shuffled, accuracy


def conclude(done: list[tuple[str, bool, float]], sheets: Sheets, seed: int) -> Verdict:
    """Judge what `trainings` yielded."""

    def arm(network: str, *, shuffled: bool) -> tuple[float, ...]:
        return tuple(accuracy for name, was, accuracy in done if (name, was) == (network, shuffled))

    step = 1 / len(sheets.measured_labels)
    cnn, dense = (Pair(arm(name, shuffled=False), arm(name, shuffled=True), step) for name in (CNN, DENSE))
    return Verdict(cnn, dense, tuple(range(seed, seed + SEEDS)))


def train(spec: Spec, sheets: Sheets, seed: int, *, shuffled: bool) -> float:
    """Train one network and return its accuracy on the measured sheets, 0..1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(spec, sheets.classes, sheets.px)
    pixels = sheets.learnt_u8.float() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    model = NormalizedModel(network, mean.tolist(), std.tolist()).to(memory_format=torch.channels_last)
    order = sheets.order if shuffled else torch.arange(sheets.px**2)
    random = np.random.default_rng(seed)
    batches = -(-len(sheets.learnt_labels) // BATCH)
    optimizer = AdamW(model.parameters(), lr=LR)
    schedule = LambdaLR(optimizer, lr_schedule("one_cycle", WARMUP, EPOCHS * batches))
    for _ in range(EPOCHS):
        for rows in np.array_split(random.permutation(len(sheets.learnt_labels)), batches):
            # Shifted before it is shuffled: the image moves, the shuffle of places stays one and the same.
            moved_u8 = augment(sheets.learnt_u8[rows], ["crop"], sheets.shift, random)
            loss = cross_entropy(model(shuffle(moved_u8, order).float()), sheets.learnt_labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        answers = model(shuffle(sheets.measured_u8, order).float()).argmax(dim=1)
    return float((answers == sheets.measured_labels).float().mean())


def shuffle(pixels: Tensor, order: Tensor) -> Tensor:
    """Show at place i of every image, row by row, the pixel of place `order[i]`; (N, C, P, P) stays so."""
    return pixels.flatten(2)[:, :, order].view(pixels.shape).contiguous(memory_format=torch.channels_last)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch on one thread.

    Batches this small gain a third of the time from a second one. Where other programs keep the
    processor busy they take eight times as long with it, since each operation waits for both.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sheets(
    source: str,
    classes: int,
    learnt: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
    measured: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
    random: np.random.Generator,
) -> Sheets:
    """Lay (n, H, H, 3) images on sheets, and draw the order."""
    image_px = min(learnt[0].shape[1], LARGEST_PX)
    shift = image_px // 4
    turns = np.resize(np.arange(len(measured[1])), MEASURED)
    margin = shift + 1  # one more, so that what comes in from beyond the edge is its reflection: black
    px = image_px + 2 * margin
    return Sheets(
        source,
        classes,
        image_px,
        shift,
        _laid(learnt[0], image_px, margin),
        torch.from_numpy(learnt[1]),
        augment(_laid(measured[0], image_px, margin)[turns], ["crop"], shift, random),
        torch.from_numpy(measured[1][turns]),
        torch.from_numpy(random.permutation(px * px)),
    )


def _laid(images_u8: npt.NDArray[np.uint8], image_px: int, margin: int) -> Tensor:
    """Shrink (n, H, H, 3) images to (n, 3, image_px, image_px) and lay them in the middle of black sheets."""
    images = torch.from_numpy(images_u8).permute(0, 3, 1, 2)
    if images.shape[-1] > image_px:
        images = interpolate(images.float(), size=image_px, mode="bilinear", antialias=True).round().byte()
    return pad(images, (margin,) * 4).contiguous(memory_format=torch.channels_last)
