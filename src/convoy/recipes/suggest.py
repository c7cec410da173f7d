"""Propose a recipe for a prepared dataset and this machine, and what to change of it, each with its reason."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn.functional import cross_entropy

from convoy.core import cpus
from convoy.core.allocator import memory_kept
from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.core.errors import DataError
from convoy.models import spec as specs
from convoy.models import trained
from convoy.models.trained import ModelFacts
from convoy.recipes import recipe
from convoy.training import weight_pins
from convoy.training.augment import policy
from convoy.training.precision import choose_precision, keep_slow_in_float32
from convoy.training.small_maps import use_products
from convoy.training.weight_pins import IMAGENET

ICON_PX = 40  # median shorter side up to which images are trained at 32 px
MANY = 10_000  # training images from which few epochs of large batches are enough, as on CIFAR-10
FEWEST_STEPS = 150  # of a training; a judgement: with fewer, a network has hardly begun
MOST_EPOCHS = 100
LINEAR: dict[str, tuple[str, ...]] = {
    "sgd": ("train.lr",),
    "adamw": (),
    "muon": ("train.muon.rest_lr", "train.muon.head_lr", "train.muon.rest_decay"),
}
"""Rates that follow the batch (Goyal et al., 2017), by optimizer. AdamW's and Muon's steps have a fixed size: they follow its root."""

IMBALANCED = 5  # largest over smallest class from which the loss is weighted
TIMED_STEPS = 3


@dataclass(frozen=True)
class Situation:
    """What the choice depends on."""

    classes: int
    train: int  # images
    smallest: int  # training images of the smallest class
    largest: int  # of the largest
    shorter_px: int  # median shorter side of the delivered training images
    symbols: bool  # class names are numbers or single letters, so images must not be mirrored
    pinned: str  # a network whose ImageNet weights are in weights/, or empty
    gpu: str  # its name, or empty
    cpus: int

    def line(self) -> str:
        """Write it for people."""
        machine = self.gpu or f"{self.cpus} CPU cores, no GPU"
        return (
            f"{self.train:,} training images of {self.classes:,} classes ({self.smallest:,} to {self.largest:,} each), "
            f"median shorter side {self.shorter_px:,} px; {machine}"
        )


@dataclass(frozen=True)
class Choice:
    """A value of params.yaml, and the reason for it."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Suggestion:
    """A recipe, what to change of it, and the speed of such a training on this machine."""

    situation: Situation
    recipe: str
    reason: str
    changes: tuple[Choice, ...]
    values: dict[str, Any]  # of the recipe, with the changes, by flat keys
    images_per_s: float

    @property
    def train_min(self) -> float:
        """Estimate the minutes of a training, without start-up and validation."""
        return float(self.situation.train * self.values["train.epochs"] / self.images_per_s / 60)


def look(folder: Path) -> Situation:
    """Look at a dataset that `prepare` wrote, and at this machine.

    Raises:
        DataError: it is not prepared.
    """
    dataset = Dataset.load(folder)
    counts = [count for count in dataset.counts["train"].values() if count]
    try:
        table = pq.read_table(folder / MANIFEST_FILE, columns=["width", "height", "split"])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(
            f"{folder / MANIFEST_FILE} is missing or damaged. Recreate it with `dvc repro --force prepare`, or restore it with "
            "`dvc checkout`."
        ) from error
    shorter = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
    return Situation(
        classes=len(dataset.classes),
        train=sum(counts),
        smallest=min(counts),
        largest=max(counts),
        shorter_px=int(np.median(shorter[table["split"].to_numpy() == "train"])),
        symbols=all(len(name) == 1 or name.isdigit() for name in dataset.classes),
        pinned=_pinned(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        cpus=cpus.usable_cpus(),
    )


def _pinned() -> str:
    """Find the first network whose ImageNet weights are pinned."""
    fitting = {
        pin.classifier for pin in weight_pins.read_all(weight_pins.FOLDER).values() if pin.source == IMAGENET
    }
    for name in specs.names():
        spec = specs.load(name)
        twin = ("torchvision", spec.twin) if spec.twin else None
        if fitting & {spec.classifier, twin} - {None}:
            return name
    return ""


def suggest(folder: Path) -> Suggestion:
    """Choose a recipe for a prepared dataset, adapt it, and time a few steps of training.

    Raises:
        DataError: the dataset is not prepared.
    """
    situation = look(folder)
    name, reason = _recipe(situation)
    values = recipe.load(name).values()
    changes = _changes(situation, values)
    values |= {change.key: change.value for change in changes}
    speed = images_per_s(values, situation)
    return Suggestion(situation, name, reason, tuple(changes), values, speed)


def _recipe(seen: Situation) -> tuple[str, str]:
    """Choose a recipe, and the reason."""
    if seen.shorter_px > ICON_PX:
        photos = f"photographs: the median shorter side is {seen.shorter_px:,} px"
        if seen.pinned:
            return "small-photos", f"{photos}, and weights/ has {seen.pinned}'s, which know such images"
        return "photos-from-scratch", (
            f"{photos}. Weights that know such images need fewer of them: convoy weights use imagenet --network resnet18, "
            "and then this command again"
        )
    small = f"small images: the median shorter side is {seen.shorter_px} px"
    if seen.train < MANY:
        return "digits", f"{small}; {seen.train:,} of them need many passes and small batches"
    return "cifar10-4min", f"{small}; {seen.train:,} of them learn fast in few passes with large batches"


def _changes(seen: Situation, values: dict[str, Any]) -> list[Choice]:
    """Adapt the values of a recipe."""
    changes = []
    if values["network.weights"] == IMAGENET and seen.pinned != values["network.name"]:
        changes.append(Choice("network.name", seen.pinned, "its weights are pinned"))
    changes += _longer(seen, values)
    if seen.symbols:
        given = values["train.augment"]
        listed = policy.SHORTHANDS[given] if isinstance(given, str) else given
        kept = [item for item in listed if "flip" not in str(item)]
        if kept != listed:
            changes.append(
                Choice("train.augment", kept, "classes are letters or numbers, which mirroring changes")
            )
        if values["train.tta"] != "none":
            changes.append(Choice("train.tta", "none", "its views are mirrored"))
    if seen.largest > IMBALANCED * seen.smallest:
        ratio = seen.largest / seen.smallest
        changes.append(
            Choice("train.class_weights", "effective", f"the largest class has {ratio:.0f} × the smallest")
        )
    return changes


def _longer(seen: Situation, values: dict[str, Any]) -> list[Choice]:
    """Make the steps of a training more, by smaller batches and then by more epochs, if there would be too few."""
    epochs, batch = values["train.epochs"], values["train.batch_size"]
    steps = epochs * max(1, seen.train // batch)
    if steps >= FEWEST_STEPS:
        return []
    few = f"{epochs} epochs of batches of {batch:,} would be {steps:,} steps"
    changes = []
    smaller = max(8, min(batch, seen.train // 20))
    if smaller != batch:
        share = smaller / batch
        changes.append(Choice("train.batch_size", smaller, few))
        linear = LINEAR[values["train.optimizer"]]
        changes += [
            Choice(key, _short(values[key] * share), f"as the batch, {share:.2g} of the recipe's")
            for key in linear
        ]
        if "train.lr" not in linear:
            lr = _short(values["train.lr"] * share**0.5)
            changes.append(
                Choice("train.lr", lr, f"as the root of the batch, {share**0.5:.2g} of the recipe's")
            )
    each = max(1, seen.train // smaller)
    if epochs * each < FEWEST_STEPS:
        longer = min(MOST_EPOCHS, -(-FEWEST_STEPS // each))
        reason = f"{few}, and {epochs * each:,} with batches of {smaller:,}; fewer than {FEWEST_STEPS} are too few to learn"
        changes.append(Choice("train.epochs", longer, reason))
    return changes


def _short(value: float) -> float:
    """Round to two digits."""
    return float(f"{value:.2g}")


@memory_kept()
def images_per_s(values: dict[str, Any], seen: Situation) -> float:
    """Time steps of training on random pixels with a recipe's network, image size and batch, on this machine."""
    spec = specs.load(values["network.name"])
    side, batch = values["data.image_px"], min(values["train.batch_size"], 256, max(2, seen.train))
    device = torch.device("cuda" if seen.gpu else "cpu")
    facts = ModelFacts(
        network=spec.name,
        spec=spec,
        classes=[str(index) for index in range(seen.classes)],
        image_px=side,
        fit="squash",
        background="white",
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    model = trained.make(facts).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload] # torch's types lack this form
    pixels = torch.randint(0, 256, (batch, 3, side, side), device=device).float()
    labels = torch.arange(batch, device=device) % seen.classes
    precision, _ = choose_precision(values["train.precision"])
    if device.type == "cpu":
        keep_slow_in_float32(model.network)
        use_products(model.network)
    began = 0.0
    for step in range(TIMED_STEPS + 1):
        if step == 1:  # the first allocates memory and chooses kernels
            began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "32-true"):
            logits = model(pixels)
            loss = cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
        if seen.gpu:
            torch.cuda.synchronize()
    return float(TIMED_STEPS * batch / (time.monotonic() - began))
