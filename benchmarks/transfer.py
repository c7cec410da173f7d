"""Measure what transfer is worth on CIFAR-10 and write benchmarks/TRANSFER.md.

    python benchmarks/transfer.py cifar10.tar.gz                             about a quarter of an hour on 2 cores
    python benchmarks/transfer.py cifar10.tar.gz --images 100 --seeds 3              five minutes, printed only

A network learns eight classes with a recipe. Then three ways to tell the other two apart, with 25, 100 and 500 images of each,
five seeds, the same epochs: from scratch, starting from the eight-class weights, and starting from them with
everything but the head held. A seed draws the images and decides what training leaves to chance.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from convoy.core import params, yaml
from convoy.core.dataset import SPLITS, Dataset
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.energy.meter import Meter, metered
from convoy.energy.settings import EnergyParams
from convoy.models import spec, trained
from convoy.models.spec import Spec
from convoy.recipes import recipe
from convoy.training.fit import fit
from convoy.training.pretrained import StartingWeights, WeightFacts
from convoy.training.settings import TrainParams

ROOT = Path(__file__).parents[1]
HELD_OUT = ("cat", "dog")
"""The pair that CIFAR-10's classifiers confuse most often, so the hardest that could be left out."""
SEEDS = (1, 2, 3, 4, 5)
EPOCHS = {25: 100, 100: 60, 500: 25}
"""Images of a class, and epochs for them: 200 to 650 steps."""
FIRST = "cifar10-2min"
"""Recipe of the network that knows eight classes."""

AGAIN = {"augment": [{"shift": {"pixels": 2}}, "flip"], "tta": "views"}
"""What the trainings on two classes change in params.yaml."""

CHOOSING = 5
"""One in so many images chooses the epoch and is not trained on."""
PLANS: dict[str, dict[str, Any] | None] = {
    "from scratch": None,
    "transfer, all blocks train": {"freeze": 0, "batch_norm": "adapt"},
    "transfer, only the head trains": {"freeze": "block3", "batch_norm": "frozen"},
}
"""Changes to `train.transfer`; None: no starting weights. block3 is airbench's last block before the head."""

HEAD_LR = 1.0
"""Learning rate where only the head trains: airbench divides its logits by 128, so at the rate of the others it hardly would."""


class Arm(NamedTuple):
    """Hold what one way reached with one number of images: a value for each seed."""

    accuracy: list[float]
    seconds: list[float]
    wh: list[float]


def main() -> None:
    """Train everything and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="CIFAR-10: train/ and test/ folders of ten class folders")
    parser.add_argument(
        "--images", type=int, nargs="+", choices=EPOCHS, default=list(EPOCHS), help="of a class"
    )
    parser.add_argument("--seeds", type=int, choices=SEEDS, default=len(SEEDS), help="how many of them")
    chosen = parser.parse_args()
    archive = chosen.archive.resolve()
    counts, seeds = chosen.images, SEEDS[: chosen.seeds]
    os.chdir(ROOT)
    country = params.section("energy", EnergyParams).country
    content = params.read()
    train = params.check("train", TrainParams, content["train"] | AGAIN)
    first_content = yaml.replaced(content, recipe.load(FIRST).values())
    first_train = params.check("train", TrainParams, first_content["train"])
    network = spec.load(first_content["network"]["name"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # the recipe holds out fewer images of a class than 500 images of it choose the epoch by
        data = yaml.replaced(first_content["data"], {"splits.val": 0.05})
        prepare(archive, params.check("data", DataParams, data), folder / "dataset")
        whole = Dataset.load(folder / "dataset")
        eight = [name for name in whole.classes if name not in HELD_OUT]
        first = subset(whole, eight, None, 0, folder / "eight")
        with metered("fit", country) as meter:
            metrics = fit(first, network, first_train, 1, folder / "model")
        begun = f"recipe `{FIRST}`, {accuracy(first, folder / 'model'):.1%} of {len(first.labels('test')):,} test images, "
        begun += f"{metrics['train']['seconds']:.0f} s, {watt_hours(meter):.2f} Wh"
        starting = beginning(folder / "model")
        arms = {
            (name, count): compare(whole, count, name, network, train, starting, folder, seeds, country)
            for count in counts
            for name in PLANS
        }
    text = "\n".join(
        report(arms, counts, network.name, begun, "; ".join(meter.tags().values()) or "not measured")
    )
    if (counts, seeds) == (list(EPOCHS), SEEDS):
        (ROOT / "benchmarks/TRANSFER.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def compare(  # noqa: PLR0917 (one arm of the experiment)
    whole: Dataset,
    count: int,
    name: str,
    network: Spec,
    train: TrainParams,
    starting: StartingWeights,
    folder: Path,
    seeds: Sequence[int],
    country: str,
) -> Arm:
    """Train one way with `count` images a class, once for each seed."""
    arm = Arm([], [], [])
    changes = PLANS[name]
    for seed in seeds:
        pair = subset(whole, HELD_OUT, count, seed, folder / f"pair-{count}-{seed}")
        chosen = train.model_copy(update={"epochs": EPOCHS[count]})
        if changes and changes["freeze"]:
            chosen = chosen.model_copy(update={"lr": HEAD_LR})
        chosen = chosen.model_copy(update={"transfer": train.transfer.model_copy(update=changes or {})})
        began = time.monotonic()
        with (
            (folder / "log").open("a", encoding="utf-8") as log,
            redirect_stdout(log),
            metered("fit", country) as meter,
        ):
            fit(
                pair,
                network,
                chosen,
                seed,
                folder / "out",
                starting=starting if changes is not None else None,
            )
        arm.seconds.append(time.monotonic() - began)
        arm.wh.append(watt_hours(meter))
        arm.accuracy.append(accuracy(pair, folder / "out"))
        print(
            f"{name}, {count} a class, seed {seed}: {arm.accuracy[-1]:.1%}, {arm.seconds[-1]:.0f} s, "
            f"{arm.wh[-1]:.3f} Wh",
            flush=True,
        )
    return arm


def subset(whole: Dataset, classes: Any, count: int | None, seed: int, out: Path) -> Dataset:  # noqa: ANN401 (a sequence of names)
    """Write a dataset of some classes, with `count` images of each to train with and choose by, all to test with."""
    if (out / "dataset.json").exists():
        return Dataset.load(out)
    random = np.random.default_rng(seed)
    images, labels, splits, counts = [], [], {}, {}
    start = 0
    for split in SPLITS:
        for label, name in enumerate(classes):
            rows = np.flatnonzero(whole.labels(split) == whole.classes.index(name))
            if count and split != "test":
                chosen = count // CHOOSING
                rows = np.sort(
                    random.choice(rows, chosen if split == "val" else count - chosen, replace=False)
                )
            images.append(whole.images(split)[rows])
            labels.append(np.full(len(rows), label))
        stop = sum(map(len, labels))
        splits[split] = [start, stop]
        counts[split] = {
            name: int((np.concatenate(labels)[start:stop] == n).sum()) for n, name in enumerate(classes)
        }
        start = stop
    pixels_u8, numbers = np.concatenate(images), np.concatenate(labels).astype(np.int64)
    seen = pixels_u8[: splits["train"][1]] / np.float32(255)
    facts = {
        "classes": list(classes),
        "image_px": whole.image_px,
        "fit": whole.fit,
        "mean": seen.mean(axis=(0, 1, 2)).tolist(),
        "std": seen.std(axis=(0, 1, 2)).tolist(),
        "hash": hashlib.sha256(pixels_u8.tobytes() + numbers.tobytes()).hexdigest(),
        "splits": splits,
        "counts": counts,
    }
    (out / "images").mkdir(parents=True)
    for split, (begin, end) in splits.items():
        np.save(out / "images" / f"{split}.npy", pixels_u8[begin:end])
    np.save(out / "labels.npy", numbers)
    (out / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    return Dataset.load(out)


def beginning(model: Path) -> StartingWeights:
    """Take a model that training wrote as the weights to start from."""
    module, facts = trained.load(model)
    return StartingWeights(
        source=str(model),
        resolved=str(model),
        file=model / trained.WEIGHTS,
        network=facts.network,
        tensors=dict(module.network.state_dict()),
        facts=WeightFacts(classes=facts.classes, mean=facts.mean, std=facts.std),
    )


def accuracy(dataset: Dataset, model: Path) -> float:
    """Give the share of test images that a model classifies correctly."""
    module, _ = trained.load(model)
    predicted = trained.predict_logits(module, dataset.images("test"), 500).argmax(axis=1)
    return float((predicted == dataset.labels("test")).mean())


def watt_hours(meter: Meter) -> float:
    """Give what a block used; NaN where it could not be metered."""
    spent = meter.spent()
    return spent.kwh * 1000 if spent else float("nan")


def report(
    arms: dict[tuple[str, int], Arm], counts: Sequence[int], network: str, begun: str, energy: str
) -> list[str]:
    """State conditions, and mean and spread of every arm."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning"))
    rows = []
    for name in PLANS:
        cells = []
        for count in counts:
            reached, seconds, wh = arms[name, count]
            cells.append(
                f"{statistics.mean(reached):.1%} ± {statistics.stdev(reached) if len(reached) > 1 else 0:.1%}, "
                f"{statistics.mean(seconds):.0f} s, {statistics.mean(wh):.3f} Wh"
            )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    conditions = (
        f"`python benchmarks/transfer.py ARCHIVE`, {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of "
        f"{platform.machine()} without a GPU, {torch.get_num_threads()} thread(s), Python {platform.python_version()}, {packages}; "
        f"load average at the end {os.getloadavg()[0]:.1f}. Energy {energy}."
    )
    experiment = (
        f"CIFAR-10: `{network}` learned the eight classes other than {' and '.join(HELD_OUT)} ({begun}). Then "
        f"{' against '.join(HELD_OUT)}, 2,000 test images: mean and standard deviation of accuracy over "
        f"{len(next(iter(arms.values())).wh)} seeds, and mean seconds and energy of a training. All ways have the same images, epochs "
        f"and test-time views, and the learning rate of params.yaml, {HEAD_LR} for the head alone; one image in {CHOOSING} chooses the epoch."
    )
    return [
        "# What transfer is worth",
        "",
        conditions,
        "",
        experiment,
        "",
        f"| | {' | '.join(f'{count} images a class' for count in counts)} |",
        f"|---|{'---|' * len(counts)}",
        *rows,
    ]


if __name__ == "__main__":
    sys.exit(main())
