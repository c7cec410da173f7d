"""One study: what it is to do, which values are tried next, and what happens to trials whose process died.

`sweeps/<name>/` holds `study.journal` (Optuna's format, which its own tools read), `request.json`, from which every
worker and every later call reads what to do, and a log per trial. Only the process that holds `sweep.lock` writes the
journal.
"""

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from convoy.core import files, params, stage, yaml
from convoy.core.dataset import Dataset
from convoy.core.errors import NetworkError, RequestError
from convoy.models import spec
from convoy.models.build import assemble
from convoy.models.spec import Spec
from convoy.sweep.settings import SweepParams
from convoy.sweep.space import SECTIONS, Dimension, combinations, describe, dimensions
from convoy.training import weight_pins
from convoy.training.checkpoints import training_code
from convoy.training.freezing import Plan, blocks, refuse_without_weights
from convoy.training.settings import NetworkParams, TrainParams

DATASET = Path("build/dataset")
FOLDER, REQUEST, JOURNAL = "sweeps", "request.json", "study.journal"

RUN, EPOCHS, REASON, WORKER, KILLED = "run", "epochs", "reason", "worker", "killed"
"""User attributes of a trial: Convoy's run id, epochs to train, why it failed, process id, workers killed by its values."""

BASELINE = "baseline"
"""User attribute of the first trial: the values of params.yaml when the study began, by flat key."""

TEACHER = "train.teacher"
FREEZING = ("network.", "train.transfer.", "train.epochs")  # keys that decide which blocks are frozen
MOST_CHECKED = 2000  # combinations that `check_combinations` goes through
LIVES = 2  # workers that die with the same values before these values count as the cause
MIN_COMPLETE = 5  # completed trials before any is pruned: the median of fewer is noise
RANDOM_TRIALS = 10  # drawn at random at the start, for TPE to have something to model
TRIES = 10  # draws of each sampler in search of values that were not tried before
MOST_LISTED = 100_000  # combinations that are listed to find those that are left


class Request(BaseModel):
    """Hold everything that decides the results of a study's trials."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    content: dict[str, Any]  # sections `network` and `train`, and `seed`, of params.yaml
    sweep: SweepParams
    inputs: dict[str, str]  # hashes of what identifies a study: when any changes, a new study begins
    specs: dict[str, Any]  # every network that a trial may train, as its file described it

    @classmethod
    def read(cls) -> Self:
        """Read params.yaml, the packed dataset and the networks.

        Raises:
            RequestError: an invalid value or key of the space.
            DataError: there is no packed dataset.
            NetworkError: starting weights, or a teacher, that are not pinned.
        """
        sweep = params.section("sweep", SweepParams)
        everything = yaml.read(params.PARAMS_FILE)
        for name, kind in SECTIONS.items():
            params.section(name, kind)
        content = {"seed": params.seed(), **{name: everything[name] for name in SECTIONS}}
        space = dimensions(sweep, everything)
        names = _options("network.name", space, content)
        specs = {name: spec.load(name).model_dump() for name in names}
        inputs = {
            "data": Dataset.load(DATASET).hash,
            "space": params.digest(sweep.model_dump()["space"] | {"metric": sweep.metric}),
            "params": params.digest(yaml.replaced(content, {dimension.key: None for dimension in space})),
            "network": params.digest(specs),
            "weights": params.digest(_weights(space, content)),
            "code": code(),
        }
        if (
            name := yaml.get(content, "network.name")
        ) not in specs:  # of the baseline, which identifies no study
            specs[name] = spec.load(name).model_dump()
        return cls(content=content, sweep=sweep, inputs=inputs, specs=specs)

    def save(self) -> None:
        """Write it to the study's folder, for workers."""
        files.write_text(self.folder / REQUEST, self.model_dump_json(indent=2) + "\n")

    @property
    def name(self) -> str:
        """Name the study, such as `sweep-3f2a9c1b04de`."""
        return f"sweep-{params.digest(self.inputs)[:12]}"

    @property
    def folder(self) -> Path:
        """Locate the study in the repository."""
        return stage.repository() / FOLDER / self.name

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Name the better side of the metric, in Optuna's words."""
        return "maximize" if self.sweep.metric == "val/accuracy" else "minimize"

    @property
    def space(self) -> tuple[Dimension, ...]:
        """Return the dimensions of the space."""
        return dimensions(self.sweep, self.content)

    @property
    def present(self) -> dict[str, Any]:
        """Return the values that params.yaml has for the keys of the space, inside the space or not."""
        return {dimension.key: yaml.get(self.content, dimension.key) for dimension in self.space}

    @property
    def networks(self) -> list[str]:
        """Name the networks that trials train, that of the baseline first."""
        own = yaml.get(self.content, "network.name")
        return [own, *(name for name in _options("network.name", self.space, self.content) if name != own)]

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Check whether every value lies in the space."""
        return all(dimension.stored(values[dimension.key]) is not None for dimension in self.space)

    def settings(self, values: Mapping[str, Any]) -> tuple[NetworkParams, TrainParams, int]:
        """Return the params of a trial, whose values replace those of params.yaml."""
        changed = yaml.replaced(self.content, values)
        return (
            params.check("network", NetworkParams, changed["network"]),
            params.check("train", TrainParams, changed["train"]),
            int(changed["seed"]),
        )


def code() -> str:
    """Hash the modules that decide a trial's result."""
    return params.digest(training_code() | {"trial": files.sha256(Path(__file__).with_name("worker.py"))})


def check_combinations(request: Request) -> None:
    """Find values that exclude each other before any trial, such as frozen blocks without starting weights.

    Raises:
        RequestError: naming the values that exclude each other.
        DataError: there is no packed dataset.
    """
    dataset = Dataset.load(DATASET)
    space = [dimension for dimension in request.space if dimension.key.startswith(FREEZING)]
    points = itertools.product(*(dimension.ends() for dimension in space))
    for point in itertools.islice(points, MOST_CHECKED):
        values = {dimension.key: value for dimension, value in zip(space, point, strict=True)}
        network, train, _ = request.settings(values)
        transfer = train.transfer
        releases = isinstance(transfer.release, Mapping)
        if (transfer.freeze, transfer.batch_norm, releases) == (0, "adapt", False):
            continue  # nothing is frozen or released, which fits every network
        try:
            if network.weights == weight_pins.NONE:
                refuse_without_weights(transfer)
            network_spec = Spec.model_validate(request.specs[network.name])
            parts = blocks(assemble(network_spec, len(dataset.classes), dataset.image_px))
            Plan.of([block.name for block in parts], train, network.name)
        except NetworkError:  # the network does not take these images: only its own trials fail
            continue
        except RequestError as error:
            where = f"with {describe(values)}: " if values else ""
            raise RequestError(
                f"sweep.space allows values that cannot be trained together: {where}{error}\n"
                "Remove one of these values from sweep.space, or change the value in params.yaml that excludes it."
            ) from error


def _options(key: str, space: tuple[Dimension, ...], content: Mapping[str, Any]) -> list[Any]:
    """List the values that a key may have in a trial."""
    varied = [dimension for dimension in space if dimension.key == key]
    return list(varied[0].ends()) if varied else [yaml.get(content, key)]


def _weights(space: tuple[Dimension, ...], content: Mapping[str, Any]) -> dict[str, str]:
    """Hash all starting weights that a trial may begin with, and all teachers."""
    weights, teachers = (
        [source for source in _options(key, space, content) if source != weight_pins.NONE]
        for key in ("network.weights", TEACHER)
    )
    pairs = itertools.product(weights, _options("network.name", space, content))
    return {
        f"{source} {name}": weight_pins.find(source, spec.load(name)).weights_sha256 for source, name in pairs
    } | {
        f"{TEACHER} {source}": params.digest(weight_pins.find(source, None, key=TEACHER).sha256)
        for source in teachers
    }


def open_study(request: Request) -> optuna.Study:
    """Open the study of a request, or start it; its first trial has the values of params.yaml.

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
    if not any(is_baseline(trial) for trial in study.get_trials(deepcopy=False)):
        stored = {
            dimension.key: dimension.stored(request.present[dimension.key]) for dimension in request.space
        }
        # Values outside the space are no params of Optuna's: `optimize` takes them from the attribute.
        inside = {key: value for key, value in stored.items() if value is not None}
        study.enqueue_trial(inside, user_attrs={BASELINE: request.present})
    return study


def is_baseline(trial: FrozenTrial) -> bool:
    """Whether a trial trains the values of params.yaml; an earlier Convoy queued it without the attribute."""
    return BASELINE in trial.user_attrs or (trial.number == 0 and "fixed_params" in trial.system_attrs)


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
