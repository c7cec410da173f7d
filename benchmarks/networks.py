"""Time spec-built networks against torchvision's twins and write benchmarks/NETWORKS.md.

    python benchmarks/networks.py     about 10 minutes on 2 cores

A step is forward, backward and SGD on one batch. The two networks alternate within a process, so that
other load slows both; the ratio of each pair counts.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

from convoy.models import spec
from convoy.models.build import WithAuxiliary, build

ROOT = Path(__file__).parents[1]
PAIRS = 25
WARM_UP = 2
BATCH = 8
CLASSES = 10
SIDES = {
    "alexnet": 224,
    "vgg11": 64,
    "vgg16": 64,
    "googlenet": 128,
    "inception_v3": 299,
    "resnet18": 128,
    "resnet50": 96,
}
"""Side of the images in pixels: large enough to keep both cores busy, small enough to finish within minutes."""


class Timed(NamedTuple):
    """Seconds of both networks' steps."""

    ours: list[float]
    theirs: list[float]


def main() -> None:
    """Time every pair and write the table."""
    os.chdir(ROOT)
    lines = [
        "# Spec-built networks",
        "",
        (
            f"`python benchmarks/networks.py`, {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of "
            f"{platform.machine()} without a GPU, {torch.get_num_threads()} thread(s), Python {platform.python_version()}, "
            f"torch {version('torch')}, torchvision {version('torchvision')}; load average before "
            f"{os.getloadavg()[0]:.1f}."
        ),
        "",
        (
            "Speed: steps of torchvision's network over steps of the spec-built one, in seconds, float32, batches of "
            f"{BATCH}; median of {PAIRS} alternating pairs (lowest to highest). Above 1 the spec-built one is faster. "
            "Build: the whole network at its own size, with fresh weights; median of 3."
        ),
        "",
        "| network | image | speed | seconds a step | build, s |",
        "|---|---|---|---|---|",
    ]
    for name, px in SIDES.items():
        timed = race(name, px)
        ratios = [theirs / ours for ours, theirs in zip(*timed, strict=True)]
        seconds = statistics.median(time_build(name) for _ in range(3))
        lines.append(
            f"| {name} | {px} px | {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{statistics.median(timed.ours):.3f} | {seconds:.2f} |"
        )
        print(lines[-1], flush=True)
    shown = statistics.median(time_show() for _ in range(5))
    lines += ["", f"`convoy network show vgg16`, the whole command: {shown:.2f} s, median of 5."]
    (ROOT / "benchmarks/NETWORKS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def race(name: str, px: int) -> Timed:
    """Time steps of the two networks alternately."""
    ours = build(spec.load(name), CLASSES, px, auxiliary=True)
    extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    theirs = models.get_model(name, weights=None, num_classes=CLASSES, **extra).train()
    pixels, labels = torch.randn(BATCH, 3, px, px), torch.arange(BATCH) % CLASSES
    steps = [
        (network, torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)) for network in (ours, theirs)
    ]
    timed = Timed([], [])
    for pair in range(WARM_UP + PAIRS):
        for (network, optimizer), seconds in list(zip(steps, timed, strict=True))[:: 1 if pair % 2 else -1]:
            began = time.perf_counter()
            step(network, optimizer, pixels, labels)
            if pair >= WARM_UP:
                seconds.append(time.perf_counter() - began)
    return timed


def step(
    network: nn.Module, optimizer: torch.optim.Optimizer, pixels: torch.Tensor, labels: torch.Tensor
) -> None:
    """Take one step of training, auxiliary heads included."""
    optimizer.zero_grad()
    answer = network(pixels)
    if isinstance(answer, WithAuxiliary):
        heads = [answer.logits, *(logits for _, logits in answer.auxiliary)]
    else:
        heads = (
            [answer]
            if isinstance(answer, torch.Tensor)
            else [logits for logits in answer if logits is not None]
        )
    loss = torch.stack([cross_entropy(logits, labels) for logits in heads]).sum()
    loss.backward()
    optimizer.step()


def time_build(name: str) -> float:
    """Time building a network at its own size."""
    chosen = spec.load(name)
    if chosen.made_for is None:
        raise ValueError(f"{name} has no made_for")
    began = time.perf_counter()
    build(chosen, chosen.made_for.classes, chosen.made_for.image_px, auxiliary=True)
    return time.perf_counter() - began


def time_show() -> float:
    """Time the table of VGG16, Python's start included."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from convoy.cli import main; main()", "network", "show", "vgg16"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=True,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
