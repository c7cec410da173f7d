"""One study on disk: which values are tried next, and what happens to trials whose process died.

`sweeps/<name>/` holds `study.journal` (Optuna's format, which its own tools read), `request.json` and a log per
trial. Only the process that holds `sweep.lock` writes the journal.
"""

import itertools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from convoy.core import yaml
from convoy.sweep.request import Request
from convoy.sweep.space import combinations

JOURNAL = "study.journal"

RUN, EPOCHS, REASON, WORKER, KILLED = "run", "epochs", "reason", "worker", "killed"
"""User attributes of a trial: Convoy's run id, epochs to train, why it failed, process id, workers killed by its values."""

LIVES = 2
"""Workers that may die while they train with the same values, before these values count as the cause."""

MIN_COMPLETE = 5
"""Completed trials before any is pruned: the median of fewer is noise."""

RANDOM_TRIALS = 10
"""Trials at the start that are drawn at random, for TPE to have something to model."""

TRIES = 10
"""Draws of each sampler in search of values that were not tried before."""

MOST_LISTED = 100_000
"""Largest number of combinations that is written out to find one that is left."""


def open_study(request: Request) -> optuna.Study:
    """Open the study of a request, or start it with the values of params.yaml as its first trial.

    Only for the process that holds the study's lock.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    request.folder.mkdir(parents=True, exist_ok=True)
    _repair(request.folder / JOURNAL)
    study = optuna.create_study(
        storage=_storage(request),
        study_name=request.name,
        direction=request.direction,
        load_if_exists=True,
        sampler=RepeatableSampler(request),
        pruner=MedianPruner(n_startup_trials=MIN_COMPLETE, n_warmup_steps=request.sweep.warmup_epochs),
    )
    present = {
        dimension.key: dimension.stored(yaml.get(request.content, dimension.key))
        for dimension in request.space
    }
    if not study.get_trials(deepcopy=False) and None not in present.values():
        study.enqueue_trial(present)
    return study


def read_trials(request: Request) -> list[FrozenTrial]:
    """Read the trials of a study, by number, without writing anything; empty where there is no study yet."""
    if not (request.folder / JOURNAL).exists():
        return []
    try:
        study = optuna.load_study(study_name=request.name, storage=_storage(request))
    except KeyError:  # the process that made the file died before it wrote the study
        return []
    return study.get_trials(deepcopy=False)


def begun(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Leave out the trials that wait, and those that were lost and are queued again under another number."""
    lost = _lost(trials)
    return [trial for trial in trials if trial.state != TrialState.WAITING and trial.number not in lost]


def requeue(study: optuna.Study, number: int, *, blame: bool) -> bool:
    """Queue the values of a lost trial again; return False where they cost `LIVES` workers and are given up.

    With `blame` this loss counts against the values: the trial's worker died, not the whole sweep.
    """
    trials = study.get_trials()
    trial = trials[number]
    trial.user_attrs[KILLED] = trial.user_attrs.get(KILLED, 0) + blame
    if trial.user_attrs[KILLED] >= LIVES:
        return False
    if number not in _lost(trials):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback()(study, trial)
    return True


def recover(study: optuna.Study) -> list[int]:
    """Queue the values again of trials that a killed sweep left running; return the trials' numbers."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        requeue(study, trial.number, blame=False)
        # Afterwards, not before: a death in between must not lose the values.
        study.tell(trial.number, state=TrialState.FAIL)
    return [trial.number for trial in running]


class RepeatableSampler(BaseSampler):
    """Choose by TPE values that no trial had before, with no more digits than matter.

    Optuna's sampler is made anew for each trial, seeded by the seed and the number of trials before. So one worker
    tries the same values whether or not the sweep was interrupted in between.
    """

    def __init__(self, request: Request) -> None:
        self._seed = int(request.content["seed"])
        self._space = {dimension.key: dimension for dimension in request.space}

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002 (Optuna's signature)
        trial: FrozenTrial,  # noqa: ARG002 (Optuna's signature)
    ) -> dict[str, BaseDistribution]:
        """Choose all keys together."""
        return {key: dimension.distribution for key, dimension in self._space.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose a combination that was not tried; empty where all were."""
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        tried = {tuple(other.params.get(key) for key in search_space) for other in others}
        index = len(begun(others))
        for attempt in range(2 * TRIES):
            seed = int(np.random.SeedSequence([self._seed, index, attempt]).generate_state(1)[0])
            sampler: BaseSampler = TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
            if attempt >= TRIES:
                sampler = RandomSampler(seed=seed)
            drawn = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
            for key, distribution in search_space.items():
                if key not in drawn:
                    drawn[key] = sampler.sample_independent(study, trial, key, distribution)
            values = {key: dimension.rounded(drawn[key]) for key, dimension in self._space.items()}
            if tuple(values.values()) not in tried:
                return values
        if (combinations(list(self._space.values())) or MOST_LISTED + 1) > MOST_LISTED:
            return {}
        points = itertools.product(*(dimension.all() or () for dimension in self._space.values()))
        left = [point for point in points if point not in tried]
        chosen = left[np.random.default_rng([self._seed, index]).integers(len(left))] if left else ()
        return dict(zip(search_space, chosen, strict=False))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 (Optuna's signature)
        """Draw at random where `sample_relative` found nothing new."""
        sampler = RandomSampler(seed=self._seed + trial.number)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _storage(request: Request) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(request.folder / JOURNAL)))


def _repair(journal: Path) -> None:
    """Remove what a killed writer or a full disk left: parts of lines, which Optuna would refuse, and its lock."""
    journal.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    whole = [line for line in lines if _is_json(line)]
    if whole != lines:
        journal.write_bytes(b"".join(whole))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


def _lost(trials: Sequence[FrozenTrial]) -> set[int]:
    """Collect the numbers of trials whose values were queued again."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
