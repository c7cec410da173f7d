"""The checkpoints of a training on disk: what they belong to, how they are written, checked before use and pruned.

`checkpoints/<hash of all inputs>/` holds `step-NNNNNNN.ckpt` files, each with a `.json` file that describes
it. The description is written last, so a checkpoint without it is incomplete.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from convoy.core import files, params, stage, yaml
from convoy.core.console import info
from convoy.core.dataset import Dataset
from convoy.core.errors import TrainingError
from convoy.models.spec import Spec
from convoy.repo import locks
from convoy.training.pretrained import StartingWeights
from convoy.training.settings import CheckpointParams, TrainParams

KEPT = 2
"""Checkpoints kept of an unfinished training: the older serves if the newest is damaged."""

REFERENCE = "run.json"
"""Copy of the reference to the run, as DVC records it."""

DAY_S = 24 * 3600.0


def inputs_digest(
    dataset: Dataset, spec: Spec, starting: StartingWeights | None, train: TrainParams, seed: int
) -> str:
    """Hash everything that decides a training: data, network, starting weights, params, seed and code."""
    return params.digest(
        {
            "data": dataset.hash,
            "network": spec.model_dump(),
            "weights": starting.sha256 if starting else None,
            "train": train.model_dump(),
            "seed": seed,
            "code": training_code(),
        }
    )


def training_code(pipeline: Path = Path("dvc.yaml")) -> dict[str, str]:
    """Map each file of code that the stage `train` of dvc.yaml depends on, folders expanded, to its SHA-256."""
    deps = yaml.read(pipeline)["stages"]["train"]["deps"]
    hashes: dict[str, str] = {}
    for dep in sorted(dep for dep in deps if dep.startswith(("src/", "pipelines/"))):
        path = Path(dep)
        members = [path] if path.is_file() else sorted(path.rglob("*.py"))
        hashes |= {member.as_posix(): files.sha256(member) for member in members}
    return hashes


@dataclass(frozen=True)
class CheckpointFacts:
    """Describe a checkpoint."""

    sha256: str  # of the file
    inputs: str  # hash of everything that decides the training
    run_id: str  # Convoy's id of the run
    epoch: int  # that the next step belongs to, 1 for the first; of a finished training, the last epoch
    step: int  # optimizer steps done
    finished: bool  # whether the training is complete
    torch: str  # version that wrote it
    saved: str  # UTC time


class LoadedCheckpoint(NamedTuple):
    """Hold a valid checkpoint, loaded on the CPU."""

    path: Path
    facts: CheckpointFacts
    content: dict[str, Any]


class CheckpointStore:
    """Keep the checkpoints of the training with one set of inputs."""

    def __init__(self, root: Path, inputs: str, params: CheckpointParams) -> None:
        """Take the folder of all trainings, and the hash of this training's inputs."""
        self.folder = root / inputs[:16]
        self.inputs = inputs
        self.params = params

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the training's lock, which the system releases when the process dies.

        Raises:
            TrainingError: another process trains with the same inputs.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.exclusive(self.folder / "lock"))
            except locks.AlreadyRunning as error:
                raise TrainingError(
                    f"another process trains with the same inputs: {error.owner}. Two would overwrite each other's "
                    f"checkpoints in {self.folder}. Wait for it to end, then run: dvc repro"
                ) from error
            yield

    def resume(self, reference: Path) -> LoadedCheckpoint | None:
        """Prune, and load the checkpoint to resume from: none if DVC has recorded this training's result.

        Then training again was requested, by `dvc repro --force`.

        Args:
            reference: file that names the run; as an output of the stage it identifies the result in dvc.lock.
        """
        if self.is_recorded(reference):
            for path in self._paths():
                _remove(path)
            (self.folder / REFERENCE).unlink(missing_ok=True)
        self.prune()
        return self.newest()

    def newest(self) -> LoadedCheckpoint | None:
        """Load the newest valid checkpoint; print why newer ones are not used."""
        refused = False
        for path in reversed(self._paths()):
            try:
                checkpoint = self._load(path)
            except TrainingError as error:
                info(f"Checkpoint {path} is not used: {error}.")
                refused = True
                continue
            if refused:
                info(f"The checkpoint before it is used: step {checkpoint.facts.step:,}.")
            return checkpoint
        if refused:
            info("No valid checkpoint is left: the training starts from the beginning.")
        return None

    def save(
        self, write: Callable[[Path], None], *, run_id: str, epoch: int, step: int, finished: bool
    ) -> None:
        """Write a checkpoint that is either complete, even after a power failure, or absent.

        `write` writes the checkpoint to the path that it is given; the other values are those of `CheckpointFacts`.

        Raises:
            OSError: the disk is full or cannot be written to; earlier checkpoints are unchanged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:07}.ckpt"
        scratch = self.folder / f".{path.name}.{os.getpid()}"
        try:
            write(scratch)
            _sync(scratch)
            saved = datetime.now(UTC).isoformat(timespec="seconds")
            facts = CheckpointFacts(
                files.sha256(scratch), self.inputs, run_id, epoch, step, finished, torch.__version__, saved
            )
            scratch.replace(path)
            files.write_json(path.with_suffix(".json"), asdict(facts))
            _sync(path.with_suffix(".json"))
            _sync(self.folder)
        finally:
            scratch.unlink(missing_ok=True)
        for old in self._paths()[: -1 if finished else -KEPT]:
            _remove(old)

    def is_recorded(self, reference: Path) -> bool:
        """Return whether DVC has recorded the training that finished here, by the reference to its run."""
        copy = self.folder / REFERENCE
        return copy.exists() and stage.recorded("train", reference, copy.read_bytes())

    def record_result(self, reference: Path) -> None:
        """Keep the reference of the finished training's run."""
        shutil.copyfile(reference, self.folder / REFERENCE)

    def prune(self) -> None:
        """Remove the checkpoints of trainings with other inputs, beyond a number of them or a number of days."""
        others = [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]
        for rank, folder in enumerate(sorted(others, key=_age_s), start=2):  # this training is the first
            if rank > self.params.keep or _age_s(folder) > self.params.keep_days * DAY_S:
                with suppress(locks.AlreadyRunning), locks.exclusive(folder / "lock"):
                    shutil.rmtree(folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.ckpt"))

    def _load(self, path: Path) -> LoadedCheckpoint:
        """Check a checkpoint against its description, and load it without running code that it may hold.

        Raises:
            TrainingError: the reason why it cannot be used.
        """
        description = path.with_suffix(".json")
        try:
            facts = CheckpointFacts(**files.read_json(description))
        except FileNotFoundError as error:
            raise TrainingError("it is incomplete") from error
        except (json.JSONDecodeError, TypeError) as error:
            raise TrainingError(f"{description.name} does not describe it ({error})") from error
        if facts.inputs != self.inputs:
            raise TrainingError("it was made by other code, data or params")
        if files.sha256(path) != facts.sha256:
            raise TrainingError(f"it is truncated or damaged: its sha256 differs from {description.name}")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what its readers do
            raise TrainingError(f"torch {torch.__version__} cannot load it ({error!s:.200})") from error
        return LoadedCheckpoint(path, facts, content)


def _age_s(folder: Path) -> float:
    """Measure the seconds since the newest file of a folder was written."""
    times = [path.stat().st_mtime for path in (folder, *folder.glob("*"))]
    return time.time() - max(times)


def _remove(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)  # first: a checkpoint without it is incomplete
    path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
