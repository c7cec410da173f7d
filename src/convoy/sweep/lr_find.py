"""Range test of the learning rate: train a network for some steps while the rate rises, and read a rate from the losses.

Smith, Cyclical Learning Rates for Training Neural Networks, 2015 (https://arxiv.org/abs/1506.01186), and A Disciplined
Approach to Neural Network Hyper-Parameters, 2018 (https://arxiv.org/abs/1803.09820). The rate rises exponentially and the suggestion
is where the loss falls fastest, as in Lightning's `lr_find` and fastai's rule `steep`. Fastai's rule `valley`, the middle of the falling
part, suggests a tenth of what is best for the digits of samples/ by SGD.

A network first learns how frequent each class is, by the head's biases alone: of imbalanced classes, that is the steepest fall, at a tiny
rate. Therefore the logits start at the logarithms of the frequencies, and only what falls below the loss of these constant answers counts.
The slope of a smoothed loss is the distance of a single loss from the mean before it, often chance: so small batches are repeated with
other seeds, slopes are measured over a tenth of the steps, and a rate is suggested only if the fall exceeds the noise and the repeats agree.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from convoy.core import console
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError, TrainingError
from convoy.explain import figures
from convoy.models.build import Auxiliary, WithAuxiliary
from convoy.models.spec import Spec
from convoy.training.fit import assemble, make_trainer, quiet, run_trainer
from convoy.training.losses import classification_loss
from convoy.training.module import Classifier
from convoy.training.precision import choose_precision
from convoy.training.pretrained import StartingWeights
from convoy.training.settings import TrainParams
from convoy.training.teacher import Teacher

LOW, HIGH = 1e-5, 10.0
MOST = 100.0  # that train.lr takes
STEPS = 100
"""Steps of a range test, as in fastai and Lightning."""

LEAST_STEPS = 20
"""Fewest steps that are enough for a suggestion: with fewer the rate would rise by half and more at every step."""

PASSES = 10
"""Most passes over the training images: a network that has seen them more often knows them, whatever the rate."""

MOST_REPEATS = 4
CHEAP_PIXELS = 128 * 32**2
"""Pixels of all images that each rate is tried on, up to which a test is repeated: 128 images of 32 px, 4 batches of 32."""

BEGUN = 0.1
"""Share of the whole fall of the smoothed loss, after which its steepest point is looked for."""

NOTICEABLE = 1.0
"""Least fall of the smoothed loss, in standard deviations between steps. Of losses without a trend, 1 % fall by 0.6 to 1.0 of them
by chance (100 steps; normal and log-normal noise)."""

NOTICEABLE_SHARE = 0.03
"""Least fall, as a share of the loss at the start."""

AGREEMENT = 4.0
"""Largest factor between the suggestions that leave out a repeat each."""

EXPLODED = 4.0
"""A smoothed loss of so many times its lowest value, as in fastai and Lightning, and the loss of constant answers ends the test."""

FEWEST_LOSSES = 5
"""Losses whose mean may end a test: of a weighted loss, the first may be low by chance."""


@dataclass(frozen=True)
class RangeTest:
    """Report a range test.

    Attributes:
        rates: `train.lr` at each step, rising.
        losses: training loss of each step, before its weights change; mean of the repeats.
        smoothed: means of the losses so far in which early ones fade.
        suggestion: rate, rounded to two digits; None where the curve shows none.
        reason: why there is no suggestion, and what to try; empty if there is one.
        lowest: rate at which the smoothed loss is lowest; higher ones do harm.
        exploded: rate at which the loss exploded; None if it did not.
        repeats: tests that were averaged.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    reason: str
    lowest: float
    exploded: float | None
    repeats: int


def range_test(
    dataset: Dataset,
    spec: Spec,
    params: TrainParams,
    seed: int,
    starting: StartingWeights | None = None,
    *,
    teacher: Teacher | None = None,
    low: float = LOW,
    high: float = HIGH,
    steps: int | None = None,
    repeats: int | None = None,
) -> RangeTest:
    """Train a fresh network while the rate rises from `low` to `high`, a few times; nothing of it is kept.

    Batches, augmentation, loss, optimizer, plan and precision are those of a training's first epochs. All learning rates rise
    together, so that blocks, and the parts of `train.muon`, keep the ratios of their rates to `train.lr`.

    Args:
        dataset: of which train images alone are read.
        spec: network to train.
        params: `lr` sets only the ratios of other learning rates; schedule, epochs and what concerns validation have no effect.
        seed: decides weights, batches and augmentation; on one CPU, equal arguments give equal results. Repeats have the next seeds.
        starting: weights that training starts from.
        teacher: that of `params.teacher`.
        low: learning rate of the first step.
        high: learning rate of the last step.
        steps: of the optimizer; None for 100, or fewer of a small dataset.
        repeats: tests that are averaged; None for as many as are cheap, at most 4.

    Raises:
        RequestError: the range is empty, or there are too few steps; otherwise as `fit`.
        NetworkError: as `fit`.
        TrainingError: the first loss is not finite, or the loss explodes at once.
    """
    if not low * 10 <= high:
        raise RequestError(
            f"--low {low:g} to --high {high:g} is less than a factor of 10, too little to tell a good rate from a bad one. "
            f"Try --low {high / 1000:g} --high {high:g}"
        )
    if repeats is None:
        pixels = params.batch_size * params.accumulate * dataset.image_px**2
        repeats = min(MOST_REPEATS, max(1, CHEAP_PIXELS // pixels))
    precision, _ = choose_precision(params.precision)
    runs: list[_Losses] = []
    for repeat in range(repeats):
        with console.slow(f"building {spec.name}"):
            _, _, _, data, classifier = assemble(
                dataset, spec, params, seed + repeat, starting, teacher=teacher
            )
        if steps is None:
            steps = _affordable_steps(len(dataset.labels("train")), classifier.steps_per_epoch, params)
        rise = exponential(low, high, steps)
        classifier.lr_schedule = lambda step, rise=rise: rise(step) / params.lr  # type: ignore[misc] # a default binds it
        losses = _Losses(params.accumulate, _memory(steps))
        losses.constant = math.inf if teacher else _start_from_frequencies(classifier, dataset)
        runs.append(losses)
        try:
            with (
                quiet(),
                console.slow(f"range test of {spec.name}, {steps} steps, {repeat + 1} of {repeats}"),
            ):
                trainer = make_trainer(
                    params,
                    max_epochs=-1,
                    max_steps=steps,
                    limit_val_batches=0,
                    precision=precision,
                    callbacks=[losses],
                )
                run_trainer(trainer, classifier, data)
        except TrainingError:  # the loss is not finite
            losses.exploded = True
        _check_start(losses, spec, low, rise)
    return _read(runs, rise, low, high)


def _check_start(losses: "_Losses", spec: Spec, low: float, rise: Callable[[int], float]) -> None:
    """Refuse a test that ended before anything can be read from it.

    Raises:
        TrainingError: as `range_test`.
    """
    count = len(losses.values)
    if not count:
        raise TrainingError(
            f"the first loss of {spec.name} is not finite, before any weight has changed, so no learning rate helps. Try "
            "train.precision: 32 and network.weights: none, and look for layers that overflow: convoy network show "
            f"{spec.name}"
        )
    if losses.exploded and count < LEAST_STEPS // 2:
        raise TrainingError(
            f"the loss exploded after {count} steps, at a learning rate of {rise(count):.2g}: too early for a suggestion. "
            f"Lower the start: convoy lr-find --low {low / 1000:.2g} --high {rise(count):.2g}"
        )


def _read(runs: Sequence["_Losses"], rise: Callable[[int], float], low: float, high: float) -> RangeTest:
    """Read a rate from the mean losses of repeats, up to the first explosion."""
    count = min(len(run.values) for run in runs)
    each, memory = np.array([run.values[:count] for run in runs]), runs[0].memory
    exploded = any(run.exploded for run in runs)
    rates = [rise(step) for step in range(count)]
    losses = [float(loss) for loss in each.mean(axis=0)]
    smoothed = smooth(losses, memory)
    constant = runs[0].constant
    chosen, lowest = steepest(smoothed, constant), _lowest(smoothed)
    noise = float(np.median(np.abs(np.diff(losses)))) / 0.954  # of a normal distribution, standard deviations
    least = max(NOTICEABLE * noise, NOTICEABLE_SHARE * smoothed[0])
    if len(runs) > 1:  # the suggestions without each repeat
        means = [np.delete(each, left, axis=0).mean(axis=0) for left in range(len(runs))]
        parts = [steepest(smooth(mean, memory), constant) for mean in means]
        apart = sorted(rates[part or 0] for part in parts)
    else:
        apart = [1.0]
    reason = ""
    top = min(constant, smoothed[_first(count)])
    if chosen is None or top - smoothed[lowest] < least:
        reason = (
            f"no learning rate from {low:g} to {rise(count - (not exploded)):.2g} lowers the loss noticeably (smoothed, it is "
            f"{top:.4g} without looking at the images and {smoothed[lowest]:.4g} at its lowest; steps differ by {noise:.2g}). Show more images at each "
            f"rate (--repeats {2 * len(runs)}, or a larger train.batch_size), try another range (--low, --high) or more --steps, or check "
            "the labels: convoy data check"
        )
    elif lowest == count - 1 and not exploded:
        reason = (
            f"the smoothed loss still falls at {high:g}, where the range ends, so it has no minimum. "
            + (
                f"Raise the end: convoy lr-find --high {min(10 * high, MOST):g}"
                if high < MOST
                else "Choose by the picture"
            )
        )
    elif apart[-1] > AGREEMENT * apart[0]:
        reason = (
            f"the {len(runs)} repeats disagree: without one of them, the suggestion is {apart[0]:.2g} to {apart[-1]:.2g}. Average more: "
            f"convoy lr-find --repeats {2 * len(runs)}"
        )
    if reason:
        chosen = None
    return RangeTest(
        rates,
        losses,
        smoothed,
        suggestion=None if chosen is None else float(f"{rates[chosen]:.1e}"),
        reason=reason,
        lowest=rates[lowest],
        exploded=rise(count) if exploded else None,
        repeats=len(runs),
    )


def draw(test: RangeTest, out: Path) -> Path:
    """Draw the loss of a range test by learning rate, and where the suggestion lies."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color=figures.INK, alpha=0.25, linewidth=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="#1a5fb4", label="smoothed")
    if test.suggestion:
        axes.axvline(
            test.suggestion, color="#d9480f", linestyle="--", label=f"suggestion {test.suggestion:g}"
        )
    axes.set_xscale("log")
    falling = test.rates.index(test.lowest) + 1
    top, bottom = max(test.losses[:falling]), min(test.losses)
    axes.set_ylim(
        bottom - 0.1 * (top - bottom), top + 0.4 * (top - bottom)
    )  # of the explosion only its start
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return figures.write(figure, out)


def exponential(low: float, high: float, steps: int) -> Callable[[int], float]:
    """Make the function from step (0 for the first) to a rate that rises by the same factor at each, to `high` at the last."""
    return lambda step: low * (high / low) ** (step / (steps - 1))


def smooth(losses: Iterable[float], memory: float) -> list[float]:
    """Average losses so far, of which early ones fade: each mean keeps the share `memory` of the one before it."""
    mean, means = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = memory * mean + (1 - memory) * float(loss)
        means.append(mean / (1 - memory**count))
    return means


def _start_from_frequencies(classifier: Classifier, dataset: Dataset) -> float:
    """Add the constant that fits the labels best to the logits; return the loss of the constant alone."""
    params, factors = classifier.params, classifier.class_weights
    counts = torch.from_numpy(np.bincount(dataset.labels("train"), minlength=len(dataset.classes)))
    shares = (counts > 0).float() if params.sampler == "balanced" else counts.float()
    shares /= shares.sum()
    weighted = shares if factors is None else shares * factors
    smoothing = params.label_smoothing
    best = ((1 - smoothing) * weighted / weighted.sum() + smoothing / len(counts)).clamp(min=1e-6).log()

    def add(_model: object, _images: object, output: Tensor | WithAuxiliary) -> Tensor | WithAuxiliary:
        if isinstance(output, Tensor):
            return output + best.to(output)
        heads = tuple((weight, logits + best.to(logits)) for weight, logits in output.auxiliary)
        return WithAuxiliary(output.logits + best.to(output.logits), heads)

    classifier.model.register_forward_hook(add)
    heads = [module.weight for module in classifier.model.modules() if isinstance(module, Auxiliary)]
    loss = classification_loss(
        best[None],
        shares[None],
        smoothing=smoothing,
        class_weights=factors,
        gamma=params.focal_gamma if params.loss == "focal" else None,
    )
    return float(loss) * (1 + sum(heads))


def steepest(smoothed: Sequence[float], constant: float = math.inf) -> int | None:
    """Find the step at which smoothed losses fall fastest on their way to the lowest; None if there is none.

    The first fifth is left out, where a mean is of few losses, and so are steps before the loss has fallen by a share of the
    whole fall for good, below the start and below the loss `constant` of constant answers. The slope is that of a tenth of the steps.
    """
    first, lowest = _first(len(smoothed)), _lowest(smoothed)
    if lowest < first + 2:
        return None
    falling = np.array(smoothed[: lowest + 1])
    top = min(falling[first], constant)
    above = np.flatnonzero(falling >= top - BEGUN * (top - falling[-1]))
    if above[-1] == lowest:  # which is not below the top
        return None
    start = max(first, int(above[-1]))
    half = max(1, len(smoothed) // 20)
    steps = np.arange(start, lowest)
    before, after = np.maximum(steps - half, 0), np.minimum(steps + half, lowest)
    return start + int(np.argmin((falling[after] - falling[before]) / (after - before)))


def _lowest(smoothed: Sequence[float]) -> int:
    """Find the step of the lowest smoothed loss, of those that are of enough losses."""
    first = _first(len(smoothed))
    return first + int(np.argmin(smoothed[first:]))


def _first(steps: int) -> int:
    """Return the first step whose smoothed loss is of enough losses to compare."""
    return steps // 5


def _affordable_steps(images: int, steps_per_epoch: int, params: TrainParams) -> int:
    """Choose the number of steps.

    Raises:
        RequestError: `PASSES` passes over so few images in so large batches make fewer than `LEAST_STEPS`.
    """
    steps = min(STEPS, PASSES * steps_per_epoch)
    if steps < LEAST_STEPS:
        more = LEAST_STEPS // PASSES - 1
        fits = max(1, (images - 1) // (more * params.accumulate))
        raise RequestError(
            f"{images:,} training images in batches of train.batch_size {params.batch_size} make {steps} steps in {PASSES} passes, too "
            f"few for a range test, which needs {LEAST_STEPS}. Set train.batch_size to {fits} or less, or pass more often over them: "
            f"convoy lr-find --steps {LEAST_STEPS}"
        )
    return steps


def _memory(steps: int) -> float:
    """Return the share of the last mean that the next keeps: 0.98 for 100 steps, as in fastai and Lightning."""
    return 1 - 2 / steps


class _Losses(pl.Callback):
    """Note the losses of steps, and end the training when they explode."""

    def __init__(self, batches: int, memory: float) -> None:
        """Take the number of batches of a step, and the share of a mean that the next one keeps."""
        self.batches = batches
        self.memory = memory
        self.values: list[float] = []
        self.smoothed: list[float] = []
        self.exploded = False
        self.constant = math.inf  # loss of constant answers
        self._parts: list[float] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        _module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        *_: object,
    ) -> None:
        """Add the loss of a batch, which Lightning has divided by the number of batches of a step."""
        if not isinstance(outputs, Mapping):
            raise TypeError(f"Lightning passed {type(outputs).__name__} instead of a step's outputs")
        self._parts.append(float(outputs["loss"]))
        if len(self._parts) < self.batches:
            return
        loss, self._parts = sum(self._parts), []
        if math.isfinite(loss):
            self.values.append(loss)
            self.smoothed = smooth(self.values, self.memory)
        usual = max(min(self.smoothed, default=0.0), self.constant if math.isfinite(self.constant) else 0.0)
        risen = len(self.values) >= FEWEST_LOSSES and self.smoothed[-1] > EXPLODED * usual
        if risen or not math.isfinite(loss):
            self.exploded = True
            trainer.should_stop = True
