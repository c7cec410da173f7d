"""What a sweep is to do, read once from params.yaml: every worker and every later call uses the same."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from convoy.core import files, params, stage, yaml
from convoy.core.dataset import Dataset
from convoy.core.errors import NetworkError, RequestError
from convoy.models import spec
from convoy.models.build import assemble
from convoy.models.spec import Spec
from convoy.sweep.settings import SweepParams
from convoy.sweep.space import SECTIONS, Dimension, describe, dimensions
from convoy.training import weight_pins
from convoy.training.checkpoints import training_code
from convoy.training.freezing import Plan, blocks, refuse_without_weights
from convoy.training.settings import NetworkParams, TrainParams

DATASET = Path("build/dataset")
FOLDER = "sweeps"
REQUEST = "request.json"
TRIAL = Path(__file__).with_name("trial.py")

FREEZING = ("network.", "train.transfer.", "train.epochs")
"""Beginnings of the keys that decide which blocks are frozen, and until when."""

MOST_CHECKED = 2000
"""Largest number of combinations that `check_combinations` goes through."""


class Request(BaseModel):
    """Hold everything that decides the results of a study's trials."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    content: dict[str, Any]  # sections `network` and `train`, and `seed`, of params.yaml
    sweep: SweepParams
    inputs: dict[str, str]  # hashes of what identifies a study: when any changes, a new study begins
    specs: dict[str, Any]  # every network that a trial may train, as its file described it

    @classmethod
    def read(cls, path: Path = params.PARAMS_FILE) -> Self:
        """Read params.yaml, the packed dataset and the networks.

        Raises:
            RequestError: an invalid value or key of the space.
            DataError: there is no packed dataset.
            NetworkError: starting weights that are not pinned.
        """
        sweep = params.section("sweep", SweepParams, path)
        everything = yaml.read(path)
        for name, kind in SECTIONS.items():
            params.section(name, kind, path)
        content = {"seed": params.seed(path), **{name: everything[name] for name in SECTIONS}}
        space = dimensions(sweep, everything)
        specs = {name: spec.load(name).model_dump() for name in _options("network.name", space, content)}
        inputs = {
            "data": Dataset.load(DATASET).hash,
            "space": params.digest(sweep.model_dump()["space"] | {"metric": sweep.metric}),
            "params": params.digest(yaml.replaced(content, {dimension.key: None for dimension in space})),
            "network": params.digest(specs),
            "weights": params.digest(_weights(space, content)),
            "code": code(),
        }
        return cls(content=content, sweep=sweep, inputs=inputs, specs=specs)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))

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
    return params.digest(training_code() | {"trial": files.sha256(TRIAL)})


def check_combinations(request: Request, classes: int, image_px: int) -> None:
    """Find values that exclude each other before any trial, such as frozen blocks without starting weights.

    Raises:
        RequestError: naming the values that exclude each other.
    """
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
            parts = blocks(assemble(network_spec, classes, image_px))
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
    """Hash all starting weights that a trial may begin with."""
    chosen = [source for source in _options("network.weights", space, content) if source != weight_pins.NONE]
    if not chosen:
        return {}
    pairs = itertools.product(chosen, _options("network.name", space, content))
    return {
        f"{source} {name}": weight_pins.find(source, spec.load(name)).weights_sha256 for source, name in pairs
    }
