"""Copy a tracking store to another: experiments, runs, files, models and the registry; then compare both.

MLflow has no tool for this. `mlflow-export-import` is unsuitable: its last release on PyPI (1.2.0, February
2023) supports MLflow 1 and 2.1 only, ends every run as FINISHED at the time of the import, ignores datasets and
logged models, compares nothing, and a repeated import duplicates every run.

MLflow does not let anyone set when a logged model or a version was created, so these times are lost. Runs and
models get new ids, to which tags and `MLmodel` files are updated; traces, prompts and deleted entries are not copied.
"""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core import console
from convoy.core.console import track
from convoy.core.errors import MigrationError, RequestError, without_credentials
from convoy.tracking import migration_runs, settings, store, store_file
from convoy.tracking.migration_runs import ORIGIN, VERSIONS, ArtifactTree, Ids, local_path

ARTIFACTS = "mlartifacts"  # folder beside a database file in which the files of its runs lie
KINDS = (
    *("experiments", "runs", "params", "metric points", "tags", "datasets", "files"),
    *("logged models", "model files", "models of runs", "registered models", "versions", "aliases"),
)


@dataclass
class Count:
    """Count one kind of entry: how many there are to copy, in the target at the end, and sent now."""

    source: int = 0
    target: int = 0
    sent: int = 0


@dataclass
class Report:
    """Count what the stores have and what was sent.

    Attributes:
        counts: by kind of entry.
        size: bytes of all files.
        notes: remarks for the user that are no errors.
        wrong: what the target lacks, one line per run, model or version.
    """

    counts: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    size: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, kind: str, source: int = 0, target: int = 0, sent: int = 0) -> None:
        """Add to the counts of a kind."""
        count = self.counts[kind]
        count.source += source
        count.target += target
        count.sent += sent

    def table(self) -> str:
        """Format counts and notes."""
        rows = [
            (kind, f"{count.source:,}", f"{count.target:,}", f"{count.sent:,}")
            for kind, count in self.counts.items()
        ]
        lines = [console.table(("", "in source", "in target", "sent now"), rows, right=(1, 2, 3))]
        lines += [f"note: {note}" for note in self.notes]
        if not self.wrong:
            files = self.counts["files"].target + self.counts["model files"].target
            equal = f"the sha256 of {files:,} files ({self.size:,} bytes)"
            lines.append(f"\ncomplete: counts are equal, and so is {equal}")
        return "\n".join(lines)


def migrate(target: str, source: str) -> Report:
    """Copy what the target lacks, then compare both stores; a second call finds nothing to send.

    Args:
        target: address of a server, or `sqlite:////PATH/mlflow.db`.
        source: address of the store to read; it is never changed.

    Raises:
        RequestError: source and target are the same store, or one of them is not a valid store.
        MigrationError: a store does not answer, or no longer.
    """
    with _open_source(source) as opened:
        client = _open_target(target, opened)
        artifacts = None  # a server decides
        if path := _database(target):
            artifacts = (path.resolve().parent / ARTIFACTS).as_uri()
        try:
            with store.as_default(target):
                return Migration(opened, client, artifacts).run()
        except (MlflowException, OSError) as error:
            raise MigrationError(
                f"stopped: {store.explain(error)}\n"
                f"{without_credentials(target)} keeps what it has; run the same command again to continue."
            ) from error


@dataclass(frozen=True)
class Source:
    """A store to read.

    Attributes:
        client: that of a copy if the store is a database file.
        uri: its address.
        folder: in which the database file lies; None for a server.
    """

    client: MlflowClient
    uri: str
    folder: Path | None

    def tree(self, uri: str) -> ArtifactTree:
        """Locate artifacts, also where the database was moved together with them: MLflow's paths are absolute."""
        path = local_path(uri)
        if self.folder is None or path is None or path.exists() or ARTIFACTS not in path.parts:
            return ArtifactTree(uri, self.uri)
        moved = self.folder.joinpath(*path.parts[path.parts.index(ARTIFACTS) :])
        return ArtifactTree(uri, self.uri, moved if moved.exists() else None)


@contextmanager
def _open_source(uri: str) -> Iterator[Source]:
    """Open a store to read; a database file is copied first, so it neither is changed nor changes meanwhile."""
    with tempfile.TemporaryDirectory() as scratch:
        if path := _database(uri):
            if not path.exists():
                raise RequestError(
                    f"{path} does not exist, so there is nothing to migrate. Change to the repository of "
                    "the runs, or name the store: convoy migrate TARGET --from sqlite:////PATH/mlflow.db"
                )
            store_file.check(uri)
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
        if not _to_copy(source.client):
            raise RequestError(
                f"{without_credentials(uri)} has no experiments: there is nothing to migrate. "
                "Name the store that has them: convoy migrate TARGET --from URI"
            )
        yield source


def _open_target(uri: str, source: Source) -> MlflowClient:
    """Open the store to copy to; refuse the source itself, or a copy of its database."""
    if urlsplit(uri).scheme not in ("http", "https", "sqlite"):
        raise RequestError(
            f"{without_credentials(uri)} is not a valid target. Use the address of an MLflow server, such as "
            "https://mlflow.example.org (files are sent through it, not only rows), or sqlite:////PATH/mlflow.db"
        )
    resolved = [
        path.resolve() if (path := _database(each)) else each.rstrip("/").lower()
        for each in (uri, source.uri)
    ]
    if resolved[0] == resolved[1]:
        raise RequestError(f"{without_credentials(uri)} is the source itself. Name another store.")
    client = store.open_to_write(uri)
    _check_answer(client, uri)
    for experiment in _to_copy(source.client):
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


def _database(uri: str) -> Path | None:
    """Return the file of a store in a file; None for a server."""
    return Path(uri.removeprefix(settings.SQLITE)) if uri.startswith(settings.SQLITE) else None


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


def _to_copy(client: MlflowClient) -> list[Experiment]:
    """List the experiments to copy, oldest first: not an empty `Default`."""
    experiments = [
        experiment
        for experiment in client.search_experiments()
        if experiment.name != "Default" or client.search_runs([experiment.experiment_id], max_results=1)
    ]
    return sorted(
        experiments, key=lambda experiment: (experiment.creation_time or 0, experiment.experiment_id)
    )


class Migration:
    """Copy one store to another, then compare both."""

    def __init__(self, source: Source, target: MlflowClient, artifacts: str | None) -> None:
        """Copy between two different stores; a target without a server keeps its files in `artifacts`."""
        self.source = source
        self.target = target
        self.artifacts = artifacts
        self.ids = Ids()
        self.trees: dict[
            str, tuple[ArtifactTree, ArtifactTree]
        ] = {}  # files of a run or model, here and there
        self.runs: list[Run] = []
        self.models: list[LoggedModel] = []
        self.new: set[str] = set()
        self.report = Report()

    def run(self) -> Report:
        """Match entries of both stores, send what is missing, compare."""
        for experiment in _to_copy(self.source.client):
            self._match(experiment)
        for model in track(self.models, "models to send", len(self.models)):
            sent = migration_runs.send_files(*self.trees[model.model_id], self.ids)
            self.report.add("model files", sent=sent)
            migration_runs.complete_model(model, self.target, self.ids)
        for run in track(self.runs, "runs to send", len(self.runs)):
            self._send(run)
        search = self.source.client.search_registered_models
        for registered in store.all_pages(lambda token: search(page_token=token)):
            self._copy_registered(registered)
        for model in self.models:
            self._link_versions(model)
        for model in track(self.models, "models to compare", len(self.models)):
            lacking = migration_runs.compare_model(model, self.target, self.ids)
            wrong = [part for part, lacks in lacking.items() if lacks]
            self._compare("logged models", f"model {model.model_id} ({model.name})", model.model_id, wrong)
        for run in track(self.runs, "runs to compare", len(self.runs)):
            difference = migration_runs.compare_run(self.source.client, run, self.target, self.ids)
            for kind, total in difference.totals.items():
                self.report.add(kind, total, max(0, total - len(difference.lacking[kind])))
            name = f"run {run.info.run_id} ({run.info.run_name})"
            self._compare("runs", name, run.info.run_id, difference.parts())
        return self.report

    def _match(self, experiment: Experiment) -> None:
        """Find or create in the target everything with an id: an experiment, its runs and its models."""
        client, report = self.source.client, self.report
        copy_id = self._match_experiment(experiment)
        # Each by its own request: a search leaves out the models that a run took.
        runs = [
            client.get_run(run.info.run_id) for run in migration_runs.runs(client, experiment.experiment_id)
        ]
        new = migration_runs.match_runs(self.target, copy_id, runs, self.ids)
        report.add("runs", len(runs), sent=len(new))
        models = list(migration_runs.logged_models(client, experiment.experiment_id))
        created = migration_runs.match_models(self.target, copy_id, models, self.ids)
        report.add("logged models", len(models), sent=created)
        for run in runs:
            copy = self.target.get_run(self.ids[run.info.run_id])
            self._pair(run.info.run_id, run.info.artifact_uri, copy.info.artifact_uri)
        for model in models:
            copied = self.target.get_logged_model(self.ids[model.model_id])
            self._pair(model.model_id, model.artifact_location, copied.artifact_location)
        folder = self.source.tree(experiment.artifact_location).folder
        if folder and not folder.exists():
            report.notes.append(
                f"experiment {experiment.name}: {folder} does not exist, so none of its files were copied"
            )
        self.new |= new
        self.runs += runs
        self.models += models

    def _match_experiment(self, source: Experiment) -> str:
        """Find or create the experiment of the same name, and add the tags that it lacks; return its id."""
        existing = self.target.get_experiment_by_name(source.name)
        self.report.add("experiments", 1, 1, sent=int(existing is None))
        if existing is None:
            tags = dict(source.tags)
            return self.target.create_experiment(source.name, artifact_location=self.artifacts, tags=tags)
        if existing.lifecycle_stage != "active":
            self.target.restore_experiment(existing.experiment_id)
        for key in source.tags.keys() - existing.tags.keys():
            self.target.set_experiment_tag(existing.experiment_id, key, source.tags[key])
        return str(existing.experiment_id)

    def _pair(self, name: str, old: str, new: str) -> None:
        """Note where files lie; a version may name them by address or, on this machine, by path."""
        self.trees[name] = self.source.tree(old), ArtifactTree(new, self.target.tracking_uri)
        self.ids.addresses[old] = new
        if (path := local_path(old)) is not None:
            self.ids.addresses[str(path)] = new

    def _send(self, run: Run) -> None:
        difference = migration_runs.compare_run(self.source.client, run, self.target, self.ids)
        migration_runs.complete_run(run, difference, self.target, self.ids)
        sent = {kind: len(entries) for kind, entries in difference.lacking.items()}
        if run.info.run_id in self.new:  # some of its tags came with it, and points with its model
            sent |= {kind: difference.totals[kind] for kind in ("metric points", "tags")}
        for kind, number in sent.items():
            self.report.add(kind, sent=number)
        self.report.add("files", sent=migration_runs.send_files(*self.trees[run.info.run_id], self.ids))
        if difference.end:
            migration_runs.end_run(run, self.target, self.ids)

    def _compare(self, kind: str, name: str, entry_id: str, wrong: list[str]) -> None:
        """Compare the files of a run or model, and report it with what else is `wrong` with it."""
        total, size, lacking = migration_runs.check_files(*self.trees[entry_id], self.ids)
        self.report.add("files" if kind == "runs" else "model files", total, total - len(lacking))
        self.report.size += size
        wrong += lacking
        self.report.add(kind, target=int(not wrong))
        if wrong:
            self.report.wrong.append(f"{name}: {', '.join(wrong)}")

    def _copy_registered(self, model: RegisteredModel) -> None:
        """Find or create the registered model of the same name; add the tags, versions and aliases that it lacks."""
        self.report.add("registered models", 1, 1)
        try:
            existing = self.target.get_registered_model(model.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.report.add("registered models", sent=1)
            existing = self.target.create_registered_model(model.name, dict(model.tags), model.description)
        for key in model.tags.keys() - existing.tags.keys():
            self.target.set_registered_model_tag(model.name, key, model.tags[key])
        if model.description and not existing.description:
            self.target.update_registered_model(model.name, model.description)
        self._copy_versions(model.name)
        self._set_aliases(model, {alias: str(number) for alias, number in existing.aliases.items()})

    def _copy_versions(self, name: str) -> None:
        """Find or create each version of a registered model, and add it to `ids`."""
        there = {
            version.tags[ORIGIN]: str(version.version)
            for version in _versions(self.target, name)
            if ORIGIN in version.tags
        }
        for version in _versions(self.source.client, name):
            self.report.add("versions", 1)
            label = f"{name}/{version.version}"
            origin = f"{label} of {version.creation_timestamp}"
            number = there.get(origin)
            if number is None:
                if version.run_id and version.run_id not in self.ids:
                    self.report.wrong.append(
                        f"{label}: its run {version.run_id} is deleted. Restore it (mlflow runs "
                        f"restore --run-id {version.run_id}) or delete the version"
                    )
                    continue
                try:
                    number = self._create_version(version, origin)
                except MlflowException as error:
                    self.report.wrong.append(f"{label}: {error!s:.300}")
                    continue
                self.report.add("versions", sent=1)
            self.report.add("versions", target=1)
            self.ids.versions[name, str(version.version)] = number
            if number != str(version.version):
                self.report.notes.append(f"{label} is {name}/{number} there: that number is taken")

    def _create_version(self, version: ModelVersion, origin: str) -> str:
        """Create a version with the number that it had, or a higher one if the target has that already."""
        address = self.ids.address(str(version.source))
        while True:
            made = self.target.create_model_version(
                version.name,
                address,
                run_id=self.ids.get(version.run_id or "") or None,
                tags={key: self.ids.translate(value) for key, value in version.tags.items()}
                | {ORIGIN: origin},
                description=version.description,
                model_id=address.removeprefix("models:/") if address.startswith("models:/m-") else None,
            )
            if int(made.version) >= int(version.version):
                break
            # MLflow only counts up: a number that was deleted in the source is used up here as well.
            self.target.delete_model_version(version.name, str(made.version))
        if version.current_stage not in (None, "None"):
            self.target.transition_model_version_stage(version.name, str(made.version), version.current_stage)
        return str(made.version)

    def _set_aliases(self, model: RegisteredModel, existing: dict[str, str]) -> None:
        """Set the aliases that the target does not have; one that points elsewhere there is left unchanged."""
        for alias, number in model.aliases.items():
            self.report.add("aliases", 1)
            copied = self.ids.versions.get((model.name, str(number)))
            if copied is None:
                self.report.wrong.append(f"{model.name}@{alias}: its version {number} was not copied")
                continue
            self.report.add("aliases", target=1)
            if alias not in existing:
                self.target.set_registered_model_alias(model.name, alias, copied)
                self.report.add("aliases", sent=1)
            elif existing[alias] != copied:
                self.report.notes.append(
                    f"{model.name}@{alias} stays at version {existing[alias]}, which the target has given it; "
                    f"in the source it is {number}, there {copied}"
                )

    def _link_versions(self, model: LoggedModel) -> None:
        """Name the registered versions of a logged model in its tag."""
        model_id = self.ids[model.model_id]
        there = json.loads(self.target.get_logged_model(model_id).tags.get(VERSIONS, "[]"))
        # A server writes the version as a number, MLflow's client as text.
        known = {(entry["name"], str(entry["version"])) for entry in there}
        copied = {
            (entry["name"], self.ids.versions.get((entry["name"], str(entry["version"])), ""))
            for entry in json.loads(model.tags.get(VERSIONS, "[]"))
        }
        lacking = [{"name": name, "version": version} for name, version in sorted(copied - known) if version]
        if lacking:
            self.target.set_logged_model_tags(model_id, {VERSIONS: json.dumps([*there, *lacking])})


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """List the versions of a registered model, oldest first."""
    query = "name = '{}'".format(name.replace("'", "''"))
    pages = store.all_pages(lambda token: client.search_model_versions(query, page_token=token))
    return sorted(pages, key=lambda version: int(version.version))
