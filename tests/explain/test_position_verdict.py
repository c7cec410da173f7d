import pytest

from convoy.explain.position_verdict import Pair, Verdict, points

HURT = Pair((0.97, 0.98, 0.99), (0.80, 0.81, 0.81), 0.001)
UNMOVED = Pair((0.90, 0.91, 0.92), (0.91, 0.90, 0.91), 0.001)
BETTER = Pair((0.90, 0.90, 0.91), (0.96, 0.96, 0.96), 0.001)
WORSE = Pair((0.96, 0.96, 0.96), (0.90, 0.90, 0.91), 0.001)


def said(verdict):
    return " ".join(" ".join(verdict.lines()).split())


def test_loss_is_the_difference_of_means_and_spread_the_longer_way_between_seeds():
    assert HURT.loss == pytest.approx(0.98 - 2.42 / 3)
    assert HURT.spread == pytest.approx(0.02)
    assert HURT.bound == pytest.approx(0.06)
    assert Pair((0.5, 0.5, 0.5), (0.1, 0.4, 0.3), 0.001).spread == pytest.approx(0.3)


def test_seeds_that_agree_exactly_still_do_not_tell_less_than_an_image():
    pair = Pair((0.5, 0.5, 0.5), (0.51, 0.51, 0.51), 0.004)
    assert pair.spread == 0.004
    assert Verdict(HURT, pair, (1, 2, 3)).dense_is_as_it_was


def test_both_conditions_hold_and_are_said():
    verdict = Verdict(HURT, UNMOVED, (1, 2, 3))
    assert verdict.holds
    assert "CNN: the loss of 17.3 points exceeds 3 × spread, 6.0: the shuffle hurts it." in said(verdict)
    assert (
        "Dense network: the loss of 0.3 points does not exceed 3 × spread, 6.0: the shuffle leaves it as it was."
        in said(verdict)
    )
    assert "does not show" not in said(verdict)


def test_a_cnn_that_loses_no_more_than_its_seeds_differ_is_not_called_hurt():
    verdict = Verdict(UNMOVED, UNMOVED, (1, 2, 3))
    assert not verdict.cnn_is_hurt
    assert not verdict.holds
    assert "CNN: the loss of 0.3 points is no loss that exceeds 3 × spread, 6.0" in said(verdict)
    assert "this run does not show what the experiment is about. Another --seed" in said(verdict)


def test_a_cnn_that_gains_is_not_called_hurt():
    verdict = Verdict(BETTER, UNMOVED, (1, 2, 3))
    assert not verdict.cnn_is_hurt
    assert "CNN: the gain of 5.7 points is no loss that exceeds" in said(verdict)


@pytest.mark.parametrize(("dense", "change"), [(WORSE, "loss"), (BETTER, "gain")])
def test_a_dense_network_that_moves_either_way_is_not_called_as_it_was(dense, change):
    verdict = Verdict(HURT, dense, (1, 2, 3))
    assert not verdict.dense_is_as_it_was
    assert not verdict.holds
    assert f"Dense network: the {change} of 5.7 points exceeds 3 × spread, 3.0: more than the luck" in said(
        verdict
    )
    assert "this run does not show" in said(verdict)


def test_the_table_has_mean_and_seeds_of_every_arm():
    lines = list(Verdict(HURT, UNMOVED, (7, 8, 9)).lines())
    assert lines[0].split() == ["in", "place", "shuffled", "loss", "3", "×", "spread"]
    assert lines[1].split() == ["CNN", "98.0", "(97.0", "98.0", "99.0)", "80.7", "(80.0", "81.0", "81.0)", "17.3", "6.0"]  # fmt: skip
    assert lines[2].split() == ["dense", "network", "91.0", "(90.0", "91.0", "92.0)", "90.7", "(91.0", "90.0", "91.0)", "0.3", "6.0"]  # fmt: skip
    assert len({len(line) for line in lines[:3]}) == 1
    assert "mean over the seeds 7, 8, 9" in " ".join(lines)


def test_json_has_the_numbers_and_what_follows():
    found = Verdict(HURT, UNMOVED, (1, 2, 3)).as_json()
    assert found["cnn"]["in_place"] == [0.97, 0.98, 0.99]
    assert found["cnn"]["shuffled"] == [0.80, 0.81, 0.81]
    assert found["cnn"]["loss"] > found["spreads"] * found["cnn"]["spread"]
    assert found["cnn"]["is_hurt"] is True
    assert found["dense"]["is_as_it_was"] is True
    assert found["holds"] is True
    assert found["seeds"] == [1, 2, 3]


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert points(-0.0002) == "0.0"
    assert points(-0.0123) == "-1.2"
