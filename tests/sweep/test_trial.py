"""Trials, trained in this process as a worker trains them."""

import json
from pathlib import Path

import optuna
import pytest

from convoy.core.errors import TrainingError
from convoy.sweep.results import Row
from convoy.sweep.study import Study


def journal(folder: Path, run_id: str) -> list[dict[str, object]]:
    lines = (folder / "outbox" / run_id / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def values(rows: tuple[Row, ...]) -> list[dict[str, object]]:
    return [row.values for row in rows]


def test_an_interrupted_sweep_tries_what_an_unbroken_one_tries(here) -> None:
    unbroken = here.work(4)
    assert unbroken.count("complete", "pruned") == 4
    assert values(unbroken.rows)[0] == {"train.lr": 0.1, "train.batch_size": 16}
    (here.study().folder / "study.journal").unlink()

    here.work(2)
    study = here.study()
    study.ask(4)  # a worker begins a trial and is killed
    assert study.recover() == [2]
    again = here.work(4)
    assert values(again.rows) == values(unbroken.rows)
    assert [row.value for row in again.rows] == [row.value for row in unbroken.rows]
    assert [row.number for row in again.rows] == [0, 1, 3, 4]
    assert [trial.state.name for trial in here.study().trials()].count("FAIL") == 1


def complete(study: Study, loss: float) -> None:
    """Put a trial of three epochs into the study that ended with a loss."""
    trial = optuna.trial.create_trial(
        value=loss,
        params={"train.lr": 0.1 + loss, "train.batch_size": 16},
        distributions={one.key: one.distribution for one in study.request.space},
        intermediate_values={1: loss, 2: loss, 3: loss},
    )
    study.optuna.add_trial(trial)


def test_a_trial_that_is_worse_than_the_median_is_pruned_after_the_warm_up(here) -> None:
    here.space("train.lr: {low: 0.0000001, high: 0.5, log: true}", "train.batch_size: [8, 16]", warmup=2)
    study = here.study()
    for loss in (0.1, 0.11, 0.12, 0.13, 0.14):
        complete(study, loss)
    study.optuna.enqueue_trial({"train.lr": 0.0000001, "train.batch_size": 16})
    results = here.work(6)

    pruned = results.rows[-1]
    assert (pruned.state, pruned.epochs, pruned.of) == ("pruned", 2, 3)
    assert pruned.value is not None
    assert pruned.value > 0.14
    assert results.best is not None
    assert results.best.value == 0.1
    entries = journal(here.folder, study.trials()[-1].user_attrs["run"])
    assert {"kind": "tags", "tags": {"convoy.trial_state": "pruned"}} in entries
    assert entries[-1]["status"] == "FINISHED"
    assert not list(study.folder.glob("out-*"))


def test_nothing_is_pruned_in_its_last_epoch_or_before_five_trials_are_complete(here) -> None:
    here.space("train.lr: {low: 0.0000001, high: 0.5, log: true}", "train.batch_size: [8, 16]", warmup=3)
    study = here.study()
    for loss in (0.1, 0.11, 0.12, 0.13, 0.14):
        complete(study, loss)
    study.optuna.enqueue_trial({"train.lr": 0.0000001, "train.batch_size": 16})
    assert here.work(6).rows[-1].state == "complete"


def test_a_trial_that_cannot_be_trained_fails_with_its_reason_and_the_sweep_goes_on(here) -> None:
    (here.folder / "networks/large.yaml").write_text(
        "layers:\n  - conv: {filters: 8, kernel: 11}\n  - flatten\n  - dense: classes\n", encoding="utf-8"
    )
    here.space("network.name: [tiny, large]")
    results = here.work(2)
    assert [row.state for row in results.rows] == ["complete", "failed"]
    assert "large does not take images of 8 px" in results.rows[1].reason
    study = here.study()
    assert "NetworkError" in (study.folder / "trial-0001.log").read_text(encoding="utf-8")
    assert journal(here.folder, study.trials()[1].user_attrs["run"])[-1]["status"] == "FAILED"


def test_a_loss_that_is_no_number_fails_the_trial(here) -> None:
    here.space("train.lr: [0.1, 100.0]", "train.weight_decay: [0.0, 1.0]")
    here.set(network__name="plain", train__epochs=40, train__lr=100.0, train__weight_decay=1.0)
    (here.folder / "networks/plain.yaml").write_text(
        "layers:\n  - flatten\n  - dense: 64\n  - relu\n  - dense: 64\n  - relu\n  - dense: classes\n",
        encoding="utf-8",
    )
    [row] = here.work(1).rows
    assert row.state == "failed"
    assert row.reason.startswith("the loss became ")


def test_the_run_of_a_trial_has_what_the_trial_varied_its_epochs_and_its_value(here) -> None:
    results = here.work(1)
    entries = journal(here.folder, here.study().trials()[0].user_attrs["run"])
    opened = entries[0]
    assert opened["name"] == "trial 0 · lr 0.1 · batch_size 16"
    assert opened["parent"] == "parent"
    [given] = [entry["params"] for entry in entries if entry["kind"] == "params"]
    assert given == {"network.name": "tiny", "train.lr": "0.1", "train.batch_size": "16"}
    points = [point for entry in entries if entry["kind"] == "points" for point in entry["points"]]
    curve = {step: value for name, value, step, _ in points if name == "val/loss" and step}
    assert curve == here.study().trials()[0].intermediate_values
    [value] = [value for name, value, *_ in points if name == "sweep/value"]
    assert value == results.rows[0].value == min(curve.values())


def test_trials_stop_when_the_dataset_is_another(here) -> None:
    study = here.study()
    facts = here.folder / "build/dataset/dataset.json"
    facts.write_text(facts.read_text().replace("0" * 64, "1" * 64))
    request = study.request
    asked = study.ask(1)
    from convoy.sweep import trial  # noqa: PLC0415
    from convoy.tracking.run import Reference  # noqa: PLC0415

    assert request.inputs["data"] == "0" * 64
    with pytest.raises(
        TrainingError, match=r"build/dataset changed while it was swept\. Type `convoy sweep` again"
    ):
        trial.run(study, asked, Reference("parent", "parent"))


def test_trials_stop_when_the_code_is_another(here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.study()
    from convoy.sweep import worker  # noqa: PLC0415

    monkeypatch.setattr(worker, "code", lambda: "other")
    with pytest.raises(TrainingError, match=r"code changed while it was swept\. Type `convoy sweep` again"):
        here.work(1)
