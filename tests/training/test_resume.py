"""A killed training resumes exactly from its last checkpoint."""

import itertools
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from convoy.core.errors import TrainingPaused
from convoy.training.callbacks import Point
from convoy.training.fit import fit
from convoy.training.optim import WARMUP_START
from convoy.training.resume import DirectIO, Resumable

HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


class Kill(BaseException):
    """Stand for the end of a process: nothing in the code under test catches it."""


class KillAt(pl.Callback):
    """Die at the n-th call of any hook of a training."""

    def __init__(self, call: int) -> None:
        self.left = call

    def count(self, *args: object, **kwargs: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise Kill


for hook in HOOKS:
    setattr(KillAt, hook, KillAt.count)


class Journal:
    """Take points as the journal of a run does: once for each name and step."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int], float] = {}
        self.offered: list[tuple[str, int]] = []

    def publish(self, points: Sequence[Point]) -> None:
        self.offered += [(point.name, point.step) for point in points]
        for point in points:
            self.points.setdefault((point.name, point.step), point.value)


def survive(
    calls: Sequence[int], make: Callable[..., Resumable], run: Callable[..., dict], journal: Journal
) -> dict:
    """Train through kills: each process dies at the given call, until none is left."""
    for call in calls:
        try:
            return run(callbacks=[KillAt(call)], resumable=make(journal.publish))
        except Kill:
            continue
    return run(resumable=make(journal.publish))


PLANS = {
    "plain": {"epochs": 3},
    "average of weights": {"epochs": 3, "ema": 0.9},
    "cosine, adamw, early stop": {
        "epochs": 4,
        "schedule": "cosine",
        "optimizer": "adamw",
        "lr": 0.01,
        "early_stop": 1,
    },
    "transfer": {
        "epochs": 3,
        "ema": 0.5,
        "transfer": {"freeze": "residual1", "release": 1, "lr_factor": 0.5, "batch_norm": "frozen"},
    },
}


@pytest.fixture(params=PLANS)
def run(request, dataset, tiny, stack, params, starting, tmp_path) -> Callable[..., dict]:
    """Train by one of the plans into a folder of a given name."""
    changes = PLANS[request.param]
    spec = stack if "transfer" in changes else tiny

    def train(name: str, **more: Any) -> dict:
        begin = starting(spec) if "transfer" in changes else None
        return fit(dataset, spec, params(**changes), 1, tmp_path / name, starting=begin, **more)

    return train


def assert_equal(actual: Path, expected: Path) -> None:
    for name in ("weights.pt", "model.json", "history.csv"):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_training_that_is_killed_often_ends_with_identical_results(run, tmp_path, resumable):
    whole, broken = Journal(), Journal()
    expected = run("whole", resumable=resumable(whole.publish, folder="other"))
    result = survive([7, 3, 9, 1, 5, 12, 2], resumable, lambda **more: run("broken", **more), broken)
    del expected["train"]["seconds"], result["train"]["seconds"]
    assert result == expected
    assert_equal(tmp_path / "broken", tmp_path / "whole")
    assert broken.points == whole.points
    assert len(whole.offered) == len(set(whole.offered)), "no point twice"


def test_a_training_killed_at_any_call_ends_with_identical_results(
    dataset, tiny, params, tmp_path, resumable
):
    def run(name: str, **more: Any) -> dict:
        return fit(dataset, tiny, params(epochs=2, ema=0.9), 1, tmp_path / name, **more)

    whole = Journal()
    run("whole", resumable=resumable(whole.publish, folder="whole"))
    for call in itertools.count():
        broken, folder = Journal(), f"killed-{call}"
        try:
            run(
                folder, callbacks=[KillAt(call)], resumable=resumable(broken.publish, folder=f"{folder}-ckpt")
            )
            break  # there are not as many calls
        except Kill:
            run(folder, resumable=resumable(broken.publish, folder=f"{folder}-ckpt"))
        assert_equal(tmp_path / folder, tmp_path / "whole")
        assert broken.points == whole.points
    assert call > 2 * (3 + 3 + 3), "every batch, validation and end of an epoch was an occasion"


def test_what_an_older_checkpoint_computes_again_is_published_once_and_equal(run, tmp_path, resumable):
    """The newest checkpoint may be damaged: its points were published, and cannot be taken back."""
    whole, broken = Journal(), Journal()
    run("whole", resumable=resumable(whole.publish, folder="other"))
    with pytest.raises(Kill):
        run("broken", callbacks=[KillAt(9)], resumable=resumable(broken.publish))
    newest = max((tmp_path / "checkpoints").rglob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-10])
    run("broken", resumable=resumable(broken.publish))
    assert_equal(tmp_path / "broken", tmp_path / "whole")
    assert broken.points == whole.points


def test_a_finished_training_is_not_repeated_and_reports_the_very_same(run, tmp_path, resumable, capsys):
    journal = Journal()
    first = run("first", resumable=resumable(journal.publish))
    capsys.readouterr()
    again = run("again", callbacks=[KillAt(0)], resumable=resumable(journal.publish))
    assert again == first, "the seconds too"
    assert "already complete (step" in capsys.readouterr().out
    assert_equal(tmp_path / "again", tmp_path / "first")


def test_a_resumed_run_prints_its_start(dataset, tiny, params, tmp_path, resumable, capsys):
    with pytest.raises(Kill):
        fit(dataset, tiny, params(), 1, tmp_path, callbacks=[KillAt(11)], resumable=resumable())
    capsys.readouterr()
    fit(dataset, tiny, params(), 1, tmp_path, resumable=resumable())
    printed = capsys.readouterr().out
    assert re.search(r"Resuming from epoch 2, step 3 \(.*step-0000003\.ckpt\)", printed)
    assert "epoch 1/2" not in printed
    assert "epoch 2/2" in printed


def test_a_spent_time_budget_saves_and_names_the_step_to_resume_from(
    dataset, tiny, params, tmp_path, resumable
):
    def run(name: str, make: Callable[..., Resumable], **more: Any) -> dict:
        return fit(dataset, tiny, params(), 1, tmp_path / name, resumable=make(**more))

    run("whole", lambda **more: resumable(folder="other", **more))
    spent = {"time_budget_min": 1.0, "started": time.monotonic() - 61, "every_s": 3600.0}
    for epoch, step in ((1, 2), (1, 3), (2, 1)):
        where = rf"checkpoints\.time_budget_min \(1\).*dvc repro.*epoch {epoch} of 2, step {step} of 3"
        with pytest.raises(TrainingPaused, match=where):
            run("paused", resumable, **spent)
    run("paused", resumable, time_budget_min=1.0, started=time.monotonic() - 30)  # minutes, not seconds
    assert_equal(tmp_path / "paused", tmp_path / "whole")


def test_points_are_published_only_with_a_checkpoint_that_comes_after_them(
    dataset, tiny, params, tmp_path, resumable
):
    journal = Journal()

    def run(*callbacks: pl.Callback) -> None:
        make = resumable(journal.publish, every_s=60.0)
        fit(dataset, tiny, params(), 1, tmp_path, callbacks=callbacks, resumable=make)

    with pytest.raises(Kill):
        run(KillAt(9))
    assert not journal.points
    run()
    assert {step for name, step in journal.points if name == "step/loss"} == set(range(1, 7))
    assert {step for name, step in journal.points if name == "val/loss"} == {1, 2}
    assert journal.points["step/lr", 1] == pytest.approx(0.1 * WARMUP_START), (
        "the rate that the step was done with"
    )


def test_a_full_disk_stops_no_training_and_is_reported_once(
    dataset, tiny, params, tmp_path, resumable, on, monkeypatch, capsys
):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal()
    make = resumable(journal.publish)
    monkeypatch.setattr(DirectIO, "save_checkpoint", full)

    def look(*_: object) -> None:
        assert not journal.points, "what no checkpoint holds may be computed again"

    fit(dataset, tiny, params(), 1, tmp_path / "model", callbacks=[on("on_train_end", look)], resumable=make)
    assert ("val/loss", 2) in journal.points, "nothing is computed again"
    printed = capsys.readouterr().out
    assert printed.count("The checkpoint could not be written to") == 1
    assert "No space left on device" in printed
    assert not list((tmp_path / "checkpoints").rglob("*.ckpt*"))
    assert (tmp_path / "model/weights.pt").exists()
