"""What becomes of a candidate when there is no champion, a broken one, one of other classes, or itself."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import convoy
from convoy.core.errors import VerificationError
from convoy.gate import answers
from convoy.gate.contender import UnavailableModel
from convoy.gate.judge import judge
from verdicts import breaches, criterion, said


@pytest.fixture(scope="module")
def champion(world):
    """Wrong on 12 of 120 images, four of each class."""
    return world.contender("convoy/3", range(12))


def test_the_first_candidate_has_only_limits_to_hold(world):
    found = judge(world.contender("convoy/1", range(12)), None, world.today, world.limits())
    assert found.verdict == "promote"
    assert found.champion is found.champion_share is found.comparison is None
    assert said(found) == (
        "Promote convoy/1: there is no champion yet, and it holds every limit; it is right on 90.0 % of 120 test "
        "images that it has not seen."
    )
    for name in ("class_drop", "champion_drop", "latency_ratio"):
        assert criterion(found, name).held is None
        assert criterion(found, name).note == "there is no champion yet"


def test_the_first_candidate_is_refused_where_it_breaks_a_limit(world):
    found = judge(world.contender("convoy/1", certainty=0.5), None, world.today, world.limits())
    assert found.verdict == "refuse"


def test_a_champion_that_cannot_be_read_does_not_stand_in_the_way(world):
    gone = UnavailableModel("convoy/3", "its file is gone from the store", 0.93)
    found = judge(world.contender("convoy/7", range(6)), gone, world.today, world.limits())
    assert found.verdict == "promote"
    assert found.champion == "convoy/3"
    assert found.champion_sha256 is None
    assert found.reasons[0] == (
        "Promote convoy/7, WITHOUT A COMPARISON: the champion convoy/3 cannot be read (its file is gone from the "
        "store). It holds every limit that needs no champion; it is right on 95.0 % of 120 test images that it has "
        "not seen."
    )
    assert found.reasons[1].startswith("Find out what became of convoy/3: restore its file")


def test_a_candidate_far_below_what_an_unreadable_champion_once_reached_is_refused(world):
    gone = UnavailableModel("convoy/3", "its file is gone", 0.99)
    found = judge(world.contender("convoy/7", range(30)), gone, world.today, world.limits())
    assert found.verdict == "refuse"
    assert breaches(found) == ["champion_drop"]
    assert (
        "fall of the candidate below the champion's recorded accuracy is 24.0 points, and gate.max_champion_drop asks "
        "for at most 10 points (the champion convoy/3 cannot be read: its file is gone; 75.0 % today, 99.0 % "
        "recorded)."
    ) in found.reasons[0]
    assert found.reasons[1] == "Nothing was compared: the champion convoy/3 cannot be read: its file is gone."
    assert any(
        reason.startswith("Either the candidate is worse than that champion was") for reason in found.reasons
    )


def test_an_unreadable_champion_of_unknown_accuracy_leaves_the_limits(world):
    gone = UnavailableModel("convoy/3", "its file is gone", None)
    found = judge(world.contender("convoy/7", range(30)), gone, world.today, world.limits())
    assert found.verdict == "promote"
    assert "its recorded accuracy is unknown" in criterion(found, "champion_drop").note


def damaged(contender, content=b"\x08\x01 no model"):
    contender.onnx.write_bytes(content)
    return contender


def other_bytes(contender):
    return replace(contender, sha256="0" * 64)


def without_file(contender):
    contender.onnx.unlink()
    return contender


def answers_nan(contender):
    return edited(contender, lambda graph: graph.node[-1].input.append("nan"))


def answers_beyond_one(contender):
    return edited(contender, lambda graph: graph.node[-1].input.append("found"))


def answers_below_zero(contender):
    """Each sum is still one."""

    def add(graph):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1, 0], np.float32), "askew"))
        graph.node[-1].input.append("askew")

    return edited(contender, add)


def fails(contender):
    def cut(graph):
        table = next(one for one in graph.initializer if one.name == "table")
        short = onnx.numpy_helper.to_array(table)[:5]
        table.CopyFrom(onnx.numpy_helper.from_array(short, "table"))

    return edited(contender, cut)


def no_model_at_all(contender):
    contender = damaged(contender)
    return replace(contender, sha256=answers.files.sha256(contender.onnx))


def edited(contender, edit):
    model = onnx.load(contender.onnx)
    nan = onnx.numpy_helper.from_array(
        onnx.numpy_helper.to_array(model.graph.initializer[-1]) + float("nan"), "nan"
    )
    model.graph.initializer.append(nan)
    edit(model.graph)
    onnx.save(model, contender.onnx)
    return replace(contender, sha256=answers.files.sha256(contender.onnx))


BROKEN = {
    damaged: r"its file has other bytes than were registered \(sha256 \w{12}…, not \w{12}…\)",
    other_bytes: r"its file has other bytes than were registered",
    without_file: r"its file is gone \(.*model\d+\.onnx\)",
    no_model_at_all: r"is not a valid ONNX file",
    answers_nan: r"answers test/\w+/\d+\.png with nan, nan, nan, which are no probabilities",
    answers_below_zero: r"answers test/\w+/\d+\.png with .*-0\.\d+.*, which are no probabilities",
    answers_beyond_one: r"answers test/\w+/\d+\.png with .*, which are no probabilities",
    fails: r"fails on test/\w+/\d+\.png or one of the \d+ images from there on: ",
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_candidate_that_gives_no_answers_gets_no_verdict(world, champion, breaking):
    remedy = "Make and prove it again with `dvc repro --force export`, then `convoy register`"
    with pytest.raises(
        VerificationError, match=f"(?s)there is no verdict on convoy/7: .*{BROKEN[breaking]}.*{remedy}"
    ):
        judge(breaking(world.contender("convoy/7")), champion, world.today, world.limits())


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_champion_that_gives_no_answers_counts_as_unreadable(world, breaking):
    champion = breaking(world.contender("convoy/3", range(12)))
    found = judge(world.contender("convoy/7"), champion, world.today, world.limits())
    assert found.verdict == "promote"
    assert found.champion_sha256 is None
    assert found.flips == ()
    assert re.search(rf"the champion convoy/3 cannot be read \(.*{BROKEN[breaking]}", found.reasons[0])


def test_classes_in_another_order_are_the_same_classes(world):
    champion = world.contender("convoy/3", range(12), classes=("cat", "ape", "bee"))
    candidate = world.contender("convoy/7", range(6), classes=("bee", "cat", "ape"))
    found = judge(candidate, champion, world.today, world.limits())
    assert criterion(found, "classes").held
    assert (found.comparison.only_candidate, found.comparison.only_champion) == (6, 0)
    assert [one.champion for one in found.classes] == pytest.approx([0.9] * 3)


def test_a_champion_that_lacks_a_class_is_wrong_on_it_and_not_blamed_for_it(world):
    champion = world.contender("convoy/3", classes=("ape", "bee"), recorded_accuracy=1.0)
    found = judge(world.contender("convoy/7", range(6)), champion, world.today, world.limits())
    assert found.verdict == "promote"
    assert found.champion_share.accuracy == pytest.approx(2 / 3)
    assert criterion(found, "champion_drop").figure == pytest.approx(0.0)
    assert "`cat` new, where the champion is always wrong" in criterion(found, "classes").note
    cat = next(one for one in found.classes if one.name == "cat")
    assert cat.champion is None
    assert cat.candidate == pytest.approx(0.95)


def test_a_class_that_the_champion_serves_must_not_be_lost(world):
    champion = world.contender("convoy/3", range(12), classes=("ape", "bee", "cat", "dog"))
    found = judge(world.contender("convoy/7"), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert found.reasons[0] == (
        "Refuse convoy/7: the champion serves `dog`, which the candidate does not know."
    )
    assert "If users of the model know of it, promote it all the same." in found.reasons
    assert found.reasons[-1] == 'To promote it all the same: convoy promote --override "reason"'


def test_a_renamed_class_is_a_lost_one(world):
    champion = world.contender("convoy/3", classes=("ape", "bee", "tiger"))
    found = judge(world.contender("convoy/7"), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert (
        "Refuse convoy/7: the champion serves `tiger`, which the candidate does not know; it knows `cat` instead."
        in found.reasons[0]
    )


def test_a_candidate_of_other_classes_than_today_s_is_refused(world, champion):
    found = judge(world.contender("convoy/7", classes=("ape", "bee")), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert "Today's data have `ape`, `bee`, `cat`, the candidate serves `ape`, `bee`" in said(found)
    recall = criterion(found, "class_recall")
    assert (recall.figure, recall.held) == (0.0, False)


def test_the_champion_itself_is_kept_without_being_timed(world, champion, monkeypatch):
    monkeypatch.setattr("convoy.gate.latency.by_turns", None)
    again = replace(champion, name="convoy/5")
    found = judge(again, champion, world.today, world.limits())
    assert found.verdict == "keep"
    assert said(found) == "Keep convoy/3: the candidate convoy/5 is the champion, byte for byte."
    assert found.comparison is None
    assert found.champion_share == found.candidate_share
    assert criterion(found, "latency_ms_p95").held is None
    assert criterion(found, "champion_drop").note.endswith("90.0 % today, 90.0 % recorded")


def test_a_champion_that_breaks_limits_today_is_kept_with_a_warning(world, champion):
    found = judge(champion, champion, world.today, world.limits(min_accuracy=0.95))
    assert found.verdict == "keep"
    assert "On today's data it breaks 1 limit, and a better one is wanted:" in found.reasons
    assert "Accuracy is 90.0 %, and gate.min_accuracy asks for at least 95 %" in said(found)


def test_judging_needs_neither_torch_nor_mlflow():
    code = (
        "import sys, convoy.gate.judge; print(sorted({'torch', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(convoy.__file__).parents[1])},
    )
    assert done.stdout.strip() == "[]"
