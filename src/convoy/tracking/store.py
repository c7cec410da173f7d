"""Reach the tracking store: where it is, the experiment in it, and which of its runs are dead."""

import logging
import os

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import Field

from convoy import identity, params, stage


class TrackingParams(params.Section):
    """Name what runs are kept under; the store itself is named by `MLFLOW_TRACKING_URI`."""

    experiment: str = Field(min_length=1)


def uri() -> str:
    """Name the store: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{stage.repository()}/mlflow.db"


def connect() -> MlflowClient:
    """Open a client for the store; nothing is contacted yet."""
    # Its news (tables created, monitors started) would stand between the lines that people wait for.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # A dead server must not hold a stage for the minutes that MLflow's own defaults retry.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return MlflowClient(uri())


def experiment(client: MlflowClient, name: str) -> Experiment:
    """Find or create an experiment, so that the UI opens it on training runs.

    MLflow would keep the artifacts of a local store in the current folder, which for a
    queued experiment is deleted; a server decides for itself.
    """
    if found := client.get_experiment_by_name(name):
        return found
    local = uri().startswith(("sqlite:", "file:"))
    artifacts = (stage.repository() / "mlartifacts").as_uri() if local else None
    kind = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts, tags=kind))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another worker was faster
            return found
        raise


def end_abandoned(client: MlflowClient, experiment_id: str) -> None:
    """End runs of this host whose `dvc` process is gone: after kill -9 nobody else does.

    A run that was left between stages is FINISHED: DVC had the later ones in its cache
    already, or was not asked for them. One that was left inside a stage is KILLED.
    """
    here = identity.process_tags()["convoy.host"]
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if tags.get("convoy.host") == here and not identity.is_alive(tags.get("convoy.owner", "")):
            done = tags.get("convoy.stage", "").endswith(" done")
            client.set_terminated(run.info.run_id, "FINISHED" if done else "KILLED")


def is_running(mlflow_run_id: str) -> bool:
    """Tell whether a run is still open in this store; a run of another store is not."""
    try:
        return bool(mlflow_run_id) and connect().get_run(mlflow_run_id).info.status == "RUNNING"
    except MlflowException:
        return False
