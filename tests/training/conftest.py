"""A miniature dataset, and params that learn it in a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.data.dataset import Dataset
from convoy.networks.spec import Spec
from convoy.training.settings import TrainParams

COUNTS = {"train": 48, "val": 12, "test": 12}
CLASSES = ["blue", "green", "red"]
PX = 8


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """72 noisy squares of 8 px in which one channel is brighter: the channel is the class."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(count) % 3 for count in COUNTS.values()])
    images_u8 = random.integers(0, 160, size=(len(labels), PX, PX, 3), dtype=np.uint8)
    images_u8[np.arange(len(labels)), :, :, 2 - labels] += 60
    stops = np.cumsum(list(COUNTS.values())).tolist()
    splits = {name: [stop - count, stop] for (name, count), stop in zip(COUNTS.items(), stops, strict=True)}
    pixels = images_u8[: COUNTS["train"]] / 255
    facts = {
        "classes": CLASSES,
        "image_px": PX,
        "fit": "squash",
        "splits": splits,
        "counts": {name: dict.fromkeys(CLASSES, count // 3) for name, count in COUNTS.items()},
        "mean": pixels.mean(axis=(0, 1, 2)).tolist(),
        "std": pixels.std(axis=(0, 1, 2)).tolist(),
        "hash": "0" * 64,
    }
    np.save(folder / "images.npy", images_u8)
    np.save(folder / "labels.npy", labels.astype(np.int64))
    (folder / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    return Dataset.load(folder)


@pytest.fixture(scope="session")
def tiny() -> Spec:
    """The smallest network with a convolution, a norm, dropout and a head."""
    layers: list[Any] = [
        {"conv": {"filters": 8, "kernel": 3}},
        "norm",
        "relu",
        "global_avg_pool",
        "flatten",
        {"dropout": 0.1},
        {"dense": "classes"},
    ]
    return Spec.model_validate({"name": "tiny", "layers": layers})


@pytest.fixture(scope="session")
def params() -> Callable[..., TrainParams]:
    """Make params; keywords replace single values."""
    usual = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0005,
        "schedule": "one_cycle",
        "warmup": 0.2,
        "label_smoothing": 0.1,
        "augment": ["crop", "flip"],
        "crop_padding": 1,
        "early_stop": 0,
        "precision": 32,
    }

    def make(**changes: object) -> TrainParams:
        return TrainParams.model_validate(usual | changes)

    return make


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Where a training writes its model and its checkpoints."""
    return tmp_path / "model", tmp_path / "checkpoints"
