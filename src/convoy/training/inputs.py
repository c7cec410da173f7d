"""Hash everything that a training is given, as dvc.yaml lists it: other inputs mean another training."""

from pathlib import Path

from convoy import files, params
from convoy.data.dataset import Dataset
from convoy.networks.spec import Spec
from convoy.networks.weights.starting import Starting
from convoy.training.settings import TrainParams

PIPELINE = Path("dvc.yaml")
HARMLESS = {"time_budget_min"}
"""Keys of `train` that change when a training stops, and nothing of its result; dvc.yaml leaves them out too."""


def digest(dataset: Dataset, spec: Spec, starting: Starting | None, train: TrainParams, seed: int) -> str:
    """Hash data, network, starting weights, params, seed and the code that trains; 64 hexadecimal digits."""
    return params.digest(
        {
            "data": dataset.hash,
            "network": spec.model_dump(),
            "weights": starting.sha256 if starting else None,
            "train": train.model_dump(exclude=HARMLESS),
            "seed": seed,
            "code": {path: files.sha256(Path(path)) for path in _code()},
        }
    )


def _code() -> list[str]:
    """List the files of code that the stage depends on."""
    deps = params.read_yaml(PIPELINE)["stages"]["train"]["deps"]
    return sorted(path for path in deps if path.startswith(("src/", "pipelines/")))
