"""Look up the weights that a training logged: of a run, or of a registered version of its model."""

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

ARTIFACTS = "weights"  # folder of a run in which `train` logs its model's files
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes


@dataclass(frozen=True)
class LoggedWeights:
    """Locate the weights of one training."""

    resolved: str  # the run, or the version that an alias points to, such as `models:/convoy/3`
    run: str  # MLflow's id
    folder: Path | None  # the artifacts on this machine's disk; None if they are elsewhere
    address: str  # of the folder as DVC spells it, without a password
    secret: bool = False  # whether the address had a password

    def download(self, target: Path) -> None:
        """Fetch the files into a folder that does not exist yet.

        Raises:
            NetworkError: the artifact store does not provide them.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder = store.connect().download_artifacts(self.run, ARTIFACTS, str(target.parent))
        except Exception as error:  # artifact stores raise what their libraries do
            raise NetworkError(f"cannot fetch the artifacts of run {self.run}: {error!s:.300}") from error
        Path(folder).rename(target)


def find(source: str, files: tuple[str, ...]) -> LoggedWeights:
    """Look up a run or a registered model.

    Args:
        source: `runs:/RUN_ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        files: that the run's artifacts must have.

    Raises:
        RequestError: there is no such run, model, version or alias; with what exists.
        NetworkError: the tracking server does not answer, or the run lacks one of the files.
    """
    client = store.connect()
    try:
        resolved, run = _resolve(source, client)
        logged = {Path(artifact.path).name for artifact in client.list_artifacts(run, ARTIFACTS)}
        uri = client.get_run(run).info.artifact_uri
    except MlflowException as error:
        raise NetworkError(f"cannot look up {source}: {store.failure(error, store.uri())}") from error
    if not set(files) <= logged:
        raise NetworkError(
            f"run {run} has no {' and '.join(files)} among its artifacts in {ARTIFACTS}/: it failed before its end, "
            "or was made before Convoy logged them. Choose another run, or train again: dvc repro --force train"
        )
    return _locate(resolved, run, uri)


def _resolve(source: str, client: MlflowClient) -> tuple[str, str]:
    """Return the run or version that a source names, and MLflow's id of the run."""
    kind, _, name = source.partition(":/")
    if kind == "runs":
        return source, _run(name, client)
    version = _version(source, name, client)
    resolved = f"models:/{version.name}/{version.version}"
    if not version.run_id:
        raise NetworkError(
            f"{resolved} does not name the run that it comes from. Choose another version or a run."
        )
    return resolved, _run(version.run_id, client)


def _run(run: str, client: MlflowClient) -> str:
    try:
        return str(client.get_run(run).info.run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        experiments = [each.experiment_id for each in client.search_experiments() if LOG not in each.tags]
        latest = client.search_runs(experiments, max_results=5, order_by=["attributes.start_time DESC"])
        known = ", ".join(f"{other.info.run_id} ({other.info.run_name})" for other in latest) or "none"
        raise RequestError(f"{store.uri()} has no run `{run}`; the latest are: {known}") from error


def _version(source: str, address: str, client: MlflowClient) -> ModelVersion:
    """Find a version by `NAME@ALIAS` or `NAME/VERSION`."""
    name, _, alias = address.partition("@")
    if not alias:
        name, _, version = address.partition("/")
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        reason = f"{store.uri()} has no `{source}`"
        models = {model.name: model for model in client.search_registered_models()}
        if not models:
            raise RequestError(f"{reason}: no model is registered there.") from error
        if name not in models:
            raise RequestError(
                f"{reason}: no registered model `{name}`{did_you_mean(name, models)}"
            ) from error
        if alias:
            hint = did_you_mean(alias, aliases) if (aliases := models[name].aliases) else "; it has none"
            raise RequestError(f"{reason}: {name} has no alias `{alias}`{hint}") from error
        versions = client.search_model_versions(f"name = '{name}'")
        known = ", ".join(sorted((str(other.version) for other in versions), key=int)) or "none"
        raise RequestError(f"{reason}: {name} has the versions {known}") from error


def _locate(resolved: str, run: str, uri: str) -> LoggedWeights:
    """Turn the address of a run's artifacts into one that DVC imports from."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        folder = Path(url2pathname(parts.path)) / ARTIFACTS
        return LoggedWeights(resolved, run, folder, str(folder))
    if parts.scheme == "mlflow-artifacts":  # behind the tracking server, which serves them by HTTP
        uri = str(MlflowArtifactsRepository.resolve_uri(uri, store.uri()))  # type: ignore[no-untyped-call] # MLflow has no types here
        parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    address = parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/{ARTIFACTS}").geturl()
    return LoggedWeights(resolved, run, None, address, secret=host != parts.netloc)
