"""Access the tracking store: connect, find runs, end abandoned ones, explain its errors, check its database file.

MLflow takes a second to import, so it is imported where it is first needed.
"""

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from convoy.core import contract, stage
from convoy.core.errors import ConvoyError, RequestError, without_credentials
from convoy.repo import identity
from convoy.tracking import settings

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.store.entities import PagedList
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

uri = settings.uri

NOT_ANSWERED = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "CANCELLED")
"""MLflow's error codes of a store that did not answer; any other code refuses the request."""

MIGRATIONS = Path("store/db_migrations/versions")
"""Folder of MLflow with one file per change of its tables, each naming the one before."""

MISSED_SECONDS = 600.0  # age of the last heartbeat at which a run of another host counts as dead


class ParentNotStored(Exception):  # noqa: N818 (no error: the parent is delivered first)
    """Put a run off until the run that it belongs under is in the store."""


def connect(address: str = "") -> "MlflowClient":
    """Open a client of a store, by default that of `settings.uri`; nothing is contacted yet."""
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 (a second)

    # Its messages (tables created, monitors started) would stand between the lines that people wait for.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
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
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second)

    if existing := client.get_experiment_by_name(name):
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
    return isinstance(error, (LookupError, TypeError, ValueError, AttributeError))


def explain(error: Exception) -> str:
    """Format a store's error in one line without passwords; Convoy's own messages are not cut."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second)

    named = isinstance(error, (ConvoyError, MlflowException, OSError))
    message = str(error) if named else f"{type(error).__name__}: {error}"
    text = without_credentials(" ".join(message.split()))
    return text if isinstance(error, ConvoyError) else f"{text:.300}"


def check_schema(uri: str) -> None:
    """Refuse a database file whose tables are those of another MLflow version; any other store passes.

    MLflow itself would upgrade some older files when it opens them, before anybody has made a copy.

    Raises:
        RequestError: with the commands that copy the file and upgrade it.
    """
    path = Path(uri.removeprefix(settings.SQLITE))
    if not uri.startswith(settings.SQLITE) or not path.exists():
        return
    revision = _revision(path)
    known, latest = _known_revisions()
    if revision in ("", latest):
        return
    installed = f"MLflow {version('mlflow')}"
    if revision not in known:
        raise RequestError(
            f"{path} was written by a newer MLflow than the installed one ({installed} has no revision "
            f"{revision}). Install the version that requirements.txt names: make repro"
        )
    raise RequestError(
        f"{path} was written by an older MLflow: its tables have revision {revision}, {installed} needs {latest}.\n"
        "Copy it, then upgrade it, while no `dvc repro` runs:\n"
        f"  cp {path} {path}.before\n"
        f"  mlflow db upgrade {uri}"
    )


def _revision(path: Path) -> str:
    """Read the revision of MLflow's tables in a file; empty if it has no tables yet."""
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return ""
        except sqlite3.DatabaseError as error:
            raise RequestError(
                f"{path} is not a database ({error}). Move it away; the next `dvc repro` creates a new one."
            ) from error
    return str(rows[0][0]) if rows else ""


def _known_revisions() -> tuple[set[str], str]:
    """List the revisions of the installed MLflow, and the latest: the only one without a successor."""
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("MLflow is not installed")
    before: dict[str, str] = {}
    for path in (Path(package.submodule_search_locations[0]) / MIGRATIONS).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if name := re.search(r"^revision = ['\"](\w+)['\"]", text, re.MULTILINE):
            predecessor = re.search(r"^down_revision = (.*)$", text, re.MULTILINE)
            before[name[1]] = predecessor[1] if predecessor else ""
    [latest] = set(before) - set(re.findall(r"\w+", " ".join(before.values())))
    return set(before), latest
