"""Write checkpoints during a training, stop it when its time budget is spent, and resume it exactly."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from convoy.core.console import info
from convoy.core.errors import TrainingPaused
from convoy.training.callbacks import MetricBuffer, Publish
from convoy.training.checkpoints import CheckpointStore, LoadedCheckpoint
from convoy.training.data import Batch, DataModule


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
    """Write a checkpoint every `checkpoints.every_s` seconds, between two steps or after an epoch.

    Must stand last: what other callbacks did with the step belongs in the checkpoint. Stops the training
    with `TrainingPaused` once `checkpoints.time_budget_min` is spent, after a last checkpoint.
    """

    def __init__(self, resumable: Resumable, data: DataModule, points: MetricBuffer) -> None:
        self.resumable = resumable
        self.store = resumable.store
        self.data = data
        self.points = points
        self.saved = time.monotonic()
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
        """Save between two steps; after an epoch's last step validation comes first."""
        if batch.step + 1 < trainer.num_training_batches:
            self._save_if_due(trainer, (trainer.current_epoch, batch.step + 1))

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save after an epoch and its validation; after the last epoch `finish` does."""
        epochs = trainer.current_epoch + 1
        if epochs < (trainer.max_epochs or 0) and not trainer.should_stop:
            self._save_if_due(trainer, (epochs, 0))

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

    def _save_if_due(self, trainer: pl.Trainer, position: tuple[int, int]) -> None:
        """Save if the interval is over; if the time budget is spent, save and stop."""
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
        if now - self.saved >= self.store.params.every_s:
            self._save(trainer, position, finished=False)

    def _save(self, trainer: pl.Trainer, position: tuple[int, int], *, finished: bool) -> bool:
        """Write a checkpoint, then publish the points that it holds; a full disk stops no training."""
        before, self.data.position = self.data.position, position
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
                    f"and tries again every {self.store.params.every_s:g} s; free some space. Curves are published "
                    "with the next checkpoint."
                )
            self.failed = True
            return False
        finally:
            self.data.position = before
            self.saved = time.monotonic()  # after writing: a slow disk must not take all the time
        if self.failed:
            info("Checkpoints are written again.")
        self.failed = False
        self.points.flush()
        return True


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
