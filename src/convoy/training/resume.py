"""Save a training as it goes, stop it when its time is up, and go on exactly where it was."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.types import STEP_OUTPUT

from convoy.core.console import info
from convoy.core.errors import TrainingPaused
from convoy.training import randomness
from convoy.training.checkpoints import CheckpointStore, Found
from convoy.training.data import Batch, Batcher
from convoy.training.points import MetricBuffer, Publish

RANDOM = "convoy_random"
"""Key of a checkpoint under which the states of random numbers lie."""


@dataclass(frozen=True)
class Resumable:
    """Say how a training survives the end of its process.

    Attributes:
        kept: where its checkpoints are.
        found: the one to go on from; None to start from the beginning.
        run_id: Convoy's id of the run.
        publish: takes points of curves; those that it has already must change nothing.
        step_interval: optimizer steps between two points; 0: epochs only.
        started: `time.monotonic()` of the process's beginning, from which the time budget counts.
    """

    kept: CheckpointStore
    found: Found | None
    run_id: str
    publish: Publish
    step_interval: int
    started: float


class CheckpointCallback(pl.Callback):
    """Write a checkpoint every so many seconds, between two steps or after an epoch.

    Must stand last: what other callbacks did with the step belongs in the checkpoint.
    """

    def __init__(self, resumable: Resumable, batcher: Batcher, points: MetricBuffer) -> None:
        self.resumable = resumable
        self.batcher = batcher
        self.points = points
        self.saved = time.monotonic()
        self.failed = False
        self.states: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Set the random states, last of all that happens before the first step."""
        self.saved = time.monotonic()
        if self.states:
            randomness.restore(self.states)
            self.states = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 (Lightning's signature)
        outputs: STEP_OUTPUT,  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Save between two steps; after an epoch's last one validation comes first.

        Raises:
            Paused: the time budget is spent.
        """
        if batch_idx + 1 < trainer.num_training_batches:
            self._save_if_due(trainer, (trainer.current_epoch, batch_idx + 1))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Save after an epoch and its validation; after the last one `finish` does.

        Raises:
            Paused: the time budget is spent.
        """
        done = trainer.current_epoch + 1
        if done < (trainer.max_epochs or 0) and not trainer.should_stop:
            self._save_if_due(trainer, (done, 0))

    def finish(self, trainer: pl.Trainer) -> None:
        """Save a training that is over: if the process dies before its results are recorded, nothing is repeated."""
        if not self._save(trainer, (trainer.current_epoch, 0), finished=True):
            self.points.flush()  # nothing comes after them that could be computed twice

    def state_dict(self) -> dict[str, Any]:
        """Give the epoch, and the batch in it, of the next step."""
        return {"first": self.batcher.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin with that batch."""
        epoch, batch = state_dict["first"]
        self.batcher.first = (epoch, batch)

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002 (Lightning's signature)
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Add the states of random numbers."""
        checkpoint[RANDOM] = randomness.collect()

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002 (Lightning's signature)
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Hold the states until training starts: what comes before may draw numbers."""
        self.states = checkpoint[RANDOM]

    def _save_if_due(self, trainer: pl.Trainer, first: tuple[int, int]) -> None:
        """Save if the interval is over; if the time budget is spent, save and stop."""
        now = time.monotonic()
        budget_s = self.resumable.kept.params.time_budget_min * 60
        if budget_s and now - self.resumable.started >= budget_s:
            saved = self._save(trainer, first, finished=False)
            epoch, step = first
            where = f"epoch {epoch + 1} of {trainer.max_epochs}, step {step + 1} of {trainer.num_training_batches}"
            raise TrainingPaused(
                f"checkpoints.time_budget_min ({self.resumable.kept.params.time_budget_min:g}) is spent. "
                + (
                    f"The state is saved; `dvc repro` goes on at {where}."
                    if saved
                    else "Nothing could be saved."
                )
            )
        if now - self.saved >= self.resumable.kept.params.every_s:
            self._save(trainer, first, finished=False)

    def _save(self, trainer: pl.Trainer, first: tuple[int, int], *, finished: bool) -> bool:
        """Write a checkpoint, then publish the points that it holds; a full disk stops no training."""
        before, self.batcher.first = self.batcher.first, first
        try:
            self.resumable.kept.save(
                trainer.save_checkpoint,
                run_id=self.resumable.run_id,
                epoch=first[0] + (not finished),
                step=trainer.global_step,
                finished=finished,
            )
        except OSError as error:
            if not self.failed:
                every = self.resumable.kept.params.every_s
                info(
                    f"The checkpoint could not be written to {self.resumable.kept.folder}: {error!s:.200}. The training "
                    f"goes on and tries again every {every:g} s; free some space. Its curves are published with it."
                )
            self.failed = True
            return False
        finally:
            self.batcher.first = before
            self.saved = time.monotonic()  # after writing: a slow disk must not be all that there is to do
        if self.failed:
            info("A checkpoint was written again.")
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
        """Write a checkpoint.

        Raises:
            OSError: it could not be written.
        """
        try:
            with Path(path).open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's zip writer speaks of itself; what the system said, such as a full disk, came before.
            said = error.__context__
            raise (
                said if isinstance(said, OSError) else OSError(f"torch could not write it ({error})")
            ) from error
