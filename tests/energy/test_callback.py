"""A training's energy: in its checkpoints, and forecast once, after a minute, as a whole."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from convoy.energy.callback import TrainingEnergy
from convoy.energy.meter import Spent
from convoy.energy.settings import find_grid


class Metered:
    """Stand for a meter whose reading a test sets."""

    word = "estimated"
    grid = find_grid("DEU")

    def __init__(self, kwh: float | None = 0.0) -> None:
        self.kwh = kwh
        self.earlier: Spent | None = Spent()

    def resume(self, earlier: Spent | None) -> None:
        self.earlier = earlier

    def spent(self) -> Spent | None:
        return None if self.kwh is None else Spent(self.kwh, self.kwh / 2)


class Training:
    """Run steps of three seconds with a clock of their own."""

    def __init__(self, meter: Metered, steps: float, first: int = 0, *, early: bool = False) -> None:
        self.now = 100.0
        self.meter = meter
        self.callback = TrainingEnergy(meter, clock=lambda: self.now)  # type: ignore[arg-type]
        self.trainer: Any = SimpleNamespace(
            global_step=first, estimated_stepping_batches=steps, early_stopping_callback=early or None
        )
        self.callback.on_train_start(self.trainer, None)  # type: ignore[arg-type]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.now += 3
            self.trainer.global_step += 1
            if self.meter.kwh is not None:
                self.meter.kwh += 0.01
            self.callback.on_train_batch_end(self.trainer, None, None, None, 0)


@pytest.mark.parametrize(
    ("kwh", "first", "early", "so_far", "whole"),
    [
        (0.0, 0, False, "0.2 kWh", "1 kWh, 0.5 kg CO2"),
        (0.6, 50, False, "0.8 kWh", "1.1 kWh, 0.55 kg CO2"),
        (0.0, 0, True, "0.2 kWh", "1 kWh, 0.5 kg CO2 unless it stops early"),
    ],
)
def test_the_whole_training_is_forecast_once_after_a_minute(capsys, kwh, first, early, so_far, whole):
    training = Training(Metered(kwh), steps=100, first=first, early=early)
    training.run(19)
    assert capsys.readouterr().out == ""
    training.run(100 - first - 19)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"energy so far {so_far};")
    assert line.endswith(f"will take about {whole} (estimated; Germany)")


def test_a_forecast_needs_one_step_done_and_one_to_come(capsys):
    training = Training(Metered(), steps=2)
    training.now += 60
    training.run(1)
    assert "the whole training will take about 0.02 kWh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kwh", "steps", "run"), [(0.0, 100, 19), (0.0, 20, 20), (None, 100, 100), (0.0, float("inf"), 100)]
)
def test_nothing_is_forecast_of_short_or_unmetered_or_endless_trainings(capsys, kwh, steps, run):
    Training(Metered(kwh), steps=steps).run(run)
    assert capsys.readouterr().out == ""


def test_nothing_is_forecast_where_metering_failed_on_the_way(capsys):
    training = Training(Metered(), steps=100)
    training.run(10)
    training.meter.kwh = None
    training.run(90)
    assert capsys.readouterr().out == ""


def test_what_was_used_goes_through_a_checkpoint(tmp_path):
    torch.save(TrainingEnergy(Metered(0.5)).state_dict(), tmp_path / "state")  # type: ignore[arg-type]
    meter = Metered()
    TrainingEnergy(meter).load_state_dict(torch.load(tmp_path / "state", weights_only=True))  # type: ignore[arg-type]
    assert meter.earlier == Spent(0.5, 0.25)


def test_a_checkpoint_without_figures_leaves_the_meter_without_them():
    meter = Metered()
    TrainingEnergy(meter).load_state_dict(TrainingEnergy(Metered(None)).state_dict())  # type: ignore[arg-type]
    assert meter.earlier is None
