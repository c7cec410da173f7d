"""The rules by which the champion changes, each with ONNX files that onnxruntime answers."""

import gc
import re

import pytest

from convoy.gate import latency
from convoy.gate.answers import Answers
from convoy.gate.judge import judge
from verdicts import breaches, said

NEITHER = "of 120 test images that neither has seen"


@pytest.fixture(scope="module")
def champion(world):
    """Wrong on 12 of 120 images, four of each class."""
    return world.contender("convoy/3", range(12))


@pytest.fixture
def against(world, champion):
    """Judge a candidate against the champion under changed limits."""
    return lambda candidate, **limits: judge(candidate, champion, world.today, world.limits(**limits))


def test_a_better_candidate_is_promoted(world, against):
    found = against(world.contender("convoy/7", [3, 40]))
    assert found.verdict == "promote"
    assert found.images == 120
    assert (found.candidate, found.champion) == ("convoy/7", "convoy/3")
    both = found.comparison
    assert (both.only_candidate, both.only_champion, both.both_right, both.both_wrong) == (11, 1, 107, 1)
    assert found.candidate_share.accuracy == pytest.approx(118 / 120)
    assert found.champion_share.accuracy == pytest.approx(108 / 120)
    assert breaches(found) == []
    assert said(found).startswith(
        f"Promote convoy/7: it is right on 98.3 % {NEITHER}, convoy/3 on 90.0 %. The gain is +8.3 points, at 95 % "
        "confidence +2.3 to +15.0 (11 mended, 1 broken, p = 0.0063): a significant gain, and every limit holds."
    )


def test_a_worse_candidate_is_kept_out(world, against):
    found = against(world.contender("convoy/7", range(8, 32)))
    assert found.verdict == "keep"
    assert said(found) == (
        f"Keep convoy/3: convoy/7 is worse. It is right on 80.0 % {NEITHER}, convoy/3 on 90.0 %. The gain is \N{MINUS SIGN}10.0 "
        "points, at 95 % confidence \N{MINUS SIGN}18.9 to \N{MINUS SIGN}0.6 (8 mended, 20 broken, p = 0.0357).\n"
        'To promote it all the same: convoy promote --override "reason"'
    )


def test_a_gain_that_may_be_chance_is_no_cause_and_says_how_many_images_would_show_it(world, against):
    found = against(world.contender("convoy/7", [*range(8), 20, 21]), equal_within=0.01)
    assert found.verdict == "keep"
    assert "Keep convoy/3: the gain of convoy/7 is not significant. It is right on 91.7 %" in said(found)
    assert found.comparison.images_needed == 1411
    assert (
        "If the gain is real, about 1,411 test images would show it (80 % power); there are 120: deliver more, or "
        "raise data.splits.test in params.yaml."
    ) in said(found)


def test_no_gain_on_images_too_few_to_call_it_equal_keeps_the_champion(world, against):
    found = against(world.contender("convoy/7", range(1, 14)), equal_within=0.02, on_equal="promote")
    assert found.verdict == "keep"
    assert "convoy/7 shows no gain. It is right on 89.2 %" in said(found)
    assert ("it may lose 5.2 points, more than the 2.0 points that gate.equal_within calls as good.") in said(
        found
    )


def test_an_equal_candidate_is_kept_out_by_one_rule(world, against):
    found = against(world.contender("convoy/7", range(11)), on_equal="keep")
    assert found.verdict == "keep"
    assert found.reasons[0] == (
        f"Keep convoy/3: convoy/7 is as good, and no better. It is right on 90.8 % {NEITHER}, convoy/3 on 90.0 %. The "
        "gain is +0.8 points, at 95 % confidence \N{MINUS SIGN}2.3 to +4.6 (1 mended, 0 broken, p = 1.0000); at worst it loses 2.3 "
        "points, and gate.equal_within allows 5.0 points."
    )
    assert found.reasons[-1] == (
        "To let an equal but newer model take over, set gate.on_equal: promote in params.yaml; this one alone: "
        'convoy promote --override "reason"'
    )


def test_an_equal_candidate_is_promoted_by_the_other(world, against):
    found = against(world.contender("convoy/7", range(11)), on_equal="promote")
    assert found.verdict == "promote"
    assert found.reasons[0].startswith(
        "Promote convoy/7: it is as good as convoy/3 and newer, which is enough by gate.on_equal: promote. It is right"
    )


def test_an_equal_candidate_that_is_older_is_kept_out_by_either(world, against):
    found = against(world.contender("convoy/2", range(11)), on_equal="promote")
    assert found.verdict == "keep"
    assert "Keep convoy/3: convoy/2 is as good, and not newer." in found.reasons[0]
    assert found.reasons[-1] == 'To promote it all the same: convoy promote --override "reason"'


def test_a_small_loss_that_shows_is_not_called_equal(world, against):
    """Else round by round they would add up."""
    found = against(world.contender("convoy/7", range(18)), equal_within=1.0, on_equal="promote")
    assert found.comparison.high < 0
    assert found.verdict == "keep"
    assert "convoy/7 is worse" in said(found)


def test_better_over_all_with_a_class_collapsed_is_refused(world):
    champion = world.contender("convoy/3", [n for n in range(120) if n % 3 != 2][:48])
    collapsed = world.contender("convoy/7", [n for n in range(120) if n % 3 == 2][:20])
    found = judge(collapsed, champion, world.today, world.limits())
    assert found.comparison.low > 0
    assert found.verdict == "refuse"
    assert breaches(found) == ["class_drop"]
    assert said(found) == (
        "Refuse convoy/7: fall of a class's recall below the champion's is 50.0 points, and gate.max_class_drop asks "
        "for at most 20 points (class `cat`, 40 images).\n"
        f"Over all images, convoy/7 is right on 83.3 % {NEITHER}, convoy/3 on 60.0 %. The gain is +23.3 points, at 95 "
        "% confidence +9.4 to +35.7 (48 mended, 20 broken, p = 0.0009).\n"
        "Look at that class's images and labels, in train and in test: has it fewer than before?\n"
        'To promote it all the same: change gate.max_class_drop in params.yaml, or convoy promote --override "reason"'
    )


def test_a_class_below_the_floor_is_refused_whatever_the_champion_does(world):
    lost = [n for n in range(120) if n % 3 == 1][:32]
    both = world.contender("convoy/3", lost), world.contender("convoy/7", lost[:30])
    found = judge(both[1], both[0], world.today, world.limits())
    assert breaches(found) == ["class_recall"]
    assert (
        "recall of the worst class is 25.0 %, and gate.min_class_recall asks for at least 30 % (class `bee`, 40 "
        "images)."
    ) in found.reasons[0]
    figures = {one.name: one for one in found.classes}
    assert (figures["bee"].candidate, figures["bee"].champion) == (0.25, 0.2)


def test_better_but_slower_is_refused(world, against):
    found = against(world.contender("convoy/7", products=30), max_latency_ratio=2.0)
    assert found.verdict == "refuse"
    assert breaches(found) == ["latency_ratio"]
    assert re.match(
        r"Refuse convoy/7: time of one image relative to the champion's is \d+\.\d\d times, and gate\.max_latency_ratio "
        r"asks for at most 2 times \(half of the images in \d.* ms, the champion in .* ms\)\.",
        found.reasons[0],
    )
    assert "Choose a smaller network or data.image_px." in found.reasons


def test_slower_than_the_time_allowed_is_refused(world, against):
    found = against(world.contender("convoy/7"), max_latency_ms_p95=1e-6)
    assert breaches(found) == ["latency_ms_p95"]
    assert re.search(
        r"time of one image \(95th percentile\) is 0\.\d+ ms, and gate\.max_latency_ms_p95 asks for at most",
        said(found),
    )


def test_better_but_bigger_is_refused(world, against):
    found = against(world.contender("convoy/7", dead_bytes=3_000_000), max_size_mb=2.0)
    assert found.verdict == "refuse"
    assert breaches(found) == ["size_mb"]
    assert "size of model.onnx is 3.00 MB, and gate.max_size_mb asks for at most 2 MB." in found.reasons[0]
    assert "Choose a smaller network." in found.reasons


def test_a_miscalibrated_candidate_is_refused(world, against):
    found = against(world.contender("convoy/7", certainty=0.5))
    assert found.verdict == "refuse"
    assert breaches(found) == ["ece"]
    assert "calibration error (ECE) is 50.0 %, and gate.max_ece asks for at most 20 %." in found.reasons[0]


def test_too_many_wrong_answers_are_refused(world, against):
    found = against(world.contender("convoy/7", range(30, 54)), min_accuracy=0.9)
    assert breaches(found) == ["accuracy"]
    assert (
        "accuracy is 80.0 %, and gate.min_accuracy asks for at least 90 % (72.0 % to 86.2 % at 95 % confidence)."
        in found.reasons[0]
    )


def test_several_breaches_are_all_named(world, against):
    found = against(world.contender("convoy/7", certainty=0.5), max_size_mb=0.001)
    assert (
        found.reasons[0]
        == "Refuse convoy/7: it breaks 2 limits (calibration error (ECE), size of model.onnx)."
    )
    assert (
        "change gate.max_ece, gate.max_size_mb in params.yaml, or convoy promote --override"
        in found.reasons[-1]
    )


def test_images_that_flipped_are_named_the_surest_first(world, champion):
    sure = [0.5 + 0.4 * (n % 7) / 7 for n in range(len(world.truth))]
    found = judge(
        world.contender("convoy/7", range(6, 20), certainty=sure),
        champion,
        world.today,
        world.limits(max_ece=None),
    )
    kinds = [flip.kind for flip in found.flips]
    assert kinds == ["broken"] * 8 + ["fixed"] * 6
    broken = found.flips[:8]
    certainties = [flip.candidate_probability for flip in broken]
    assert certainties == sorted(certainties, reverse=True)
    for flip in found.flips:
        assert flip.path.startswith(f"test/{flip.label}/")
        right = flip.champion if flip.kind == "broken" else flip.candidate
        wrong = flip.candidate if flip.kind == "broken" else flip.champion
        assert right == flip.label != wrong
        assert flip.champion_probability == pytest.approx(0.9)


def test_every_interval_is_at_the_confidence_that_is_set(world, champion, against):
    candidate = world.contender("convoy/7", range(9))
    wide, narrow = against(candidate, confidence=0.99), against(candidate, confidence=0.6)
    for one in ("candidate_share", "champion_share", "comparison"):
        of_wide, of_narrow = getattr(wide, one), getattr(narrow, one)
        assert of_wide.low < of_narrow.low < of_narrow.high < of_wide.high
    assert (wide.verdict, narrow.verdict) == ("keep", "promote")
    assert "at 60 % confidence" in narrow.reasons[0]


def test_the_models_that_answered_are_closed_before_others_are_timed(world, champion, against, monkeypatch):
    """Their waiting threads would take the processor from the one that is timed."""
    by_turns, still = latency.by_turns, []

    def watched(*arguments):
        still.extend(one for one in gc.get_objects() if type(one) is Answers)
        return by_turns(*arguments)

    monkeypatch.setattr(latency, "by_turns", watched)
    against(world.contender("convoy/7", [3]))
    assert still == []


def test_what_helps_against_two_breaches_is_said_once(world, against):
    found = against(world.contender("convoy/7", products=30), max_latency_ratio=2.0, max_latency_ms_p95=1e-6)
    assert breaches(found) == ["latency_ms_p95", "latency_ratio"]
    assert found.reasons.count("Choose a smaller network or data.image_px.") == 1
