"""Measure what the README claims and write benchmarks/RESULTS.md.

    make bench                              digits, three seeds
    CONVOY_CIFAR10=path.tar.gz make bench   CIFAR-10 as well (about 8 minutes on 2 cores)

Everything runs in a fresh clone of the committed state, with the environment that runs this script.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
SEEDS = (1, 2, 3)
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "mlflow", "dvc", "onnxruntime")
RECIPE = "cifar10-4min"  # which docs/training.md applies


def main() -> None:
    """Run every measurement and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "convoy"
        shell("git", "clone", "--quiet", str(ROOT), str(clone), where=ROOT)
        lines = [*conditions(clone), "", *digits(clone)]
        archive = os.environ.get("CONVOY_CIFAR10")
        if archive:
            lines += ["", *cifar10(clone, Path(archive))]
        else:
            print("CONVOY_CIFAR10 is not set: CIFAR-10 is not measured", flush=True)
    (ROOT / "benchmarks/RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def conditions(clone: Path) -> list[str]:
    """State hardware, versions, commit and load."""
    commit = shell("git", "rev-parse", "--short", "HEAD", where=clone).strip()
    return [
        "# Measured",
        "",
        f"`make bench` at commit {commit}, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        f"- {processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, {platform.system()}; no GPU",
        f"- load average before: {os.getloadavg()[0]:.1f}",
        f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    ]


def digits(clone: Path) -> list[str]:
    """Time `make repro` from nothing, a no-op `dvc repro`, and the accuracy of each seed."""
    seconds, no_op, accuracy, flips = [], [], [], []
    for seed in SEEDS:
        for made in ("build", "data", ".dvc/cache", ".dvc/tmp", "mlflow.db", "mlartifacts", "dvc.lock"):
            path = clone / made
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        set_params(clone, {"seed": seed})
        seconds.append(timed("make", "repro", f"VENV={sys.prefix}", where=clone))
        no_op.append(timed("dvc", "repro", where=clone))
        deploy = read(clone, "export")["deploy"]
        accuracy.append(deploy["accuracy"])
        flips.append(deploy["label_flips"])
    shell("git", "checkout", "--quiet", "params.yaml", where=clone)
    return [
        f"## Digits, {len(SEEDS)} seeds, each from an empty cache",
        "",
        "| what | median | lowest | highest |",
        "|---|---|---|---|",
        row("`make repro` after the install, s", seconds, ".1f"),
        row("second `dvc repro`, nothing to do, s", no_op, ".2f"),
        row("accuracy of the served graph", accuracy, ".4f"),
        row("label flips", flips, "d"),
    ]


def cifar10(clone: Path, archive: Path) -> list[str]:
    """Measure prepare alone, then the whole pipeline with a recipe."""
    shell("convoy", "data", "use", str(archive), where=clone)
    shell("convoy", "recipe", "apply", RECIPE, where=clone)
    shell("dvc", "repro", "data.dvc", where=clone)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    packing = timed("python", "pipelines/prepare.py", where=clone)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # The largest child so far: what ran before is smaller, or the figure is an upper bound.
    bound = "" if after > before else "at most "
    shutil.rmtree(clone / "build")
    training = timed("dvc", "repro", where=clone)
    deploy = read(clone, "export")["deploy"]
    spent = read(clone, "train")["train"]
    return [
        "## CIFAR-10 (60,000 JPEG files), 1 run",
        "",
        "| what | measured |",
        "|---|---|",
        f"| `prepare`, s | {packing:.1f} |",
        f"| `prepare`, peak memory, GiB | {bound}{after / 2**20:.2f} |",
        f"| `dvc repro` with recipe `{RECIPE}`, s | {training:.0f} |",
        f"| of which training, s | {spent['seconds']:.0f} |",
        f"| accuracy of the served graph, 10,000 test images | {deploy['accuracy']:.4f} |",
        f"| label flips | {deploy['label_flips']} |",
        f"| largest probability gap | {deploy['max_probability_gap']:.1e} |",
    ]


def set_params(clone: Path, values: dict[str, int]) -> None:
    """Type top-level values into the clone's params.yaml."""
    path = clone / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for key, value in values.items():
        lines = [f"{key}: {value}\n" if line.startswith(f"{key}:") else line for line in lines]
    path.write_text("".join(lines), encoding="utf-8")


def timed(*command: str, where: Path) -> float:
    """Run a command and return its wall-clock seconds."""
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    shell(*command, where=where)
    return time.monotonic() - started


def shell(*command: str, where: Path) -> str:
    """Run a command of the clone; its output, or what it printed when it failed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    env |= {
        "PATH": f"{sys.prefix}/bin{os.pathsep}{env['PATH']}",
        "PYTHONPATH": str(where / "src"),
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def read(clone: Path, stage: str) -> dict[str, dict[str, float]]:
    """Read a stage's metrics."""
    content: dict[str, dict[str, float]] = json.loads((clone / f"build/metrics/{stage}.json").read_text())
    return content


def row(what: str, values: list[float] | list[int], shape: str) -> str:
    """Write median and spread of a figure."""
    middle = statistics.median_high(values)
    return f"| {what} | {middle:{shape}} | {min(values):{shape}} | {max(values):{shape}} |"


def processor() -> str:
    """Name the processor as the system does."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        return names[0] if names else platform.machine()
    return shell("sysctl", "-n", "machdep.cpu.brand_string", where=ROOT).strip()


def memory_gib() -> float:
    """Read the memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
