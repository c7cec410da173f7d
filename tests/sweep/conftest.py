"""A repository in miniature: a packed dataset of 72 squares, a network that learns it, and a space to sweep."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.core import yaml
from convoy.sweep import worker
from convoy.sweep.request import Request
from convoy.sweep.results import Results
from convoy.sweep.study import REQUEST, Study, folder_of
from convoy.tracking import outbox

COUNTS = {"train": 48, "val": 12, "test": 12}
CLASSES = ["blue", "green", "red"]
PX = 8
LAYERS = ["conv: {filters: 8, kernel: 3}", "norm", "relu", "global_avg_pool", "flatten", "dense: classes"]
USUAL = {
    "network.name": "tiny",
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.lr": 0.1,
    "train.augment": [],
    "train.precision": 32,
}
SPACE = """
sweep:
  trials: 4        # in all
  metric: val/loss # least
  warmup_epochs: 1 # at least
  space:
    train.lr: {low: 0.01, high: 0.5, log: true} # highest
    train.batch_size: [8, 16] # images
"""


class Here:
    """The miniature repository, which is the current folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, **values: Any) -> None:
        """Set values of params.yaml; `__` stands for the dot."""
        yaml.update(Path("params.yaml"), {key.replace("__", "."): value for key, value in values.items()})

    def sweep(self, text: str) -> None:
        """Replace the section `sweep`."""
        path = self.folder / "params.yaml"
        rest = re.sub(r"\nsweep:.*?(?=\n\w|\Z)", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        path.write_text(rest.rstrip("\n") + "\n" + text, encoding="utf-8")

    def space(self, *lines: str, metric: str = "val/loss", warmup: int = 1) -> None:
        """Replace the space."""
        head = f"\nsweep:\n  trials: 4\n  metric: {metric}\n  warmup_epochs: {warmup}\n  space:\n"
        self.sweep(head + "".join(f"    {line}\n" for line in lines))

    def study(self) -> Study:
        """Open the study of params.yaml."""
        request = Request.read()
        folder = folder_of(request)
        study = Study(folder, request)
        request.save(folder / REQUEST)
        return study

    def work(self, target: int) -> Results:
        """Run trials as a worker does, in this process."""
        study = self.study()
        worker.main(study.folder, target, 1, {"run_id": "parent", "training": "parent"})
        return self.results()

    def results(self) -> Results:
        study = self.study()
        return Results.of(study.request, study.trials())


@pytest.fixture
def here(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(outbox, "start_uploader", lambda *_, **__: None)
    (tmp_path / "params.yaml").write_text((repository / "params.yaml").read_text("utf-8"), encoding="utf-8")
    found = Here(tmp_path)
    found.sweep(SPACE)
    yaml.update(Path("params.yaml"), USUAL)
    (tmp_path / "networks").mkdir()
    layers = "".join(f"  - {layer}\n" for layer in LAYERS)
    (tmp_path / "networks/tiny.yaml").write_text(f"layers:\n{layers}", encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {deps: []}}", encoding="utf-8")
    _dataset(tmp_path / "build/dataset")
    return found


def _dataset(folder: Path) -> None:
    """Squares of 8 px in which one channel is brighter: the channel is the class."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(count) % 3 for count in COUNTS.values()])
    images_u8 = random.integers(0, 160, size=(len(labels), PX, PX, 3), dtype=np.uint8)
    images_u8[np.arange(len(labels)), :, :, 2 - labels] += 60
    stops = np.cumsum(list(COUNTS.values())).tolist()
    facts = {
        "classes": CLASSES,
        "image_px": PX,
        "fit": "squash",
        "splits": {
            name: [stop - count, stop] for (name, count), stop in zip(COUNTS.items(), stops, strict=True)
        },
        "counts": {name: dict.fromkeys(CLASSES, count // 3) for name, count in COUNTS.items()},
        "mean": [0.3] * 3,
        "std": [0.2] * 3,
        "hash": "0" * 64,
    }
    np.save(folder / "images.npy", images_u8)
    np.save(folder / "labels.npy", labels.astype(np.int64))
    (folder / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
