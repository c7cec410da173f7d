"""What is asked, limit by limit, and of the proof."""

from dataclasses import replace

import pytest

from convoy.core.errors import RequestError
from convoy.gate.criteria import NUMBERED
from convoy.gate.judge import judge


@pytest.fixture(scope="module")
def champion(world):
    return world.contender("convoy/3", range(12))


@pytest.fixture(scope="module")
def bad(world):
    """Break every limit of `TIGHT`."""
    wrong = [n for n in range(120) if n % 3 == 1]
    return world.contender("convoy/7", wrong, certainty=0.5, dead_bytes=100_000, products=10)


TIGHT = {
    "min_images": 121,
    "min_accuracy": 0.99,
    "min_class_recall": 0.99,
    "max_class_drop": 0.0,
    "max_ece": 0.0,
    "max_latency_ms_p95": 1e-9,
    "max_latency_ratio": 1.0,
    "max_size_mb": 1e-3,
    "max_champion_drop": 0.0,
}


def held(judgement):
    return {one.name: one.held for one in judgement.criteria}


@pytest.mark.parametrize("name", NUMBERED)
def test_a_limit_that_is_not_set_refuses_nothing_and_still_gives_its_figure(world, bad, name):
    fallen = world.contender("convoy/3", [n for n in range(120) if n % 3 == 0][:20], recorded_accuracy=1.0)
    of = NUMBERED[name]
    tight = judge(bad, fallen, world.today, world.limits(**TIGHT))
    assert held(tight)[name] is False
    loose = judge(bad, fallen, world.today, world.limits(**(TIGHT | {of.key: None})))
    found = next(one for one in loose.criteria if one.name == name)
    assert (found.held, found.limit) == (None, None)
    assert found.figure is not None
    assert found.note.startswith("no limit set")
    others = {key: value for key, value in held(loose).items() if key != name}
    assert others == {key: value for key, value in held(tight).items() if key != name}


def test_a_gate_that_asks_for_one_thing_asks_for_no_other(world, bad, champion):
    limits = world.limits(**(dict.fromkeys(TIGHT) | {"max_size_mb": 600.0}))
    found = judge(bad, champion, world.today, limits)
    assert found.verdict == "keep"
    assert [one.name for one in found.criteria if one.held is not None] == [
        "proof",
        "classes",
        "seen",
        "size_mb",
    ]


def test_a_gate_without_limits_is_refused(world):
    with pytest.raises((RequestError, ValueError), match=r"a gate without limits gives no verdict"):
        world.limits(**dict.fromkeys(TIGHT))


def test_a_figure_that_is_the_limit_holds(world, champion):
    """0.8 - 0.6 is more than 0.2 to a computer."""
    wrong = [n for n in range(120) if n % 3 == 1]
    theirs, ours = world.contender("convoy/3", wrong[:8]), world.contender("convoy/7", wrong[:16])
    drop = next(
        one
        for one in judge(ours, theirs, world.today, world.limits(max_class_drop=0.2)).criteria
        if one.name == "class_drop"
    )
    assert drop.figure > 0.2
    assert drop.held


def test_a_figure_that_is_the_limit_holds_from_above_too(world, champion):
    wrong = [n for n in range(120) if n % 3 == 1][:28]
    found = judge(
        world.contender("convoy/7", wrong), champion, world.today, world.limits(min_class_recall=0.1 + 0.2)
    )
    assert held(found)["class_recall"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: None, "it has no verification.json"),
        (
            lambda proof: proof | {"model": {"sha256": "b" * 64}},
            "its verification.json proves other bytes (sha256 bbbbbbbbbbbb…, not ",
        ),
        (
            lambda proof: proof | {"checks": [proof["checks"][0] | {"label_flips": 1}]},
            "its proof failed: whole test split",
        ),
        (
            lambda proof: proof | {"checks": [proof["checks"][0] | {"probability_gap": 0.5}]},
            "its proof failed: whole test",
        ),
        (lambda proof: proof | {"checks": []}, "its proof failed: nothing was checked"),
        (lambda proof: proof | {"negative_control": {"caught": False}}, "its proof failed: negative control"),
        (lambda proof: {"model": proof["model"]}, "its verification.json lacks 'checks'"),
        (lambda proof: proof | {"model": None}, "its verification.json is not what"),
    ],
)
def test_a_proof_that_is_missing_or_of_something_else_is_a_breach(world, champion, change, problem):
    candidate = world.contender("convoy/7")
    found = judge(replace(candidate, proof=change(candidate.proof)), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert held(found)["proof"] is False
    assert found.reasons[0].startswith(f"Refuse convoy/7: {problem}")
    assert "Make and prove it again: dvc repro export, then convoy register." in found.reasons


def test_names_of_classes_cannot_turn_the_line_they_stand_in(world):
    names = ("ape\u202e", "bee", "cat", "dog\n", *(f"x{n}" for n in range(4)))
    champion = world.contender("convoy/3", classes=names)
    note = next(
        one.note
        for one in judge(world.contender("convoy/7"), champion, world.today, world.limits()).criteria
        if one.name == "classes"
    )
    assert "`ape<U+202E>`, `dog\\n`, `x0`, `x1`, `x2` and 1 more" in note
