"""A study on disk: one leader, lost trials, half-written lines."""

import os

import pytest

from convoy.core.errors import TrainingError
from convoy.sweep.results import Results
from convoy.sweep.study import Study


def test_only_one_process_leads_a_study(here) -> None:
    study = here.study()
    with study.alone():
        other = here.study()
        with (
            pytest.raises(
                TrainingError, match=rf"is being swept already, by process {os.getpid()}\. .*--trials 0"
            ),
            other.alone(),
        ):
            pass
    with other.alone():
        pass


def test_another_space_dataset_or_fixed_value_is_another_study_and_a_swept_value_is_not(here) -> None:
    first = here.study().request
    here.set(train__lr=0.2, checkpoints__time_budget_min=5)
    assert here.study().request.name == first.name
    here.set(train__epochs=4)
    second = here.study().request
    assert {key for key, value in second.inputs.items() if first.inputs[key] != value} == {"params"}
    here.space("train.lr: [0.1, 0.2]")
    third = here.study().request
    assert {key for key, value in third.inputs.items() if second.inputs[key] != value} >= {"space"}
    facts = here.folder / "build/dataset/dataset.json"
    facts.write_text(facts.read_text().replace("0" * 64, "1" * 64))
    fourth = here.study().request
    assert {key for key, value in fourth.inputs.items() if third.inputs[key] != value} == {"data"}
    spec = here.folder / "networks/tiny.yaml"
    spec.write_text(spec.read_text().replace("filters: 8", "filters: 9"))
    fifth = here.study().request
    assert {key for key, value in fifth.inputs.items() if fourth.inputs[key] != value} == {"network"}
    assert len({one.name for one in (first, second, third, fourth, fifth)}) == 5


def test_a_trial_that_is_lost_is_tried_again_with_its_values(here) -> None:
    study = here.study()
    first = study.ask(2)
    assert study.recover([os.getpid()]) == []
    assert study.recover() == [0]
    again = study.ask(2)
    assert again.params == first.params
    assert again.user_attrs["again_of"] == 0
    assert [row.number for row in Results.of(study.request, study.trials()).rows] == [1]


def test_values_that_kill_two_workers_fail_and_are_not_tried_again(here) -> None:
    study = here.study()
    study.ask(1)
    assert study.recover([]) == [0]
    study.ask(1)
    assert study.recover([]) == [1]
    assert study.ask(1) is None
    [row] = Results.of(study.request, study.trials()).rows
    assert (row.number, row.state, row.reason) == (
        1,
        "failed",
        "its process died twice, perhaps out of memory",
    )


def test_a_leader_that_is_stopped_blames_no_trial(here) -> None:
    study = here.study()
    for number in range(4):
        assert study.ask(1).number == number
        assert study.recover() == [number]
    assert study.ask(1).number == 4


def test_a_death_between_setting_aside_and_failing_doubles_no_trial(
    here, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = here.study()
    study.ask(1)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study.optuna, "tell", die)
        with pytest.raises(KeyboardInterrupt):
            study.recover()
    assert study.recover() == [0]
    assert [trial.state.name for trial in study.trials()] == ["FAIL", "WAITING"]


def test_half_a_line_of_a_dead_writer_is_cut_off(here) -> None:
    study = here.study()
    study.ask(2)
    journal = study.folder / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"work')
    study = here.study()
    study.ask(2)
    assert journal.read_bytes().startswith(whole + b"{")
    assert len(Study(study.folder, study.request).trials()) == 2


def test_no_more_trials_are_begun_than_were_asked_for(here) -> None:
    study = here.study()
    assert study.ask(2) is not None
    assert study.ask(2) is not None
    assert study.ask(2) is None
