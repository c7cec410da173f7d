"""Range test of the learning rate: train a network for some steps while the rate rises, and read a rate from the losses.

Smith, Cyclical Learning Rates for Training Neural Networks, 2015 (https://arxiv.org/abs/1506.01186), and A Disciplined
Approach to Neural Network Hyper-Parameters, 2018 (https://arxiv.org/abs/1803.09820). The rate rises exponentially and the suggestion
is where the loss falls fastest, as in Lightning's `lr_find` and fastai's rule `steep`. Fastai's rule `valley`, the middle of the falling
part, suggests a tenth of what is best for the digits of samples/ by SGD.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure
from torch import Tensor

from convoy.core import console
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError, TrainingError
from convoy.explain import figures
from convoy.models.spec import Spec
from convoy.training.fit import assemble, make_trainer, quiet, run_trainer
from convoy.training.precision import choose_precision
from convoy.training.pretrained import StartingWeights
from convoy.training.settings import TrainParams
from convoy.training.teacher import Teacher

LOW, HIGH = 1e-5, 10.0
STEPS = 100
"""Steps of a range test, as in fastai and Lightning."""

LEAST_STEPS = 20
"""Fewest steps that are enough for a suggestion: with fewer the rate would rise by half and more at every step."""

PASSES = 10
"""Most passes over the training images: a network that has seen them more often knows them, whatever the rate."""

EXPLODED = 4.0
"""A smoothed loss of so many times its lowest value ends the test, as in fastai and Lightning."""


@dataclass(frozen=True)
class RangeTest:
    """Report a range test.

    Attributes:
        rates: `train.lr` at each step, rising.
        losses: training loss of each step, before its weights change.
        smoothed: means of the losses so far in which early ones fade.
        suggestion: rate, rounded to two digits.
        lowest: rate at which the smoothed loss is lowest; higher ones do harm.
        exploded: rate at which the loss exploded; None if it did not.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    lowest: float
    exploded: float | None


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
) -> RangeTest:
    """Train a fresh network while the rate rises from `low` to `high`; nothing of it is kept.

    Batches, augmentation, loss, optimizer, plan and precision are those of a training's first epochs. All learning rates rise
    together, so that blocks, and the parts of `train.muon`, keep the ratios of their rates to `train.lr`.

    Args:
        dataset: of which train images alone are read.
        spec: network to train.
        params: `lr` sets only the ratios of other learning rates; schedule, epochs and what concerns validation have no effect.
        seed: decides weights, batches and augmentation; on one CPU, equal arguments give equal results.
        starting: weights that training starts from.
        teacher: that of `params.teacher`.
        low: learning rate of the first step.
        high: learning rate of the last step.
        steps: of the optimizer; None for 100, or fewer of a small dataset.

    Raises:
        RequestError: the range is empty, or there are too few steps; otherwise as `fit`.
        NetworkError: as `fit`.
        TrainingError: the first loss is not finite, the loss explodes at once, or falls by less than it differs between steps.
    """
    if not low * 10 <= high:
        raise RequestError(
            f"--low {low:g} to --high {high:g} is less than a factor of 10, too little to tell a good rate from a bad one. "
            f"Try --low {high / 1000:g} --high {high:g}"
        )
    with console.slow(f"building {spec.name}"):
        _, _, _, data, classifier = assemble(dataset, spec, params, seed, starting, teacher=teacher)
    if steps is None:
        steps = _affordable_steps(len(dataset.labels("train")), classifier.steps_per_epoch, params)
    rise = exponential(low, high, steps)
    classifier.lr_schedule = lambda step: rise(step) / params.lr
    losses = _Losses(params.accumulate, _memory(steps))
    precision, _ = choose_precision(params.precision)
    try:
        with quiet(), console.slow(f"range test of {spec.name}, {steps} steps"):
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
    rates = [rise(step) for step in range(len(losses.smoothed))]
    if not rates:
        raise TrainingError(
            f"the first loss of {spec.name} is not finite, before any weight has changed, so no learning rate helps. Try "
            "train.precision: 32 and network.weights: none, and look for layers that overflow: convoy network show "
            f"{spec.name}"
        )
    end = rise(len(rates) - (len(rates) == steps))
    if len(rates) < LEAST_STEPS // 2:
        raise TrainingError(
            f"the loss exploded after {len(rates)} steps, at a learning rate of {end:.2g}: too early for a suggestion. "
            f"Lower the start: convoy lr-find --low {low / 1000:.2g} --high {end:.2g}"
        )
    lowest = int(np.argmin(losses.smoothed))
    chosen = steepest(losses.smoothed)
    noise = float(np.median(np.abs(np.diff(losses.values))))
    if chosen is None or losses.smoothed[len(rates) // 10] - losses.smoothed[lowest] < noise:
        raise TrainingError(
            f"no learning rate from {low:g} to {end:.2g} lowers the loss ({losses.smoothed[0]:.4g} at first, "
            f"{losses.smoothed[-1]:.4g} at the end). Try another range (--low, --high) or more --steps, or check the "
            "labels: convoy data check"
        )
    return RangeTest(
        rates,
        losses.values,
        losses.smoothed,
        suggestion=float(f"{rates[chosen]:.1e}"),
        lowest=rates[lowest],
        exploded=end if losses.exploded else None,
    )


def draw(test: RangeTest, out: Path) -> Path:
    """Draw the loss of a range test by learning rate, and where the suggestion lies."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color=figures.INK, alpha=0.25, linewidth=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="#1a5fb4", label="smoothed")
    axes.axvline(test.suggestion, color="#d9480f", linestyle="--", label=f"suggestion {test.suggestion:g}")
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


def steepest(smoothed: Sequence[float]) -> int | None:
    """Find the step at which smoothed losses fall fastest on their way to the lowest; None if there is none.

    The first tenth is left out, where a mean is of few losses.
    """
    first, lowest = len(smoothed) // 10, int(np.argmin(smoothed))
    if lowest < first + 2:
        return None
    return first + int(np.argmin(np.gradient(smoothed[: lowest + 1])[first:]))


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
        self._mean = 0.0  # not yet divided by the sum of its weights
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
            self._mean = self.memory * self._mean + (1 - self.memory) * loss
            self.smoothed.append(self._mean / (1 - self.memory ** len(self.values)))
        if not math.isfinite(loss) or self.smoothed[-1] > EXPLODED * min(self.smoothed):
            self.exploded = True
            trainer.should_stop = True
