"""Which test images count, and what they can show."""

import pytest

import fixed_models as chosen
from convoy.core.errors import DataError
from convoy.gate.judge import judge
from verdicts import breaches, criterion, said


@pytest.fixture(scope="module")
def champion(world):
    """Wrong on 12 of 120 images, four of each class."""
    return world.contender("convoy/3", range(12))


def test_images_that_either_was_trained_on_are_left_out(world):
    candidate = world.contender("convoy/7", seen=range(10))
    champion = world.contender("convoy/3", range(20), seen=range(5, 25))
    found = judge(candidate, champion, world.today, world.limits())
    assert found.images == 95
    assert found.excluded == {
        "in the candidate's training": 5,
        "in the training of both": 5,
        "in the champion's training": 15,
    }
    assert found.champion_share.correct == 95
    assert "left out: " in criterion(found, "images").note


def test_images_of_validation_were_seen_too(world, champion):
    table = dict(world.images().table)
    for pixels in list(world.today.pixels)[:30]:
        table[pixels] = (table[pixels][0], "val")
    candidate = world.contender("convoy/7", images=type(world.images())(table))
    found = judge(candidate, champion, world.today, world.limits())
    assert found.images == 90
    assert found.excluded == {"in the candidate's training": 30}


def test_images_whose_training_is_unknown_make_no_fair_judgement(world, champion):
    found = judge(world.contender("convoy/7", images=None), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert breaches(found) == ["seen"]
    assert found.reasons[0] == "Refuse convoy/7: which images the candidate was trained on is unknown."


def test_a_champion_whose_training_is_unknown_is_compared_with_all_the_same(world):
    champion = world.contender("convoy/3", range(12), images=None)
    found = judge(world.contender("convoy/7"), champion, world.today, world.limits())
    assert found.verdict == "promote"
    assert "some of these images may flatter it" in criterion(found, "seen").note


def test_poisoned_labels_are_noticed_by_the_champion_s_fall(delivered):
    truth = [("ape", "bee", "cat")[n % 3] for n in range(165)]
    poisoned = [("bee", "cat", "ape")[n % 3] if n < 40 else label for n, label in enumerate(truth)]
    world = delivered(poisoned, 120)
    before = world.images(labels=dict(enumerate(truth)))
    champion = world.contender(
        "convoy/3", answers=dict(enumerate(truth)), images=before, recorded_accuracy=0.98
    )
    found = judge(world.contender("convoy/7"), champion, world.today, world.limits())
    assert found.comparison.low > 0
    assert found.verdict == "refuse"
    assert (
        "fall of the champion below its recorded accuracy is 31.3 points, and gate.max_champion_drop asks for at most "
        "10 points (66.7 % today, 98.0 % recorded; 40 of today's test images had another label when it was made)."
    ) in said(found)
    assert any(
        "The champion has not changed, so the data have: look at the labels" in one for one in found.reasons
    )


def test_a_split_that_can_show_no_gain_says_how_many_images_could(world):
    champion = world.contender("convoy/3", range(3))
    found = judge(world.contender("convoy/7"), champion, world.today, world.limits())
    assert found.verdict == "keep"
    assert not found.comparison.showable
    assert found.comparison.images_needed == 312
    assert (
        "This test split cannot show any gain: convoy/3 makes 3 mistakes on 120 images, and even mending all of them "
        "would not be significant. It takes about 312 test images to show a gain of this size (80 % power): deliver more, or raise data.splits.test in params.yaml."
    ) in said(found)


def test_a_champion_without_mistakes_leaves_no_gain_to_show(world):
    champion = world.contender("convoy/3")
    found = judge(world.contender("convoy/7", [5]), champion, world.today, world.limits())
    assert found.verdict == "keep"
    assert (
        "This test split cannot show any gain: convoy/3 makes no mistake on 120 images. It takes at least 251 test "
        "images to show that all its mistakes are mended (80 % power): deliver more, or raise "
        "data.splits.test in params.yaml."
    ) in said(found)


def test_an_equal_candidate_promoted_on_a_split_too_small_is_said_to_be(world):
    champion = world.contender("convoy/3", [1])
    found = judge(
        world.contender("convoy/7", [1], certainty=0.95),
        champion,
        world.today,
        world.limits(on_equal="promote"),
    )
    assert found.verdict == "promote"
    assert "makes 1 mistake on 120 images" in said(found)


def test_too_few_unseen_images_are_refused(world, champion):
    found = judge(world.contender("convoy/7", seen=range(80)), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert breaches(found) == ["images"]
    assert (
        "40 test images that neither has seen are left, and gate.min_images asks for at least 50 (left out: 80 in the "
        "candidate's training)."
    ) in found.reasons[0]
    assert "Deliver more test images, or raise data.splits.test in params.yaml." in found.reasons


def test_a_class_without_an_unseen_image_is_refused(world, champion):
    bees = [n for n in range(120) if n % 3 == 1]
    found = judge(world.contender("convoy/7", seen=bees), champion, world.today, world.limits())
    assert found.verdict == "refuse"
    assert breaches(found) == ["class_recall"]
    recall = criterion(found, "class_recall")
    assert recall.note == "no test image is left that neither has seen of class `bee`"
    bee = next(one for one in found.classes if one.name == "bee")
    assert (bee.images, bee.candidate, bee.champion) == (0, None, None)


def test_a_class_without_an_unseen_image_is_no_breach_where_no_recall_is_asked(world, champion):
    bees = [n for n in range(120) if n % 3 == 1]
    limits = world.limits(min_class_recall=None)
    found = judge(world.contender("convoy/7", seen=bees), champion, world.today, limits)
    assert breaches(found) == []
    assert criterion(found, "class_recall").held is None


def test_no_unseen_image_at_all_is_refused_even_without_a_limit_for_it(world, champion):
    limits = world.limits(
        min_images=None, min_accuracy=None, min_class_recall=None, max_ece=None, max_latency_ms_p95=None
    )
    found = judge(world.contender("convoy/7", seen=range(120)), champion, world.today, limits)
    assert found.verdict == "refuse"
    assert breaches(found) == ["images"]
    assert (found.images, found.candidate_share, found.champion_share, found.comparison) == (
        0,
        None,
        None,
        None,
    )
    assert found.reasons[0] == (
        "Refuse convoy/7: no test image is left that neither has seen; left out: 120 in the candidate's training."
    )


def test_what_cannot_be_measured_does_not_hold(world, champion):
    found = judge(world.contender("convoy/7", seen=range(120)), champion, world.today, world.limits())
    assert breaches(found) == ["images", "accuracy", "class_recall", "ece", "latency_ms_p95"]
    assert "Accuracy cannot be judged: no test image is left that neither has seen." in found.reasons
    first = judge(world.contender("convoy/7", seen=range(120)), None, world.today, world.limits())
    assert first.verdict == "refuse"


def test_a_delivery_that_changed_since_it_was_prepared_is_an_error_and_no_verdict(delivered):
    world = delivered([("ape", "bee")[n % 2] for n in range(40)], 20)
    (world.home / "data" / world.today.paths[0]).write_bytes(chosen.png(99))
    with pytest.raises(DataError, match=r"1 of 20 images have changed .*dvc repro"):
        judge(world.contender("convoy/7"), None, world.today, world.limits())
