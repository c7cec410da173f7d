"""Section `tracking` of params.yaml, and the address of the store. Nothing here imports MLflow."""

import os

from pydantic import Field

from convoy.core import params, stage

SQLITE = "sqlite:///"
"""Beginning of the address of a store that is a file."""

LOG = "convoy.log"
"""Tag of an experiment whose runs are entries of a log and no trainings."""


class TrackingParams(params.Section):
    """Name what runs are kept under; the store itself is named by `MLFLOW_TRACKING_URI`."""

    experiment: str = Field(min_length=1)
    step_interval: int = Field(ge=0, le=100_000)
    registered_model: str = Field(min_length=1, max_length=200, pattern=r"^[^/:@.%'\"]+$")


def uri() -> str:
    """Name the store: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{stage.repository()}/mlflow.db"


def experiment() -> str:
    """Name the MLflow experiment."""
    return params.section("tracking", TrackingParams).experiment
