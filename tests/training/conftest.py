"""A miniature dataset, and params that learn it in a second."""

import time
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from convoy.core import files
from convoy.core.dataset import Dataset
from convoy.models import trained
from convoy.models.build import build
from convoy.models.spec import Spec
from convoy.models.trained import ModelFacts
from convoy.training import weight_pins
from convoy.training.checkpoints import CheckpointStore, Resumable
from convoy.training.data import DataModule
from convoy.training.module import Classifier
from convoy.training.pretrained import StartingWeights, WeightFacts
from convoy.training.settings import CheckpointParams, TrainParams
from convoy.training.weight_pins import Pin
from squares import CLASSES, PX, write_squares


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write_squares(folder)
    return Dataset.load(folder)


def conv(filters, **more):
    return {"conv": {"filters": filters, "kernel": 3, **more}}


@pytest.fixture(scope="session")
def tiny():
    """The smallest network with a convolution, a norm, dropout and a head."""
    head = ["global_avg_pool", "flatten", {"dropout": 0.1}, {"dense": "classes"}]
    return Spec.model_validate({"name": "tiny", "layers": [conv(8), "norm", "relu", *head]})


@pytest.fixture(scope="session")
def stack():
    """A network of four blocks with norms in three of them: conv1, residual1, conv2 and the head, dense1."""
    residual = {"residual": [conv(4, padding="same"), "norm"]}
    head = ["global_avg_pool", "flatten", {"dense": "classes"}]
    layers = [conv(4), "norm", "relu", residual, conv(6), "norm", "relu", *head]
    return Spec.model_validate({"name": "stack", "layers": layers})


@pytest.fixture(scope="session")
def whitened():
    """A network with a whitening layer, norms without scale and stochastic depth."""
    norm = {"norm": {"scale": False, "momentum": 0.4}}
    residual = {"residual": {"body": [conv(24, padding="same"), norm], "drop": 0.3}}
    head = ["global_avg_pool", "flatten", {"dense": "classes"}, {"scale": 0.5}]
    return Spec.model_validate({"name": "whitened", "layers": ["whiten", "gelu", residual, *head]})


@pytest.fixture(scope="session")
def starting():
    """Make starting weights that fit a network whole, statistics of norms included, from a seed of their own."""

    def make(spec):
        network = build(spec, len(CLASSES), PX)
        random = torch.Generator().manual_seed(7)
        tensors = {
            name: torch.rand(value.shape, generator=random) if value.is_floating_point() else value + 9
            for name, value in network.state_dict().items()
        }
        return StartingWeights(
            source="models:/convoy@champion",
            resolved="models:/convoy/3",
            file=Path("weights/champion/weights.pt"),
            network=spec.name,
            tensors=tensors,
            facts=WeightFacts(classes=CLASSES, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2]),
        )

    return make


@pytest.fixture(scope="session")
def params():
    """Make params; keywords replace single values, those of `transfer` too."""
    usual = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0005}
    usual |= {"schedule": "one_cycle", "warmup": 0.2, "label_smoothing": 0.1, "early_stop": 0, "ema": 0.0}
    usual |= {"best": "val/loss", "calibrate": True, "tta": "none", "momentum": 0.9}
    usual |= {"accumulate": 1, "clip_norm": 0.0, "loss": "cross_entropy", "focal_gamma": 2.0}
    usual |= {"lr_end": 0.0, "step_epochs": 30, "step_factor": 0.1}
    usual |= {
        "muon": {
            "steps": 3,
            "normalize": False,
            "rest": "sgd",
            "rest_lr": 0.05,
            "head_lr": 0.05,
            "rest_momentum": 0.9,
            "rest_decay": 0.0,
        }
    }
    usual |= {"teacher": "none", "teacher_weight": 0.5, "teacher_temperature": 4.0}
    usual |= {"class_weights": "none", "sampler": "shuffle"}
    usual |= {"augment": [{"shift": {"pixels": 1}}, "flip"], "precision": 32}
    usual |= {"progressive": {"start": 1.0, "full": 0.6}}
    as_is = {"freeze": 0, "release": 0, "lr_factor": 1.0, "batch_norm": "adapt"}

    def make(*, transfer=None, **changes):
        return TrainParams.model_validate(usual | changes | {"transfer": as_is | dict(transfer or {})})

    return make


@pytest.fixture
def out(tmp_path):
    """Where a training writes its model."""
    return tmp_path / "model"


@pytest.fixture(scope="session")
def on():
    """Make a callback with one hook, which calls a function with the hook's arguments."""

    def make(hook, action):
        callback = pl.Callback()
        setattr(callback, hook, action)
        return callback

    return make


@pytest.fixture
def resumable(tmp_path):
    """Make what `fit` resumes from, as a new process would; by default every step is saved."""

    def make(
        publish=lambda points: None, *, folder="checkpoints", spent_s=0, every_s=0.0, time_budget_min=0.0
    ):
        limits = CheckpointParams(every_s=every_s, keep=5, keep_days=30.0, time_budget_min=time_budget_min)
        store = CheckpointStore(tmp_path / folder, "1" * 64, limits)
        return Resumable(store, store.newest(), "run", publish, 1, time.monotonic() - spent_s)

    return make


class Kill(BaseException):
    """The end of a process."""


@pytest.fixture
def killed(tmp_path, on, resumable):
    """Train whole, and again with a kill before a step and a resume; check that both end with equal weights, and return them.

    The function that trains takes a folder and keywords of `fit`.
    """

    def run(train, step):
        train(tmp_path / "whole")
        whole = (tmp_path / "whole" / "weights.pt").read_bytes()

        def kill(trainer, *_):
            if trainer.global_step == step:
                raise Kill

        with pytest.raises(Kill):
            train(tmp_path / "killed", callbacks=[on("on_train_batch_start", kill)], resumable=resumable())
        assert not (tmp_path / "killed" / "weights.pt").exists()
        assert resumable().checkpoint.facts.step == step
        train(tmp_path / "killed", resumable=resumable())
        assert (tmp_path / "killed" / "weights.pt").read_bytes() == whole
        return whole

    return run


@pytest.fixture(scope="session")
def classifier(dataset):
    """Make a classifier of a spec, with the weights of seed 1."""

    def make(spec, params):
        same = {name: getattr(dataset, name) for name in ("classes", "image_px", "fit", "mean", "std")}
        facts = ModelFacts(network=spec.name, spec=spec, **same)
        torch.manual_seed(1)
        steps = len(DataModule(dataset, params, 1).train_dataloader())
        return Classifier(trained.make(facts, auxiliary=True), params, facts, steps)

    return make


@pytest.fixture(scope="session")
def train(dataset):
    """Train a classifier on the CPU, with none of the callbacks of `fit`."""

    def run(classifier, *callbacks):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=classifier.params.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=list(callbacks),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(classifier, datamodule=DataModule(dataset, classifier.params, 1))

    return run


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """Pin the tensors of a network in `weights/` of an empty folder, which becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def pin(source, network, facts=None, **changes):
        folder = tmp_path / "weights" / "x"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), folder / "weights.pt")
        if facts:
            files.write_json(folder / "model.json", facts)
        hashes = {f"x/{path.name}": files.sha256(path) for path in sorted(folder.iterdir(), reverse=True)}
        made = Pin(**{"source": source, "resolved": source, "sha256": hashes} | changes)
        dvc_file = tmp_path / "weights" / "x.dvc"
        dvc_file.write_text("outs:\n- md5: 1c99296a7f99399cab9f382428fd2c94\n  path: x\n")
        weight_pins.write(dvc_file, made)
        return made

    return pin
