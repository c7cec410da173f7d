import pytest

from convoy.training.optim import START, rate


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_the_rate_rises_to_its_highest_and_falls_to_zero(schedule, warmup):
    shares = [rate(schedule, warmup, 100)(step) for step in range(101)]
    top = round(warmup * 100)

    assert shares[top] == max(shares) == 1
    assert shares[0] == pytest.approx(START if warmup else 1)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[99] > 0
    assert shares[100] == 0


def test_one_cycle_falls_in_a_straight_line_and_cosine_along_a_wave():
    quarter = 0.2 * 100 + 0.25 * 80

    assert rate("one_cycle", 0.2, 100)(int(quarter)) == pytest.approx(0.75)
    assert rate("cosine", 0.2, 100)(int(quarter)) == pytest.approx((1 + 2**-0.5) / 2)
