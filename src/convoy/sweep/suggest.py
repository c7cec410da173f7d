"""What to try next: a pure function of the seed, the space and the trials so far.

Optuna's sampler is made anew for each trial, seeded by the number of trials before it. So a
sweep by one worker tries the same values whether or not it was interrupted in between.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from convoy.sweep.request import Direction
from convoy.sweep.space import Dimension

RANDOM_TRIALS = 10
"""Trials at the start that are drawn at random: the model behind TPE wants something to begin with."""

TRIES = 10
"""Times that each way to draw is asked for values that were not tried before."""

LISTABLE = 100_000
"""Largest number of combinations that is written out to find one that is left."""

_SUGGEST, _LEFT = 0, 1
"""Purposes of random numbers: streams of one seed and trial that must not repeat each other."""


def suggest(
    dimensions: Sequence[Dimension],
    history: Sequence[FrozenTrial],
    *,
    seed: int,
    index: int,
    direction: Direction,
    present: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Choose values that no trial had before.

    Args:
        dimensions: the space.
        history: trials so far, running ones included.
        seed: of params.yaml.
        index: number of trials before this one, those that died with their process left out.
        direction: minimize | maximize.
        present: what params.yaml says now for the keys of the space. If the space has it, it comes
            first: what the sweep is worth shows against it.

    Returns:
        Values as Optuna keeps them, or None where every combination was tried.
    """
    tried = {_point(dimensions, trial.params) for trial in history}
    now = {one.key: one.stored(present[one.key]) for one in dimensions}
    if index == 0 and None not in now.values() and _point(dimensions, now) not in tried:
        return now
    known = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    learnt = [trial for trial in history if trial.state in known and trial.params]
    for attempt in range(2 * TRIES):
        state = int(np.random.SeedSequence([seed, index, _SUGGEST, attempt]).generate_state(1)[0])
        sampler: BaseSampler = (
            TPESampler(seed=state, n_startup_trials=RANDOM_TRIALS)
            if attempt < TRIES
            else RandomSampler(seed=state)
        )
        study = optuna.create_study(sampler=sampler, direction=direction)
        study.add_trials(learnt)
        drawn = study.ask({one.key: one.distribution for one in dimensions}).params
        values = {one.key: one.rounded(drawn[one.key]) for one in dimensions}
        if _point(dimensions, values) not in tried:
            return values
    left = _left(dimensions, tried)
    if not left:
        return None
    choice = np.random.default_rng([seed, index, _LEFT]).integers(len(left))
    return dict(zip((one.key for one in dimensions), left[choice], strict=True))


def combinations(dimensions: Sequence[Dimension]) -> int | None:
    """Count the points of a space; None where they are without end."""
    listed = [one.all() for one in dimensions]
    return None if None in listed else math.prod(len(values) for values in listed if values is not None)


def _left(dimensions: Sequence[Dimension], tried: set[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """List the combinations that were not tried, where they can be listed."""
    count = combinations(dimensions)
    if count is None or count > LISTABLE:
        return []
    every = itertools.product(*(one.all() or () for one in dimensions))
    return [point for point in every if point not in tried]


def _point(dimensions: Sequence[Dimension], values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(values.get(one.key) for one in dimensions)
