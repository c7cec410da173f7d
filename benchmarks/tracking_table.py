"""The table of benchmarks/tracking.py."""

import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "pytorch-lightning", "mlflow")
COLUMNS = (
    "store",
    "training",
    "its second half",
    "with opening and ending the run",
    "which takes",
    "uploader's processor time",
    "all delivered, after the end",
    "points of `step/loss` in the store",
)


@dataclass
class Trial:
    """Hold one training.

    Attributes:
        seconds: from opening the run to its end.
        training: of these, in `fit`.
        later: of these, for the second half of the steps, when the uploader has started.
        steps: optimizer steps done.
        uploader_s: processor time that the uploader took, until everything was delivered or given up.
        delivered_s: seconds after the end until the store had everything; None: it has not.
        run_id: Convoy's; empty without tracking.
    """

    seconds: float
    training: float
    later: float
    steps: int
    uploader_s: float = 0.0
    delivered_s: float | None = None
    run_id: str = ""


def report(
    trials: Mapping[str, Sequence[Trial]], trained: str, every_s: float, stored: Mapping[str, str]
) -> list[str]:
    """State conditions, and for each kind the ratio of every round with its spread.

    Args:
        trials: of every kind, one a round; the first kind is without tracking.
        trained: what a trial trains.
        every_s: seconds between two checkpoints.
        stored: how many points the stores have, by kind.
    """
    (_, plain), *tracked = trials.items()
    rows = []
    for kind, ones in tracked:
        whole = [one.seconds / other.seconds - 1 for one, other in zip(ones, plain, strict=True)]
        within = [one.training / other.training - 1 for one, other in zip(ones, plain, strict=True)]
        later = [one.later / other.later - 1 for one, other in zip(ones, plain, strict=True)]
        around = statistics.median(one.seconds - one.training for one in ones)
        uploader = statistics.median(one.uploader_s for one in ones)
        arrived = [one.delivered_s for one in ones if one.delivered_s is not None]
        delivered = f"{statistics.median(arrived):.1f} s" if arrived else "kept in the outbox"
        cells = (
            kind,
            spread(within),
            spread(later),
            spread(whole),
            f"{around:.2f} s",
            f"{uploader:.1f} s",
            delivered,
        )
        rows.append(f"| {' | '.join(cells)} | {stored.get(kind, '')} |")
    seconds = [trial.training for trial in plain]
    noise = statistics.stdev(seconds) / statistics.mean(seconds) if len(seconds) > 1 else 0.0
    rate = statistics.median(trial.steps / trial.training for trial in plain)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    conditions = (
        f"`python benchmarks/tracking.py` at commit {commit()}, {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of "
        f"{processor()}, {platform.system()}; {torch.get_num_threads()} thread(s) of training, Python "
        f"{platform.python_version()}, {packages}; PostgreSQL and the MLflow server on the same machine, at the lowest "
        f"priority; load average at the end {os.getloadavg()[0]:.1f}."
    )
    experiment = (
        f"{trained}: {statistics.median(seconds):.1f} s of training without tracking (standard deviation of the trials "
        f"{noise:.1%}), {rate:.0f} steps a second. Loss and learning rate of every step are logged; a checkpoint is "
        f"written every {every_s:.0f} s, with and without tracking. {len(plain)} rounds; the time of each trial against "
        "that of its round's trial without tracking: median (lowest to highest)."
    )
    return [
        "# What tracking costs",
        "",
        conditions,
        "",
        experiment,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *rows,
    ]


def spread(ratios: list[float]) -> str:
    """Write median and range of a change in per cent."""
    return f"{statistics.median(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%})"


def commit() -> str:
    """Name the commit, and whether the tree had changes."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return head.stdout.strip() + (" with changes" if changed.stdout else "")


def processor() -> str:
    """Name the processor as Linux does, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )
