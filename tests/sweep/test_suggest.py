"""What is tried next hangs on the seed, the space and the trials so far, and on nothing else."""

import math
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from convoy.sweep.request import Request
from convoy.sweep.space import Dimension
from convoy.sweep.suggest import combinations, suggest


def proposed(
    space: tuple[Dimension, ...], present: dict[str, Any], *, seed: int, count: int
) -> list[dict[str, Any]]:
    """Let a sweep run whose loss is the distance of the learning rate from 0.05."""
    history: list[FrozenTrial] = []
    for index in range(count):
        values = suggest(space, history, seed=seed, index=index, direction="minimize", present=present)
        if values is None:
            break
        distributions = {one.key: one.distribution for one in space}
        loss = abs(values.get("train.lr", 0.0) - 0.05)
        history.append(optuna.trial.create_trial(params=values, distributions=distributions, value=loss))
    return [trial.params for trial in history]


def test_equal_seeds_propose_equal_values(here) -> None:
    request = Request.read()
    first = proposed(request.space, request.present(), seed=1, count=16)
    assert first == proposed(request.space, request.present(), seed=1, count=16)
    other = proposed(request.space, request.present(), seed=2, count=16)
    assert first[0] == other[0] == {"train.lr": 0.1, "train.batch_size": 16}
    assert not any(one == another for one, another in zip(first[1:], other[1:], strict=True))


def test_later_proposals_lie_where_the_good_values_were(here) -> None:
    request = Request.read()
    found = [values["train.lr"] for values in proposed(request.space, request.present(), seed=1, count=40)]
    away = [abs(math.log(lr / 0.05)) for lr in found]
    assert sum(away[10:]) / 30 < 0.7 * sum(away[:10]) / 10


def test_no_values_are_tried_twice_and_a_finite_space_is_tried_whole(here) -> None:
    here.space(
        "train.batch_size: [8, 16]", "train.crop_padding: {low: 0, high: 2}", "train.augment: [[], [crop]]"
    )
    request = Request.read()
    assert combinations(request.space) == 12
    found = proposed(request.space, request.present(), seed=1, count=20)
    assert len(found) == 12
    assert len({tuple(values.values()) for values in found}) == 12


def test_what_params_say_comes_first_only_where_the_space_has_it(here) -> None:
    here.set(train__lr=0.9)
    request = Request.read()
    [first] = proposed(request.space, request.present(), seed=1, count=1)
    assert first["train.lr"] <= 0.5
