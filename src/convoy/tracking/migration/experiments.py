"""Copy experiments, runs and logged models to another store, without what it already has."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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


@dataclass(frozen=True)
class Missing:
    """List what a run of the target lacks; `totals` counts what the source has, by kind of entry."""

    totals: dict[str, int]
    points: list[Metric]
    params: list[Param]
    tags: list[RunTag]
    datasets: list[DatasetInput]
    input_models: list[LoggedModelInput]
    output_models: list[LoggedModelOutput]
    name: bool
    end: bool

    def counts(self) -> dict[str, int]:
        """Count what is missing by kind of entry, as `totals` does."""
        return {
            "params": len(self.params),
            "metric points": len(self.points),
            "tags": len(self.tags),
            "datasets": len(self.datasets),
            "models of runs": len(self.input_models) + len(self.output_models),
        }

    def parts(self) -> list[str]:
        """Name the kinds of what is missing."""
        return [name.replace("_", " ") for name, part in vars(self).items() if part and name != "totals"]


def to_copy(client: MlflowClient) -> list[Experiment]:
    """List the experiments to copy, oldest first: not an empty `Default`."""
    experiments = [
        experiment
        for experiment in client.search_experiments()
        if experiment.name != "Default" or client.search_runs([experiment.experiment_id], max_results=1)
    ]
    return sorted(
        experiments, key=lambda experiment: (experiment.creation_time or 0, experiment.experiment_id)
    )


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


def missing(source: MlflowClient, run: Run, target: MlflowClient, ids: Ids) -> Missing:
    """Compare a run of the source with its copy; models that are deleted in the source do not count."""
    there = target.get_run(ids[run.info.run_id])
    history = [point for key in run.data.metrics for point in source.get_metric_history(run.info.run_id, key)]
    known = {
        _point(point)
        for key in run.data.metrics
        if key in there.data.metrics
        for point in target.get_metric_history(there.info.run_id, key)
    }
    tags = {key: ids.translate(value) for key, value in run.data.tags.items()} | {ORIGIN: run.info.run_id}
    datasets = run.inputs.dataset_inputs if run.inputs else []
    known_datasets = [
        (entry.dataset.name, entry.dataset.digest)
        for entry in (there.inputs.dataset_inputs if there.inputs else [])
    ]
    inputs = [LoggedModelInput(ids[entry.model_id]) for entry in _inputs(run) if entry.model_id in ids]
    outputs = [
        LoggedModelOutput(ids[entry.model_id], entry.step) for entry in _outputs(run) if entry.model_id in ids
    ]
    known_inputs = {entry.model_id for entry in _inputs(there)}
    known_outputs = {entry.model_id for entry in _outputs(there)}
    return Missing(
        totals={
            "params": len(run.data.params),
            "metric points": len(history),
            "tags": len(run.data.tags),
            "datasets": len(datasets),
            "models of runs": len(inputs) + len(outputs),
        },
        points=[point for point in history if _point(point) not in known],
        params=[Param(*item) for item in run.data.params.items() if item[0] not in there.data.params],
        tags=[RunTag(*item) for item in tags.items() if there.data.tags.get(item[0]) != item[1]],
        datasets=[
            entry for entry in datasets if (entry.dataset.name, entry.dataset.digest) not in known_datasets
        ],
        input_models=[model for model in inputs if model.model_id not in known_inputs],
        output_models=[model for model in outputs if model.model_id not in known_outputs],
        name=run.info.run_name != there.info.run_name,
        end=(run.info.status, run.info.end_time) != (there.info.status, there.info.end_time),
    )


def _inputs(run: Run) -> list[LoggedModelInput]:
    return run.inputs.model_inputs if run.inputs else []


def _outputs(run: Run) -> list[LoggedModelOutput]:
    return run.outputs.model_outputs if run.outputs else []


def _point(metric: Metric) -> tuple[str, int, int, str]:
    """Return what makes a point; its value as text, since NaN is not equal to itself."""
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
    if lacking.datasets or lacking.input_models:
        target.log_inputs(run_id, models=lacking.input_models, datasets=lacking.datasets)
    if lacking.output_models:
        target.log_outputs(run_id, lacking.output_models)
    if lacking.name:
        target.update_run(run_id, name=run.info.run_name)


def end(run: Run, target: MlflowClient, ids: Ids) -> None:
    """Set status and end time of a run of the target."""
    run_id = ids[run.info.run_id]
    if run.info.end_time is None:
        target.update_run(run_id, run.info.status)
    else:
        target.set_terminated(run_id, run.info.status, run.info.end_time)


def logged_models(client: MlflowClient, experiment: str) -> Iterator[LoggedModel]:
    """Yield the logged models of an experiment, oldest first."""
    order = [{"field_name": "creation_timestamp", "ascending": True}]
    return all_pages(
        lambda token: client.search_logged_models([experiment], order_by=order, page_token=token)
    )


def match_models(target: MlflowClient, experiment: str, source_models: list[LoggedModel], ids: Ids) -> int:
    """Find or create the model of the target for each of the source, and add them to `ids`; return how many are new."""
    there = {
        model.tags[ORIGIN]: model.model_id
        for model in logged_models(target, experiment)
        if ORIGIN in model.tags
    }
    new = [model for model in source_models if model.model_id not in there]
    for model in new:
        there[model.model_id] = target.create_logged_model(
            experiment,
            name=model.name,
            source_run_id=ids.get(model.source_run_id or "") or None,
            tags={ORIGIN: model.model_id},
            params=dict(model.params),
            model_type=model.model_type or None,
        ).model_id
    ids.update({model.model_id: there[model.model_id] for model in source_models})
    return len(new)


def complete_model(model: LoggedModel, target: MlflowClient, ids: Ids) -> None:
    """Set tags, metrics and state of a model of the target."""
    model_id = ids[model.model_id]
    lacking = missing_of_model(model, target, ids)
    if lacking["tags"]:
        target.set_logged_model_tags(model_id, lacking["tags"])
    for metric in lacking["metrics"]:
        target.log_batch(metric.run_id, metrics=[metric])
    if lacking["status"] and LoggedModelStatus.is_finalized(model.status):
        target.finalize_logged_model(model_id, model.status)


def missing_of_model(model: LoggedModel, target: MlflowClient, ids: Ids) -> dict[str, Any]:
    """Compare a model of the source with its copy, except artifacts.

    Returns:
        What is missing: `tags` and `params` by name, `metrics` that copied runs have logged, and `status`, whether
        it differs.
    """
    there = target.get_logged_model(ids[model.model_id])
    tags = {key: ids.translate(value) for key, value in model.tags.items() if key != VERSIONS}
    tags[ORIGIN] = model.model_id
    known = {(metric.key, metric.step, metric.timestamp) for metric in there.metrics or ()}
    metrics = [
        Metric(**(dict(metric) | {"model_id": there.model_id, "run_id": ids[str(metric.run_id)]}))
        for metric in model.metrics or ()
        if (metric.key, metric.step, metric.timestamp) not in known and metric.run_id in ids
    ]
    return {
        "tags": {key: value for key, value in tags.items() if there.tags.get(key) != value},
        "params": {key: value for key, value in model.params.items() if there.params.get(key) != value},
        "metrics": metrics,
        "status": there.status != model.status,
    }


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
