"""Train a network on a packed dataset, and keep what was best on the validation split."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from convoy.core import files
from convoy.core.console import info
from convoy.core.dataset import Dataset
from convoy.models import trained
from convoy.models.spec import Spec
from convoy.models.trained import ModelFacts, NormalizedModel
from convoy.training.best import MONITOR, Best
from convoy.training.checkpoints import Found
from convoy.training.clock import TrainingTimer
from convoy.training.data import Batcher
from convoy.training.freezing import refuse_to_freeze
from convoy.training.frozen import FrozenProof
from convoy.training.history import History
from convoy.training.module import Classifier
from convoy.training.optim import rate
from convoy.training.points import MetricBuffer
from convoy.training.precision import choose
from convoy.training.pretrained import Grafted, Starting, graft
from convoy.training.progress import TrainingProgress
from convoy.training.resume import CheckpointCallback, DirectIO, Resumable
from convoy.training.settings import TrainParams

HISTORY = "history.csv"
TRANSFER = "transfer.json"


def fit(
    dataset: Dataset,
    spec: Spec,
    params: TrainParams,
    seed: int,
    out: Path,
    *,
    callbacks: Sequence[pl.Callback] = (),
    starting: Starting | None = None,
    resumable: Resumable | None = None,
) -> dict[str, Any]:
    """Train, and write the weights of the best epoch.

    A GPU is used where there is one. On one CPU, equal arguments give equal weights, bit for bit,
    also if processes died in between and `resumable` found their checkpoints.

    Args:
        dataset: what to learn from; its `val` split chooses the epoch, its `test` split is not read.
        spec: the network.
        params: how to train.
        seed: decides starting weights, order of images and augmentation.
        out: folder, created, for the model (`saved.save`), `history.csv` and, with starting weights, `transfer.json`:
            where they came from, which tensors were taken, reinitialised and ignored, and the plan.
        callbacks: more of Lightning's; they may read the metrics of an epoch at its end. Their states are saved too.
        starting: weights to begin with, whose mean and std, where known, replace the dataset's; None: fresh ones.
        resumable: how the training is saved, and what it goes on from; None: it is not.

    Returns:
        `{"train": {...}, "val": {...}, "best": {...}}`: loss and accuracy of the last epoch, the epochs
        trained and the seconds that took, and what the kept epoch reached on validation images.

    Raises:
        RequestError: `params.transfer` does not fit the network, or would freeze what is random.
        NetworkError: the network does not take images of this size; the starting weights are another network's.
        TrainingError: the loss is no number any more; what was frozen moved.
        Paused: the time budget is spent; the training is saved.
        KeyboardInterrupt: Ctrl-C. SIGTERM arrives as what its handler raises, or as Lightning's SystemExit.
    """
    if starting is None:
        refuse_to_freeze(params.transfer)
    pl.seed_everything(seed, verbose=False)
    facts = ModelFacts(
        network=spec.name,
        spec=spec,
        classes=list(dataset.classes),
        image_px=dataset.image_px,
        fit=dataset.fit,
        mean=list(starting.mean if starting and starting.mean else dataset.mean),
        std=list(starting.std if starting and starting.std else dataset.std),
    )
    model = trained.make(facts, auxiliary=True)
    grafted = graft(model.network, starting, facts.classes) if starting else None
    classifier = Classifier(model.to(memory_format=torch.channels_last), params, facts)
    batcher = Batcher(dataset, params, seed)
    precision = choose(params.precision)
    info(f"train {spec.name} ({_parameters(model):,} parameters) in {precision.why}")
    plan = classifier.plan.table(_rates(params, len(batcher.train_dataloader())))
    for line in [*(grafted.lines() if grafted else []), *plan.splitlines()]:
        info(line)
    history, best, clock = History(out / HISTORY), Best(classifier), TrainingTimer()
    watchers: list[pl.Callback] = [
        history,
        TrainingProgress(len(dataset.labels("train"))),
        FrozenProof(classifier),
        best,
        *_averaging(params),
        *_early_stop(params),
        clock,
        *callbacks,
    ]
    saving = None
    if resumable:
        points = MetricBuffer(classifier, resumable.publish, resumable.step_interval)
        saving = CheckpointCallback(resumable, batcher, points)
        watchers += [points, saving]
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
            enable_checkpointing=False,  # `Saving` does it
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[DirectIO()],
            callbacks=watchers,
        )
        found = resumable.found if resumable else None
        if found:
            info(_resumed(found))
        if found and found.note.finished:
            for watcher in watchers:
                if watcher.state_key in found.content["callbacks"]:
                    watcher.load_state_dict(found.content["callbacks"][watcher.state_key])
        else:
            _run(trainer, classifier, batcher, found.path if found else None)
            clock.stop()
            if saving:
                saving.finish(trainer)
    model.load_state_dict(best.weights)
    trained.save(out, model, facts)
    if starting and grafted:
        _write_transfer(out / TRANSFER, starting, grafted, plan)
    return _metrics(history, best.epoch, clock.seconds)


def _rates(params: TrainParams, steps: int) -> list[float]:
    """Compute the highest learning rate of any block at the first step of each epoch."""
    share = rate(params.schedule, params.warmup, steps * params.epochs)
    return [params.lr * share(epoch * steps) for epoch in range(params.epochs)]


def _write_transfer(path: Path, starting: Starting, grafted: Grafted, plan: str) -> None:
    """Write down what became of the starting weights."""
    content = {
        "source": starting.source,
        "resolved": starting.resolved,
        "head": grafted.head,
        "taken": list(grafted.taken),
        "reinitialised": list(grafted.reinitialised),
        "ignored": list(grafted.ignored),
        "plan": plan,
    }
    files.write_json(path, content)


def _metrics(history: History, best: int, seconds: float) -> dict[str, Any]:
    """Nest the last epoch's figures, where the curves end, and those of the epoch that was kept."""
    last, kept = history.rows[-1], history.rows[best]
    return {
        "train": {
            "loss": last["train/loss"],
            "accuracy": last["train/accuracy"],
            "epochs_trained": len(history.rows),
            "seconds": round(seconds, 2),
        },
        "val": {"loss": last["val/loss"], "accuracy": last["val/accuracy"]},
        "best": {"epoch": best + 1, "val_loss": kept["val/loss"], "val_accuracy": kept["val/accuracy"]},
    }


def _run(trainer: pl.Trainer, classifier: Classifier, batcher: Batcher, checkpoint: Path | None) -> None:
    """Fit, handing Ctrl-C on: Lightning would turn it into an exit that a caller takes for the end."""
    try:
        trainer.fit(classifier, datamodule=batcher, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exit_
        raise


def _resumed(found: Found) -> str:
    """Say what a training goes on from."""
    if found.note.finished:
        return (
            f"The training was finished (step {found.note.step:,}); its results are taken from {found.path}."
        )
    return f"The training goes on in epoch {found.note.epoch}, after step {found.note.step:,} ({found.path})."


def _averaging(params: TrainParams) -> list[pl.Callback]:
    """Average the weights, which validation then measures and `Best` copies; 0 does not.

    The form for many tensors moves by a share of the difference, so that frozen tensors stay
    as they are to the bit; Lightning's EMA callback takes the sum of two products instead.
    """
    if not params.ema:
        return []
    average = get_ema_multi_avg_fn(params.ema)  # type: ignore[no-untyped-call] # torch has no types here
    return [WeightAveraging(multi_avg_fn=average)]


def _early_stop(params: TrainParams) -> list[pl.Callback]:
    """Stop once the validation loss has not fallen for so many epochs; 0 never stops."""
    return [EarlyStopping(MONITOR, patience=params.early_stop, mode="min")] if params.early_stop else []


def _parameters(model: NormalizedModel) -> int:
    return sum(value.numel() for value in model.parameters())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says about itself and its usual data loaders; everything else still warns."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning asks the loader; here the place in the order of images is `Saving`'s.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # frozen norms: meant
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")  # Lightning's own habit
            yield
    finally:
        log.setLevel(level)
