"""Run the whole table of tests/chaos over several seeds, and write benchmarks/CHAOS.md.

    python benchmarks/chaos.py                              seeds 1 to 3, two workers
    python benchmarks/chaos.py --seeds 4 5 --workers 8      others
    python benchmarks/chaos.py --seeds 4 --only ctrl-c      a look, printed only

The section "Found" is written by people; it stays as it is.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "benchmarks/CHAOS.md"
TEST = "tests/chaos/test_chaos.py"
FOUND = "## Found"
PACKAGES = ("dvc", "mlflow", "torch", "onnxruntime")


@dataclass(frozen=True)
class Result:
    """One combination with one seed; processor time includes all processes that were waited for."""

    seed: int
    action: str
    moment: str
    failure: str  # empty: it passed
    cpu_s: float
    wall_s: float


def main() -> None:
    """Run every seed, and write the report unless the run was partial."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2, help="combinations at the same time")
    parser.add_argument("--only", default="", help="pytest's -k: a part of the table; nothing is written")
    chosen = parser.parse_args()
    load, began = os.getloadavg()[0], time.monotonic()
    results = [result for seed in chosen.seeds for result in run(seed, chosen.workers, chosen.only)]
    minutes = (time.monotonic() - began) / 60
    lines = [
        *conditions(chosen.seeds, chosen.workers, load, minutes),
        "",
        *summary(results),
        "",
        *table(results),
    ]
    if chosen.only:
        print("\n".join(lines))
    else:
        kept = REPORT.read_text(encoding="utf-8").partition(FOUND)[2] if REPORT.exists() else "\n"
        REPORT.write_text("\n".join([*lines, "", f"{FOUND}{kept}"]), encoding="utf-8")
    sys.exit(any(result.failure for result in results))


def run(seed: int, workers: int, only: str) -> list[Result]:
    """Run the table with a seed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "results.xml"
        words = ["-n", str(workers), "--dist", "load", "--maxschedchunk", "1", f"--junitxml={report}"]
        words += ["-k", only] if only else []
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, TEST],
            cwd=ROOT,
            env={**os.environ, "CONVOY_CHAOS_SEED": str(seed), "OMP_NUM_THREADS": "1"},
            check=False,
        )
        cases = ET.parse(report).iter("testcase")  # noqa: S314 (as above)
        return [parsed(seed, case) for case in cases if case.get("name", "").startswith("test_chaos[")]


def parsed(seed: int, case: ET.Element) -> Result:
    """Read a combination's result."""
    action, _, moment = case.get("name", "").removeprefix("test_chaos[").removesuffix("]").partition("@")
    facts = {entry.get("name", ""): entry.get("value", "0") for entry in case.iter("property")}
    failed = next((entry for kind in ("failure", "error", "skipped") for entry in case.iter(kind)), None)
    text = (failed.text or failed.get("message") or "failed") if failed is not None else ""
    cpu_s, wall_s = float(facts.get("cpu_s", 0)), float(facts.get("wall_s", 0))
    return Result(seed, action, moment, text.strip(), cpu_s, wall_s)


def conditions(seeds: Sequence[int], workers: int, load: float, minutes: float) -> Iterator[str]:
    """State hardware, versions, commit, seeds and load."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield "# Chaos"
    yield ""
    yield (
        f"`python benchmarks/chaos.py --seeds {' '.join(map(str, seeds))} --workers {workers}` at commit {commit}, "
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}; load average "
        f"before {load:.1f}; Python {platform.python_version()}, {versions}; {minutes:.0f} minutes."
    )
    yield ""
    yield (
        "Each combination copies a clone in which a miniature pipeline has run up to the stage before, halts a command at a "
        "point that the seed chooses, lets something happen, and checks at once and after the next documented command that "
        "dvc.lock, runs, model and weights agree, that nothing recorded is lost, and that nothing dead looks alive."
    )


def summary(results: Sequence[Result]) -> Iterator[str]:
    """Count passed and failed combinations of each seed, with their times."""
    yield "| seed | combinations | passed | failed | processor time each, mean (most) | all, processor time |"
    yield "|---|---|---|---|---|---|"
    for seed in dict.fromkeys(result.seed for result in results):
        own = [result for result in results if result.seed == seed]
        failed, times = sum(bool(result.failure) for result in own), [result.cpu_s for result in own]
        yield (
            f"| {seed} | {len(own)} | {len(own) - failed} | {failed} | {statistics.mean(times):.1f} s "
            f"({max(times):.1f}) | {sum(times) / 60:.0f} min |"
        )


def table(results: Sequence[Result]) -> Iterator[str]:
    """Show passed of all for each action and moment, then the first lines of each failure."""
    moments = [
        name
        for name in (
            *("prepare", "train", "evaluate", "export", "between"),
            *("delivery", "register", "promote", "retrain"),
        )
        if any(result.moment == name for result in results)
    ]
    yield f"| action | {' | '.join(moments)} |"
    yield f"|---{'|---' * len(moments)}|"
    for action in sorted({result.action for result in results}):
        cells = []
        for moment in moments:
            own = [result for result in results if (result.action, result.moment) == (action, moment)]
            cells.append(f"{sum(not result.failure for result in own)}/{len(own)}" if own else "")
        yield f"| {action} | {' | '.join(cells)} |"
    for result in results:
        if result.failure:
            lines = result.failure.splitlines()[:4]
            yield from ("", f"seed {result.seed}, {result.action}@{result.moment}:", "", "```", *lines, "```")


if __name__ == "__main__":
    main()
