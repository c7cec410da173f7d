"""The metrics of every epoch, as a table that outlives the training."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from convoy.core.files import write_text

COLUMNS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr")


class History(pl.Callback):
    """Keep one row per epoch, in memory and in a CSV file that is whole after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Add the epoch's row."""
        self.rows.append({name: float(trainer.callback_metrics[name]) for name in COLUMNS})
        self.write()

    def state_dict(self) -> dict[str, Any]:
        """Give the rows for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint; DVC has removed the file."""
        self.rows = state_dict["rows"]
        self.write()

    def write(self) -> None:
        """Write the table; every digit, so that DVC shows what MLflow does."""
        lines = [",".join(("epoch", *COLUMNS))]
        for epoch, row in enumerate(self.rows, start=1):
            lines.append(",".join([str(epoch), *(repr(row[name]) for name in COLUMNS)]))
        write_text(self.path, "\n".join(lines) + "\n")
