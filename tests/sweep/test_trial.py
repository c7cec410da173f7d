"""Trials, trained in this process as a worker trains them."""

import optuna
import pytest

from convoy.core.console import ProgressBar
from convoy.core.errors import TrainingError
from convoy.sweep import run
from convoy.sweep.results import Progress, Results, Row
from convoy.sweep.study import JOURNAL, Request, read_trials, recover


def values(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    return [row.values for row in rows]


def test_an_interrupted_sweep_tries_what_an_unbroken_one_tries(project) -> None:
    unbroken = project.optimize(4)
    assert unbroken.count("complete", "pruned") == 4
    assert values(unbroken.rows)[0] == {"train.lr": 0.1, "train.batch_size": 16}
    (Request.read().folder / JOURNAL).unlink()

    project.optimize(2)
    study = project.study()
    study.ask({one.key: one.distribution for one in Request.read().space})  # its process is killed
    assert recover(study) == [2]
    again = project.optimize(4)
    assert values(again.rows) == values(unbroken.rows)
    assert [row.value for row in again.rows] == [row.value for row in unbroken.rows]
    assert [row.number for row in again.rows] == [0, 1, 3, 4]
    assert [trial.state.name for trial in read_trials(Request.read())].count("FAIL") == 1


def sixth_trial(project, warmup: int) -> Results:
    """Train a trial that learns nothing, in a study of five good ones of three epochs."""
    space = ("train.lr: {low: 0.0000001, high: 0.5, log: true}", "train.batch_size: [8, 16]")
    project.space(*space, warmup=warmup)
    project.set(train__lr=0.0000001)
    study = project.study()
    for loss in (0.1, 0.11, 0.12, 0.13, 0.14):
        trial = optuna.trial.create_trial(
            value=loss,
            params={"train.lr": 0.1 + loss, "train.batch_size": "16"},
            distributions={dimension.key: dimension.distribution for dimension in Request.read().space},
            intermediate_values={1: loss, 2: loss, 3: loss},
        )
        study.add_trial(trial)
    return project.optimize(6)


def test_a_trial_that_is_worse_than_the_median_is_pruned_after_the_warm_up(project) -> None:
    results = sixth_trial(project, warmup=2)
    pruned = results.rows[0]
    assert (pruned.state, pruned.epochs, pruned.of) == ("pruned", 2, 3)
    assert pruned.value is not None
    assert pruned.value > 0.14
    assert results.best is not None
    assert results.best.value == 0.1
    entries = project.journal(read_trials(Request.read())[0].user_attrs["run"])
    assert {"kind": "tags", "tags": {"convoy.trial_state": "pruned"}} in entries
    assert entries[-1]["status"] == "FINISHED"
    assert not list(Request.read().folder.glob("out-*"))


def test_nothing_is_pruned_in_its_last_epoch(project) -> None:
    assert sixth_trial(project, warmup=3).rows[0].state == "complete"


def test_a_trial_that_cannot_be_trained_fails_with_its_reason_and_the_sweep_goes_on(project) -> None:
    project.network("large", "conv: {filters: 8, kernel: 11}", "flatten", "dense: classes")
    project.space("network.name: [tiny, large]")
    results = project.optimize(2)
    assert [row.state for row in results.rows] == ["complete", "failed"]
    assert "large does not take images of 8 px" in results.rows[1].reason
    assert "NetworkError" in (Request.read().folder / "trial-0001.log").read_text(encoding="utf-8")
    assert project.journal(read_trials(Request.read())[1].user_attrs["run"])[-1]["status"] == "FAILED"


def test_a_loss_that_is_no_number_fails_the_trial(project) -> None:
    project.space("train.lr: [0.1, 100.0]", "train.weight_decay: [0.0, 1.0]")
    project.set(network__name="plain", train__epochs=40, train__lr=100.0, train__weight_decay=1.0)
    project.network("plain", "flatten", "dense: 64", "relu", "dense: 64", "relu", "dense: classes")
    [row] = project.optimize(1).rows
    assert row.state == "failed"
    assert row.reason.startswith("the loss became ")


def test_the_run_of_a_trial_has_what_the_trial_varied_its_epochs_and_its_value(project) -> None:
    results = project.optimize(1)
    entries = project.journal(read_trials(Request.read())[0].user_attrs["run"])
    opened = entries[0]
    assert opened["name"] == "trial 0 · lr 0.1 · batch_size 16"
    assert opened["parent"] == "parent"
    [given] = [entry["params"] for entry in entries if entry["kind"] == "params"]
    assert given == {"network.name": "tiny", "train.lr": "0.1", "train.batch_size": "16"}
    points = [point for entry in entries if entry["kind"] == "points" for point in entry["points"]]
    curve = {step: value for name, value, step, _ in points if name == "val/loss" and step}
    assert curve == read_trials(Request.read())[0].intermediate_values
    [value] = [value for name, value, *_ in points if name == "sweep/value"]
    assert value == results.rows[0].value == min(curve.values())


def test_trials_stop_when_the_dataset_is_another(project, in_process_workers: type) -> None:
    study, request = project.study(), Request.read()
    facts = project.folder / "build/dataset/dataset.json"
    facts.write_text(facts.read_text().replace("0" * 64, "1" * 64))
    with (
        ProgressBar("sweep", 1) as bar,
        in_process_workers(request) as workers,
        pytest.raises(
            TrainingError, match=r"build/dataset changed during the sweep\. Run `convoy sweep` again"
        ),
    ):
        run.optimize(study, request, 1, workers, Progress(bar, request))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
