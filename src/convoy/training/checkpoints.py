"""The checkpoints of a training: what they belong to, when and how they are written, checked, pruned and resumed from.

`checkpoints/<hash of all inputs>/` holds `step-NNNNNNN.ckpt` files, each with a `.json` file that describes
it. The description is written last, so a checkpoint without it is incomplete.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from convoy.core import files, params, pipeline
from convoy.core.console import info
from convoy.core.dataset import Dataset
from convoy.core.errors import TrainingError, TrainingPaused
from convoy.core.inputs import watch
from convoy.models.spec import Spec
from convoy.repo import locks
from convoy.training.batch import Batch
from convoy.training.callbacks import MetricBuffer, Publish
from convoy.training.data import DataModule
from convoy.training.pretrained import StartingWeights
from convoy.training.settings import CheckpointParams, TrainParams
from convoy.training.teacher import Teacher

KEPT = 2  # checkpoints kept of an unfinished training: the older serves if the newest is damaged
REFERENCE = "run.json"  # copy of the reference to the run, as DVC records it
ATTEMPT = "attempt.json"  # the latest process that began to train
COST = 0.05  # largest share of the time that checkpoints at the ends of epochs take


def inputs_digest(
    dataset: Dataset,
    spec: Spec,
    starting: StartingWeights | None,
    train: TrainParams,
    seed: int,
    *,
    teacher: Teacher | None = None,
) -> str:
    """Hash everything that decides a training: data, network, starting weights, teacher, params, seed and code."""
    return params.digest(
        {
            "data": dataset.hash,
            "network": spec.model_dump(),
            "weights": starting.sha256 if starting else None,
            "teacher": teacher.sha256 if teacher else None,
            "train": train.model_dump(),
            "seed": seed,
            "code": training_code(),
        }
    )


def training_code() -> dict[str, str]:
    """Map each file of code that the stage `train` of dvc.yaml depends on, folders expanded, to its SHA-256 at the stage's start."""
    deps = pipeline.stages()["train"]["deps"]
    hashes: dict[str, str] = {}
    for dep in sorted(dep for dep in deps if dep.startswith(("src/", "pipelines/"))):
        path = Path(dep)
        members = [path] if path.is_file() else sorted(path.rglob("*.py"))
        hashes |= {member.as_posix(): watch.sha256(member) for member in members}
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
    threads: int  # that the training computes with, on a CPU
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
                    f"another process trains with the same inputs: {error}. Two would overwrite each other's "
                    f"checkpoints in {self.folder}. Wait for it to end, then run: dvc repro"
                ) from error
            yield

    def resume(self, reference: Path) -> LoadedCheckpoint | None:
        """Prune, and load the checkpoint to resume from: none if DVC has recorded this training's result.

        Then training again was requested, by `dvc repro --force`. The `reference` names the run; as an output of the
        stage it identifies the result in dvc.lock.
        """
        recorded = self.folder / REFERENCE
        if recorded.exists() and pipeline.records(reference, recorded.read_bytes()):
            for path in self._paths():
                _remove(path)
            recorded.unlink()
            (self.folder / ATTEMPT).unlink(missing_ok=True)
        self.prune()
        if not self._paths():
            self._report_lost_attempt()
        return self.newest()

    def begin(self, run_id: str) -> None:
        """Note that a process begins to train; a full disk, which the first checkpoint reports, stops nothing."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(
                self.folder / ATTEMPT, {"run": run_id, "began": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
            )

    def _report_lost_attempt(self) -> None:
        with suppress(FileNotFoundError, ValueError, KeyError):
            attempt = files.read_json(self.folder / ATTEMPT)
            info(
                f"The attempt of {attempt['began']} (run {attempt['run']}) left no checkpoint: the training starts from "
                "the beginning. Checkpoints are written after every epoch and every checkpoints.every_s seconds."
            )

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
                files.sha256(scratch),
                self.inputs,
                run_id,
                epoch,
                step,
                finished,
                torch.get_num_threads(),
                torch.__version__,
                saved,
            )
            scratch.replace(path)
            files.write_json(path.with_suffix(".json"), asdict(facts))
            _sync(path.with_suffix(".json"))
            _sync(self.folder)
        finally:
            scratch.unlink(missing_ok=True)
        for old in self._paths()[: -1 if finished else -KEPT]:
            _remove(old)

    def record_result(self, reference: Path) -> None:
        """Keep the reference of the finished training's run."""
        shutil.copyfile(reference, self.folder / REFERENCE)

    def prune(self) -> None:
        """Remove the checkpoints of trainings with other inputs, beyond a number of them or a number of days."""
        others = [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]
        for rank, folder in enumerate(sorted(others, key=_age_s), start=2):  # this training is the first
            if rank > self.params.keep or _age_s(folder) > self.params.keep_days * 86_400:
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
    return time.time() - max(path.stat().st_mtime for path in (folder, *folder.glob("*")))


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


@dataclass(frozen=True)
class Resumable:
    """Describe how a training survives the end of its process."""

    store: CheckpointStore
    checkpoint: LoadedCheckpoint | None  # to resume from; None: start from the beginning
    run_id: str  # Convoy's id of the run
    publish: Publish  # takes points of curves and ignores those that it has already
    step_interval: int  # optimizer steps between two points; 0: epochs only
    started: float  # `time.monotonic()` at the start of the process, from which the time budget counts


class CheckpointCallback(pl.Callback):
    """Write a checkpoint after every epoch, and between two steps every `checkpoints.every_s` seconds.

    Where epochs are so short that writing would take more than a share `COST` of the time, some of them get none. Must
    stand last: what other callbacks did with the step belongs in the checkpoint. Stops the training with
    `TrainingPaused` once `checkpoints.time_budget_min` is spent, after a last checkpoint.
    """

    def __init__(self, resumable: Resumable, data: DataModule, points: MetricBuffer) -> None:
        self.resumable = resumable
        self.store = resumable.store
        self.data = data
        self.points = points
        self.saved = time.monotonic()
        self.seconds = 0.0  # that the last checkpoint took; the first epoch gets one, which measures it
        self.failed = False
        self.random_states: dict[str, Any] | None = None

    def on_train_start(self, *_: object) -> None:
        """Restore the random states, last of all that happens before the first step."""
        self.saved = time.monotonic()
        if self.random_states:
            restore_random_states(self.random_states)
            self.random_states = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, _module: object, _outputs: object, batch: Batch, *_: object
    ) -> None:
        """Save between two steps, when no gradients are pending; after an epoch's last step validation comes first."""
        done = batch.step + 1
        if done < trainer.num_training_batches and done % trainer.accumulate_grad_batches == 0:
            self._save_if_due(trainer, (trainer.current_epoch, batch.step + 1), self.store.params.every_s)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save after an epoch and its validation; after the last epoch `finish` does."""
        epochs = trainer.current_epoch + 1
        if epochs < (trainer.max_epochs or 0) and not trainer.should_stop:
            due_s = self.seconds * (1 - COST) / COST
            self._save_if_due(trainer, (epochs, 0), min(due_s, self.store.params.every_s))

    def finish(self, trainer: pl.Trainer) -> None:
        """Save a completed training: if the process dies before DVC records its results, nothing is repeated."""
        if not self._save(trainer, (trainer.current_epoch, 0), finished=True):
            self.points.flush()  # no step follows that could be computed twice

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and batch of the next step, and the random states."""
        return {"position": self.data.position, "random": random_states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start with that batch; hold the states until training starts: what comes before may draw numbers."""
        epoch, batch = state_dict["position"]
        self.data.position = (epoch, batch)
        self.random_states = state_dict["random"]

    def _save_if_due(self, trainer: pl.Trainer, position: tuple[int, int], due_s: float) -> None:
        """Save if the last checkpoint is `due_s` seconds old; if the time budget is spent, save and stop."""
        now = time.monotonic()
        budget_min = self.store.params.time_budget_min
        if budget_min and now - self.resumable.started >= budget_min * 60:
            result = "No checkpoint could be saved."
            if self._save(trainer, position, finished=False):
                result = (
                    f"The checkpoint is saved; `dvc repro` resumes at epoch {position[0] + 1} of "
                    f"{trainer.max_epochs}, step {position[1] + 1} of {trainer.num_training_batches}."
                )
            raise TrainingPaused(f"checkpoints.time_budget_min ({budget_min:g}) is spent. {result}")
        if now - self.saved >= due_s:
            self._save(trainer, position, finished=False)

    def _save(self, trainer: pl.Trainer, position: tuple[int, int], *, finished: bool) -> bool:
        """Write a checkpoint, publish its points, and report edited inputs; a full disk stops no training."""
        before, self.data.position = self.data.position, position
        began = time.monotonic()
        try:
            self.store.save(
                trainer.save_checkpoint,
                run_id=self.resumable.run_id,
                epoch=position[0] + (not finished),
                step=trainer.global_step,
                finished=finished,
            )
        except OSError as error:
            if not self.failed:
                info(
                    f"The checkpoint could not be written to {self.store.folder}: {error!s:.200}. Training continues "
                    f"and tries again after every epoch and {self.store.params.every_s:g} s; free some space. Curves are "
                    "published with the next checkpoint."
                )
            self.failed = True
            return False
        else:
            if self.failed:
                info("Checkpoints are written again.")
            self.failed = False
            self.points.flush()
            if not finished:
                watch.warn()
            return True
        finally:
            self.data.position = before
            self.saved = time.monotonic()  # after writing: a slow disk must not take all the time
            self.seconds = self.saved - began


class DirectIO(TorchCheckpointIO):
    """Write to the path itself; Lightning goes by way of memory and the folder for temporary files."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401, ARG002 (Lightning's signature)
    ) -> None:
        """Write a checkpoint, or raise the system's error."""
        try:
            with Path(path).open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's zip writer reports its own failure; the system's error, such as a full disk, came before.
            cause = error.__context__
            raise (
                cause if isinstance(cause, OSError) else OSError(f"torch could not write it ({error})")
            ) from error


def random_states() -> dict[str, Any]:
    """Read the states of Python, numpy, torch and every CUDA device, as values that load without running code."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (what libraries may draw from)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the states; those of CUDA only if the number of devices is the same."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002 (as above)
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
