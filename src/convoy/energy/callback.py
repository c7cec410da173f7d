"""A training's energy: kept in its checkpoints, and forecast after the first minute."""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from convoy.core.console import info
from convoy.energy.meter import Meter, Spent, format_energy

AFTER_SECONDS = 60.0  # training time after which the rate is steady enough to multiply


class TrainingEnergy(pl.Callback):
    """Save what was used with every checkpoint, and print a forecast after a minute of training, not of shorter ones."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        """Read `meter`; `clock` gives seconds."""
        self._meter = meter
        self._clock = clock
        self._began = 0.0
        self._first = 0
        self._before: Spent | None = None

    def state_dict(self) -> dict[str, list[float] | None]:
        """Give what was used until now, this and earlier lives of the training together."""
        spent = self._meter.spent()
        return {"spent": list(spent) if spent else None}

    def load_state_dict(self, state_dict: dict[str, list[float] | None]) -> None:
        """Go on from what was used until the checkpoint; what came after it in a killed process is lost."""
        spent = state_dict["spent"]
        self._meter.resume(Spent(*spent) if spent else None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Note time, step and energy, which a resumed training does not begin at zero."""
        self._before = self._meter.spent()
        self._began = self._clock()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:  # noqa: ANN401 (Lightning's signature)
        """Speak once a minute has passed; asking the clock is all that a step costs."""
        if self._before is None or self._clock() - self._began < AFTER_SECONDS:
            return
        before, self._before = self._before, None
        now = self._meter.spent()
        left = trainer.estimated_stepping_batches - trainer.global_step
        done = trainer.global_step - self._first
        if now is None or done <= 0 or not 0 < left < float("inf"):
            return
        factor = 1 + left / done
        whole = format_energy(
            before.kwh + (now.kwh - before.kwh) * factor,
            before.co2_kg + (now.co2_kg - before.co2_kg) * factor,
        )
        so_far = format_energy(now.kwh, now.co2_kg).partition(",")[0]
        unless = " unless it stops early" if trainer.early_stopping_callback else ""
        info(
            f"energy so far {so_far}; the whole training will take about {whole}{unless} "
            f"({self._meter.word}; {self._meter.grid.name})"
        )
