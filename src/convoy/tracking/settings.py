"""Section `tracking` of params.yaml, and the address of the store. Imports no MLflow."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from convoy.core import params, stage

SQLITE = "sqlite:///"  # prefix of the address of a store in a file
LOG = "convoy.log"  # tag of an experiment whose runs are log entries, not trainings


class TrackingParams(params.Section):
    """Name the experiment and the registered model; `MLFLOW_TRACKING_URI` names the store."""

    experiment: Annotated[
        str, Field(min_length=1, description="name of the MLflow experiment", examples=["convoy"])
    ]
    step_interval: Annotated[
        int,
        Field(
            ge=0, le=100_000, description="steps between two points of step/loss and step/lr", examples=[10]
        ),
    ]
    registered_model: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[^/:@.%'\"]+$",
            description="registered model whose versions are compared, promoted and served",
            examples=["convoy"],
        ),
    ]


def uri() -> str:
    """Return the address of the store: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own()


def own(repository: Path | None = None) -> str:
    """Return the address of the store in a repository, by default the current one."""
    return f"{SQLITE}{repository or stage.repository()}/mlflow.db"


def experiment() -> str:
    """Return the name of the MLflow experiment."""
    return params.section("tracking", TrackingParams).experiment
