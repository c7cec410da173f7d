"""Latency of candidate and champion, timed by turns on a clock that only models move."""

import itertools

import numpy as np
import pytest

from convoy.gate import evidence
from convoy.gate.evidence import LEAST_TIMED, ROUNDS, WARM_UP, measure_latency

IMAGES = [np.full((4, 4, 3), n, np.uint8) for n in range(200)]


class Clock:
    """Time that passes only while a model runs."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def model(self, name, seconds):
        pace = itertools.cycle(seconds)

        def run(images_u8):
            assert images_u8.shape == (1, 4, 4, 3)
            self.calls.append((name, int(images_u8[0, 0, 0, 0])))
            self.now += next(pace)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(evidence.time, "perf_counter", lambda: clock.now)
    return clock


def test_two_models_are_timed_by_turns_and_the_first_changes(clock):
    measured = measure_latency([clock.model("new", [0.002]), clock.model("old", [0.004])], IMAGES)
    assert measured.images == 64
    assert measured.p50_ms == measured.p95_ms == pytest.approx((2.0, 4.0))
    assert measured.ratio == pytest.approx(0.5)
    timed = clock.calls[2 * WARM_UP :]
    assert len(timed) == 2 * 64 * ROUNDS
    assert timed[:4] == [("new", 0), ("old", 0), ("old", 1), ("new", 1)]


def test_one_model_has_no_ratio(clock):
    measured = measure_latency([clock.model("new", [0.001])], IMAGES)
    assert measured.ratio is None
    assert measured.p95_ms == pytest.approx((1.0,))


def test_the_time_of_most_images_counts_and_not_that_of_the_odd_one(clock):
    one_in_ten = [0.1] + [0.001] * 9
    measured = measure_latency([clock.model("new", one_in_ten), clock.model("old", [0.001])], IMAGES)
    assert measured.p50_ms[0] == pytest.approx(1.0)
    assert measured.p95_ms[0] == pytest.approx(100.0)
    assert measured.ratio == pytest.approx(1.0)


def test_one_bad_round_changes_nothing(clock):
    rounds = [0.001] * (WARM_UP + 64) + [0.05] * 64 + [0.001] * (64 * 3)
    measured = measure_latency([clock.model("new", rounds)], IMAGES)
    assert measured.p95_ms == pytest.approx((1.0,))


def test_slow_models_are_timed_on_fewer_images(clock):
    assert measure_latency([clock.model("new", [0.05]), clock.model("old", [0.05])], IMAGES).images == 30
    assert measure_latency([clock.model("new", [5.0])], IMAGES).images == LEAST_TIMED


def test_few_images_are_timed_more_than_once(clock):
    measured = measure_latency([clock.model("new", [0.001])], IMAGES[:7])
    assert measured.images == LEAST_TIMED
    assert len({number for _, number in clock.calls}) == 7
