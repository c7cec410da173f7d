"""Train a network on a packed dataset, and keep what was best on the validation split."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from convoy.console import say
from convoy.data.dataset import Dataset
from convoy.networks import saved
from convoy.networks.deployable import Deployable
from convoy.networks.saved import ModelFacts
from convoy.networks.spec import Spec
from convoy.training.batches import Batcher
from convoy.training.classifier import Classifier
from convoy.training.history import History
from convoy.training.precision import choose
from convoy.training.progress import TrainingProgress
from convoy.training.settings import TrainParams

HISTORY = "history.csv"
MONITOR = "val/loss"
"""What chooses the best epoch: a few hundred validation images tie in accuracy, never in loss."""


def fit(  # noqa: PLR0917
    dataset: Dataset,
    spec: Spec,
    params: TrainParams,
    seed: int,
    out: Path,
    checkpoints: Path,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, Any]:
    """Train, and write the weights of the best epoch.

    A GPU is used where there is one. On one CPU, equal arguments give equal weights, bit for bit.

    Args:
        dataset: what to learn from; its `val` split chooses the epoch, its `test` split is not read.
        spec: the network.
        params: how to train.
        seed: decides starting weights, order of images and augmentation.
        out: folder for the model (`saved.save`) and `history.csv`; created.
        checkpoints: folder for `best.ckpt` and `last.ckpt`; created, and both are replaced.
        callbacks: more of Lightning's; they may read the metrics of an epoch at its end.

    Returns:
        `{"train": {...}, "val": {...}, "best": {...}}`: loss and accuracy of the last epoch, the epochs
        trained and the seconds that took, and what the kept epoch reached on validation images.

    Raises:
        NetworkError: the network does not take images of this size.
        TrainingError: the loss is no number any more.
        KeyboardInterrupt: Ctrl-C. SIGTERM arrives as what its handler raises, or as Lightning's SystemExit.
    """
    pl.seed_everything(seed, verbose=False)
    facts = ModelFacts(
        network=spec.name,
        spec=spec,
        classes=list(dataset.classes),
        image_px=dataset.image_px,
        fit=dataset.fit,
        mean=list(dataset.mean),
        std=list(dataset.std),
    )
    model = saved.make(facts).to(memory_format=torch.channels_last)
    precision = choose(params.precision)
    say(f"train {spec.name} ({_parameters(model):,} parameters) in {precision.why}")
    history = History(out / HISTORY)
    images = len(dataset.labels("train"))
    keepers = _checkpoints(checkpoints)
    with _quiet():
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            precision=precision.lightning,
            max_epochs=params.epochs,
            # Not True: that refuses networks with an operation that has no exact form on CUDA, such as AlexNet's pooling.
            deterministic="warn",
            benchmark=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[history, TrainingProgress(images), *_early_stop(params), *keepers, *callbacks],
        )
        started = time.monotonic()
        _run(trainer, Classifier(model, params, len(dataset.classes)), Batcher(dataset, params, seed))
        seconds = time.monotonic() - started
    best = torch.load(checkpoints / "best.ckpt", map_location="cpu", weights_only=True)
    weights = {name.removeprefix("model."): value for name, value in best["state_dict"].items()}
    model.load_state_dict(weights)
    saved.save(out, model, facts)
    return _metrics(history, int(best["epoch"]), seconds)


def _metrics(history: History, best: int, seconds: float) -> dict[str, Any]:
    """Nest the last epoch's figures, where the curves end, and those of the epoch that was kept."""
    last, kept = history.rows[-1], history.rows[best]
    return {
        "train": {
            "loss": last["train/loss"],
            "accuracy": last["train/accuracy"],
            "epochs_trained": len(history.rows),
            "seconds": round(seconds, 1),
        },
        "val": {"loss": last["val/loss"], "accuracy": last["val/accuracy"]},
        "best": {"epoch": best + 1, "val_loss": kept["val/loss"], "val_accuracy": kept["val/accuracy"]},
    }


def _run(trainer: pl.Trainer, classifier: Classifier, batcher: Batcher) -> None:
    """Fit, handing Ctrl-C on: Lightning would turn it into an exit that a caller takes for the end."""
    try:
        trainer.fit(classifier, datamodule=batcher)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exit_
        raise


def _checkpoints(folder: Path) -> list[pl.Callback]:
    """Keep the best epoch and the last one, under names that a later run replaces."""
    return [
        ModelCheckpoint(
            dirpath=folder, filename="best", monitor=MONITOR, mode="min", enable_version_counter=False
        ),
        ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False),
    ]


def _early_stop(params: TrainParams) -> list[pl.Callback]:
    """Stop once the validation loss has not fallen for so many epochs; 0 never stops."""
    return [EarlyStopping(MONITOR, patience=params.early_stop, mode="min")] if params.early_stop else []


def _parameters(model: Deployable) -> int:
    return sum(value.numel() for value in model.parameters())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says about itself and its usual data loaders; everything else still warns."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")  # Lightning's own habit
            yield
    finally:
        log.setLevel(level)
