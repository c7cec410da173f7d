"""Reach the tracking store: the experiment in it, a run by Convoy's id, and what its refusals mean."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core import stage
from convoy.core.errors import ConvoyError, without_credentials
from convoy.tracking import settings

uri = settings.uri

NOT_ANSWERED = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "CANCELLED")
"""MLflow's codes for a store that did not answer; others refuse what was asked."""


def connect(address: str = "") -> MlflowClient:
    """Open a client for a store, by default that of `settings.uri`; nothing is contacted yet."""
    # Its news (tables created, monitors started) would stand between the lines that people wait for.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # A dead server must not hold a command for the minutes that MLflow's own defaults retry.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return MlflowClient(address or settings.uri())


@contextlib.contextmanager
def as_default(address: str) -> Iterator[None]:
    """Let MLflow's registry look logged models up in this store: it asks the default one, not its own."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def make_file(address: str) -> None:
    """Make the file of a store that is one and does not exist yet; another process sees all of its tables or none.

    MLflow makes tables one by one, for seconds, and fails where two processes do so at once.
    """
    path = Path(address.removeprefix(settings.SQLITE))
    if not address.startswith(settings.SQLITE) or path.exists():
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        connect(f"{settings.SQLITE}{scratch}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(scratch, path)
    finally:
        for left in path.parent.glob(f"{scratch.name}*"):
            left.unlink(missing_ok=True)


def experiment(client: MlflowClient, name: str, tags: Mapping[str, str] = {}) -> Experiment:
    """Find or create an experiment, tagged as one of training runs, as MLflow's own interface does.

    MLflow would keep the artifacts of a local store in the current folder, which for a
    queued experiment is deleted; a server decides for itself.
    """
    if found := client.get_experiment_by_name(name):
        return found
    local = client.tracking_uri.startswith(("sqlite:", "file:"))
    artifacts = (stage.repository() / "mlartifacts").as_uri() if local else None
    kind = {"mlflow.experimentKind": "custom_model_development", **tags}
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts, tags=kind))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return found
        raise


def find(run_id: str, client: MlflowClient | None = None) -> Run | None:
    """Look a run up by Convoy's id, in whichever experiment it is; None where the store has none."""
    client = client or connect()
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`convoy.run_id` = '{run_id}'", max_results=1)
    return found[0] if found else None


def refused(error: Exception) -> bool:
    """Tell what one run fails by, an answer or a journal that makes no sense, from a store that does not answer."""
    if isinstance(error, MlflowException):
        return error.error_code not in NOT_ANSWERED
    return isinstance(error, (LookupError, TypeError, ValueError, AttributeError))


def explain(error: Exception) -> str:
    """Phrase what a store said in one line for people, without passwords; Convoy's own words are not cut."""
    named = isinstance(error, (ConvoyError, MlflowException, OSError))
    said = str(error) if named else f"{type(error).__name__}: {error}"
    text = without_credentials(" ".join(said.split()))
    return text if isinstance(error, ConvoyError) else f"{text:.300}"
