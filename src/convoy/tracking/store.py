"""Access the tracking store: connect, find runs, end abandoned ones, explain its errors.

MLflow takes a second to import, so it is imported where it is first needed.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from convoy.core import contract, stage
from convoy.core.errors import ConvoyError, without_credentials
from convoy.repo import identity
from convoy.tracking import settings, store_file

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.store.entities import PagedList
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

uri = settings.uri

NOT_ANSWERED = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "CANCELLED")
"""MLflow's error codes of a store that did not answer; any other code refuses the request."""

MISSED_SECONDS = 600.0  # age of the last heartbeat at which a run of another host counts as dead


class ParentNotStored(Exception):  # noqa: N818 (no error: the parent is delivered first)
    """Put a run off until the run that it belongs under is in the store."""


class LocalArtifactsError(ConvoyError):
    """Refuse to write artifacts where a server says: into a path of this machine."""


class DeletedError(ConvoyError):
    """Report an experiment or a run that was deleted in MLflow, with the command that restores it."""


def open_to_write(address: str) -> "MlflowClient":
    """Open a client of a store that takes entries; the file of a local store is checked, and created if necessary.

    Raises:
        StoreFileError: the file takes no entries.
        RequestError: another version of MLflow wrote it.
    """
    store_file.check(address, write=True)
    make_file(address)
    return connect(address)


def connect(address: str = "") -> "MlflowClient":
    """Open a client of a store, by default that of `settings.uri`; nothing is contacted yet."""
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 (a second)

    # Its messages (tables created, monitors started) would stand between the lines that people wait for.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # It prints a traceback of each error that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # A dead server must not hold a command for the minutes that MLflow's own defaults retry.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return MlflowClient(address or settings.uri())


@contextlib.contextmanager
def as_default(address: str) -> Iterator[None]:
    """Make a store MLflow's default: its registry looks logged models up there, whatever client calls it."""
    before = {key: value for key, value in os.environ.items() if key == "MLFLOW_TRACKING_URI"}
    os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        os.environ.update(before)


def make_file(address: str) -> None:
    """Create the database file of a store that has none yet; other processes see all of its tables or no file.

    MLflow creates tables one by one, for seconds, and fails if two processes do so at once. The scratch file's
    name begins with the store's, which git ignores: a run opened meanwhile must not find a dirty tree.
    """
    path = Path(address.removeprefix(settings.SQLITE))
    if not address.startswith(settings.SQLITE) or path.exists():
        return
    scratch = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        connect(f"{settings.SQLITE}{scratch}").search_experiments(max_results=1)
        try:
            os.link(scratch, path)
        except FileExistsError:  # another process was faster
            pass
        except (
            OSError
        ):  # exFAT, SMB and others have no links; a rename may replace the store of a process as fast as this
            if not path.exists():
                scratch.rename(path)
    finally:
        for left in path.parent.glob(f"{scratch.name}*"):
            left.unlink(missing_ok=True)


def experiment(client: "MlflowClient", name: str, tags: Mapping[str, str] = {}) -> "Experiment":
    """Find or create an experiment, tagged as one of training runs, as MLflow's own interface does.

    MLflow would keep the artifacts of a local store in the current folder, which DVC deletes after
    a queued experiment; a server decides for itself.

    Raises:
        DeletedError: it was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second)

    if existing := client.get_experiment_by_name(name):
        check_active(client, existing)
        return existing
    local = client.tracking_uri.startswith(("sqlite:", "file:"))
    artifacts = (stage.repository() / "mlartifacts").as_uri() if local else None
    kind = {"mlflow.experimentKind": "custom_model_development", **tags}
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts, tags=kind))
    except MlflowException:
        if existing := client.get_experiment_by_name(name):  # another process was faster
            return existing
        raise


def artifacts(address: str, location: str) -> Any:  # noqa: ANN401 (MLflow's ArtifactRepository has no types)
    """Open a location that the store at an address gave for artifacts, to write there.

    MLflow's client would write wherever a server points: into a path of this machine, such as `~/.ssh`.
    `runs:` and `models:` lead to further locations of the server.

    Raises:
        LocalArtifactsError: a server gave a path of this machine.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415 (a second)

    if address.startswith("http") and urlsplit(location).scheme in {"", "file", "runs", "models"}:
        raise LocalArtifactsError(
            f"the server keeps artifacts in {location}, which is a path of this machine, and a server may not write "
            "there. Start it with `mlflow server --serve-artifacts`, and name a new experiment as tracking.experiment in "
            "params.yaml: existing ones keep their location"
        )
    return get_artifact_repository(location, tracking_uri=address)


def check_active(client: "MlflowClient", experiment: "Experiment") -> None:
    """Refuse an experiment that was deleted in MLflow, which finds it by name but takes no runs for it.

    Raises:
        DeletedError: with the command that restores it.
    """
    if experiment.lifecycle_stage == "deleted":
        raise DeletedError(
            f"the experiment `{experiment.name}` was deleted in MLflow. To restore it with its runs, type: "
            f"{_mlflow(client)} experiments restore --experiment-id {experiment.experiment_id}\n"
            "To leave it deleted, choose another name as tracking.experiment in params.yaml."
        )


def check_run_active(client: "MlflowClient", mlflow_run_id: str) -> None:
    """Refuse a run that was deleted in MLflow, by itself or with its experiment.

    Raises:
        DeletedError: with the command that restores it.
    """
    info = client.get_run(mlflow_run_id).info
    if info.lifecycle_stage == "deleted":
        check_active(client, client.get_experiment(info.experiment_id))
        raise DeletedError(
            f"the run `{info.run_name}` was deleted in MLflow. To restore it, type: "
            f"{_mlflow(client)} runs restore --run-id {mlflow_run_id}"
        )


def _mlflow(client: "MlflowClient") -> str:
    """Spell MLflow's command for a store; the address of a server, which may hold a password, is in the variable."""
    is_file = client.tracking_uri.startswith(settings.SQLITE)
    return f"MLFLOW_TRACKING_URI={client.tracking_uri} mlflow" if is_file else "mlflow"


def all_pages(search: "Callable[[str | None], PagedList[T]]") -> Iterator[T]:
    """Yield the results of all pages; `search` takes a page's token."""
    token: str | None = None
    while True:
        page = search(token)
        yield from page
        if not (token := page.token):
            return


def find(run_id: str, client: "MlflowClient | None" = None) -> "Run | None":
    """Find a run by Convoy's id, in any experiment; None if the store has no such run."""
    client = client or connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{contract.RUN_ID}` = '{run_id}'", max_results=1)
    return runs[0] if runs else None


def end_abandoned(client: "MlflowClient", experiment_id: str, journals: Container[str] = ()) -> list[str]:
    """End runs whose process is gone, as after `kill -9` or power loss.

    A run left between stages is FINISHED: DVC had the later stages in its cache, or did not run them. A
    run left inside a stage is KILLED. A run that a time budget stopped is SCHEDULED, so it is left alone, and so
    is a run of `journals`, Convoy's ids of those in this outbox. Returns the names of the runs that were ended.
    """
    ended = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if contract.RUN_ID in tags and tags[contract.RUN_ID] not in journals and _is_dead(tags):
            between_stages = tags.get(contract.STAGE, "").endswith(" done")
            client.set_terminated(run.info.run_id, "FINISHED" if between_stages else "KILLED")
            ended.append(str(run.info.run_name))
    return ended


def _is_dead(tags: dict[str, str]) -> bool:
    """Check a run of this host by its process, one of another by its heartbeat; without one it counts as alive."""
    if tags.get(contract.HOST) == identity.host():
        return not identity.is_alive(tags.get(contract.OWNER, ""))
    if contract.HEARTBEAT not in tags:
        return False
    silence = datetime.now(UTC) - datetime.fromisoformat(tags[contract.HEARTBEAT])
    return silence.total_seconds() > MISSED_SECONDS


def refused(error: Exception) -> bool:
    """Distinguish an error of one run, a refusal or an unusable journal, from a store that does not answer."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second)

    if isinstance(error, MlflowException):
        return error.error_code not in NOT_ANSWERED
    return isinstance(
        error, (DeletedError, LocalArtifactsError, LookupError, TypeError, ValueError, AttributeError)
    )


def explain(error: Exception) -> str:
    """Format a store's error without passwords, in one line unless it is Convoy's own; faults of a file with the remedy."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second)

    if fault := store_file.fault(error):
        error = fault
    named = isinstance(error, (ConvoyError, MlflowException, OSError))
    message = str(error) if named else f"{type(error).__name__}: {error}"
    if isinstance(error, ConvoyError):
        return without_credentials(message)
    return f"{without_credentials(' '.join(message.split())):.300}"


def failure(error: Exception, address: str) -> str:
    """Format why a store failed, with the remedy: that of a file, or that of a server."""
    reason = explain(error)
    if isinstance(error, ConvoyError) or store_file.fault(error):
        return reason
    remedy = (
        "Set MLFLOW_TRACKING_URI to another store, or move the file away."
        if address.startswith(settings.SQLITE)
        else "Start the tracking server, or set MLFLOW_TRACKING_URI to a store that answers; without it, runs are kept in mlflow.db."
    )
    return f"the tracking store {without_credentials(address)} does not answer: {reason}\n{remedy}"
