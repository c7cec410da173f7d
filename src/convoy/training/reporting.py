"""Hand each epoch's metrics on to whoever keeps them."""

from collections.abc import Callable, Mapping

import pytorch_lightning as pl


class EpochReport(pl.Callback):
    """Call `log(metrics, epoch)` once an epoch with everything logged as `where/what`, after validation."""

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        """Report to `log`; epochs count from 1, as people do."""
        self._log = log

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's signature)
        """Report the epoch that ended; validation has run by then."""
        self._log(
            {name: float(value) for name, value in trainer.callback_metrics.items()},
            trainer.current_epoch + 1,
        )
