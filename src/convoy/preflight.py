"""Check params and network before the pipeline writes anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core import params, yaml
from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.data.settings import DataParams
from convoy.energy.settings import EnergyParams
from convoy.evaluation.settings import EvaluateParams
from convoy.export import signing
from convoy.export.settings import ExportParams
from convoy.gate.settings import GateParams
from convoy.models import shapes, spec
from convoy.repo.git import untracked
from convoy.serving.settings import ServeParams
from convoy.sweep.settings import SweepParams
from convoy.tracking.settings import TrackingParams
from convoy.training import progressive
from convoy.training.augment import policy
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
    "serve": ServeParams,
    "gate": GateParams,
}

MAPPINGS = ("train.transfer.release", "sweep.space")  # may be mappings, which flattening splits
ANY_CLASSES = 2  # placeholder for the number of classes, on which only the last layer depends


def parse(words: list[str]) -> dict[str, str]:
    """Read `--train.epochs 3` pairs, as `mlflow run -P train.epochs=3` passes them.

    Raises:
        RequestError: a word is not a `--key`, or a key has no value.
    """
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        raise RequestError(
            f"{' '.join(words)!r} is not a list of keys and values, such as: --train.epochs 3 --train.lr 0.02"
        )
    return {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}


def check(overrides: Mapping[str, str], path: Path = params.PARAMS_FILE) -> None:
    """Check params.yaml, and that its network accepts images of `data.image_px`.

    `overrides` replace values: flat names to what was typed, such as `train.epochs` to `3`, read as YAML 1.2.

    Raises:
        RequestError: naming the key, the nearest valid one or the allowed range; or the key of `export.sign` does not exist.
        NetworkError: the network does not accept images of `data.image_px`.
    """
    content = yaml.read(path)
    known = {*MAPPINGS, *(key for key in params.flatten(content) if not key.startswith("sweep.space."))}
    for key in overrides:
        if key not in known:
            raise RequestError(f"unknown key {key}{params.did_you_mean(key, known)}")
    content = yaml.replaced(content, {key: yaml.load(typed) for key, typed in overrides.items()})
    _check_sections(content, path)
    data = params.check("data", DataParams, content["data"], path)
    train = params.check("train", TrainParams, content["train"], path)
    signing.private_key(params.check("export", ExportParams, content["export"], path).sign)
    policy.check(train.augment, image_px=data.image_px, store_px=data.train_px, batch_size=train.batch_size)
    if hint := policy.unused_store(train.augment, image_px=data.image_px, store_px=data.train_px):
        info(hint)
    network = spec.load(content["network"]["name"])
    if warning := untracked(spec.FOLDER / f"{network.name}.yaml"):
        info(warning)
    if network.classifier is None:  # the shapes of a library's networks would cost the import of torch
        shapes.infer(network, ANY_CLASSES, data.image_px)
        progressive.check(network, ANY_CLASSES, data.image_px, train)


def _check_sections(content: Mapping[str, Any], path: Path) -> None:
    """Check every section by itself.

    Raises:
        RequestError: as `check`.
    """
    expected = ["seed", *SECTIONS]
    for key in content:
        if key not in expected:
            raise RequestError(f"{path}: unknown key {key}{params.did_you_mean(key, expected)}")
    for key in expected:
        if key in SECTIONS and key not in content:
            raise params.without_section(key, SECTIONS[key], content, path)
    params.check("", params.TopLevel, {"seed": content["seed"]} if "seed" in content else {}, path)
    for name, kind in SECTIONS.items():
        params.check(name, kind, content[name], path)
