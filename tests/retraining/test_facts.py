"""The record of a round: its steps are timed and printed, and a failed one is named."""

import pytest

from convoy.retraining import facts as facts_module
from convoy.retraining.facts import Facts


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> Facts:
    moments = iter((10.0, 12.5, 20.0, 20.25))
    monkeypatch.setattr(facts_module.time, "monotonic", lambda: next(moments))
    return Facts("2026-11-23T22:10:05Z", push=False)


def test_steps_are_timed_and_printed_with_their_note(
    facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    with facts.step("decide") as step:
        step.note = "the data changed"
    assert [(step.name, step.seconds, step.note) for step in facts.steps] == [
        ("decide", 2.5, "the data changed")
    ]
    assert capsys.readouterr().out.split(maxsplit=2)[1:] == ["decide", "2.5 s  the data changed\n"]


def test_a_failed_step_is_recorded_and_printed_as_failed(
    facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    with facts.step("decide"):
        pass
    with pytest.raises(KeyboardInterrupt), facts.step("repro"):
        raise KeyboardInterrupt
    assert [(step.name, step.seconds) for step in facts.steps] == [("decide", 2.5), ("repro", 0.25)]
    assert capsys.readouterr().out.endswith("failed\n")


@pytest.mark.parametrize(
    ("outcome", "step"), [("failed", "decide"), ("paused", "decide"), ("kept", ""), ("skipped", "")]
)
def test_the_incomplete_step_is_the_last_of_a_round_that_failed_or_paused(
    facts: Facts, outcome: str, step: str
) -> None:
    facts.outcome = outcome  # type: ignore[assignment] # one of the outcomes
    assert facts.incomplete_step == ""
    with facts.step("decide"):
        pass
    assert facts.incomplete_step == step
