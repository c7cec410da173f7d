"""Open the two stores of a migration: the source is only read, the target must answer."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core.errors import MigrationError, RequestError, without_credentials
from convoy.tracking import settings, store
from convoy.tracking.migration import experiments
from convoy.tracking.migration.artifacts import Tree, local

ARTIFACTS = "mlartifacts"
"""Folder beside a database file in which the files of its runs lie."""


@dataclass(frozen=True)
class Source:
    """A store to read; `client` is that of a copy if it is a database file."""

    client: MlflowClient
    uri: str
    folder: Path | None
    """In which the database file lies; None for a server."""

    def tree(self, uri: str) -> Tree:
        """Locate artifacts, also where the database was moved together with them: MLflow's paths are absolute."""
        path = local(uri)
        if self.folder is None or path is None or path.exists() or ARTIFACTS not in path.parts:
            return Tree(uri, self.uri)
        inside = path.parts[path.parts.index(ARTIFACTS) :]
        moved = self.folder.joinpath(*inside)
        return Tree(uri, self.uri, moved if moved.exists() else None)

    def without_files(self, experiment: Experiment) -> str:
        """Return a note if the folder with an experiment's files is missing; empty otherwise."""
        tree = self.tree(experiment.artifact_location)
        path = tree.moved or local(tree.uri)
        if path is None or path.exists():
            return ""
        return f"experiment {experiment.name}: {path} does not exist, so none of its files were copied"


@contextmanager
def open_source(uri: str) -> Iterator[Source]:
    """Open a store to read; a database file is copied first, so it neither is changed nor changes meanwhile.

    Raises:
        RequestError: there is none, another version of MLflow wrote it, or it is empty.
        MigrationError: it does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if uri.startswith(settings.SQLITE):
            path = Path(uri.removeprefix(settings.SQLITE))
            if not path.exists():
                raise RequestError(
                    f"{path} does not exist, so there is nothing to migrate. Change to the repository of "
                    "the runs, or name the store: convoy migrate TARGET --from sqlite:////PATH/mlflow.db"
                )
            store.check_schema(uri)
            copy = Path(scratch) / "mlflow.db"
            with (
                closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as original,
                closing(sqlite3.connect(copy)) as target,
            ):
                original.backup(target)
            source = Source(store.connect(f"{settings.SQLITE}{copy}"), uri, path.resolve().parent)
        else:
            source = Source(store.connect(uri), uri, None)
        _check_answer(source.client, uri)
        if not experiments.to_copy(source.client):
            raise RequestError(
                f"{without_credentials(uri)} has no experiments: there is nothing to migrate. "
                "Name the store that has them: convoy migrate TARGET --from URI"
            )
        yield source


def open_target(uri: str, source: Source) -> MlflowClient:
    """Open the store to copy to.

    Raises:
        RequestError: it is neither a server nor a database file, or it is the source.
        MigrationError: it does not answer.
    """
    scheme = urlsplit(uri).scheme
    if scheme not in ("http", "https", "sqlite"):
        raise RequestError(
            f"{without_credentials(uri)} is not a valid target. Use the address of an MLflow server, such as "
            "https://mlflow.example.org (files are sent through it, not only rows), or sqlite:////PATH/mlflow.db"
        )
    if _resolved(uri) == _resolved(source.uri):
        raise RequestError(f"{without_credentials(uri)} is the source itself. Name another store.")
    store.check_schema(uri)
    client = store.connect(uri)
    _check_answer(client, uri)
    for experiment in experiments.to_copy(source.client):
        for run in source.client.search_runs([experiment.experiment_id], max_results=1):
            try:
                client.get_run(run.info.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                raise RequestError(
                    f"{without_credentials(uri)} has run {run.info.run_id} under the same id as the source: "
                    "it is the same store under another address, or a copy of its database. Name another store."
                )
    return client


def artifacts_of(uri: str) -> str | None:
    """Return where a target keeps files: beside a database file; None if a server decides."""
    if not uri.startswith(settings.SQLITE):
        return None
    return (Path(uri.removeprefix(settings.SQLITE)).resolve().parent / ARTIFACTS).as_uri()


def _check_answer(client: MlflowClient, uri: str) -> None:
    """Check that a store answers as a tracking store does."""
    try:
        client.search_experiments(max_results=1)
    except Exception as error:  # what the store's library raises
        raise MigrationError(
            f"{without_credentials(uri)} does not answer: {store.explain(error)}\n"
            "Start it, or correct the address; if it requires a login, set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        ) from error


def _resolved(uri: str) -> str:
    """Return an address in the form in which two of the same store are equal."""
    if uri.startswith(settings.SQLITE):
        return str(Path(uri.removeprefix(settings.SQLITE)).resolve())
    return uri.rstrip("/").lower()
