"""What a sweep was asked for, read once: every worker and every later day goes by the same."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from convoy.core import files, params, yaml
from convoy.core.dataset import Dataset
from convoy.models import spec
from convoy.sweep.settings import SweepParams
from convoy.sweep.space import SECTIONS, Dimension, dimensions
from convoy.training import weight_pins
from convoy.training.checkpoints import training_code
from convoy.training.settings import NetworkParams, TrainParams

DATASET = Path("build/dataset")
TRIAL = Path(__file__).with_name("trial.py")
Direction = Literal["minimize", "maximize"]


class Request(BaseModel):
    """Hold everything that decides what the trials of a study come to.

    Attributes:
        content: the sections `network` and `train` and `seed` of params.yaml.
        sweep: its section `sweep`.
        inputs: name to hash of what a study hangs on. Another one of any: another study.
        specs: every network that a trial may train, as its file described it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    content: dict[str, Any]
    sweep: SweepParams
    inputs: dict[str, str]
    specs: dict[str, Any]

    @classmethod
    def read(cls, path: Path = params.PARAMS_FILE) -> Self:
        """Read params.yaml, the packed dataset and the networks.

        Raises:
            RequestError: a value or a key of the space that cannot be.
            DataError: there is no packed dataset.
            NetworkError: starting weights that are not pinned.
        """
        sweep = params.section("sweep", SweepParams, path)
        everything = yaml.read(path)
        seed = params.seed(path)
        for name, kind in SECTIONS.items():
            params.section(name, kind, path)
        space = dimensions(sweep, everything)
        content = {"seed": seed, **{name: everything[name] for name in SECTIONS}}
        specs = {name: spec.load(name).model_dump() for name in _options("network.name", space, content)}
        inputs = {
            "data": Dataset.load(DATASET).hash,
            "space": params.digest(sweep.model_dump()["space"] | {"metric": sweep.metric}),
            "params": params.digest(_fixed(space, content)),
            "network": params.digest(specs),
            "weights": params.digest(_weights(space, content)),
            "code": code(),
        }
        return cls(content=content, sweep=sweep, inputs=inputs, specs=specs)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    def save(self, path: Path) -> None:
        """Write it down for workers."""
        files.write_text(path, self.model_dump_json(indent=2) + "\n")

    @property
    def name(self) -> str:
        """Name the study, such as `sweep-3f2a9c1b04de`."""
        return f"sweep-{params.digest(self.inputs)[:12]}"

    @property
    def direction(self) -> Direction:
        """Say which values of the metric are better, in Optuna's word."""
        return "maximize" if self.sweep.metric == "val/accuracy" else "minimize"

    @property
    def seed(self) -> int:
        """Give the seed of params.yaml."""
        return int(self.content["seed"])

    @property
    def space(self) -> tuple[Dimension, ...]:
        """Give the dimensions of the space."""
        return dimensions(self.sweep, self.content)

    def present(self) -> dict[str, Any]:
        """Give what params.yaml says for the keys of the space."""
        return {key: yaml.get(self.content, key) for key in self.sweep.space}

    def settings(self, values: Mapping[str, Any]) -> tuple[NetworkParams, TrainParams, int]:
        """Give the params of a trial, whose values replace those of params.yaml."""
        changed = yaml.replaced(self.content, values)
        return (
            params.check("network", NetworkParams, changed["network"]),
            params.check("train", TrainParams, changed["train"]),
            int(changed["seed"]),
        )


def code() -> str:
    """Hash the modules that decide what a trial comes to."""
    return params.digest(training_code() | {"trial": files.sha256(TRIAL)})


def _options(key: str, space: tuple[Dimension, ...], content: Mapping[str, Any]) -> list[Any]:
    """List the values that a key may have in a trial."""
    return next((list(one.choices) for one in space if one.key == key), [yaml.get(content, key)])


def _fixed(space: tuple[Dimension, ...], content: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what trials vary."""
    return yaml.replaced(content, {one.key: None for one in space})


def _weights(space: tuple[Dimension, ...], content: Mapping[str, Any]) -> dict[str, str]:
    """Name the bytes of all starting weights that a trial may begin with."""
    asked = [one for one in _options("network.weights", space, content) if one != weight_pins.NONE]
    if not asked:
        return {}
    pairs = itertools.product(asked, _options("network.name", space, content))
    return {
        f"{source} {name}": weight_pins.find(source, spec.load(name)).weights_sha256 for source, name in pairs
    }
