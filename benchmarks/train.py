"""Time training side by side with other loops on the same images and write benchmarks/TRAIN.md.

    python benchmarks/train.py cifar10-jpeg.tar.gz                     about 20 minutes on 2 cores, quiet otherwise
    python benchmarks/train.py cifar10-jpeg.tar.gz --others PYTHON      beside fastai, 5 minutes more
    python benchmarks/train.py cifar10-jpeg.tar.gz --quick              one short trial, printed and not written
    python benchmarks/train.py cifar10-jpeg.tar.gz --ceilings FILE      Convoy beside its ceiling only, written as JSON; also on a GPU

The archive holds CIFAR-10 as JPEG files, `train/CLASS/…` and `test/CLASS/…`. PYTHON is the interpreter of another environment, in
which fastai is installed (Ultralytics trains its own networks only, so its rates would be of others). Each measurement is a process of its own; the contenders take turns. Images per second of
training steps count, after a few steps that warm up, without start, validation and checkpoints. A CUDA GPU is used only by `--ceilings`.
"""

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import datasets, transforms

from convoy.core import files
from convoy.core.dataset import Dataset
from convoy.core.params import section
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.images.delivery import open_delivery
from convoy.models import spec
from convoy.models.build import build
from convoy.models.spec import Spec
from convoy.training import threads
from convoy.training.fit import fit
from convoy.training.settings import TrainParams

ROOT = Path(__file__).parents[1]
WARM_UP = 5
"""Steps that are not counted: caches, the first batches of workers, kernels that are compiled when they are first used."""

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "pillow", "numpy")


class Subject(NamedTuple):
    """Describe what is trained."""

    title: str
    network: str  # of networks/, or a classifier of torchvision
    folder: str  # `small`: CIFAR-10 as it is; `large`: photographs composed of it
    px: int
    batch: int
    steps: int
    policies: Mapping[str, Any]  # of Convoy, by name; the first is what the other loops do, too
    twin: str = ""  # torchvision's name of the network, for programs that cannot take Convoy's


SHIFT_FLIP = [{"shift": {"pixels": 2}}, "flip"]
CROP_COLOR = [{"resized_crop": {"scale": [0.3, 1.0]}}, "flip", "color_jitter"]
SUBJECTS = {
    "resnet18": Subject(
        "ResNet-18, 32 px, batch 128",
        "resnet18",
        "small",
        32,
        128,
        50,
        {"shift, flip": SHIFT_FLIP, "photo": "photo"},
        "resnet18",
    ),
    "convnet": Subject(
        "`convnet`, 32 px, batch 128",
        "convnet",
        "small",
        32,
        128,
        50,
        {"shift, flip": SHIFT_FLIP, "photo": "photo"},
    ),
    "mobilenet": Subject(
        "MobileNetV3-small, 224 px, batch 32; 2,000 photographs of 200 to 400 px",
        "mobilenet_v3_small",
        "large",
        224,
        32,
        40,
        {"resized_crop, flip, color_jitter": CROP_COLOR},
        "mobilenet_v3_small",
    ),
}

OTHERS = {
    "fastai": """
from fastai.vision.all import *
from torchvision import models
small = px <= 64
items = None if small else RandomResizedCrop(px, min_scale=0.3)
changes = aug_transforms(size=px, max_rotate=0, max_warp=0, max_zoom=1.0) if small else aug_transforms(max_rotate=0, max_warp=0, max_zoom=1.0)
loaders = ImageDataLoaders.from_folder(folder, train="train", valid="val", item_tfms=items, batch_tfms=changes, bs=batch, num_workers=2)
class Watch(Callback):
    def after_batch(self):
        if self.training: tick()
Learner(loaders, getattr(models, network)(num_classes=10), loss_func=CrossEntropyLossFlat(), cbs=[Watch()]).fit_one_cycle(100, 0.01)
""",
}
"""What other programs run; `tick` counts the steps and ends the process."""

TICK = """
import sys, time
folder, network, px, batch, warm_up, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
seen = []
def tick():
    seen.append(time.perf_counter())
    if len(seen) == warm_up + steps:
        import os
        print("RATE", batch * steps / (seen[-1] - seen[warm_up - 1]), flush=True)
        os._exit(0)
if __name__ == "__main__":
"""


def main() -> None:
    """Measure every contender of every subject by turns, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--others", metavar="PYTHON", help="interpreter that has fastai")
    parser.add_argument("--trials", type=int, default=3, help="runs of each measurement")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="one short trial, printed and not written")
    parser.add_argument("--ceilings", type=Path, metavar="FILE", help="only Convoy and the ceiling, as JSON")
    parser.add_argument("--batch", type=int, default=0, help="images of a batch instead of the subject's")
    parser.add_argument("--measure", nargs=2, metavar=("SUBJECT", "CONTENDER"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        subject, contender = chosen.measure
        asked = SUBJECTS[subject]
        asked = asked._replace(batch=chosen.batch or asked.batch)
        measure(asked, contender, chosen.archive, chosen.steps)
        return
    trials = 1 if chosen.quick else chosen.trials
    if chosen.ceilings:
        write_ceilings(chosen, trials)
        return
    lines = [
        "# Training",
        "",
        f"`python benchmarks/train.py`, {machine()}",
        "",
        (
            f"Images per second of training steps, median of {trials} (lowest to highest), each a process of its own; contenders take turns. The "
            "ceiling is a bare loop over a single batch that stays in memory, in bf16 and channels_last, without what Convoy does besides: "
            "keep freed memory, and, with AMX, convolve small maps by matrix products. The loop over torchvision's ImageFolder has "
            "two workers and the transforms of torchvision's documentation, in float32, and in bf16 with channels_last. timm's is its `create_loader` "
            "with two workers and `create_optimizer_v2`, with its script's `--amp --amp-dtype bfloat16`."
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        make_images(
            chosen.archive, Path(folder), 2_560 if chosen.quick else 12_800, 500 if chosen.quick else 2_000
        )
        for name in chosen.subjects:
            lines += ["", *compare(name, Path(folder), trials, chosen)]
    if chosen.quick:
        print("\n".join(lines))
    else:
        (ROOT / "benchmarks/TRAIN.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_ceilings(chosen: argparse.Namespace, trials: int) -> None:
    """Write the images per second of Convoy and of the ceiling as JSON: subject, contender, a number per trial."""
    if any(SUBJECTS[name].folder == "large" for name in chosen.subjects):
        sys.exit("--ceilings measures images of 32 px only: --subjects resnet18 convnet")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_images(chosen.archive, Path(folder), 2_560 if chosen.quick else 12_800, 0)
        for name in chosen.subjects:
            ours = [f"Convoy, {policy}" for policy in SUBJECTS[name].policies]
            found[name], _ = take_turns(name, ["ceiling", *ours], Path(folder), trials, chosen)
            files.write_json(chosen.ceilings, found)


def take_turns(
    name: str, contenders: list[str], folder: Path, trials: int, chosen: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Measure contenders by turns; return their rates, and why programs of others failed."""
    subject = SUBJECTS[name]
    steps = chosen.steps or (6 if chosen.quick else subject.steps)
    rates: dict[str, list[float]] = {contender: [] for contender in contenders}
    failures: dict[str, str] = {}
    for _ in range(trials):
        for contender in contenders:
            command = [
                sys.executable,
                __file__,
                str(folder),
                "--measure",
                name,
                contender,
                "--steps",
                str(steps),
                "--batch",
                str(chosen.batch),
            ]
            if contender in OTHERS:
                body = "".join(f"    {line}\n" for line in OTHERS[contender].strip().splitlines())
                given = [
                    str(folder / subject.folder),
                    subject.twin,
                    *map(str, (subject.px, subject.batch, WARM_UP, steps)),
                ]
                command = [chosen.others, "-c", TICK + body, *given]
            environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            words = done.stdout.rpartition("RATE")[2].split()
            if "RATE" in done.stdout:
                rates[contender].append(float(words[0]))
                print(f"{name}: {contender}: {words[0]} images/s", flush=True)
            elif contender in OTHERS:
                failures[contender] = (done.stderr.strip().splitlines() or ["no output"])[-1]
                print(f"{name}: {contender} failed: {failures[contender]}", flush=True)
            else:
                sys.exit(f"{name}: {contender} failed:\n{done.stdout}{done.stderr}")
    return rates, failures


def compare(name: str, folder: Path, trials: int, chosen: argparse.Namespace) -> list[str]:
    """Measure all contenders of a subject by turns; return its table."""
    subject = SUBJECTS[name]
    ours = [f"Convoy, {policy}" for policy in subject.policies]
    contenders = ["ceiling", *ours, "ImageFolder, float32", "ImageFolder, bf16", "timm"]
    if chosen.others and subject.twin:
        contenders += list(OTHERS)
    rates, failures = take_turns(name, contenders, folder, trials, chosen)
    middle = {contender: statistics.median(each) for contender, each in rates.items() if each}
    lines = [
        f"## {subject.title}",
        "",
        f"| contender | images/s | share of the ceiling | {ours[0]}: times as fast |",
        "|---|---|---|---|",
    ]
    for contender in contenders:
        if contender not in middle:
            lines.append(f"| {contender} | failed: {failures[contender]} | | |")
            continue
        times = "" if contender in ("ceiling", *ours) else f"{middle[ours[0]] / middle[contender]:.2f}"
        share = middle[contender] / middle["ceiling"]
        lines.append(f"| {contender} | {spread(rates[contender])} | {share:.2f} | {times} |")
    return lines


def spread(rates: list[float]) -> str:
    """Format a median and its range."""
    if len(rates) == 1:
        return f"{rates[0]:,.0f}"
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def machine() -> str:
    """Describe the machine, the versions and the load."""
    names = (
        [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        if Path("/proc/cpuinfo").exists()
        else [platform.machine()]
    )
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores ({names[0]}), {platform.system()}, no GPU, Python {platform.python_version()}, "
        f"{versions}; load average before {os.getloadavg()[0]:.1f}."
    )


def make_images(archive: Path, folder: Path, small: int, large: int) -> None:
    """Write `small` files of CIFAR-10, and `large` photographs that are composed of them, each a tenth more for validation; prepare both."""
    random = np.random.default_rng(0)
    by_class: dict[str, list[bytes]] = {}
    for name, content in open_delivery(archive).files():
        if name.startswith("train/"):
            by_class.setdefault(Path(name).parent.name, []).append(content)
    labels = sorted(by_class)
    small = min(small, 10 * sum(map(len, by_class.values())) // 12)
    everything = [content for label in labels for content in by_class[label]]
    at = 0
    for split, share in (("train", 1.0), ("val", 0.1)):
        for number in range(round(small * share)):
            label = labels[number % len(labels)]
            write(folder / "small" / split / label, by_class[label][at // len(labels)], at)
            at += 1
        for number in range(round(large * share)):
            others = [everything[n] for n in random.integers(0, len(everything), 3)]
            label = labels[number % len(labels)]
            first = by_class[label][random.integers(len(by_class[label]))]
            write(folder / "large" / split / label, composed([first, *others], random), number)
    params = section("data", DataParams, ROOT / "params.yaml")
    sizes = {
        "small": {"image_px": 32},
        "large": {"image_px": 224, "store_px": 256, "fit": "crop", "crop_share": 0.875},
    }
    for name, size in sizes.items():
        if not (folder / name).exists():
            continue
        prepare(folder / name, params.model_copy(update=size), folder / f"{name}-dataset")


def write(folder: Path, content: bytes, number: int) -> None:
    """Write a file of a class."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.jpg").write_bytes(content)


def composed(contents: list[bytes], random: np.random.Generator) -> bytes:
    """Compose a picture of 200 to 400 px of four images, as JPEG."""
    four = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    square = np.concatenate([np.concatenate(four[:2], 1), np.concatenate(four[2:], 1)])
    width, height = random.integers(200, 401, 2).tolist()
    stream = io.BytesIO()
    Image.fromarray(square).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def measure(subject: Subject, contender: str, folder: Path, steps: int) -> None:
    """Run a contender and print its rate: the main function of a process."""
    os.chdir(ROOT)
    if contender.startswith("Convoy, "):
        rate = convoy(subject, subject.policies[contender.removeprefix("Convoy, ")], folder, steps)
    elif contender == "ceiling":
        rate = ceiling(subject, folder, steps)
    elif contender == "timm":
        rate = timm_loop(subject, folder, steps)
    else:
        rate = image_folder(subject, folder, steps, bf16=contender.endswith("bf16"))
    print("RATE", rate, flush=True)
    os._exit(0)  # workers of loaders are not waited for


def timed(run: Callable[[], Iterable[object]], batch: int, steps: int) -> float:
    """Return images per second of `steps` steps of an endless training, which yields after each, after the warm-up."""
    began = 0.0
    for step, _ in enumerate(run(), start=1):
        if step == WARM_UP:
            began = now()
        if step == WARM_UP + steps:
            break
    return batch * steps / (now() - began)


def now() -> float:
    """Read the clock when a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def module(subject: Subject) -> nn.Module:
    """Build the network that all loops train."""
    return build(network_spec(subject), 10, subject.px)


def network_spec(subject: Subject) -> Spec:
    """Read the network of a subject."""
    if Path(f"networks/{subject.network}.yaml").exists():
        return spec.load(subject.network)
    return Spec(name=subject.network, torchvision=subject.network)


def stepping(network: nn.Module, *, bf16: bool, device: str = "cpu") -> Callable[[Tensor, Tensor], None]:
    """Make a step of the usual loop of torch's documentation."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    network.train()

    def step(pixels: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            output = network(pixels)
        cross_entropy(output.float(), labels).backward()
        optimizer.step()

    return step


def ceiling(subject: Subject, folder: Path, steps: int) -> float:
    """Train on a single batch that stays in memory."""
    dataset = Dataset.load(folder / f"{subject.folder}-dataset")
    pixels_u8: npt.NDArray[np.uint8] = np.resize(
        dataset.images("val"), (subject.batch, subject.px, subject.px, 3)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = torch.from_numpy(pixels_u8).permute(0, 3, 1, 2).to(device).float() / 255
    labels = torch.from_numpy(np.resize(dataset.labels("val"), subject.batch)).to(device)
    network = module(subject).to(device, memory_format=torch.channels_last)
    step = stepping(network, bf16=True, device=device)

    def run() -> Iterator[None]:
        while True:
            step(pixels, labels)
            yield

    return timed(run, subject.batch, steps)


def convoy(subject: Subject, policy: object, folder: Path, steps: int) -> float:
    """Train as the stage does, without checkpoints."""

    class Watch(pl.Callback):
        began = 0.0
        seen = 0

        def on_train_batch_end(self, *_: object) -> None:
            self.seen += 1
            if self.seen == WARM_UP:
                self.began = now()
            if self.seen == WARM_UP + steps:
                raise Done(subject.batch * steps / (now() - self.began))

    shipped = section("train", TrainParams, ROOT / "params.yaml").model_dump()
    params = TrainParams.model_validate(
        shipped | {"epochs": 100, "batch_size": subject.batch, "augment": policy}
    )
    threads.choose()
    dataset = Dataset.load(folder / f"{subject.folder}-dataset")
    with tempfile.TemporaryDirectory() as out:
        try:
            fit(dataset, network_spec(subject), params, 1, Path(out), callbacks=[Watch()])
        except Done as done:
            return float(done.args[0])
    raise RuntimeError("training ended before it was measured")


class Done(Exception):  # noqa: N818 (not an error: enough was measured)
    """End a training with its rate."""


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(subject: Subject, folder: Path, steps: int, *, bf16: bool) -> float:
    """Train from torchvision's ImageFolder with two workers."""
    changes = (
        [
            transforms.RandomCrop(subject.px, padding=2, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
        ]
        if subject.folder == "small"
        else [
            transforms.RandomResizedCrop(subject.px, scale=(0.3, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4),
        ]
    )
    whole = transforms.Compose([*changes, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(str(folder / subject.folder / "train"), whole)
    loader = torch.utils.data.DataLoader(images, subject.batch, shuffle=True, num_workers=2, drop_last=True)
    network = module(subject)
    step = stepping(network.to(memory_format=torch.channels_last) if bf16 else network, bf16=bf16)

    def run() -> Iterator[None]:
        while True:
            for pixels, labels in loader:
                step(pixels.to(memory_format=torch.channels_last) if bf16 else pixels, labels)
                yield

    return timed(run, subject.batch, steps)


def timm_loop(subject: Subject, folder: Path, steps: int) -> float:
    """Train as timm's train.py does, with its loader and optimizer."""
    images = create_dataset("", root=str(folder / subject.folder / "train"), is_training=True)
    small = subject.folder == "small"
    loader = create_loader(
        images,
        (3, subject.px, subject.px),
        subject.batch,
        is_training=True,
        num_workers=2,
        scale=(0.3, 1.0),
        color_jitter=0.0 if small else 0.4,
        train_crop_mode="rkrc" if small else None,
        device=torch.device("cpu"),
        use_prefetcher=False,
    )
    network = module(subject)
    optimizer = create_optimizer_v2(network, opt="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    loss = nn.CrossEntropyLoss()
    network.train()

    def run() -> Iterator[None]:
        while True:
            for pixels, labels in loader:
                with torch.autocast("cpu", torch.bfloat16):
                    output = loss(network(pixels), labels)
                output.backward()
                optimizer.step()
                optimizer.zero_grad()
                yield

    return timed(run, subject.batch, steps)


if __name__ == "__main__":
    main()
