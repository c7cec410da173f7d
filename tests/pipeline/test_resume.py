"""`kill -9` in the middle of a training: the next `dvc repro` ends as if it had not been, in the same run."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from clones import Clone, runs

pytestmark = pytest.mark.pipeline


def prepared(clone: Clone, epochs: int = 12) -> Clone:
    """Choose a training of some seconds, saved every tenth of one."""
    clone.set_param("network.name", "lenet5")
    clone.set_param("train.epochs", str(epochs))
    clone.set_param("train.ema", "0.9")
    clone.set_param("checkpoints.every_s", "0.1")
    clone.set_param("export.latency_runs", "10")
    return clone


def train_again(clone: Clone) -> str:
    """Train in one go, from the beginning; return the output."""
    return clone.run("dvc", "repro", "--force", "--single-item", "train")


def kill_in_training(clone: Clone, *, saves: int = 0, seconds: float = 0.0, only_stage: bool = False) -> str:
    """Start `dvc repro`, and kill it once its training has saved so many checkpoints; return the output."""
    before = checkpoints(clone)
    process = clone.start("dvc", "repro")
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("plan:"):
            break
    until = time.monotonic() + 120
    while len(checkpoints(clone) - before) < saves:
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.01)
    time.sleep(seconds)
    if only_stage:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.ZombieProcess):  # another that has ended
                if "pipelines/train.py" in child.cmdline():
                    child.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    rest, _ = process.communicate(timeout=120)
    return "".join(said) + rest


def checkpoints(clone: Clone) -> set[tuple[Path, int]]:
    """Name the checkpoints that are complete, each with the time of its last change in ns."""
    found = set()
    for path in clone.folder.glob("checkpoints/*/step-*.json"):
        with suppress(FileNotFoundError):  # an older one is removed after each save
            found.add((path, path.stat().st_mtime_ns))
    return found


def newest_checkpoint(clone: Clone) -> Path | None:
    """Find what was saved last; the clone has brought the checkpoints of another training along."""
    found = clone.folder.glob("checkpoints/*/step-*.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def results(clone: Clone) -> tuple[list[bytes], dict[str, Any]]:
    """Read weights, facts and history, and the metrics without time and energy."""
    metrics = json.loads((clone.folder / "build/metrics/train.json").read_text(encoding="utf-8"))
    metrics["train"].pop("seconds")
    metrics.pop("energy")
    names = ("weights.pt", "model.json", "history.csv")
    return [(clone.folder / "build/model" / name).read_bytes() for name in names], metrics


def assert_curves_are_whole(clone: Clone, before: int) -> None:
    """Compare the curves of the newest run, which must be the only new one, with the history."""
    made = runs(clone)
    assert len(made) == before + 1, [run.info.run_name for run in made]
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    with (clone.folder / "build/model/history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/loss", "val/accuracy", "lr"):
        points = client.get_metric_history(made[0].info.run_id, name)
        assert [(point.step, point.value) for point in sorted(points, key=lambda point: point.step)] == [
            (int(row["epoch"]), float(row[name])) for row in rows
        ], f"{name} has doubles or holes"
    steps = [point.step for point in client.get_metric_history(made[0].info.run_id, "step/loss")]
    assert len(steps) == len(set(steps)), "no step twice"
    assert sorted(steps) == list(range(10, max(steps) + 1, 10)), "no step left out"


def test_a_training_killed_twice_ends_as_a_forced_one_that_starts_from_the_beginning(clone):
    prepared(clone)
    before = len(runs(clone))
    kill_in_training(clone, saves=3)
    newest = newest_checkpoint(clone)
    assert newest
    newest.write_bytes(newest.read_bytes()[:1000])  # as a loss of power may leave it
    said = kill_in_training(clone, saves=1, only_stage=True)
    assert re.search(rf"{newest.name} is not used.*damaged", said)
    assert "Resuming from epoch" in said
    said = clone.run("dvc", "repro", "train")
    assert "Resuming from epoch" in said
    assert_curves_are_whole(clone, before)

    resumed = results(clone)
    output = train_again(clone)
    assert "Resuming" not in output
    assert "already complete" not in output
    assert "epoch 1/12" in output
    assert results(clone) == resumed
    assert len(runs(clone)) == before + 2
    assert runs(clone)[0].info.status == "RUNNING", "evaluate and export would still join it"


@pytest.mark.slow
def test_a_training_killed_twenty_times_at_random_ends_as_if_it_had_not_been(clone):
    chance = random.Random(20261123)  # noqa: S311 (when to kill)
    prepared(clone, epochs=100)
    before = len(runs(clone))
    kills = 0
    while kills < 20:
        kill_in_training(clone, seconds=chance.uniform(0, 1.2), only_stage=chance.random() < 0.3)
        kills += 1
        newest = newest_checkpoint(clone)
        print(f"kill {kills}: {newest.name if newest else 'nothing saved'}", flush=True)
        if (clone.folder / "build/model/weights.pt").exists():
            break
    assert kills == 20, "the training ended before: make it longer"
    clone.run("dvc", "repro")
    assert_curves_are_whole(clone, before)
    resumed = results(clone)
    train_again(clone)
    assert results(clone) == resumed


def test_a_spent_time_budget_leaves_a_run_that_the_next_goes_on_with(clone):
    prepared(clone, epochs=2)
    before = len(runs(clone))
    clone.set_param("checkpoints.time_budget_min", "0.0001")
    said = clone.run("dvc", "repro", "train", fails=True)
    assert "`dvc repro` resumes at epoch 1 of" in said
    assert "Traceback" not in said
    assert runs(clone)[0].info.status == "SCHEDULED"
    clone.set_param("checkpoints.time_budget_min", "60")
    clone.run("dvc", "repro", "train")
    assert len(runs(clone)) == before + 1
    assert runs(clone)[0].info.status == "RUNNING", "evaluate and export would join it"
    clone.set_param("checkpoints.time_budget_min", "90")
    assert "Running stage" not in clone.run("dvc", "repro", "train"), "another budget trains nothing anew"


def test_a_second_training_on_the_same_inputs_is_refused_while_the_first_runs(clone):
    prepared(clone, epochs=500)
    first = subprocess.Popen(
        ["python", "pipelines/train.py"],
        cwd=clone.folder,
        env={**clone.env, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout
    try:
        for line in first.stdout:
            if line.startswith("epoch 1/"):
                break
        said = clone.run("python", "pipelines/train.py", fails=True, PYTHONPATH="src")
        assert f"process {first.pid} on" in said
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
