"""Check everything that can be checked before the pipeline writes anything."""

from collections.abc import Mapping
from pathlib import Path

from convoy.core import params, yaml
from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.data.settings import DataParams
from convoy.energy.settings import EnergyParams
from convoy.evaluation.settings import EvaluateParams
from convoy.export.settings import ExportParams
from convoy.gate.settings import GateParams
from convoy.models import shapes, spec
from convoy.repo.git import untracked
from convoy.sweep.settings import SweepParams
from convoy.tracking.settings import TrackingParams
from convoy.training.settings import CheckpointParams, NetworkParams, TrainParams

SECTIONS: dict[str, type[params.Section]] = {
    "data": DataParams,
    "network": NetworkParams,
    "train": TrainParams,
    "checkpoints": CheckpointParams,
    "evaluate": EvaluateParams,
    "export": ExportParams,
    "tracking": TrackingParams,
    "energy": EnergyParams,
    "sweep": SweepParams,
    "gate": GateParams,
}

MAPPINGS = ("train.transfer.release", "sweep.space")
"""Keys whose value may be a mapping, which flattening takes apart; that of the last has keys with dots."""

ANY_CLASSES = 2
"""Stands for the number of classes, which no layer but the last sees."""


def parse(words: list[str]) -> dict[str, str]:
    """Read `--train.epochs 3` pairs, as `mlflow run -P train.epochs=3` hands them on.

    Raises:
        RequestError: a word that is no `--key`, or a key without a value.
    """
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        raise RequestError(
            f"cannot read {' '.join(words)!r}. Give pairs, such as: --train.epochs 3 --train.lr 0.02"
        )
    return {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}


def check(overrides: Mapping[str, str], path: Path = params.PARAMS_FILE) -> None:
    """Check params.yaml, with some values replaced, and the network that it names, down to the size of its images.

    Args:
        overrides: flat names to values as typed, such as `train.epochs` to `3`.
        path: the params file.

    Raises:
        RequestError: naming the key, the nearest valid one or the allowed range.
        NetworkError: the network does not take images of `data.image_px`.
    """
    content = yaml.read(path)
    known = {*MAPPINGS, *(key for key in params.flatten(content) if not key.startswith("sweep.space."))}
    for key in overrides:
        if key not in known:
            raise RequestError(f"unknown key {key}{params.did_you_mean(key, known)}")
    content = yaml.replaced(content, {key: yaml.load(typed) for key, typed in overrides.items()})
    expected = ["seed", *SECTIONS]
    for key in content:
        if key not in expected:
            raise RequestError(f"{path}: unknown key {key}{params.did_you_mean(key, expected)}")
    for key in expected:
        if key not in content:
            raise RequestError(f"{path}: missing key {key}. Restore it: git checkout {path}")
    params.check("", params.TopLevel, {"seed": content["seed"]}, path)
    for name, kind in SECTIONS.items():
        params.check(name, kind, content[name], path)
    _check_network(content["network"]["name"], content["data"]["image_px"])


def _check_network(name: str, image_px: int) -> None:
    """Check a spec, and that it takes images of this size; say so where a queued experiment would lack it."""
    network = spec.load(name)
    if note := untracked(spec.FOLDER / f"{name}.yaml"):
        info(note)
    if network.torchvision is None:  # torchvision's own would cost the import of torch
        shapes.infer(network, ANY_CLASSES, image_px)
