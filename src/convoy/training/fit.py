"""Train a network on a packed dataset, and save the weights of the epoch that `train.best` chooses."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, WeightAveraging
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn

from convoy.core import console, files
from convoy.core.allocator import memory_kept
from convoy.core.console import info
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError
from convoy.models import trained
from convoy.models.spec import Spec
from convoy.models.trained import ModelFacts, NormalizedModel
from convoy.training import class_balance, progressive, whitening
from convoy.training.augment import policy
from convoy.training.calibrate import calibrate, mean_loss
from convoy.training.callbacks import (
    BestWeights,
    History,
    MetricBuffer,
    TrainingProgress,
    TrainingTimer,
)
from convoy.training.checkpoints import CheckpointCallback, DirectIO, LoadedCheckpoint, Resumable
from convoy.training.data import Batches, DataModule, check_augment, served_train_images, steps_of
from convoy.training.freezing import FrozenLayersCheck, refuse_without_weights
from convoy.training.module import Classifier
from convoy.training.precision import choose_precision
from convoy.training.pretrained import Grafted, StartingWeights, graft
from convoy.training.settings import TrainParams
from convoy.training.teacher import Teacher

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
    starting: StartingWeights | None = None,
    teacher: Teacher | None = None,
    resumable: Resumable | None = None,
) -> dict[str, Any]:
    """Train, and write the weights of the best epoch.

    Uses a GPU if there is one. On one CPU, equal arguments give equal weights, bit for bit, even if
    processes died in between and `resumable` holds their last checkpoint.

    The dataset's `val` split chooses the epoch; its `test` split is not read. The seed decides fresh weights, the
    order of images and augmentation. `out` is a folder, created, for the model (`trained.save`), `history.csv`
    and, with starting weights, `transfer.json`: their origin, which tensors were copied, reinitialised and
    ignored, and the plan. More `callbacks` may read the metrics of an epoch at its end; checkpoints hold their
    states too. Mean and std of `starting` weights, if known, replace the dataset's. A `teacher` is that of
    `params.teacher`. Without `resumable` nothing is saved in between.

    Returns:
        `{"train": {...}, "val": {...}, "best": {...}}`: loss and accuracy of the last epoch, the epochs
        trained and their seconds, and of the saved epoch the validation metrics (at temperature 1) and the temperature.

    Raises:
        RequestError: `params.transfer` does not fit the network, or would freeze random weights; a batch has a single
            image, which a norm of the network refuses.
        NetworkError: the network does not take images of this size, or the starting weights do not fit it.
        TrainingError: the loss became NaN, or frozen tensors changed.
        TrainingPaused: the time budget is spent; a checkpoint is saved.
        KeyboardInterrupt: Ctrl-C. SIGTERM arrives as what its handler raises, or as Lightning's SystemExit.
    """
    with console.slow(f"building {spec.name}"):
        model, facts, grafted, data, classifier = assemble(
            dataset, spec, params, seed, starting, teacher=teacher
        )
    steps = classifier.steps_per_epoch
    labels = dataset.labels("train")
    precision, reason = choose_precision(params.precision)
    parameters = sum(value.numel() for value in model.parameters())
    plan = classifier.plan.table([classifier.learning_rate(epoch * steps) for epoch in range(params.epochs)])
    balance = class_balance.effect(facts.classes, labels, params)
    head = [
        f"train {spec.name} ({parameters:,} parameters) in {reason}",
        f"augment: {policy.described(params.augment)}",
    ]
    if hint := policy.unused_store(params.augment, image_px=dataset.image_px, store_px=dataset.store_px):
        head.append(hint)
    if teacher:
        head.append(
            f"teacher: {teacher}, weight {params.teacher_weight:g}, temperature {params.teacher_temperature:g}"
        )
    info("\n".join([*head, *(grafted.lines() if grafted else []), plan, *filter(None, [balance])]))
    history, best, timer = History(out / HISTORY), BestWeights(classifier, params.best), TrainingTimer()
    all_callbacks: list[pl.Callback] = [
        history,
        TrainingProgress(len(labels), len(dataset.labels("val"))),
        FrozenLayersCheck(model.network, classifier.frozen),
        best,
        *_optional_callbacks(params),
        timer,
        *callbacks,
    ]
    saving = None
    if resumable:
        points = MetricBuffer(classifier, resumable.publish, resumable.step_interval)
        saving = CheckpointCallback(resumable, data, points)
        all_callbacks += [points, saving]
    checkpoint = resumable.checkpoint if resumable else None
    with quiet():
        trainer = make_trainer(
            params,
            max_epochs=params.epochs,
            precision=precision,
            plugins=[DirectIO()],
            callbacks=all_callbacks,
        )
        if checkpoint and checkpoint.facts.finished:
            info(
                f"Training is already complete (step {checkpoint.facts.step:,}); results from {checkpoint.path}."
            )
            states = checkpoint.content["callbacks"]
            for callback in all_callbacks:
                if callback.state_key in states:
                    callback.load_state_dict(states[callback.state_key])
        else:
            run_trainer(trainer, classifier, data, checkpoint)
            timer.stop()
            if saving:
                saving.finish(trainer)
    model.load_state_dict(best.weights)
    served = _measure_served(model, data)
    facts = facts.model_copy(update={"temperature": served["temperature"], "tta": params.tta})
    trained.save(out, model, facts)
    if grafted:
        files.write_json(out / TRANSFER, asdict(grafted) | {"plan": plan})
    return _metrics(history, best.epoch, served, timer.seconds)


def check(dataset: Dataset, spec: Spec, params: TrainParams) -> None:
    """Refuse what `assemble` would refuse of images and batches, before a run is opened for it.

    Raises:
        RequestError: as `fit` does, but for starting weights.
    """
    check_augment(dataset, params)
    images = len(dataset.labels("train"))
    whitening.check(spec, images, dataset.image_px)
    progressive.check(spec, len(dataset.classes), dataset.image_px, params)
    single = images // steps_of(images, params.batch_size, params.accumulate) <= 1
    if single or (
        spec.classifier and params.progressive.start < 1
    ):  # what only a pass through the network shows
        facts = _facts(dataset, spec, None)
        with torch.random.fork_rng():
            model = trained.make(facts, auxiliary=True)
        Classifier(model, params, facts, 1)  # sets the norms to the mode that they train in
        _check_batches(model, facts, params, DataModule(dataset, params, 0).train_batches())


class Assembled(NamedTuple):
    """Hold what a training consists of before its first step."""

    model: NormalizedModel
    facts: ModelFacts
    grafted: Grafted | None  # what became of the starting weights
    data: DataModule
    classifier: Classifier


def assemble(
    dataset: Dataset,
    spec: Spec,
    params: TrainParams,
    seed: int,
    starting: StartingWeights | None,
    *,
    teacher: Teacher | None = None,
) -> Assembled:
    """Build the network with the weights that training starts from, and cut the batches.

    Raises:
        RequestError: as `fit` does.
        NetworkError: likewise.
    """
    if starting is None:
        refuse_without_weights(params.transfer)
    pl.seed_everything(seed, verbose=False)
    facts = _facts(dataset, spec, starting)
    model = trained.make(facts, auxiliary=True)
    grafted = graft(model.network, starting, facts.classes) if starting else None
    whitening.check(spec, len(dataset.labels("train")), dataset.image_px)
    if starting is None:  # else the filters are among the weights, and what follows them fits no others
        whitening.whiten(model, served_train_images(dataset))
    data = DataModule(dataset, params, seed)
    batches = data.train_batches()
    counts = np.bincount(dataset.labels("train"), minlength=len(facts.classes))
    weights = class_balance.weights(counts, params.class_weights)
    steps = len(batches) // params.accumulate
    model = model.to(memory_format=torch.channels_last)
    classifier = Classifier(model, params, facts, steps, weights, teacher=teacher)
    _check_batches(model, facts, params, batches)
    return Assembled(model, facts, grafted, data, classifier)


def _facts(dataset: Dataset, spec: Spec, starting: StartingWeights | None) -> ModelFacts:
    """Describe the model to be; starting weights bring their mean and std."""
    normalisation = starting.facts if starting and starting.facts else dataset
    return ModelFacts(
        network=spec.name,
        spec=spec,
        classes=list(dataset.classes),
        image_px=dataset.image_px,
        fit=dataset.fit,
        crop_share=dataset.crop_share,
        background=dataset.background,
        mean=list(normalisation.mean),
        std=list(normalisation.std),
    )


def make_trainer(params: TrainParams, **options: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's arguments)
    """Make a trainer that steps as `params` state and writes nothing; `options` are further arguments of Lightning's."""
    # With `deterministic`, torch would fill every new tensor with NaN before it is written: 2 to 8 % of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # torch's types lack it
    return pl.Trainer(
        accelerator="auto",
        devices=1,
        # Not True: that refuses networks with an operation that has no exact form on CUDA, such as AlexNet's pooling.
        deterministic="warn",
        benchmark=False,
        gradient_clip_val=params.clip_norm or None,
        accumulate_grad_batches=params.accumulate,
        logger=False,
        enable_checkpointing=False,  # `CheckpointCallback` does it
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def _check_batches(model: NormalizedModel, facts: ModelFacts, params: TrainParams, batches: Batches) -> None:
    """Refuse empty batches, batches of one image where a norm needs more, and images too small for the network.

    Raises:
        RequestError: naming what to set.
    """
    images = len(batches.labels)
    if not batches.smallest:
        raise RequestError(
            f"train.accumulate {params.accumulate} needs as many batches for a step, but there are only "
            f"{images:,} training images. Set train.accumulate to {images} or less."
        )
    if batches.smallest == 1:
        _refuse_single_image(model, facts, params, images)
    _check_first_size(model, facts, params)


def _check_first_size(model: NormalizedModel, facts: ModelFacts, params: TrainParams) -> None:
    """Refuse a network that does not take the smaller images of `train.progressive`.

    Raises:
        RequestError: naming what to set.
    """
    progressive.check(facts.spec, len(facts.classes), facts.image_px, params)
    side = progressive.side_px(params, facts.image_px, 0)
    if facts.spec.classifier is None or side == facts.image_px:
        return
    try:
        _run_on_meta(model, (2, 3, side, side))
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            f"train.progressive.start {params.progressive.start} trains {facts.network} on {side} px images first, which it does not "
            f"take ({error}). Set it to 1.0, or higher."
        ) from error


def _run_on_meta(model: NormalizedModel, shape: tuple[int, ...]) -> None:
    """Compute the shapes of a pass alone, on torch's meta device, so that weights and statistics stay as they are."""
    tensors = {
        name: value.to("meta") for name, value in chain(model.named_parameters(), model.named_buffers())
    }
    with torch.no_grad():
        functional_call(model, tensors, (torch.empty(shape, device="meta"),))


def _refuse_single_image(model: NormalizedModel, facts: ModelFacts, params: TrainParams, images: int) -> None:
    """Refuse batches of one image if a norm, in the mode that it trains in, then has a single value per channel.

    Raises:
        RequestError: naming the norm and the batch sizes that work.
    """
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    handles = [
        module.register_forward_pre_hook(enter(name))
        for name, module in model.network.named_modules()
        if not any(module.children())
    ]
    try:
        _run_on_meta(model, (1, 3, facts.image_px, facts.image_px))
    except ValueError as error:  # of torch's norms
        batch_size = params.batch_size
        remedy = f"train.batch_size to {2 if batch_size == 1 else 3} or more"  # an odd number in batches of 2 leaves one
        if params.accumulate > 1:
            remedy = f"train.accumulate to 1, or {remedy}"
        raise RequestError(
            f"train.batch_size {batch_size} makes a batch of a single image of the {images:,} training images, and layer "
            f"{running[-1]} of {facts.network} would have to normalise a single value per channel ({facts.image_px} px "
            f"images are 1×1 there). Set {remedy}."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


@memory_kept()
def run_trainer(
    trainer: pl.Trainer, classifier: Classifier, data: DataModule, checkpoint: LoadedCheckpoint | None = None
) -> None:
    """Fit, passing Ctrl-C on: Lightning would turn it into an exit that a caller takes for the end."""
    path = None
    if checkpoint:
        path, facts = checkpoint.path, checkpoint.facts
        info(f"Resuming from epoch {facts.epoch}, step {facts.step:,} ({path}).")
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=path, weights_only=True)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exit_
        raise


def _measure_served(model: NormalizedModel, data: DataModule) -> dict[str, float]:
    """Measure the weights that are saved on validation images, with the views and the temperature that they are served with.

    Returns:
        `temperature`; with `train.tta` also `val_loss`, at temperature 1, and `val_accuracy`.
    """
    params, validation = data.params, data.val_batches()
    measured = {"temperature": 1.0}
    if not params.calibrate and params.tta == "none":
        return measured
    model.tta = params.tta
    logits = trained.predict_logits(model, data.dataset.images("val"), params.batch_size)
    if params.calibrate:
        calibration = calibrate(logits, validation.labels)
        info(calibration.line(len(logits)))
        measured["temperature"] = calibration.temperature
    if params.tta != "none":
        accuracy = float((logits.argmax(axis=1) == validation.labels).mean())
        loss = mean_loss(logits, validation.labels)
        info(f"tta: {params.tta}, val loss {loss:.4f}, val accuracy {accuracy:.4f}")
        measured |= {"val_loss": loss, "val_accuracy": accuracy}
    return measured


def _metrics(history: History, best: int, served: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Nest the metrics of the last epoch, where the curves end, and those of the saved epoch."""
    last, saved = history.rows[-1], history.rows[best]
    return {
        "train": {"loss": last["train/loss"], "accuracy": last["train/accuracy"]}
        | {"epochs_trained": len(history.rows), "seconds": round(seconds, 2)},
        "val": {"loss": last["val/loss"], "accuracy": last["val/accuracy"]},
        "best": {"epoch": best + 1, "val_loss": saved["val/loss"], "val_accuracy": saved["val/accuracy"]}
        | dict(served),
    }


def _optional_callbacks(params: TrainParams) -> list[pl.Callback]:
    """Average the weights, which validation then measures and `BestWeights` copies; stop early."""
    callbacks: list[pl.Callback] = []
    if params.ema:
        # Torch's multi-tensor form moves by a share of the difference, so that frozen tensors stay the same to
        # the bit; Lightning's EMA callback takes the sum of two products instead.
        average = get_ema_multi_avg_fn(params.ema)  # type: ignore[no-untyped-call] # torch has no types here
        callbacks.append(WeightAveraging(multi_avg_fn=average))
    if params.early_stop:
        mode = "min" if params.best == "val/loss" else "max"
        callbacks.append(EarlyStopping(params.best, patience=params.early_stop, mode=mode))
    return callbacks


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's messages about itself and about usual data loaders; all other warnings are shown."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning looks for the loader's state; here `CheckpointCallback` keeps the position.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # frozen norms: intended
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")  # Lightning's own code
            yield
    finally:
        log.setLevel(level)
