"""A repository in miniature: a packed dataset of 72 squares, a network that learns it, and a space to sweep."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import optuna
import pytest

from convoy.core import yaml
from convoy.core.console import ProgressBar
from convoy.sweep import run, worker
from convoy.sweep.results import Progress, Results
from convoy.sweep.study import Request, open_study, read_trials
from convoy.sweep.worker import Outcome, Reporter
from convoy.tracking import outbox
from convoy.tracking.run import Reference
from squares import write_squares

LAYERS = ["conv: {filters: 8, kernel: 3}", "norm", "relu", "global_avg_pool", "flatten", "dense: classes"]
USUAL = {
    "network.name": "tiny", "train.epochs": 3, "train.batch_size": 16, "train.lr": 0.1, "train.augment": [],
    "train.precision": 32,
}  # fmt: skip
SPACE = """
sweep:
  trials: 4        # in all
  metric: val/loss # lowest
  warmup_epochs: 1 # at least
  space:
    train.lr: {low: 0.01, high: 0.5, log: true} # highest
    train.batch_size: [8, 16] # images
"""
PARENT = Reference("parent", "parent")


class InProcess:
    """Train trials as `worker.Workers` does, in this process: others take seconds to start (test_worker.py)."""

    cause: BaseException | None = None

    def __init__(self, request: Request, parent: Reference = PARENT, count: int = 1) -> None:
        self.request = request
        self.parent = parent
        self.count = count

    def __enter__(self) -> Self:
        self.request.save()
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to end."""

    def train(self, number: int, values: Mapping[str, Any], reporter: Reporter) -> Outcome:
        return worker.train_trial(self.request, number, values, self.parent, reporter)

    def stop(self, cause: BaseException) -> None:
        self.cause = self.cause or cause


class Project:
    """The miniature repository, which is the current folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, **values: Any) -> None:
        """Set values of params.yaml; `__` stands for the dot."""
        yaml.update(Path("params.yaml"), {key.replace("__", "."): value for key, value in values.items()})

    def section(self, text: str) -> None:
        """Replace the section `sweep`."""
        path = self.folder / "params.yaml"
        rest = re.sub(r"\nsweep:.*?(?=\n\w|\Z)", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        path.write_text(rest.rstrip("\n") + "\n" + text, encoding="utf-8")

    def space(self, *lines: str, metric: str = "val/loss", warmup: int = 1) -> None:
        head = f"\nsweep:\n  trials: 4\n  metric: {metric}\n  warmup_epochs: {warmup}\n  space:\n"
        self.section(head + "".join(f"    {line}\n" for line in lines))

    def network(self, name: str, *layers: str) -> None:
        text = "".join(f"  - {layer}\n" for layer in layers)
        (self.folder / f"networks/{name}.yaml").write_text(f"layers:\n{text}", encoding="utf-8")

    def study(self) -> optuna.Study:
        return open_study(Request.read())

    def add(self, study: optuna.Study, values: Mapping[str, Any], **result: Any) -> None:
        """Add a trial that has ended."""
        distributions = {dimension.key: dimension.distribution for dimension in Request.read().space}
        study.add_trial(optuna.trial.create_trial(params=dict(values), distributions=distributions, **result))

    def optimize(self, target: int, workers: Any = None) -> Results:
        request = Request.read()
        with ProgressBar("sweep", target) as bar, workers or InProcess(request) as pool:
            run.optimize(open_study(request), request, target, pool, Progress(bar, request))
        return self.results()

    def results(self) -> Results:
        request = Request.read()
        return Results.of(request, read_trials(request))

    def journal(self, run_id: str) -> list[dict[str, Any]]:
        """Read what a run hands to the uploader."""
        lines = (self.folder / "outbox" / run_id / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def in_process_workers() -> type[InProcess]:
    return InProcess


@pytest.fixture
def project(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(outbox, "start_uploader", lambda *_, **__: None)
    (tmp_path / "params.yaml").write_text((repository / "params.yaml").read_text("utf-8"), encoding="utf-8")
    (tmp_path / "networks").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {train: {deps: []}}", encoding="utf-8")
    project = Project(tmp_path)
    project.section(SPACE)
    yaml.update(Path("params.yaml"), USUAL)
    project.network("tiny", *LAYERS)
    write_squares(tmp_path / "build/dataset")
    return project
