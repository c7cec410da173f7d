"""What decides a training, as the stage `train` of dvc.yaml lists it: other inputs mean another training."""

from pathlib import Path

from convoy.core import files, params, yaml
from convoy.core.dataset import Dataset
from convoy.models.spec import Spec
from convoy.training.pretrained import Starting
from convoy.training.settings import TrainParams

PIPELINE = Path("dvc.yaml")


def digest(dataset: Dataset, spec: Spec, starting: Starting | None, train: TrainParams, seed: int) -> str:
    """Hash data, network, starting weights, params, seed and the code that trains; 64 hexadecimal digits."""
    return params.digest(
        {
            "data": dataset.hash,
            "network": spec.model_dump(),
            "weights": starting.sha256 if starting else None,
            "train": train.model_dump(),
            "seed": seed,
            "code": code(),
        }
    )


def code() -> dict[str, str]:
    """Map each file of code that `train` depends on, folders expanded, to its SHA-256."""
    deps = yaml.read(PIPELINE)["stages"]["train"]["deps"]
    found: dict[str, str] = {}
    for dep in sorted(dep for dep in deps if dep.startswith(("src/", "pipelines/"))):
        path = Path(dep)
        members = [path] if path.is_file() else sorted(path.rglob("*.py"))
        found |= {member.as_posix(): files.sha256(member) for member in members}
    return found
