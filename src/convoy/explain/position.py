"""Experiment: does the position of pixels matter? Train a CNN and a dense network on images, and on the same images shuffled.

N images, P side of a sheet in pixels, K classes.
"""

import io
import textwrap
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from convoy.core import console
from convoy.core.dataset import Dataset, Split
from convoy.core.errors import RequestError
from convoy.explain import figures
from convoy.explain.figures import INK, PAPER
from convoy.models.build import build
from convoy.models.spec import Spec
from convoy.models.trained import NormalizedModel
from convoy.training.augment.pixels import shifted
from convoy.training.optim import lr_schedule

DIGITS = Path("samples/digits/digits.zip")
LARGEST_PX = 12  # side that larger images are shrunk to, so that twelve trainings take seconds
TRAIN_IMAGES = 500  # most training images: with few, the assumptions built into a network matter more
TEST_SHEETS = 1500  # sheets to measure on; fewer images are used repeatedly, each time in another position
SEEDS = 3
EPOCHS = 40
BATCH = 32
LR = 0.003
WARMUP = 0.2
SPREADS = 3  # a change counts only if it exceeds this many spreads over the seeds
IN_PLACE, SHUFFLED = "#1a5fb4", "#d9480f"
BAR = 0.36  # width of a bar in the picture; networks are 1 apart

CNN, DENSE = "CNN", "dense network"


def _block(filters: int) -> list[Any]:
    return [{"conv": {"filters": filters, "kernel": 3, "padding": "same", "bias": False}}, "norm", "relu"]


_HEAD = ["global_avg_pool", "flatten", {"dense": "classes"}]
NETWORKS: dict[str, list[Any]] = {
    CNN: [*_block(16), {"max_pool": 2}, *_block(32), {"max_pool": 2}, *_block(64), *_HEAD],
    DENSE: ["flatten", {"dense": 256}, "relu", {"dense": 256}, "relu", {"dense": "classes"}],
}
"""The compared networks, in the grammar of networks/*.yaml."""

TRAININGS = len(NETWORKS) * 2 * SEEDS


@dataclass(frozen=True)
class Sheets:
    """Images on black sheets, and the order by which all of them are shuffled.

    Attributes:
        image_px: side of an image.
        shift: most pixels that an image is moved from the middle of its sheet.
        train_u8: (N, 3, P, P) uint8, images in the middle; training shifts them anew at each step.
        test_u8: (TEST_SHEETS, 3, P, P) uint8, each image shifted once.
        order: (P * P,) int64: pixel i of a shuffled sheet is pixel `order[i]` of the sheet.
    """

    source: str
    classes: int
    image_px: int
    shift: int
    train_u8: Tensor
    train_labels: Tensor
    test_u8: Tensor
    test_labels: Tensor
    order: Tensor

    @property
    def px(self) -> int:
        """Return P."""
        return int(self.train_u8.shape[-1])

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "source": self.source,
            "classes": self.classes,
            "learnt": len(self.train_labels),
            "measured": len(self.test_labels),
            "image_px": self.image_px,
            "sheet_px": self.px,
            "shift": self.shift,
        }


@dataclass(frozen=True)
class Effect:
    """A network's accuracies, 0..1 by seed, without and with the shuffle; `step` is the accuracy of one image."""

    in_place: tuple[float, ...]
    shuffled: tuple[float, ...]
    step: float

    @property
    def loss(self) -> float:
        """Return the drop of the mean accuracy; negative where it rose."""
        return fmean(self.in_place) - fmean(self.shuffled)

    @property
    def spread(self) -> float:
        """Return the range over the seeds, in place or shuffled, whichever is larger, and at least one image."""
        return max(*(max(arm) - min(arm) for arm in (self.in_place, self.shuffled)), self.step)

    @property
    def bound(self) -> float:
        """Return the largest change that the seeds explain."""
        return SPREADS * self.spread


@dataclass(frozen=True)
class Result:
    """The effect of the shuffle on both networks."""

    cnn: Effect
    dense: Effect
    seeds: tuple[int, ...]

    @property
    def cnn_is_hurt(self) -> bool:
        """Return whether the CNN lost more than the seeds explain."""
        return self.cnn.loss > self.cnn.bound

    @property
    def dense_is_unchanged(self) -> bool:
        """Return whether the dense network changed, down or up, by no more than the seeds explain."""
        return abs(self.dense.loss) <= self.dense.bound

    @property
    def holds(self) -> bool:
        """Return whether the experiment shows that position matters to the CNN only."""
        return self.cnn_is_hurt and self.dense_is_unchanged

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        keys = ("in_place", "shuffled", "loss", "spread")
        cnn, dense = ({key: getattr(effect, key) for key in keys} for effect in (self.cnn, self.dense))
        return {
            "seeds": list(self.seeds),
            "spreads": SPREADS,
            "cnn": cnn | {"is_hurt": self.cnn_is_hurt},
            "dense": dense | {"is_as_it_was": self.dense_is_unchanged},
            "holds": self.holds,
        }


_prose = partial(textwrap.wrap, width=100)
_Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def digits(seed: int, file: Path = DIGITS) -> Sheets:
    """Read the sample digits of the repository.

    Raises:
        RequestError: the file does not exist.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # By number, which runs through all classes.
            names = sorted(map(PurePosixPath, archive.namelist()), key=lambda name: name.stem)
            pictures = [Image.open(io.BytesIO(archive.read(str(name)))).convert("RGB") for name in names]
    except FileNotFoundError as error:
        raise RequestError(
            f"{file} does not exist in {Path.cwd()}. Run this in the repository's root, or with --dataset build/dataset."
        ) from error
    images_u8 = np.stack([np.asarray(picture) for picture in pictures])
    classes, labels = np.unique([name.parent.name for name in names], return_inverse=True)
    random = np.random.default_rng(seed)
    train, test = np.split(random.permutation(len(images_u8)), [TRAIN_IMAGES])
    return _sheets(
        f"{len(train):,} of the {len(labels):,} UCI digits for training, the other {len(test):,} for measuring",
        len(classes),
        (images_u8[train], labels[train]),
        (images_u8[test], labels[test]),
        random,
    )


def packed(folder: Path, seed: int) -> Sheets:
    """Read images of a packed dataset: train to train on, val to measure on; test is not used.

    Raises:
        DataError: the folder holds no dataset that `prepare` wrote.
    """
    from convoy.training.data import served_train_images  # noqa: PLC0415 (imports Lightning, which digits do not need)

    dataset = Dataset.load(folder)
    random = np.random.default_rng(seed)

    def sample(split: Split, most: int) -> _Labelled:
        labels = dataset.labels(split)
        rows = np.sort(random.permutation(len(labels))[:most])
        images_u8 = served_train_images(dataset) if split == "train" else dataset.images(split)
        return images_u8[rows], labels[rows]

    train, val = sample("train", TRAIN_IMAGES), sample("val", TEST_SHEETS)
    source = (
        f"{len(train[1]):,} train images of {folder} for training, {len(val[1]):,} val images for measuring"
    )
    return _sheets(source, len(dataset.classes), train, val, random)


def trainings(sheets: Sheets, seed: int) -> Iterator[float]:
    """Train each network in place, then shuffled, `SEEDS` times each; yield the accuracies, 0..1.

    A seed decides initial weights, batches and shifts, equally in all four arms. Torch is kept on one thread: a second
    thread saves a third of the time on batches this small, but makes them eight times slower on a busy processor, since
    each operation waits for both.
    """
    threads = torch.get_num_threads()
    for name, layers in NETWORKS.items():
        spec = Spec.model_validate({"name": name, "layers": layers})
        for shuffled, own in product((False, True), range(seed, seed + SEEDS)):
            torch.set_num_threads(1)
            try:
                accuracy = train(spec, sheets, own, shuffled=shuffled)
            finally:
                torch.set_num_threads(threads)
            yield accuracy


def conclude(accuracies: Iterable[float], sheets: Sheets, seed: int) -> Result:
    """Collect the accuracies of `trainings`."""
    done, step = tuple(accuracies), 1 / len(sheets.test_labels)
    cnn, cnn_shuffled, dense, dense_shuffled = (done[n : n + SEEDS] for n in range(0, TRAININGS, SEEDS))
    seeds = tuple(range(seed, seed + SEEDS))
    return Result(Effect(cnn, cnn_shuffled, step), Effect(dense, dense_shuffled, step), seeds)


def train(spec: Spec, sheets: Sheets, seed: int, *, shuffled: bool) -> float:
    """Train a network and return its accuracy on the test sheets, 0..1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(spec, sheets.classes, sheets.px)
    pixels = sheets.train_u8.float() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    model = NormalizedModel(network, mean.tolist(), std.tolist()).to(memory_format=torch.channels_last)
    order = sheets.order if shuffled else torch.arange(sheets.px**2)
    random = np.random.default_rng(seed)
    batches = -(-len(sheets.train_labels) // BATCH)
    optimizer = AdamW(model.parameters(), lr=LR)
    schedule = LambdaLR(optimizer, lr_schedule("one_cycle", WARMUP, EPOCHS * batches))
    for _ in range(EPOCHS):
        for rows in np.array_split(random.permutation(len(sheets.train_labels)), batches):
            # Shifted before it is shuffled: the image moves, the shuffle of positions stays the same.
            moved_u8 = shifted(sheets.train_u8[rows], sheets.shift, random)
            loss = cross_entropy(model(shuffle(moved_u8, order).float()), sheets.train_labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        predicted = model(shuffle(sheets.test_u8, order).float()).argmax(dim=1)
    return float((predicted == sheets.test_labels).float().mean())


def shuffle(pixels: Tensor, order: Tensor) -> Tensor:
    """Move pixel `order[i]`, counted row by row, to position i; (N, C, P, P) keeps its shape."""
    return pixels.flatten(2)[:, :, order].view(pixels.shape).contiguous(memory_format=torch.channels_last)


def _sheets(
    source: str, classes: int, train: _Labelled, test: _Labelled, random: np.random.Generator
) -> Sheets:
    """Lay (n, H, H, 3) images on sheets, and draw the order."""
    image_px = min(train[0].shape[1], LARGEST_PX)
    shift = image_px // 4
    rows = np.resize(np.arange(len(test[1])), TEST_SHEETS)
    margin = shift + 1  # one more, so that the reflection that enters from beyond the edge is black
    px = image_px + 2 * margin
    return Sheets(
        source,
        classes,
        image_px,
        shift,
        _on_black(train[0], image_px, margin),
        torch.from_numpy(train[1]),
        shifted(_on_black(test[0], image_px, margin)[rows], shift, random),
        torch.from_numpy(test[1][rows]),
        torch.from_numpy(random.permutation(px * px)),
    )


def _on_black(images_u8: npt.NDArray[np.uint8], image_px: int, margin: int) -> Tensor:
    """Shrink (n, H, H, 3) images to (n, 3, image_px, image_px) and put them in the middle of black sheets."""
    images = torch.from_numpy(images_u8).permute(0, 3, 1, 2)
    if images.shape[-1] > image_px:
        images = interpolate(images.float(), size=image_px, mode="bilinear", antialias=True).round().byte()
    return pad(images, (margin,) * 4).contiguous(memory_format=torch.channels_last)


def introduction(sheets: Sheets) -> list[str]:
    """Describe the experiment."""
    px, side = sheets.image_px, sheets.px
    return [
        *_prose(
            f"Images: {sheets.source}. Each of {px}×{px} px lies on a black sheet of {side}×{side}, up to "
            f"{sheets.shift} px off the middle, moved anew at each step of training and once for measuring. "
            f"Then the {side * side} pixels are shuffled, by the same shuffle for every sheet."
        ),
        *_prose(
            "CNN: three 3×3 convolutions of 16, 32 and 64 filters, max pooling between, the mean of each map, a dense "
            "layer. Dense network: two layers of 256 and the classes. Each trains with the same initial weights, "
            "batches and shifts in place and shuffled; only the shuffle differs."
        ),
        "",
    ]


def report(result: Result) -> list[str]:
    """Write the table, the conclusion and the explanation."""
    table = console.table(
        ("", "in place", "shuffled", "loss", f"{SPREADS} × spread"),
        [
            (name, _arm(effect.in_place), _arm(effect.shuffled), points(effect.loss), points(effect.bound))
            for name, effect in ((CNN, result.cnn), (DENSE, result.dense))
        ],
        right=(3, 4),
    )
    conclusion = (
        "The position of pixels matters to the CNN and not to the dense network."
        if result.holds
        else "This run does not show the expected effect. Another --seed draws images, shuffle and initial weights "
        "anew; the default data was chosen to show it."
    )
    return [
        *table.splitlines(),
        "",
        *_prose(
            f"Accuracy in %, mean over the seeds {', '.join(map(str, result.seeds))}, each in brackets. Spread: from "
            "the lowest seed to the highest, in place or shuffled, whichever is larger."
        ),
        "",
        f"CNN: {_change(result.cnn, exceeds=result.cnn_is_hurt)}",
        f"Dense network: {_change(result.dense, exceeds=not result.dense_is_unchanged)}",
        *_prose(conclusion),
        "",
        *_prose(
            "Why: a filter sees a pixel together with its neighbours, and looks for the same pattern everywhere. "
            "The shuffle separates neighbours, and turns an image that moves into another pattern. A dense layer "
            "has a separate weight for each pixel and no notion of neighbours: with its initial weights "
            "shuffled along with the pixels, it would compute the same. Its two accuracies differ by the random draw "
            "of those weights."
        ),
    ]


def points(share: float) -> str:
    """Format a difference of accuracies in percentage points."""
    return f"{100 * share:z.1f}"


def _change(effect: Effect, *, exceeds: bool) -> str:
    word = "gain" if points(effect.loss).startswith("-") else "loss"
    relation = "more than" if exceeds else "not more than"
    return f"{word} of {points(abs(effect.loss))} points, {relation} the bound of {points(effect.bound)}."


def _arm(accuracies: tuple[float, ...]) -> str:
    each = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
    return f"{100 * fmean(accuracies):.1f} ({each})"


def draw(sheets: Sheets, result: Result, out: Path) -> None:
    """Draw the first training image both ways, and a bar per arm with a dot per seed."""
    figure = Figure(figsize=(11, 3.8), facecolor=PAPER, layout="constrained")
    *images, bars = figure.subplots(1, 3, width_ratios=[1, 1, 1.7])
    sheet_u8 = sheets.train_u8[:1]
    pictures = {"pixels in place": sheet_u8, "shuffled": shuffle(sheet_u8, sheets.order)}
    for axes, (title, picture_u8) in zip(images, pictures.items(), strict=True):
        axes.imshow(picture_u8[0].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(title, color=INK, fontsize=11)
        axes.set_axis_off()
    cnn, dense = result.cnn, result.dense
    for label, colour, offset, arms in (
        ("in place", IN_PLACE, -BAR / 2, (cnn.in_place, dense.in_place)),
        ("shuffled", SHUFFLED, BAR / 2, (cnn.shuffled, dense.shuffled)),
    ):
        positions = np.arange(len(arms)) + offset
        means = [100 * fmean(arm) for arm in arms]
        bars.bar(positions, means, BAR * 0.94, color=colour, alpha=0.35, label=label)
        for x, mean, arm in zip(positions, means, arms, strict=True):
            # Next to each other, since equal seeds would hide each other.
            beside = x + np.linspace(-BAR / 4, BAR / 4, len(arm))
            bars.plot(beside, [100 * accuracy for accuracy in arm], "o", color=colour, markersize=4)
            bars.text(x, 3, f"{mean:.1f}", ha="center", color=INK, fontsize=11)
    chance = 100 / sheets.classes
    bars.axhline(chance, color=INK, linestyle=":", linewidth=1)
    bars.text(0.5, chance + 1, "by chance", ha="center", color=INK, fontsize=8)
    bars.set_xticks((0, 1), (CNN, DENSE), color=INK, fontsize=11)
    bars.set_ylim(0, 104)
    bars.set_ylabel("accuracy in %, dots: seeds", color=INK)
    bars.tick_params(length=0, colors=INK)
    bars.spines[["top", "right"]].set_visible(False)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
    figures.write(figure, out)
