"""Measure what tracking costs a training, and write benchmarks/TRACKING.md.

    python benchmarks/tracking.py                            about 10 minutes
    python benchmarks/tracking.py --rounds 1 --seconds 5     a look, printed only

The same training, `convnet` on the digits, runs without tracking and with every step logged: to the embedded
sqlite, to an MLflow server on PostgreSQL, and to that server while it takes a second for each call, refuses from
the start, or dies on the way. Each round runs every kind once, in an order of its own, so that what else the
machine does meets all alike; a round's times are compared with that round's training without tracking.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from tracking_table import Trial, report

from convoy.core import params, stage
from convoy.core.dataset import Dataset
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.models import spec
from convoy.tracking import outbox, stages
from convoy.tracking.run import Run
from convoy.training.checkpoints import CheckpointStore, Resumable
from convoy.training.fit import fit
from convoy.training.settings import CheckpointParams, TrainParams

ROOT = Path(__file__).parents[1]
NONE, SQLITE, SERVER = "no tracking", "sqlite", "server"
TROUBLED = {
    "slow": "server, 1 s per call",
    "refusing": "server that refuses",
    "dying": "server that dies on the way",
}
KINDS = (NONE, SQLITE, SERVER, *TROUBLED.values())
RATE = 50
"""Logged steps a second; the batch size is chosen for it."""

CALIBRATIONS = 2
"""Rounds of choosing the batch size, since a step's time is not in proportion to it."""

EVERY_S = 5.0
"""Seconds between checkpoints, with which curves are published; shipped as 60, where a short training would log at its end alone."""

IMPORT_S = 4.0
"""Seconds that pipelines/train.py imports torch and Lightning for, while the uploader starts; not counted."""

DIES_AFTER = 20
"""Calls that the dying server answers: it has the run, and the first points."""

DELIVERY_S = 60.0
"""How long a store may take to have everything after the end."""


class Steps(pl.Callback):
    """Note when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401 (Lightning's signature)
        """Look at the clock."""
        self.times.append(time.monotonic())


@dataclass
class Bench:
    """Hold what every trial needs."""

    folder: Path
    dataset: Dataset
    train: TrainParams
    server: str
    between: Any  # the tests' proxy, a class
    log: Any
    trials: dict[str, list[Trial]] = field(default_factory=dict)

    def run(self, kind: str, *, last: bool = False) -> Trial:
        """Train once in a repository of the kind's own; the last time, see also how long a slow server takes."""
        os.chdir(self.folder / kind)
        shutil.rmtree("outbox", ignore_errors=True)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        with redirect_stdout(self.log), self.between(self.server) as proxy:
            if kind not in (NONE, SQLITE):
                os.environ["MLFLOW_TRACKING_URI"] = self.server if kind == SERVER else proxy.uri
            if kind == TROUBLED["slow"]:
                proxy.delay_s = 1.0
            elif kind == TROUBLED["refusing"]:
                proxy.refuse()
            elif kind == TROUBLED["dying"]:
                proxy.die_after(DIES_AFTER)
            others = {process.pid for process in psutil.Process().children()}
            trial = self._train(kind)
            if kind != NONE:
                waits = kind in {SQLITE, SERVER} or (last and kind == TROUBLED["slow"])
                self._deliver(trial, DELIVERY_S if waits else 0.0, others)
        shutil.rmtree("checkpoints")
        return trial

    def _train(self, kind: str) -> Trial:
        """Train as pipelines/train.py does; the checkpoints are written without tracking too."""
        store = CheckpointStore(
            Path("checkpoints").absolute(),
            f"{time.time_ns():016x}",
            CheckpointParams(every_s=EVERY_S, keep=1, keep_days=1, time_budget_min=0),
        )
        if kind != NONE:
            stages.start_uploader()
            time.sleep(IMPORT_S)
        began = time.monotonic()
        opened: AbstractContextManager[Run | None] = (
            nullcontext() if kind == NONE else stages.training(self.dataset.hash)
        )
        with opened as run:
            if run:
                run.log_dataset(self.dataset.hash, self.folder / "dataset")
            resumable = Resumable(
                store=store,
                checkpoint=None,
                run_id=run.reference.run_id if run else "none",
                publish=run.log_points if run else lambda _: None,
                step_interval=1 if run else 0,
                started=began,
            )
            with run.system_metrics() if run else nullcontext():
                start = time.monotonic()
                steps = Steps()
                metrics = fit(
                    self.dataset,
                    spec.load("convnet"),
                    self.train,
                    1,
                    Path("model"),
                    callbacks=[steps],
                    resumable=resumable,
                )
                trained = time.monotonic() - start
            if run:
                run.log_result(metrics)
                run.end("FINISHED")
        seconds = time.monotonic() - began
        later = steps.times[-1] - steps.times[len(steps.times) // 2]
        run_id = run.reference.run_id if run else ""
        return Trial(seconds, trained, later, len(steps.times), run_id=run_id)

    def _deliver(self, trial: Trial, wait: float, others: set[int]) -> None:
        """Give the store time to have everything, then stop the uploader, which would go on trying."""
        ended = time.monotonic()
        if not outbox.wait_until_uploaded([trial.run_id], outbox.folder(), wait):
            trial.delivered_s = time.monotonic() - ended
        for process in psutil.Process().children():
            if process.pid not in others:
                used = process.cpu_times()
                trial.uploader_s += used.user + used.system
                process.terminate()
                process.wait()


def main() -> None:
    """Run every round and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each kind runs")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a training, about")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="beside no tracking")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of training")
    chosen = parser.parse_args()
    kinds = [kind for kind in KINDS if kind == NONE or kind in chosen.kinds]
    stage.silence_dependencies()
    torch.set_num_threads(chosen.threads)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        bench = prepared(folder, kinds, stack)
        calibrate(bench, chosen.seconds)
        for kind in kinds:
            if kind in {SQLITE, SERVER}:  # the first run makes the store's tables
                print(f"first run, {kind}: {bench.run(kind).seconds:.2f} s", flush=True)
        shuffled = random.Random(1)  # noqa: S311 (an order, no secret)
        for number in range(chosen.rounds):
            for kind in shuffled.sample(kinds, len(kinds)):
                trial = bench.run(kind, last=number == chosen.rounds - 1)
                bench.trials.setdefault(kind, []).append(trial)
                print(
                    f"round {number + 1} of {chosen.rounds}, {kind}: {trial.seconds:.2f} s, uploader {trial.uploader_s:.1f} s",
                    flush=True,
                )
        found = {kind: points(bench, kind) for kind in kinds if kind in {SQLITE, SERVER}}
        trained = (
            f"`convnet` on the digits, {bench.train.epochs} epochs of batches of {bench.train.batch_size}"
        )
        by_kind = {kind: bench.trials[kind] for kind in kinds}
        text = "\n".join(report(by_kind, trained, EVERY_S, found))
        os.chdir(ROOT)
    if chosen.rounds >= 5 and kinds == list(KINDS):
        (ROOT / "benchmarks/TRACKING.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def prepared(folder: Path, kinds: list[str], stack: ExitStack) -> Bench:
    """Make the dataset, a repository for each kind, and the server."""
    sys.path.insert(0, str(ROOT / "tests"))
    from proxy import Proxy  # noqa: PLC0415 (the tests' own)

    log = stack.enter_context((folder / "log").open("w", encoding="utf-8"))
    with redirect_stdout(log):
        prepare(ROOT / "samples/digits/digits.zip", params.section("data", DataParams), folder / "dataset")
    program = f"from pathlib import Path; from clones import clone_working_tree; clone_working_tree(Path({str(folder / NONE)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "tests", check=True)
    for kind in kinds[1:]:
        shutil.copytree(folder / NONE, folder / kind)
    uri = stack.enter_context(serving(folder / "servers"))
    dataset, train = Dataset.load(folder / "dataset"), params.section("train", TrainParams)
    return Bench(folder, dataset, train, uri, Proxy, log)


@contextmanager
def serving(shared: Path) -> Iterator[str]:
    """Run the tests' MLflow server on PostgreSQL; a team's would be another machine, so this one yields the cores."""
    (shared / "users").mkdir(parents=True)
    user = shared / "users" / str(os.getpid())
    user.touch()
    command = ["nice", "-n", "19", sys.executable, str(ROOT / "tests/servers.py"), str(shared)]
    with (shared / "said").open("w") as said:
        guard = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    ready = shared / "ready.json"
    while not ready.exists():
        if guard.poll() is not None:
            sys.exit(f"The server does not start:\n{(shared / 'said').read_text()[-2000:]}")
        time.sleep(0.2)
    try:
        yield json.loads(ready.read_text())["uri"]
    finally:
        user.unlink()
        guard.wait()


def calibrate(bench: Bench, seconds: float) -> None:
    """Choose the batch size for the rate, by the fastest of some short trainings, then the epochs for the time."""
    rate = 0.0
    for _ in range(CALIBRATIONS):
        size = max(8, round(bench.train.batch_size * rate / RATE)) if rate else 32
        each = steps_per_epoch(bench.dataset, bench.train.model_copy(update={"batch_size": size}))
        bench.train = bench.train.model_copy(update={"batch_size": size, "epochs": max(2, 2 * RATE // each)})
        tried = [bench.run(NONE) for _ in range(3)]
        rate = max(trial.steps / trial.training for trial in tried)
        print(f"batches of {size}: {rate:.0f} steps a second", flush=True)
    bench.train = bench.train.model_copy(update={"epochs": max(1, round(seconds * RATE / each))})


def steps_per_epoch(dataset: Dataset, train: TrainParams) -> int:
    """Count an epoch's batches; the last one may be smaller."""
    return -(-len(dataset.labels("train")) // train.batch_size)


def points(bench: Bench, kind: str) -> str:
    """Count what the store has of `step/loss`, over all trials of a kind, beside what was logged."""
    import mlflow  # noqa: PLC0415 (only when nothing is timed any more)

    client = mlflow.MlflowClient(
        bench.server if kind == SERVER else f"sqlite:///{bench.folder / kind}/mlflow.db"
    )
    experiment = client.get_experiment_by_name("convoy")
    runs = {run.data.tags["convoy.run_id"]: run for run in client.search_runs([experiment.experiment_id])}
    trials = bench.trials[kind]
    there = sum(
        len({point.step for point in client.get_metric_history(runs[trial.run_id].info.run_id, "step/loss")})
        for trial in trials
        if trial.run_id in runs
    )
    return f"{there:,} of {sum(trial.steps for trial in trials):,}"


if __name__ == "__main__":
    main()
