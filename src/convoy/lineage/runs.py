"""What is known of runs: those that the tracking store has, and those that wait on disk to be delivered."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convoy.core.errors import ConvoyError, without_credentials
from convoy.lineage import waiting
from convoy.lineage.waiting import COMMIT, Record, Version
from convoy.tracking import schema
from convoy.tracking.settings import LOG

__all__ = ["COMMIT", "Record", "Records", "StoreError", "Version", "open_records"]


class StoreError(ConvoyError):
    """Report a tracking store that does not answer."""


@dataclass
class Records:
    """Search the runs of a store and of an outbox together.

    Attributes:
        client: MLflow's client; None where there is no store yet.
        uri: address of the store.
        outbox: folder with the runs that wait.
    """

    client: Any
    uri: str
    outbox: Path
    _waiting: dict[str, Record] = field(default_factory=dict)
    _aliases: dict[tuple[str, str], tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        """Read the outbox."""
        self._waiting = {record.run_id: record for record in waiting.read(self.outbox)}

    def where(self, key: str, value: str, *, begins: bool = False) -> list[Record]:
        """Find the runs with a tag, or with one that begins so; newest first.

        Args:
            key: name of a tag, or `run_id` for MLflow's id.
            value: what is looked for; quotes are in no id.
            begins: take it for a prefix.
        """
        if not value or "'" in value or "%" in value:
            return []
        name = "attributes.run_id" if key == "run_id" else f"tags.`{key}`"
        stored = self._search(f"{name} LIKE '{value}%'" if begins else f"{name} = '{value}'")

        def fits(record: Record) -> bool:
            held = record.mlflow_run_id if key == "run_id" else record.tag(key)
            return held.startswith(value) if begins else held == value

        return self._joined(stored, filter(fits, self._waiting.values()))

    def latest(self, count: int) -> list[Record]:
        """List the newest runs."""
        return self._joined(self._search("", count), self._waiting.values())[:count]

    def models(self) -> dict[str, dict[str, str]]:
        """Map the registered models to their aliases, and these to versions."""
        if self.client is None:
            return {}
        found = self._ask(self.client.search_registered_models)
        return {
            model.name: {alias: str(number) for alias, number in model.aliases.items()} for model in found
        }

    def numbers(self, model: str) -> dict[str, str]:
        """Map a registered model's versions to MLflow's ids of the runs that they come from."""
        found = self._ask(lambda: self.client.search_model_versions(f"name = '{model}'"))
        return {str(version.version): version.run_id or "" for version in found}

    def of_run(self, mlflow_run_id: str) -> Record | None:
        """Find one run by MLflow's full id."""
        return next(iter(self.where("run_id", mlflow_run_id)), None)

    def listed(self, record: Record, folder: str) -> set[str]:
        """Name a run's artifacts in a folder."""
        kept = waiting.files(record.waiting) if record.waiting else ()
        names = {name for name, _ in kept if name.rpartition("/")[0] == folder}
        if self.client is None or not record.mlflow_run_id:
            return names
        found = self._ask(lambda: self.client.list_artifacts(record.mlflow_run_id, folder or None))
        return names | {entry.path for entry in found}

    def download(self, record: Record, name: str, folder: Path) -> Path | None:
        """Fetch one of a run's artifacts into a folder; None where it has none of this name."""
        for kept, path in waiting.files(record.waiting) if record.waiting else ():
            if kept == name:
                return path
        if name not in self.listed(record, name.rpartition("/")[0]):
            return None
        return Path(
            self._ask(lambda: self.client.download_artifacts(record.mlflow_run_id, name, str(folder)))
        )

    def _search(self, query: str, count: int = 1000) -> list[Record]:
        if self.client is None:
            return []
        known = self._ask(self.client.search_experiments)
        experiments = [one.experiment_id for one in known if LOG not in one.tags]
        order = ["attributes.start_time DESC"]
        found = self._ask(
            lambda: self.client.search_runs(experiments, query, max_results=count, order_by=order)
        )
        return [self._record(run) for run in found]

    def _record(self, run: Any) -> Record:  # noqa: ANN401 (an MLflow run; MLflow is imported only where it is asked)
        return Record(
            run_id=run.data.tags.get("convoy.run_id", ""),
            mlflow_run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status,
            started_ms=run.info.start_time or 0,
            tags=dict(run.data.tags),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
        )

    def with_versions(self, record: Record) -> Record:
        """Add the registered versions that come from a run, with their aliases."""
        if self.client is None or not record.mlflow_run_id:
            return record
        if self._aliases is None:
            self._aliases = {}
            for model, aliases in self.models().items():
                for alias, number in sorted(aliases.items()):
                    self._aliases[model, number] = (*self._aliases.get((model, number), ()), alias)
        query = f"run_id = '{record.mlflow_run_id}'"
        found = self._ask(lambda: self.client.search_model_versions(query))
        known = self._aliases
        versions = (
            Version(one.name, str(one.version), known.get((one.name, str(one.version)), ())) for one in found
        )
        return replace(record, versions=tuple(sorted(versions, key=lambda one: (one.model, int(one.number)))))

    def _joined(self, stored: list[Record], waiting: Iterable[Record]) -> list[Record]:
        """Put both together; where a run is in both, what waits is newer."""
        both = {record.run_id or record.mlflow_run_id: record for record in stored}
        for record in waiting:
            known = both.get(record.run_id)
            both[record.run_id] = _over(known, record) if known else record
        joined = (
            _over(record, self._waiting[key]) if key in self._waiting else record
            for key, record in both.items()
        )
        return sorted(joined, key=lambda record: -record.started_ms)

    def _ask(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (whatever is asked for)
        """Ask the store; its failure names what to do.

        Raises:
            StoreError: it does not answer, or refuses.
        """
        try:
            return call()
        except Exception as error:  # stores raise what their libraries do
            raise _failure(error, self.uri) from error


def open_records(uri: str, root: Path) -> Records:
    """Open what is known of runs.

    A local store that does not exist is not made: looking must leave nothing behind.

    Args:
        uri: address of the tracking store.
        root: the repository that the outbox is in.

    Raises:
        RequestError: the store is of another MLflow.
        StoreError: it cannot be opened.
    """
    file = uri.removeprefix(schema.SQLITE)
    if file != uri and not Path(file).exists():
        return Records(None, uri, root / "outbox")
    schema.check(uri)
    try:
        with _no_garbage():
            from convoy.tracking import store  # noqa: PLC0415 (it imports MLflow: a second)

            client = store.connect(uri)
    except Exception as error:
        raise _failure(error, uri) from error
    return Records(client, uri, root / "outbox")


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Leave the collector out while MLflow is imported: it would take a fifth of that time and find nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _failure(error: Exception, uri: str) -> StoreError:
    from convoy.tracking import store  # noqa: PLC0415 (MLflow takes a second)

    return StoreError(
        f"the tracking store {without_credentials(uri)} cannot be asked: {store.explain(error)}\n"
        "Start its server, or let MLFLOW_TRACKING_URI name the store that has the runs."
    )


def _over(known: Record, waits: Record) -> Record:
    """Lay what was not delivered yet over what the store has of the same run."""
    return replace(
        known,
        status=waits.status,
        tags=known.tags | waits.tags,
        params=known.params | waits.params,
        metrics=known.metrics | waits.metrics,
        waiting=waits.waiting,
        destination=waits.destination,
    )
