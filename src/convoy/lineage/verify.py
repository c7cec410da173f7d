"""Train again in a restored clone, and compare metrics and weights with those of the run."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.core import files, yaml
from convoy.core.console import info
from convoy.lineage.runs import Record
from convoy.repo import dvc
from convoy.repo.dvc_cache import RestoreError

if TYPE_CHECKING:
    from torch import Tensor

METRICS = Path("build/metrics")
WEIGHTS = Path("build/model/weights.pt")
PROOF = Path("build/deploy/verification.json")

MEASURED_ANEW = ("seconds", "latency", "per_second", "energy/")
"""Parts of names of metrics that time, and what it takes, decide: no two runs agree in them."""

OUTER = ("DVC_", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT")
"""Beginnings of variables that would send the training's run elsewhere: it belongs to the clone."""

NAMED = 5


@dataclass(frozen=True)
class Verified:
    """Compare a second training with the run.

    Attributes:
        metrics: name to the run's value and the second one, where they differ.
        compared: metrics that were compared.
        tensors: name of each tensor that differs to the largest difference of a number in it.
        total: tensors that were compared.
        conditions: what is known to be other than when the run was made.
    """

    metrics: dict[str, tuple[float, float]]
    compared: int
    tensors: dict[str, float]
    total: int
    conditions: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Tell whether nothing differs."""
        return not self.metrics and not self.tensors


def verify(clone: Path, record: Record) -> Verified:
    """Force the training in a restored clone, and what follows from it; then put the run's outputs back.

    Args:
        clone: as `restore` made it.
        record: the run.

    Raises:
        RestoreError: the training does not come to its end here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(shutil.copy(clone / WEIGHTS, scratch))
        lock = Path(shutil.copy(clone / "dvc.lock", scratch))
        made_on = files.read_json(clone / PROOF)
        info("training again, with everything that follows …")
        _dvc(clone, "repro", "--force", "--single-item", "train")
        _dvc(clone, "repro")
        again = measured(clone)
        tensors = compare_weights(weights, clone / WEIGHTS)
        now = files.read_json(clone / PROOF)
        shutil.copyfile(lock, clone / "dvc.lock")
    dvc.run(clone, "checkout", "--force")
    before = {name: record.metrics[name] for name in again if name in record.metrics}
    names = [name for name in before if not any(part in name for part in MEASURED_ANEW)]
    differing = {name: (before[name], again[name]) for name in names if before[name] != again[name]}
    conditions = tuple(_conditions(made_on, now, clone)) if differing or tensors.differing else ()
    return Verified(differing, len(names), tensors.differing, tensors.total, conditions)


@dataclass(frozen=True)
class Tensors:
    """Count the tensors of two files, and name those that differ with their largest difference."""

    total: int
    differing: dict[str, float]


def measured(clone: Path) -> dict[str, float]:
    """Read the metrics of every stage by MLflow's names."""
    flat: dict[str, float] = {}
    for path in sorted((clone / METRICS).glob("*.json")):
        flat |= dict(_numbers(files.read_json(path)))
    return flat


def compare_weights(before: Path, after: Path) -> Tensors:
    """Compare two files of weights tensor by tensor, by the sha256 of type, shape and bytes."""
    import torch  # noqa: PLC0415 (a second)

    old, new = (torch.load(path, map_location="cpu", weights_only=True) for path in (before, after))
    names = sorted({*old, *new})
    differing = {}
    for name in names:
        if name not in old or name not in new or old[name].shape != new[name].shape:
            differing[name] = float("inf")
        elif digest(old[name]) != digest(new[name]):
            differing[name] = float((old[name].double() - new[name].double()).abs().max())
    return Tensors(len(names), differing)


def digest(tensor: "Tensor") -> str:
    """Hash type, shape and content of a tensor."""
    import torch  # noqa: PLC0415 (a second that looking does without)

    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + content).hexdigest()


def lines(found: Verified) -> Iterator[str]:
    """Render for people."""
    if not found.tensors:
        yield f"weights  equal to the bit: {found.total} tensors, by sha256"
    else:
        largest = max(found.tensors.values())
        yield f"weights  {len(found.tensors)} of {found.total} tensors differ, by up to {largest:.3g}: {_some(found.tensors)}"
    if not found.metrics:
        yield f"metrics  equal: {found.compared}; times and energy are not compared"
    else:
        yield f"metrics  {len(found.metrics)} of {found.compared} differ; times and energy are not compared"
        for name, (old, new) in found.metrics.items():
            yield f"         {name}  {old} → {new}"
    if found.equal:
        return
    yield "Why that may be:"
    for condition in found.conditions or (
        "nothing that is recorded differs: processor, versions and precision agree",
    ):
        yield f"  {condition}"


def _conditions(then: Mapping[str, Any], now: Mapping[str, Any], clone: Path) -> Iterator[str]:
    """Name what decides the last bits of a result and is other than it was."""
    for name in ("processor", "system", "cores"):
        old, new = then["hardware"].get(name), now["hardware"].get(name)
        if old != new:
            yield f"{name}: {old} → {new}"
    for name, old in then["versions"].items():
        if old != now["versions"].get(name):
            yield f"{name} {old} → {now['versions'].get(name, 'absent')}; the clone's requirements.txt is the lock of then"
    precision = yaml.load((clone / "params.yaml").read_text(encoding="utf-8"))["train"].get("precision")
    if precision == "auto":
        yield "train.precision is auto: bf16 where the processor or GPU computes in it, else float32"
    yield "a GPU adds in an order that changes from run to run; a CPU's depends on its threads (OMP_NUM_THREADS)"


def _numbers(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, item in nested.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{prefix}{key}/")
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            yield f"{prefix}{key}", float(item)


def _some(names: Mapping[str, float]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(list(names)[:NAMED]) + more


def _dvc(clone: Path, *words: str) -> None:
    """Run DVC in the clone and let people see it work; the tracking store is the clone's own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(OUTER)}
    # Stage commands say `python`: it must be the one that runs this.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    done = subprocess.run(  # noqa: S603 (own words)
        [sys.executable, "-m", "dvc", *words], cwd=clone, env=env, stdout=sys.stderr, check=False
    )
    if done.returncode:
        raise RestoreError(
            f"`dvc {' '.join(words)}` failed in {clone}; the messages above say where. The clone is kept as it is."
        )
