"""A round trains when what decides its result is new, or when the champion is old."""

import time
from dataclasses import replace

import pytest

from convoy.registry.client import Version
from convoy.retraining.decide import DAY_MS, INPUTS, SOURCE, decide
from convoy.retraining.trigger import Upstream

NOW = Upstream("source", "f" * 64, changed=False, inputs="1" * 64)


def days_ago(days: float) -> int:
    return int(time.time() * 1000 - days * DAY_MS)


def version(number: str = "1", days: float = 0, **tags: str) -> Version:
    said = tags or {INPUTS: NOW.inputs, SOURCE: NOW.fingerprint}
    return Version("convoy", number, "0" * 64, "run", "mlflow", days_ago(days), said)


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (None, "nothing was registered yet"),
        (version(note="x"), "convoy/1 was not made by a round that came to a verdict"),
        (replace(version(), tags={INPUTS: "2", SOURCE: "e"}), "the data changed upstream since convoy/1"),
        (replace(version(), tags={INPUTS: "2", SOURCE: NOW.fingerprint}), "params, code or limits changed since convoy/1"),
    ],
)  # fmt: skip
def test_news_are_a_cause(candidate: Version | None, why: str) -> None:
    found = decide(NOW, candidate, None, 0, None)
    assert (found.trains, found.why, found.aged) == (True, why, False)


def test_nothing_new_is_none() -> None:
    found = decide(NOW, version(days=400), version(days=400), days_ago(400), None)
    assert not found.trains
    assert found.why == (
        "the data (source), params, code and limits are those of convoy/1, which a round has judged already"
    )


def test_nothing_new_says_what_the_verdict_was() -> None:
    tags = {INPUTS: NOW.inputs, SOURCE: NOW.fingerprint, "gate.verdict": "refuse"}
    assert decide(NOW, replace(version(), tags=tags), None, 0, None).why.endswith("judged already (refuse)")


def test_age_counts_from_when_the_champion_became_one() -> None:
    old = version(days=400)
    assert not decide(NOW, old, old, days_ago(89), 90).trains
    found = decide(NOW, old, old, days_ago(91), 90)
    assert (found.trains, found.aged) == (True, True)
    assert "more than gate.max_champion_age_days (90); nothing else changed" in found.why


def test_one_training_per_span_is_enough() -> None:
    found = decide(NOW, version("2", days=3), version(days=400), days_ago(91), 90)
    assert not found.trains


def test_without_a_champion_there_is_no_age() -> None:
    assert not decide(NOW, version(days=400), None, 0, 90).trains
