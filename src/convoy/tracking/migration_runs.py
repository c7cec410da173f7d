"""Copy runs and logged models, with their artifact files, to another store, without what it already has."""

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities import (
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from convoy.core import contract, files
from convoy.tracking.store import all_pages, artifacts

PAGE = 1000  # runs per request, and points per request: MLflow takes no more
BATCH = 100  # params or tags per request: MLflow takes no more
ORIGIN = "convoy.migrated_from"  # tag of everything that was copied: its id in the source
USER = "mlflow.user"  # tag from which MLflow sets a run's user, only when the run is created
VERSIONS = "mlflow.modelVersions"  # tag of a logged model: the registered versions that were made of it
TRANSLATED = "MLmodel"  # the only artifact that names the run and the model it belongs to, by MLflow's ids
ID = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")  # MLflow's form of the id of a run, or of a model (`m-…`)


class Ids(dict[str, str]):
    """Map ids of the source to those of the target; addresses of artifacts and (model, version) likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: dict[str, str] = {}
        self.versions: dict[tuple[str, str], str] = {}

    def translate(self, text: str) -> str:
        """Replace every known id in a text, such as the tag `mlflow.parentRunId`."""
        return ID.sub(lambda match: self.get(match[0], match[0]), text)

    def address(self, uri: str) -> str:
        """Return the address in the target of artifacts of the source, whose paths are absolute."""
        for old, new in self.addresses.items():
            if uri == old or uri.startswith(f"{old}/"):
                return new + uri.removeprefix(old)
        return self.translate(uri)


@dataclass(frozen=True)
class Difference:
    """List what the copy of a run lacks.

    Attributes:
        totals: number of entries in the source, by the kinds of `migration.KINDS`.
        lacking: entries that the copy lacks, by the same kinds.
        name: whether the copy has another name.
        end: whether the copy has another status or end time.
    """

    totals: dict[str, int]
    lacking: dict[str, list[Any]]
    name: bool
    end: bool

    def parts(self) -> list[str]:
        """Name what differs."""
        differences = {**self.lacking, "name": self.name, "end": self.end}
        return [part for part, differs in differences.items() if differs]


def runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Yield the runs of an experiment that are not deleted, oldest first."""
    order = ["attributes.start_time ASC"]
    return all_pages(
        lambda token: client.search_runs([experiment], "", ViewType.ACTIVE_ONLY, PAGE, order, token)
    )


def logged_models(client: MlflowClient, experiment: str) -> Iterator[LoggedModel]:
    """Yield the logged models of an experiment, oldest first."""
    order = [{"field_name": "creation_timestamp", "ascending": True}]
    return all_pages(
        lambda token: client.search_logged_models([experiment], order_by=order, page_token=token)
    )


def match_runs(target: MlflowClient, experiment: str, source_runs: Iterable[Run], ids: Ids) -> set[str]:
    """Find or create the run of the target for each of the source, and add them to `ids`.

    A run is identified by the id that it had in the source, else by Convoy's own id: the uploader of another
    machine may have delivered it there.

    Returns:
        Ids in the source of the runs that were created.
    """
    origins, minted = {}, {}
    for run in runs(target, experiment):
        if ORIGIN in run.data.tags:
            origins[run.data.tags[ORIGIN]] = run.info.run_id
        elif contract.RUN_ID in run.data.tags:
            minted[run.data.tags[contract.RUN_ID]] = run.info.run_id
    created = set()
    for run in source_runs:
        old = run.info.run_id
        copy_id = origins.get(old) or minted.pop(run.data.tags.get(contract.RUN_ID, ""), "")
        if not copy_id:
            tags = {ORIGIN: old} | {key: run.data.tags[key] for key in (USER,) if key in run.data.tags}
            copy = target.create_run(experiment, run.info.start_time, tags, run.info.run_name)
            copy_id = copy.info.run_id
            created.add(old)
        ids[old] = copy_id
    return created


def match_models(target: MlflowClient, experiment: str, models: list[LoggedModel], ids: Ids) -> int:
    """Find or create the model of the target for each of the source, and add them to `ids`; return how many are new."""
    existing = {
        model.tags[ORIGIN]: model.model_id
        for model in logged_models(target, experiment)
        if ORIGIN in model.tags
    }
    new = [model for model in models if model.model_id not in existing]
    for model in new:
        existing[model.model_id] = target.create_logged_model(
            experiment,
            name=model.name,
            source_run_id=ids.get(model.source_run_id or "") or None,
            tags={ORIGIN: model.model_id},
            params=dict(model.params),
            model_type=model.model_type or None,
        ).model_id
    ids.update({model.model_id: existing[model.model_id] for model in models})
    return len(new)


def compare_run(source: MlflowClient, run: Run, target: MlflowClient, ids: Ids) -> Difference:
    """Compare a run of the source with its copy; models that are deleted in the source do not count."""
    copy = target.get_run(ids[run.info.run_id])
    points = [point for key in run.data.metrics for point in source.get_metric_history(run.info.run_id, key)]
    known_points = {
        _point(point)
        for key in run.data.metrics
        if key in copy.data.metrics
        for point in target.get_metric_history(copy.info.run_id, key)
    }
    tags = {key: ids.translate(value) for key, value in run.data.tags.items()} | {ORIGIN: run.info.run_id}
    datasets, known_datasets = (each.inputs.dataset_inputs if each.inputs else [] for each in (run, copy))
    known_digests = {(entry.dataset.name, entry.dataset.digest) for entry in known_datasets}
    models = [
        type(entry)(**(dict(entry) | {"model_id": ids[entry.model_id]}))
        for entry in _models(run)
        if entry.model_id in ids
    ]
    known_models = {(type(entry), entry.model_id) for entry in _models(copy)}
    return Difference(
        totals={
            "params": len(run.data.params),
            "metric points": len(points),
            "tags": len(run.data.tags),
            "datasets": len(datasets),
            "models of runs": len(models),
        },
        lacking={
            "params": [Param(*item) for item in run.data.params.items() if item[0] not in copy.data.params],
            "metric points": [point for point in points if _point(point) not in known_points],
            "tags": [RunTag(*item) for item in tags.items() if copy.data.tags.get(item[0]) != item[1]],
            "datasets": [
                entry for entry in datasets if (entry.dataset.name, entry.dataset.digest) not in known_digests
            ],
            "models of runs": [
                entry for entry in models if (type(entry), entry.model_id) not in known_models
            ],
        },
        name=run.info.run_name != copy.info.run_name,
        end=(run.info.status, run.info.end_time) != (copy.info.status, copy.info.end_time),
    )


def _models(run: Run) -> list[LoggedModelInput | LoggedModelOutput]:
    return [
        *(run.inputs.model_inputs if run.inputs else []),
        *(run.outputs.model_outputs if run.outputs else []),
    ]


def _point(metric: Metric) -> tuple[str, int, int, str]:
    """Return what makes a point; its value as text, since NaN is not equal to itself."""
    return metric.key, metric.step, metric.timestamp, repr(float(metric.value))


def complete_run(run: Run, difference: Difference, target: MlflowClient, ids: Ids) -> None:
    """Send what the copy of a run lacks, except its end, so that half a run does not look complete."""
    run_id, lacking = ids[run.info.run_id], difference.lacking
    for points in _batches(lacking["metric points"], PAGE):
        target.log_batch(run_id, metrics=points)
    for params in _batches(lacking["params"], BATCH):
        target.log_batch(run_id, params=params)
    for tags in _batches(lacking["tags"], BATCH):
        target.log_batch(run_id, tags=tags)
    inputs = [entry for entry in lacking["models of runs"] if isinstance(entry, LoggedModelInput)]
    outputs = [entry for entry in lacking["models of runs"] if isinstance(entry, LoggedModelOutput)]
    if lacking["datasets"] or inputs:
        target.log_inputs(run_id, models=inputs, datasets=lacking["datasets"])
    if outputs:
        target.log_outputs(run_id, outputs)
    if difference.name:
        target.update_run(run_id, name=run.info.run_name)


def end_run(run: Run, target: MlflowClient, ids: Ids) -> None:
    """Set status and end time of the copy of a run."""
    run_id = ids[run.info.run_id]
    if run.info.end_time is None:
        target.update_run(run_id, run.info.status)
    else:
        target.set_terminated(run_id, run.info.status, run.info.end_time)


def compare_model(model: LoggedModel, target: MlflowClient, ids: Ids) -> dict[str, Any]:
    """Compare a model of the source with its copy, except artifacts.

    Returns:
        What the copy lacks: `tags` and `params` by name, `metrics` that copied runs have logged, and `status`,
        whether it differs.
    """
    copy = target.get_logged_model(ids[model.model_id])
    tags = {key: ids.translate(value) for key, value in model.tags.items() if key != VERSIONS}
    tags[ORIGIN] = model.model_id
    known = {(metric.key, metric.step, metric.timestamp) for metric in copy.metrics or ()}
    metrics = [
        Metric(**(dict(metric) | {"model_id": copy.model_id, "run_id": ids[str(metric.run_id)]}))
        for metric in model.metrics or ()
        if (metric.key, metric.step, metric.timestamp) not in known and metric.run_id in ids
    ]
    return {
        "tags": {key: value for key, value in tags.items() if copy.tags.get(key) != value},
        "params": {key: value for key, value in model.params.items() if copy.params.get(key) != value},
        "metrics": metrics,
        "status": copy.status != model.status,
    }


def complete_model(model: LoggedModel, target: MlflowClient, ids: Ids) -> None:
    """Set tags, metrics and state of the copy of a model."""
    lacking = compare_model(model, target, ids)
    if lacking["tags"]:
        target.set_logged_model_tags(ids[model.model_id], lacking["tags"])
    for metric in lacking["metrics"]:
        target.log_batch(metric.run_id, metrics=[metric])
    if lacking["status"] and LoggedModelStatus.is_finalized(model.status):
        target.finalize_logged_model(ids[model.model_id], model.status)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True)
class ArtifactTree:
    """Locate the artifacts of one run or model.

    Attributes:
        uri: their address.
        store: address of the tracking store, which serves `mlflow-artifacts:` addresses.
        moved: folder to read instead of the one in `uri`; None if that is right.
    """

    uri: str
    store: str
    moved: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of this machine; None if the artifacts are elsewhere."""
        return self.moved or local_path(self.uri)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield a folder of this machine with the files, downloaded if they are elsewhere."""
        if self.folder is not None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory() as scratch:
            repository = self.repository()
            if repository.list_artifacts():
                repository.download_artifacts("", dst_path=scratch)  # type: ignore[no-untyped-call] # MLflow has no types here
            yield Path(scratch)

    def repository(self) -> ArtifactRepository:
        """Open MLflow's access to the artifacts."""
        return get_artifact_repository(self.uri, tracking_uri=self.store)

    def sizes(self) -> dict[str, int]:
        """List the files of the store with their sizes in bytes."""
        repository = self.repository()
        sizes: dict[str, int] = {}
        folders: list[str | None] = [None]
        while folders:
            for entry in repository.list_artifacts(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    sizes[entry.path] = entry.file_size or 0
        return sizes


def local_path(uri: str) -> Path | None:
    """Turn the address of artifacts into a folder of this machine; None if they are elsewhere."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def send_files(source: ArtifactTree, target: ArtifactTree, ids: Ids) -> int:
    """Upload the files that the target lacks or has in another size; return how many."""
    with source.on_disk() as folder:
        names = _names(folder)
        known = target.sizes() if names else {}
        lacking = [name for name in names if known.get(name) != (folder / name).stat().st_size]
        _upload(folder, lacking, target, ids)
        return len(lacking)


def check_files(source: ArtifactTree, target: ArtifactTree, ids: Ids) -> tuple[int, int, list[str]]:
    """Download the target's files and compare sha256; a file that differs is sent once more, then compared.

    Returns:
        Number and bytes of the source's files, and those that the target lacks or has with other bytes.
    """
    with source.on_disk() as folder:
        names = _names(folder)
        wrong = _different(folder, names, target, ids)
        if wrong:
            _upload(folder, wrong, target, ids)
            wrong = _different(folder, wrong, target, ids)
        return len(names), sum((folder / name).stat().st_size for name in names), wrong


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _upload(folder: Path, names: list[str], target: ArtifactTree, ids: Ids) -> None:
    repository = artifacts(target.store, target.uri)
    for name in names:
        parent = PurePosixPath(name).parent.as_posix()
        with _translated(folder / name, ids) as path:
            repository.log_artifact(str(path), None if parent == "." else parent)


def _different(folder: Path, names: list[str], target: ArtifactTree, ids: Ids) -> list[str]:
    """List the files that the target lacks or has with other bytes."""
    if not names:
        return []
    different = []
    with target.on_disk() as copies:
        for name in names:
            with _translated(folder / name, ids) as path:
                if not ((copies / name).is_file() and files.sha256(path) == files.sha256(copies / name)):
                    different.append(name)
    return different


@contextmanager
def _translated(path: Path, ids: Ids) -> Iterator[Path]:
    """Yield the file for the target: ids in an `MLmodel` are those of the target."""
    if path.name != TRANSLATED:
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        translated = Path(scratch) / path.name
        translated.write_text(ids.translate(path.read_text(encoding="utf-8")), encoding="utf-8")
        yield translated
