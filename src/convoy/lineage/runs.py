"""Search the runs of the tracking store together with those that wait in outbox/ for their upload."""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convoy.core import contract
from convoy.core.errors import ConvoyError, without_credentials
from convoy.tracking import journal, store
from convoy.tracking.settings import LOG, SQLITE


class StoreError(ConvoyError):
    """Report a tracking store that does not answer."""


@dataclass(frozen=True)
class Record:
    """Hold what the store and the outbox record of a run.

    Attributes:
        run_id: Convoy's id; empty for a run that Convoy did not make.
        mlflow_run_id: empty before the upload.
        name: as shown in the UI.
        status: of MLflow, such as FINISHED.
        started_ms: milliseconds since 1970, UTC.
        tags: all of them.
        params: flat names to values, as text.
        metrics: the latest value of each.
        versions: registered versions that come from this run, with the aliases that point to them: `convoy/2 (@champion)`.
        waiting: folder of what was not uploaded yet; None if nothing waits.
        destination: address of the store to upload to.
    """

    run_id: str
    mlflow_run_id: str
    name: str
    status: str
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    versions: tuple[str, ...] = ()
    waiting: Path | None = None
    destination: str = ""

    def tag(self, name: str) -> str:
        """Read a tag; empty if the run does not have it."""
        return self.tags.get(name, "")

    @property
    def id(self) -> str:
        """Convoy's id, else MLflow's."""
        return self.run_id or self.mlflow_run_id


@dataclass
class Records:
    """Search the runs of a store and an outbox.

    Attributes:
        client: MLflow's client; None if there is no store yet.
        uri: address of the store.
        outbox: folder with the runs that wait for their upload.
    """

    client: Any
    uri: str
    outbox: Path
    _waiting: dict[str, Record] = field(default_factory=dict)
    _aliases: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        """Read the outbox."""
        paths = sorted(self.outbox.glob(f"*/{journal.FILE}"))
        self._waiting = {record.run_id: record for path in paths if (record := _read_journal(path))}

    def where(self, key: str, value: str, *, prefix: bool = False) -> list[Record]:
        """Find the runs by a tag; newest first.

        Args:
            key: name of a tag, or `run_id` for MLflow's id.
            value: its value; one with quotes matches nothing.
            prefix: match the beginning.
        """
        if not value or "'" in value or "%" in value:
            return []
        name = "attributes.run_id" if key == "run_id" else f"tags.`{key}`"
        stored = self._search(f"{name} LIKE '{value}%'" if prefix else f"{name} = '{value}'")

        def matches(record: Record) -> bool:
            held = record.mlflow_run_id if key == "run_id" else record.tag(key)
            return held.startswith(value) if prefix else held == value

        return self._merged(stored, filter(matches, self._waiting.values()))

    def latest(self, count: int) -> list[Record]:
        """List the newest runs."""
        return self._merged(self._search("", count), self._waiting.values())[:count]

    def models(self) -> dict[str, dict[str, str]]:
        """Map the registered models to their aliases, and these to versions."""
        if self.client is None:
            return {}
        models = self._call(self.client.search_registered_models)
        return {
            model.name: {alias: str(number) for alias, number in model.aliases.items()} for model in models
        }

    def numbers(self, model: str) -> dict[str, str]:
        """Map a registered model's versions to MLflow's ids of their runs."""
        versions = self._call(lambda: self.client.search_model_versions(f"name = '{model}'"))
        return {str(version.version): version.run_id or "" for version in versions}

    def artifacts(self, record: Record, folder: str) -> set[str]:
        """List a run's artifacts in a folder."""
        names = {name for name, _ in _waiting_files(record.waiting) if name.rpartition("/")[0] == folder}
        if self.client is None or not record.mlflow_run_id:
            return names
        entries = self._call(lambda: self.client.list_artifacts(record.mlflow_run_id, folder or None))
        return names | {entry.path for entry in entries}

    def download(self, record: Record, name: str, folder: Path) -> Path | None:
        """Download an artifact of a run into a folder; None if the run does not have it."""
        for waiting, path in _waiting_files(record.waiting):
            if waiting == name:
                return path
        if name not in self.artifacts(record, name.rpartition("/")[0]):
            return None
        return Path(
            self._call(lambda: self.client.download_artifacts(record.mlflow_run_id, name, str(folder)))
        )

    def with_versions(self, record: Record) -> Record:
        """Add the registered versions that come from a run, with their aliases."""
        if self.client is None or not record.mlflow_run_id:
            return record
        if self._aliases is None:
            self._aliases = {}
            for model, aliases in self.models().items():
                for alias, number in sorted(aliases.items()):
                    self._aliases.setdefault(f"{model}/{number}", []).append(f"@{alias}")
        query = f"run_id = '{record.mlflow_run_id}'"
        versions = self._call(lambda: self.client.search_model_versions(query))
        ordered = sorted(versions, key=lambda version: (version.name, int(version.version)))
        names = [f"{version.name}/{version.version}" for version in ordered]
        notes = {name: f" ({', '.join(aliases)})" for name, aliases in self._aliases.items()}
        return replace(record, versions=tuple(name + notes.get(name, "") for name in names))

    def _search(self, query: str, count: int = 1000) -> list[Record]:
        if self.client is None:
            return []
        experiments = self._call(self.client.search_experiments)
        ids = [experiment.experiment_id for experiment in experiments if LOG not in experiment.tags]
        order = ["attributes.start_time DESC"]
        runs = self._call(lambda: self.client.search_runs(ids, query, max_results=count, order_by=order))
        return [
            Record(
                run_id=run.data.tags.get(contract.RUN_ID, ""),
                mlflow_run_id=run.info.run_id,
                name=run.info.run_name or "",
                status=run.info.status,
                started_ms=run.info.start_time or 0,
                tags=dict(run.data.tags),
                params=dict(run.data.params),
                metrics=dict(run.data.metrics),
            )
            for run in runs
        ]

    def _merged(self, stored: list[Record], waiting: Iterable[Record]) -> list[Record]:
        """Merge both; of a run that is in both, what waits is newer."""
        merged = {record.id: record for record in stored}
        merged |= {record.run_id: record for record in waiting if record.run_id not in merged}
        records = (
            _overlaid(record, self._waiting[key])
            if key in self._waiting and record is not self._waiting[key]
            else record
            for key, record in merged.items()
        )
        return sorted(records, key=lambda record: -record.started_ms)

    def _call(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (whatever the client returns)
        """Call the store; its failure names the remedy.

        Raises:
            StoreError: it does not answer, or refuses.
        """
        try:
            return call()
        except Exception as error:  # stores raise what their libraries do
            raise _failure(error, self.uri) from error


def open_records(uri: str, root: Path) -> Records:
    """Open the records of runs.

    A local store that does not exist is not created.

    Args:
        uri: address of the tracking store.
        root: the repository with the outbox.

    Raises:
        RequestError: the store was written by another version of MLflow.
        StoreError: it cannot be opened.
    """
    file = uri.removeprefix(SQLITE)
    if file != uri and not Path(file).exists():
        return Records(None, uri, root / "outbox")
    store.check_schema(uri)
    collects = gc.isenabled()
    gc.disable()  # it takes a fifth of the time in which MLflow is imported, and finds nothing
    try:
        client = store.connect(uri)
    except Exception as error:
        raise _failure(error, uri) from error
    finally:
        if collects:
            gc.enable()
    return Records(client, uri, root / "outbox")


def _failure(error: Exception, uri: str) -> StoreError:
    return StoreError(
        f"the tracking store {without_credentials(uri)} does not answer: {store.explain(error)}\n"
        "Start its server, or set MLFLOW_TRACKING_URI to the store that has the runs."
    )


def _overlaid(stored: Record, waiting: Record) -> Record:
    """Lay what was not uploaded yet over the stored part of the same run."""
    return replace(
        stored,
        status=waiting.status,
        tags=stored.tags | waiting.tags,
        params=stored.params | waiting.params,
        metrics=stored.metrics | waiting.metrics,
        waiting=waiting.waiting,
        destination=waiting.destination,
    )


def _waiting_files(folder: Path | None) -> Iterator[tuple[str, Path]]:
    """List the files that wait beside a journal, by the name that they get among the run's artifacts."""
    for entry, _ in journal.read(folder / journal.FILE) if folder else ():
        if folder and entry.get("kind") == "files":
            source = folder / entry["at"]
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                name = path.relative_to(source).as_posix()
                yield "/".join(filter(None, [entry.get("folder"), name])), path


def _read_journal(path: Path) -> Record | None:
    """Sum up the journal of a run; None if it does not name the run yet."""
    state = journal.State()
    params: dict[str, str] = {}
    metrics: dict[str, tuple[int, float]] = {}
    for entry, _ in journal.read(path):
        state.add(entry)
        if entry.get("kind") == "params":
            params |= entry["params"]
        elif entry.get("kind") == "points":
            for name, value, step, _ in entry["points"]:
                if step >= metrics.get(name, (-1, 0.0))[0]:
                    metrics[name] = (step, value)
    if contract.RUN_ID not in state.tags:
        return None
    return Record(
        run_id=state.tags[contract.RUN_ID],
        mlflow_run_id=journal.Sent.load(path.parent).mlflow_run_id,
        name=str(state.opened.get("name", "")),
        status=state.ended or "RUNNING",
        started_ms=int(state.opened.get("time_ms", 0)),
        tags=state.tags,
        params=params,
        metrics={name: value for name, (_, value) in metrics.items()},
        waiting=path.parent,
        destination=str(state.opened.get("uri", "")),
    )
