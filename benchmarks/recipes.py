"""Measure recipes on CIFAR-10, and write what they reached into recipes/.

    python benchmarks/recipes.py cifar10.tar.gz cifar10-2min cifar10-4min                 five seeds each
    python benchmarks/recipes.py cifar10.tar.gz cifar10-2min --seeds 1 --dry-run          a look, printed only
    python benchmarks/recipes.py few.tar cifar10-2min --dry-run --set train.epochs=1      with other values
    python benchmarks/recipes.py cifar10.tar.gz cifar10-10min --keep results              goes on where it was stopped

Each seed is a process of its own, from its start to the saved model; accuracy is of the saved weights on the test
images, with temperature and test-time views, in float32. Minutes are those of the fastest seed: they are wall-clock time,
and other work on the machine only adds to them.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from convoy.core import cpus, files, params, yaml
from convoy.core.dataset import Dataset
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.export.latency import hardware
from convoy.models import spec, trained
from convoy.recipes import recipe
from convoy.training.fit import fit
from convoy.training.settings import TrainParams

ROOT = Path(__file__).parents[1]
BATCH = 500  # test images at a time


def processor() -> str:
    """Name the processor, with the instructions that bf16 is computed by: AMX halves the time of wide networks."""
    flags = Path("/proc/cpuinfo")
    known = set(flags.read_text(encoding="utf-8").split()) if flags.exists() else set()
    found = next((name for name in ("amx_bf16", "avx512_bf16") if name in known), "")
    return " ".join(filter(None, (hardware()["processor"], found)))


def main() -> None:
    """Measure every recipe that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="CIFAR-10: train/ and test/ folders of ten class folders")
    parser.add_argument("names", nargs="+", metavar="NAME", help="recipes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--dry-run", action="store_true", help="print, and leave recipes/ as it is")
    parser.add_argument("--out", type=Path, help="JSON file for what each recipe reached so far")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="other values; only with --dry-run"
    )
    parser.add_argument(
        "--keep", type=Path, help="a folder for the results of seeds, which later calls take from it"
    )
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the file for the result of one training
    chosen = parser.parse_args()
    if chosen.set and not chosen.dry_run:
        parser.error("--set changes the recipe, so what it reaches is not the recipe's. Add --dry-run")
    others = dict(each.split("=", 1) for each in chosen.set)
    archive, report = chosen.archive.resolve(), chosen.out and chosen.out.resolve()
    keep = chosen.keep and chosen.keep.resolve()
    os.chdir(ROOT)
    if chosen.one:
        train(archive, chosen.names[0], chosen.seeds[0], chosen.one, others)
        return
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    reached: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = keep or Path(scratch)
        for name in chosen.names:
            content = settings(name, others)
            dataset = kept / hashlib.sha256(json.dumps(content["data"]).encode()).hexdigest()[:16]
            if not dataset.exists():
                prepare(archive, params.check("data", DataParams, content["data"]), dataset)
            results = []
            for seed in chosen.seeds:
                results.append(one(dataset, name, seed, kept, others))
                if report:
                    reached[name] = results
                    files.write_json(report, reached)
            fastest = min(results, key=lambda result: result["minutes"])
            accuracies = [result["accuracy"] for result in results]
            measured = {
                "accuracy": round(statistics.mean(accuracies), 4),
                "spread": round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else 0.0,
                "seeds": len(accuracies),
                "train_min": round(fastest["minutes"], 2),
                "hardware": f"{gpu}{cpus.usable_cpus()} cores of {processor()}, load before {fastest['load']:.1f}",
                "date": datetime.now(UTC).date().isoformat(),
                "torch": version("torch"),
            }
            print(f"{name}: {recipe.Measured.model_validate(measured).line()}", flush=True)
            if not chosen.dry_run:
                yaml.update(recipe.FOLDER / f"{name}.yaml", {"measured": measured})


def settings(name: str, others: Mapping[str, str]) -> dict[str, Any]:
    """Return params.yaml with a recipe's values, and others in YAML by flat keys."""
    values = recipe.load(name).values() | {key: yaml.load(text) for key, text in others.items()}
    return yaml.replaced(params.read(), values)


def one(dataset: Path, name: str, seed: int, kept: Path, others: Mapping[str, str]) -> dict[str, float]:
    """Train once, in a process of its own, or take the result that an earlier call kept."""
    content = settings(name, others)
    network = spec.load(content["network"]["name"]).model_dump(mode="json")
    same = json.dumps([content["data"], content["train"], network, version("torch")]).encode()
    folder = kept / f"{name}-{seed}-{hashlib.sha256(same).hexdigest()[:16]}"
    if not (folder / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        load, out = os.getloadavg()[0], folder / "trained.json"
        words = [str(dataset), name, "--seeds", str(seed), "--one", str(out)]
        if others:
            words += ["--set", *(f"{key}={value}" for key, value in others.items()), "--dry-run"]
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            began = time.monotonic()  # which counts from the start of the machine, in every process
            subprocess.run([sys.executable, __file__, *words], check=True, stdout=log)
        reached = files.read_json(out)
        minutes = (reached["saved"] - began) / 60
        result = {"seed": seed, "accuracy": reached["accuracy"], "minutes": minutes, "load": load}
        files.write_json(folder / "result.json", result)
    result = files.read_json(folder / "result.json")
    print(f"{name}, seed {seed}: {result['accuracy']:.2%}, {result['minutes']:.2f} min", flush=True)
    return result


def train(dataset: Path, name: str, seed: int, out: Path, others: Mapping[str, str]) -> None:
    """Train on a prepared dataset; write the accuracy, and the time at which the model was saved."""
    content, data = settings(name, others), Dataset.load(dataset)
    network = spec.load(content["network"]["name"])
    chosen = params.check("train", TrainParams, content["train"])
    fit(data, network, chosen, seed, out.parent / "model")
    saved = time.monotonic()
    model, _ = trained.load(out.parent / "model")
    logits = trained.predict_logits(model, data.images("test"), BATCH)
    accuracy = float((logits.argmax(axis=1) == data.labels("test")).mean())
    files.write_json(out, {"accuracy": accuracy, "saved": saved})


if __name__ == "__main__":
    main()
