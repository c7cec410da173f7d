"""The metrics of every epoch, as a table that outlives the training."""

from pathlib import Path

import pytorch_lightning as pl

from convoy.files import write_text

COLUMNS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr")


class History(pl.Callback):
    """Keep one row per epoch, in memory and in a CSV file that is whole after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Add the epoch's row."""
        self.rows.append({name: float(trainer.callback_metrics[name]) for name in COLUMNS})
        lines = [",".join(("epoch", *COLUMNS))]
        for epoch, row in enumerate(self.rows, start=1):
            lines.append(",".join([str(epoch), *(f"{row[name]:.6g}" for name in COLUMNS)]))
        write_text(self.path, "\n".join(lines) + "\n")
