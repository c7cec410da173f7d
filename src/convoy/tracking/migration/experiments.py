"""Copy experiments, runs and logged models to another store, without what it already has."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlflow.entities import (
    DatasetInput,
    Experiment,
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
from mlflow.tracking import MlflowClient

from convoy.core import contract
from convoy.tracking.migration.artifacts import ORIGIN, Ids
from convoy.tracking.store import all_pages

T = TypeVar("T")

PAGE = 1000
"""Runs per request, and points per request: MLflow takes no more."""

BATCH = 100
"""Params or tags per request: MLflow takes no more."""

USER = "mlflow.user"
"""Tag from which MLflow sets a run's user, only when the run is created."""

VERSIONS = "mlflow.modelVersions"
"""Tag of a logged model: the registered versions that were made of it."""

Point = tuple[str, int, int, str]
"""Name, step, time in milliseconds and value of a metric; the value as text, since NaN is not equal to itself."""


@dataclass(frozen=True)
class Missing:
    """List what a run of the target lacks; `total` counts the points of the source."""

    total: int
    points: list[Metric]
    params: list[Param]
    tags: list[RunTag]
    datasets: list[DatasetInput]
    name: bool
    end: bool

    def parts(self) -> list[str]:
        """Name the kinds of what is missing."""
        return [name for name, part in vars(self).items() if part and name != "total"]


def to_copy(client: MlflowClient) -> list[Experiment]:
    """List the experiments to copy, oldest first: not an empty `Default`."""
    experiments = [
        one
        for one in client.search_experiments()
        if one.name != "Default" or client.search_runs([one.experiment_id], max_results=1)
    ]
    return sorted(experiments, key=lambda one: (one.creation_time or 0, one.experiment_id))


def runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Yield the runs of an experiment that are not deleted, oldest first."""
    order = ["attributes.start_time ASC"]
    return all_pages(
        lambda token: client.search_runs([experiment], "", ViewType.ACTIVE_ONLY, PAGE, order, token)
    )


def match_experiment(target: MlflowClient, source: Experiment, artifacts: str | None) -> tuple[str, int]:
    """Find or create the experiment of the same name, and add the tags that it lacks.

    Args:
        target: to copy to.
        source: the experiment.
        artifacts: where it keeps its files; None lets the server decide.

    Returns:
        Its id in the target, and the number created.
    """
    existing = target.get_experiment_by_name(source.name)
    if existing is None:
        tags = dict(source.tags)
        return target.create_experiment(source.name, artifact_location=artifacts, tags=tags), 1
    if existing.lifecycle_stage != "active":
        target.restore_experiment(existing.experiment_id)
    for key, value in source.tags.items():
        if key not in existing.tags:
            target.set_experiment_tag(existing.experiment_id, key, value)
    return str(existing.experiment_id), 0


def match_runs(target: MlflowClient, experiment: str, source_runs: Iterable[Run], ids: Ids) -> set[str]:
    """Find or create the run of the target for each of the source, and add them to `ids`.

    A run is identified by the id that it had in the source, else by Convoy's own id: the uploader of another
    machine may have delivered it there.

    Returns:
        Ids in the source of the runs that were created.
    """
    there = list(runs(target, experiment))
    origins = {run.data.tags[ORIGIN]: run.info.run_id for run in there if ORIGIN in run.data.tags}
    minted = {
        run.data.tags[contract.RUN_ID]: run.info.run_id
        for run in there
        if contract.RUN_ID in run.data.tags and ORIGIN not in run.data.tags
    }
    created = set()
    for run in source_runs:
        old = run.info.run_id
        copy_id = origins.get(old) or minted.pop(run.data.tags.get(contract.RUN_ID, ""), "")
        if not copy_id:
            created_run = target.create_run(
                experiment,
                start_time=run.info.start_time,
                tags={ORIGIN: old} | {key: run.data.tags[key] for key in (USER,) if key in run.data.tags},
                run_name=run.info.run_name,
            )
            copy_id = created_run.info.run_id
            created.add(old)
        ids[old] = copy_id
    return created


def missing(source: MlflowClient, run: Run, target: MlflowClient, ids: Ids) -> Missing:
    """Compare a run of the source with its copy."""
    there = target.get_run(ids[run.info.run_id])
    history = [one for key in run.data.metrics for one in source.get_metric_history(run.info.run_id, key)]
    known = {
        _point(one)
        for key in run.data.metrics
        if key in there.data.metrics
        for one in target.get_metric_history(there.info.run_id, key)
    }
    tags = {key: ids.translate(value) for key, value in run.data.tags.items()} | {ORIGIN: run.info.run_id}
    known_datasets = {(one.dataset.name, one.dataset.digest) for one in datasets(there)}
    return Missing(
        total=len(history),
        points=[one for one in history if _point(one) not in known],
        params=[Param(*item) for item in run.data.params.items() if item[0] not in there.data.params],
        tags=[RunTag(*item) for item in tags.items() if there.data.tags.get(item[0]) != item[1]],
        datasets=[
            one for one in datasets(run) if (one.dataset.name, one.dataset.digest) not in known_datasets
        ],
        name=run.info.run_name != there.info.run_name,
        end=(run.info.status, run.info.end_time) != (there.info.status, there.info.end_time),
    )


def datasets(run: Run) -> list[DatasetInput]:
    """List the datasets of a run."""
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _point(metric: Metric) -> Point:
    return metric.key, metric.step, metric.timestamp, repr(float(metric.value))


def send(run: Run, lacking: Missing, target: MlflowClient, ids: Ids) -> None:
    """Send what a run of the target lacks, except its end, so that half a run does not look complete."""
    run_id = ids[run.info.run_id]
    for points in _batches(lacking.points, PAGE):
        target.log_batch(run_id, metrics=points)
    for params in _batches(lacking.params, BATCH):
        target.log_batch(run_id, params=params)
    for tags in _batches(lacking.tags, BATCH):
        target.log_batch(run_id, tags=tags)
    if lacking.datasets:
        target.log_inputs(run_id, datasets=lacking.datasets)
    if lacking.name:
        target.update_run(run_id, name=run.info.run_name)


def end(run: Run, target: MlflowClient, ids: Ids) -> None:
    """Set status and end time of a run of the target."""
    if run.info.end_time is None:
        target.update_run(ids[run.info.run_id], status=run.info.status)
    else:
        target.set_terminated(ids[run.info.run_id], run.info.status, run.info.end_time)


def logged_models(client: MlflowClient, experiment: str) -> Iterator[LoggedModel]:
    """Yield the logged models of an experiment, oldest first."""
    order = [{"field_name": "creation_timestamp", "ascending": True}]
    return all_pages(
        lambda token: client.search_logged_models([experiment], order_by=order, page_token=token)
    )


def match_models(target: MlflowClient, experiment: str, source_models: list[LoggedModel], ids: Ids) -> int:
    """Find or create the model of the target for each of the source, and add them to `ids`.

    Returns:
        The number created.
    """
    there = {
        one.tags[ORIGIN]: one.model_id for one in logged_models(target, experiment) if ORIGIN in one.tags
    }
    for model in source_models:
        if (copy_id := there.get(model.model_id)) is None:
            created = target.create_logged_model(
                experiment,
                name=model.name,
                source_run_id=ids.get(model.source_run_id or "") or None,
                tags={ORIGIN: model.model_id},
                params=dict(model.params),
                model_type=model.model_type or None,
            )
            copy_id = created.model_id
        ids[model.model_id] = copy_id
    return sum(model.model_id not in there for model in source_models)


def complete_model(model: LoggedModel, target: MlflowClient, ids: Ids) -> None:
    """Set tags, metrics and state of a model of the target."""
    there = target.get_logged_model(ids[model.model_id])
    lacking = {key: value for key, value in _model_tags(model, ids).items() if there.tags.get(key) != value}
    if lacking:
        target.set_logged_model_tags(there.model_id, lacking)
    for run_id, metric in _missing_metrics(model, there, ids):
        target.log_batch(run_id, metrics=[metric])
    if there.status != model.status and LoggedModelStatus.is_finalized(model.status):
        target.finalize_logged_model(there.model_id, model.status)


def incomplete_parts(model: LoggedModel, target: MlflowClient, ids: Ids) -> list[str]:
    """Name the kinds of what a model of the target lacks, except artifacts."""
    there = target.get_logged_model(ids[model.model_id])
    parts = {
        "tags": any(there.tags.get(key) != value for key, value in _model_tags(model, ids).items()),
        "params": any(there.params.get(key) != value for key, value in model.params.items()),
        "metrics": bool(_missing_metrics(model, there, ids)),
        "status": there.status != model.status,
    }
    return [name for name, lacks in parts.items() if lacks]


def _model_tags(model: LoggedModel, ids: Ids) -> dict[str, str]:
    own = {key: ids.translate(value) for key, value in model.tags.items() if key != VERSIONS}
    return own | {ORIGIN: model.model_id}


def _missing_metrics(model: LoggedModel, there: LoggedModel, ids: Ids) -> list[tuple[str, Metric]]:
    """List the metrics of a model that copied runs have logged, each with its run in the target."""
    known = {(one.key, one.step, one.timestamp) for one in there.metrics or ()}
    return [
        (
            ids[str(one.run_id)],
            Metric(
                one.key,
                one.value,
                one.timestamp,
                one.step,
                model_id=there.model_id,
                dataset_name=one.dataset_name,
                dataset_digest=one.dataset_digest,
            ),
        )
        for one in model.metrics or ()
        if (one.key, one.step, one.timestamp) not in known and one.run_id in ids
    ]


@dataclass(frozen=True)
class Links:
    """List the models that a run of the target is not linked to yet; `total` counts those of the source."""

    total: int
    inputs: list[LoggedModelInput]
    outputs: list[LoggedModelOutput]

    def parts(self) -> list[str]:
        """Name the kinds of what is missing."""
        return ["models"] if self.inputs or self.outputs else []


def links(run: Run, target: MlflowClient, ids: Ids) -> Links:
    """Compare the input and output models of a run, except deleted ones."""
    there = target.get_run(ids[run.info.run_id])
    taken = {one.model_id for one in _inputs(there)}
    made = {one.model_id for one in _outputs(there)}
    inputs = [one for one in _inputs(run) if one.model_id in ids]
    outputs = [one for one in _outputs(run) if one.model_id in ids]
    return Links(
        len(inputs) + len(outputs),
        [LoggedModelInput(ids[one.model_id]) for one in inputs if ids[one.model_id] not in taken],
        [LoggedModelOutput(ids[one.model_id], one.step) for one in outputs if ids[one.model_id] not in made],
    )


def link_models(run: Run, target: MlflowClient, ids: Ids) -> int:
    """Link a run to its input and output models.

    Returns:
        The number of new links.
    """
    missing = links(run, target, ids)
    if missing.inputs:
        target.log_inputs(ids[run.info.run_id], models=missing.inputs)
    if missing.outputs:
        target.log_outputs(ids[run.info.run_id], missing.outputs)
    return len(missing.inputs) + len(missing.outputs)


def _inputs(run: Run) -> list[LoggedModelInput]:
    return list(run.inputs.model_inputs) if run.inputs else []


def _outputs(run: Run) -> list[LoggedModelOutput]:
    return list(run.outputs.model_outputs) if run.outputs else []


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
