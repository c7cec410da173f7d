"""Search the runs of the tracking store and of outbox/, and resolve what people type to the runs that it belongs to.

An id, a version, an alias, a file, a hash, a commit or an experiment's name leads to its runs.
"""

import difflib
import gc
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convoy.core import contract, files
from convoy.core.errors import ConvoyError, RequestError, listed, without_credentials
from convoy.core.params import did_you_mean
from convoy.repo import git
from convoy.repo.dvc import Cache
from convoy.tracking import journal, store, store_file
from convoy.tracking.settings import LOG, SQLITE

RUN_ID = re.compile(r"\d{4,8}(-\d{0,6}(-[0-9a-f]{0,6})?)?")
HEX = re.compile(r"[0-9a-f]{4,64}")
VERSION = re.compile(r"(models:/)?(?P<model>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d+))")
SHORTEST = 7  # digits that the beginning of a commit or a hash must have; ids of runs may be shorter
HASHES = {
    contract.DATA_HASH: "data",
    contract.DATA_MD5: "data",
    contract.PARAMS_HASH: "params",
    contract.ONNX_SHA256: "ONNX",
    contract.LOCK: "dvc.lock",
}
NEAREST = 3  # ids that are named for an unknown id


class StoreError(ConvoyError):
    """Report a tracking store that does not answer."""


@dataclass(frozen=True)
class Record:
    """Hold what the store and the outbox record of a run."""

    run_id: str  # Convoy's; empty for a run that Convoy did not make
    mlflow_run_id: str  # empty before the upload
    name: str  # as shown in the UI
    status: str  # of MLflow, such as FINISHED
    started_ms: int  # since 1970, UTC
    tags: dict[str, str]
    params: dict[str, str]  # flat names to values, as text
    metrics: dict[str, float]  # the latest value of each
    versions: tuple[str, ...] = ()  # registered, with their aliases, such as `convoy/2 (@champion)`
    waiting: Path | None = None  # folder of what was not uploaded yet; None if nothing waits
    destination: str = ""  # address of the store to upload to

    def tag(self, name: str) -> str:
        """Read a tag; empty if the run does not have it."""
        return self.tags.get(name, "")

    @property
    def id(self) -> str:
        """Convoy's id, else MLflow's."""
        return self.run_id or self.mlflow_run_id


@dataclass
class Records:
    """Search the runs of a store and an outbox."""

    client: Any  # MLflow's; None if there is no store yet
    uri: str  # address of the store
    outbox: Path
    _waiting: dict[str, Record] = field(default_factory=dict)
    _aliases: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        """Read the outbox."""
        paths = sorted(self.outbox.glob(f"*/{journal.FILE}"))
        self._waiting = {record.run_id: record for path in paths if (record := _read_journal(path))}

    def where(self, key: str, value: str, *, prefix: bool = False) -> list[Record]:
        """Find the runs by a tag, or by MLflow's id (`run_id`); newest first. A value with quotes matches nothing."""
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
    """Open the tracking store and the outbox of a repository; a local store that does not exist is not created.

    Raises:
        RequestError: the store was written by another version of MLflow.
        StoreFileError: its file cannot be used.
        StoreError: it cannot be opened.
    """
    file = uri.removeprefix(SQLITE)
    if file != uri and not Path(file).exists():
        return Records(None, uri, root / "outbox")
    store_file.check(uri)
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
    return StoreError(store.failure(error, uri))


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


@dataclass(frozen=True)
class Match:
    """Hold what a text resolved to."""

    text: str  # as typed
    kind: str  # `run`, `version`, `alias`, `ONNX`, `data`, `params`, `dvc.lock`, `commit` or `experiment`
    subject: str  # its full name
    records: tuple[Record, ...]  # the runs that it belongs to, newest first; may be empty
    onnx: Path | None = None  # the file, if an ONNX file was named
    sha256: str = ""  # of that file


def resolve(text: str, records: Records, root: Path, cache: Cache) -> Match:
    """Resolve a text.

    Raises:
        RequestError: it matches nothing, with the nearest names; or it is the beginning of several ids.
        StoreError: the tracking store does not answer.
    """
    name = text.strip()
    if name.startswith("runs:/"):
        match = _run(name.removeprefix("runs:/"), records)
    elif version := VERSION.fullmatch(name):
        match = _version(name, version, records) or _file(name, records)
    else:
        match = _file(name, records) or _run(name, records) or _alias(name, records)
        match = match or _experiment(name, records, root) or _commit(name, records, root)
        match = match or _hash(name, records, cache)
    if match is None:
        raise RequestError(_not_found(name, records, root))
    return replace(match, text=text, records=tuple(records.with_versions(record) for record in match.records))


def _run(text: str, records: Records) -> Match | None:
    for key, form in ((contract.RUN_ID, RUN_ID), ("run_id", HEX)):
        if form.fullmatch(text) and (
            runs := records.where(key, text) or records.where(key, text, prefix=True)
        ):
            names = [record.run_id if key == contract.RUN_ID else record.mlflow_run_id for record in runs]
            if len(runs) > 1:
                raise RequestError(_ambiguous(text, "runs", names))
            return Match(text, "run", names[0], tuple(runs))
    return None


def _version(text: str, parts: re.Match[str], records: Records) -> Match | None:
    model, alias, number = parts["model"], parts["alias"], parts["number"]
    models = records.models()
    if model not in models:
        if not text.startswith("models:/") and "/" in text:
            return None  # may be a path
        known = did_you_mean(model, models) if models else "; no model is registered"
        raise RequestError(
            f"registered model `{model}` not found in {without_credentials(records.uri)}{known}"
        )
    if alias:
        if alias not in models[model]:
            known = did_you_mean(alias, models[model]) if models[model] else "; it has no aliases"
            raise RequestError(f"model {model} has no alias `{alias}`{known}")
        number = models[model][alias]
    runs = records.numbers(model)
    if number not in runs:
        versions = ", ".join(sorted(runs, key=int)) or "none"
        raise RequestError(f"model {model} has no version {number}; its versions: {versions}")
    owners = records.where("run_id", runs[number])[:1]
    return Match(text, "alias" if alias else "version", f"{model}/{number}", tuple(owners))


def _alias(text: str, records: Records) -> Match | None:
    for model, aliases in records.models().items():
        if text in aliases and (parts := VERSION.fullmatch(f"{model}@{text}")):
            return _version(text, parts, records)
    return None


def _file(text: str, records: Records) -> Match | None:
    path = files.expanded(text)
    if not path.exists() or not ("/" in text or path.suffix):
        return None  # a folder such as `data` may have the name of a branch
    if path.is_dir() or path.suffix != ".onnx":
        raise RequestError(
            f"{text} is not an ONNX file. Name a file such as build/deploy/model.onnx, or an id."
        )
    identity, sha256 = _metadata(path), files.sha256(path)
    runs = records.where(contract.RUN_ID, identity.get("run_id", ""))
    runs = runs or records.where(contract.ONNX_SHA256, sha256)
    if not runs and not identity:
        raise RequestError(
            f"{text} was not exported by Convoy: it names no run, and no run has its sha256 {sha256}"
        )
    if not runs:
        tags = {contract.GIT_COMMIT: identity["git_commit"], contract.DATA_HASH: identity["data_hash"]}
        tags |= {contract.PARAMS_HASH: identity["params_hash"], contract.ONNX_SHA256: sha256}
        runs = [Record(identity["run_id"], "", "", "", 0, tags, {}, {})]
    return Match(text, "ONNX", sha256, tuple(runs), path, sha256)


def _metadata(path: Path) -> dict[str, str]:
    """Read the identity that Convoy writes into its models; empty for a model of others."""
    import onnx  # noqa: PLC0415 (seconds of imports that only this needs)

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises what its parser does
        raise RequestError(
            f"{path} cannot be read as ONNX: {error!s:.200}. Was it copied completely?"
        ) from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if contract.RUN_ID not in metadata:
        return {}
    return {key: metadata[f"convoy.{key}"] for key in contract.IDENTITY}


def _experiment(text: str, records: Records, root: Path) -> Match | None:
    experiments = git.experiments(root)
    by_commit = {number: name for name, number in experiments.items()}
    name = by_commit.get(git.commit(root, text), text) if HEX.fullmatch(text) else text
    runs = records.where(contract.DVC_EXPERIMENT, name)
    return Match(text, "experiment", name, tuple(runs)) if runs or name in experiments else None


def _commit(text: str, records: Records, root: Path) -> Match | None:
    digits = HEX.fullmatch(text) and len(text) >= SHORTEST
    # A word of few digits is no commit, though git would find one: `1234` may begin a run's id.
    number = git.commit(root, text) if digits or not HEX.fullmatch(text) else ""
    if number:
        return Match(text, "commit", number, tuple(records.where(contract.GIT_COMMIT, number)))
    return _prefix(text, "commit", contract.GIT_COMMIT, records) if digits else None


def _hash(text: str, records: Records, cache: Cache) -> Match | None:
    digits = text.removesuffix(".dir")
    if not (HEX.fullmatch(digits) and len(digits) >= SHORTEST):
        return None
    for key, kind in HASHES.items():
        if match := _prefix(digits, kind, key, records):
            return match
    for md5 in (digits, f"{digits}.dir"):
        if len(digits) == 32 and cache.path(md5).exists():
            return Match(text, "data", md5, ())
    return None


def _prefix(text: str, kind: str, key: str, records: Records) -> Match | None:
    runs = records.where(key, text, prefix=True)
    values = {record.tag(key) for record in runs}
    if len(values) > 1:
        raise RequestError(_ambiguous(text, f"{kind}s", sorted(values)))
    return Match(text, kind, values.pop(), tuple(runs)) if runs else None


def _ambiguous(text: str, kind: str, names: list[str]) -> str:
    return f"`{text}` matches several {kind}: {listed(names, 5)}. Type more digits."


def _not_found(text: str, records: Records, root: Path) -> str:
    latest, models = records.latest(200), records.models()
    ids = ((run.run_id, run.mlflow_run_id, run.tag(contract.DVC_EXPERIMENT)) for run in latest)
    names = [name for own in ids for name in own if name]
    names += [*git.experiments(root), *models, *(alias for aliases in models.values() for alias in aliases)]
    near = difflib.get_close_matches(text, dict.fromkeys(names), n=NEAREST, cutoff=0.6)
    message = f"`{text}` not found in {without_credentials(records.uri)}, git and DVC's cache"
    if near:
        return f"{message}. Nearest: {', '.join(near)}"
    if latest:
        known = ", ".join(f"{run.id} ({run.name})" for run in latest[:NEAREST])
        return f"{message}. The latest runs: {known}"
    return f"{message}. No run exists yet: `dvc repro` makes one. MLFLOW_TRACKING_URI selects another store."
