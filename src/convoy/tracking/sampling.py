"""Have MLflow sample the machine while a training runs."""

from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SECONDS = 2.0
"""Interval of system metrics: a short training should still show a line, not a dot."""


class Sampling:
    """Hold a monitor, which works in a thread of its own."""

    def __init__(self, run_id: str, uri: str) -> None:
        """Start sampling into a run of a store, after its last sample."""
        monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call] # MLflow has no types here
            run_id, sampling_interval=SECONDS, resume_logging=True, tracking_uri=uri
        )
        monitor.start()
        self._monitor = monitor

    def lives(self) -> bool:
        """Tell whether it still samples: it ends itself when the store does not answer once."""
        return self._monitor._process is not None and self._monitor._process.is_alive()  # noqa: SLF001 (MLflow does not tell otherwise)

    def stop(self) -> None:
        """Send what was sampled and stop."""
        self._monitor.finish()
