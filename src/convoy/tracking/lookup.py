"""Find the weights that a training logged: from a run, or from a registered version of its model."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.tracking import MlflowClient

from convoy.core.errors import NetworkError, RequestError
from convoy.core.params import did_you_mean
from convoy.tracking import store
from convoy.tracking.settings import LOG
from convoy.training import weight_pins

ARTIFACTS = "weights"
"""Folder of a run in which `train` logs its model's files."""

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers where a run, a model, a version or an alias does not exist."""


@dataclass(frozen=True)
class Logged:
    """Locate the weights of one training.

    Attributes:
        resolved: the run, or the version that an alias stood for, such as `models:/convoy/3`.
        run: MLflow's id of the run.
        folder: the artifacts on this machine's disk; None where they are elsewhere.
        address: of the folder as DVC spells it, without a password.
        secret: whether the address had a password.
    """

    resolved: str
    run: str
    folder: Path | None
    address: str
    secret: bool = False

    def download(self, target: Path) -> None:
        """Fetch the files into a folder that does not exist yet.

        Raises:
            NetworkError: the artifact store does not give them.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            got = store.connect().download_artifacts(self.run, ARTIFACTS, str(target.parent))
        except Exception as error:  # artifact stores raise what their libraries do
            raise NetworkError(
                f"the artifacts of run {self.run} cannot be fetched: {error!s:.300}"
            ) from error
        Path(got).rename(target)


def find(asked: str, files: tuple[str, ...]) -> Logged:
    """Look a run or a registered model up.

    Args:
        asked: `runs:/RUN_ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        files: that the run's artifacts must have.

    Raises:
        RequestError: there is no such run, model, version or alias; with what there is.
        NetworkError: the tracking server does not answer, or the run has no such files.
    """
    client = store.connect()
    try:
        resolved, run = _resolve(asked, client)
        logged = {Path(one.path).name for one in client.list_artifacts(run, ARTIFACTS)}
        uri = client.get_run(run).info.artifact_uri
    except MlflowException as error:
        raise NetworkError(
            f"{asked} cannot be looked up: {store.uri()} answered {error!s:.300}\n"
            "Start the tracking server, or let MLFLOW_TRACKING_URI name the one that has it."
        ) from error
    if not set(files) <= logged:
        raise NetworkError(
            f"run {run} has no {' and '.join(files)} among its artifacts in {ARTIFACTS}/: it failed before its end, "
            "or was made before Convoy logged them. Choose another run, or train again: dvc repro --force train"
        )
    return _located(resolved, run, uri)


def _resolve(asked: str, client: MlflowClient) -> tuple[str, str]:
    """Turn what was asked into a run or version, and the id of the run."""
    if run := weight_pins.RUN.fullmatch(asked):
        return asked, _run(run["run"], client)
    model = weight_pins.MODEL.fullmatch(asked)
    if model is None:
        raise ValueError(f"{asked} is neither a run nor a model")
    version = _version(asked, model["name"], model["alias"], model["version"], client)
    resolved = f"models:/{version.name}/{version.version}"
    if not version.run_id:
        raise NetworkError(f"{resolved} names no run that it comes from. Choose another version or a run.")
    return resolved, _run(version.run_id, client)


def _run(run: str, client: MlflowClient) -> str:
    try:
        return str(client.get_run(run).info.run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        experiments = [one.experiment_id for one in client.search_experiments() if LOG not in one.tags]
        latest = client.search_runs(experiments, max_results=5, order_by=["attributes.start_time DESC"])
        known = ", ".join(f"{one.info.run_id} ({one.info.run_name})" for one in latest) or "none"
        raise RequestError(f"{store.uri()} has no run `{run}`; the latest are: {known}") from error


def _version(
    asked: str, name: str, alias: str | None, version: str | None, client: MlflowClient
) -> ModelVersion:
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        why = f"{store.uri()} has no `{asked}`"
        models = {one.name: one for one in client.search_registered_models()}
        if not models:
            raise RequestError(f"{why}: no model is registered there.") from error
        if name not in models:
            raise RequestError(f"{why}: no registered model `{name}`{did_you_mean(name, models)}") from error
        if alias:
            aliases = models[name].aliases
            there = did_you_mean(alias, aliases) if aliases else "; it has none"
            raise RequestError(f"{why}: {name} has no alias `{alias}`{there}") from error
        versions = client.search_model_versions(f"name = '{name}'")
        there = ", ".join(sorted((str(one.version) for one in versions), key=int))
        raise RequestError(f"{why}: {name} has the versions {there or 'none'}") from error


def _located(resolved: str, run: str, uri: str) -> Logged:
    """Turn the address of a run's artifacts into one that DVC imports from."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        folder = Path(url2pathname(parts.path)) / ARTIFACTS
        return Logged(resolved, run, folder, str(folder))
    if parts.scheme == "mlflow-artifacts":  # behind the tracking server, which serves them by HTTP
        uri = str(MlflowArtifactsRepository.resolve_uri(uri, store.uri()))  # type: ignore[no-untyped-call] # MLflow has no types here
        parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    address = parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/{ARTIFACTS}").geturl()
    return Logged(resolved, run, None, address, secret=host != parts.netloc)
