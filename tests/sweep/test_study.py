"""A study on disk: what is proposed, what identifies it, trials that were lost, lines that are incomplete."""

import math
import os
from unittest.mock import Mock

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from convoy.core.errors import TrainingError
from convoy.repo import locks
from convoy.sweep import run
from convoy.sweep.results import Results
from convoy.sweep.space import combinations
from convoy.sweep.study import (
    BASELINE,
    JOURNAL,
    RepeatableSampler,
    Request,
    begun,
    open_study,
    read_trials,
    recover,
    requeue,
)


def proposals(request, count, first=None) -> list[dict[str, object]]:
    """Let Optuna minimise the distance of the learning rate from 0.05, and return what it tried."""
    study = optuna.create_study(sampler=RepeatableSampler(request))
    if first:
        study.enqueue_trial(first)

    def objective(trial: optuna.Trial) -> float:
        values = {dimension.key: dimension.suggest(trial) for dimension in request.space}
        return abs(values.get("train.lr", 0.0) - 0.05)

    study.optimize(objective, n_trials=count)
    return [trial.params for trial in study.trials]


def storage(request: Request) -> JournalStorage:
    request.folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(request.folder / JOURNAL)))


def begin(study: optuna.Study, request: Request) -> optuna.Trial:
    """Begin a trial whose process then dies."""
    return study.ask({dimension.key: dimension.distribution for dimension in request.space})


def test_equal_seeds_propose_equal_values_and_other_seeds_others(project):
    request = Request.read()
    first = proposals(request, 16)
    assert first == proposals(request, 16)
    project.set(seed=2)
    assert not any(values in first for values in proposals(Request.read(), 16))


def test_later_proposals_are_nearer_to_good_values(project):
    found = [values["train.lr"] for values in proposals(Request.read(), 40)]
    distances = [abs(math.log(lr / 0.05)) for lr in found]
    assert sum(distances[10:]) / 30 < 0.7 * sum(distances[:10]) / 10


def test_no_values_are_tried_twice_and_a_finite_space_is_tried_whole(project):
    stop = "train.early_stop: {low: 0, high: 2}"
    project.space("train.batch_size: [8, 16]", stop, "train.augment: [[], [flip]]")
    request = Request.read()
    assert combinations(request.space) == 12
    assert len({tuple(values.values()) for values in proposals(request, 12)}) == 12


def test_the_values_of_params_come_first_inside_the_space_or_not(project):
    [waiting] = project.study().trials
    assert waiting.system_attrs["fixed_params"] == {"train.lr": 0.1, "train.batch_size": "16"}
    project.study()
    assert len(project.study().trials) == 1
    project.set(train__lr=0.9, train__epochs=4)
    [waiting] = project.study().trials
    assert waiting.system_attrs["fixed_params"] == {"train.batch_size": "16"}
    assert waiting.user_attrs[BASELINE] == {"train.lr": 0.9, "train.batch_size": 16}


def test_a_study_of_an_earlier_convoy_has_its_first_trial_as_baseline_or_gets_one(project):
    study = optuna.create_study(storage=storage(Request.read()), study_name=Request.read().name)
    study.enqueue_trial({"train.lr": 0.1, "train.batch_size": "16"})
    assert len(project.study().trials) == 1
    project.set(train__epochs=4)  # another study, whose values of params.yaml were outside its space
    begin(
        optuna.create_study(storage=storage(Request.read()), study_name=Request.read().name), Request.read()
    )
    assert [trial.state.name for trial in project.study().trials] == ["RUNNING", "WAITING"]
    assert BASELINE in project.study().trials[1].user_attrs


def test_another_space_dataset_or_fixed_value_is_another_study_and_a_swept_value_is_not(project):
    def changed() -> set[str]:
        before, requests[:] = requests[0], [Request.read()]
        return {key for key, value in requests[0].inputs.items() if before.inputs[key] != value}

    requests = [Request.read()]
    names = {requests[0].name}
    project.set(train__lr=0.2, checkpoints__time_budget_min=5)
    assert changed() == set()
    facts = project.folder / "build/dataset/dataset.json"
    spec = project.folder / "networks/tiny.yaml"
    edits = {
        "params": lambda: project.set(train__epochs=4),
        "space": lambda: project.space("train.lr: [0.1, 0.2]", "train.batch_size: [8, 16]"),
        "data": lambda: facts.write_text(facts.read_text().replace("0" * 64, "1" * 64)),
        "network": lambda: spec.write_text(spec.read_text().replace("filters: 8", "filters: 9")),
    }
    for name, edit in edits.items():
        edit()
        assert changed() == {name}
        names.add(requests[0].name)
    assert len(names) == 5


def test_only_one_process_sweeps_a_study(project):
    request = Request.read()
    with locks.exclusive(request.folder / run.LOCK), pytest.raises(TrainingError) as caught:
        run.sweep(1, 1, into_params=False, as_json=False)
    for fact in (request.name, f"process {os.getpid()} on ", "--trials 0"):
        assert fact in str(caught.value)


def test_a_lost_trial_is_tried_again_with_its_values(project):
    study, request = project.study(), Request.read()
    begin(study, request)
    lost = begin(study, request)
    assert recover(study) == [0, 1]
    assert recover(study) == []
    begin(study, request)
    again = begin(study, request)
    assert again.params == lost.params
    assert [row.number for row in Results.of(request, read_trials(request)).rows] == [2, 3]


def test_values_that_kill_two_workers_fail_and_are_not_tried_again(project):
    study, request = project.study(), Request.read()
    for number, again in ((0, True), (1, False)):
        assert begin(study, request).number == number
        assert requeue(study, number, blame=True) is again
        study.tell(number, state=TrialState.FAIL)
    [row] = Results.of(request, read_trials(request)).rows
    assert (row.number, row.state) == (1, "failed")
    assert "died twice" in row.reason


def test_a_sweep_that_is_killed_often_blames_no_trial(project):
    study, request = project.study(), Request.read()
    for number in range(4):
        assert begin(study, request).number == number
        assert recover(study) == [number]
    assert begin(study, request).number == 4


def test_a_death_while_a_lost_trial_is_queued_doubles_no_trial(project, monkeypatch):
    study = project.study()
    begin(study, Request.read())
    with monkeypatch.context() as patch:
        patch.setattr(study, "tell", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            recover(study)
    assert recover(study) == [0]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


@pytest.mark.parametrize("torn", [b'{"op_code":4,"work', b'{"op_code":4,"work{"op_code":5}\n'])
def test_a_line_that_a_killed_writer_left_incomplete_is_removed(project, torn):
    request = Request.read()
    begin(project.study(), request)
    journal = request.folder / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    begin(open_study(request), request)
    assert journal.read_bytes().startswith(whole + b"{")
    assert len(begun(read_trials(request))) == 2


def test_reading_a_study_writes_nothing(project):
    request = Request.read()
    assert read_trials(request) == []
    assert not request.folder.exists()
    request.folder.mkdir(parents=True)
    (request.folder / JOURNAL).touch()
    assert read_trials(request) == []
    assert [path.name for path in request.folder.iterdir()] == [JOURNAL]
