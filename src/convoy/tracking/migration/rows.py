"""Carry experiments and runs to another store; what is there already is left out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlflow.entities import DatasetInput, Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.tracking import MlflowClient

from convoy.tracking.migration.ids import ORIGIN, Ids

T = TypeVar("T")

PAGE = 1000
"""Runs asked for at once, and points sent at once: MLflow takes no more."""

BATCH = 100
"""Params or tags sent at once: MLflow takes no more."""

USER = "mlflow.user"
"""Tag that MLflow takes a run's user from, when the run is created and never again."""

Point = tuple[str, int, int, str]
"""Name, step, time in milliseconds and value of a metric; the value as text, since NaN is not equal to itself."""


@dataclass(frozen=True)
class Missing:
    """Say what a run of the target lacks of the run that it was made from; `total` counts the points of both."""

    total: int
    points: list[Metric]
    params: list[Param]
    tags: list[RunTag]
    datasets: list[DatasetInput]
    name: bool
    end: bool

    def parts(self) -> list[str]:
        """Name what is missing; nothing where the run is complete."""
        return [name for name, part in vars(self).items() if part and name != "total"]


def experiments(client: MlflowClient) -> list[Experiment]:
    """List the experiments that are worth carrying, oldest first: not a `Default` in which nothing ever ran."""
    found = [
        one
        for one in client.search_experiments()
        if one.name != "Default" or client.search_runs([one.experiment_id], max_results=1)
    ]
    return sorted(found, key=lambda one: (one.creation_time or 0, one.experiment_id))


def runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Walk the runs of an experiment that are not deleted, oldest first."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            run_view_type=ViewType.ACTIVE_ONLY,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        if not (token := page.token):
            return


def match_experiment(target: MlflowClient, source: Experiment, artifacts: str | None) -> tuple[str, int]:
    """Find the experiment of the same name, or create it; tags that it lacks are added.

    Args:
        target: to carry to.
        source: the experiment.
        artifacts: where it keeps its files; None lets the server decide.

    Returns:
        Its id in the target, and how many were created.
    """
    found = target.get_experiment_by_name(source.name)
    if found is None:
        tags = dict(source.tags)
        return target.create_experiment(source.name, artifact_location=artifacts, tags=tags), 1
    if found.lifecycle_stage != "active":
        target.restore_experiment(found.experiment_id)
    for key, value in source.tags.items():
        if key not in found.tags:
            target.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id), 0


def match_runs(target: MlflowClient, experiment: str, carried: Iterable[Run], ids: Ids) -> set[str]:
    """Find the run of the target for each of the source's, or create it; `ids` learns all of them.

    A run is known by the id that it had in the source, else by Convoy's own, which the
    uploader of another machine may have brought there.

    Returns:
        Ids in the source of those that were created.
    """
    there = list(runs(target, experiment))
    origins = {run.data.tags[ORIGIN]: run.info.run_id for run in there if ORIGIN in run.data.tags}
    minted = {
        run.data.tags["convoy.run_id"]: run.info.run_id
        for run in there
        if "convoy.run_id" in run.data.tags and ORIGIN not in run.data.tags
    }
    created = set()
    for run in carried:
        old = run.info.run_id
        found = origins.get(old) or minted.pop(run.data.tags.get("convoy.run_id", ""), "")
        if not found:
            made = target.create_run(
                experiment,
                start_time=run.info.start_time,
                tags={ORIGIN: old} | {key: run.data.tags[key] for key in (USER,) if key in run.data.tags},
                run_name=run.info.run_name,
            )
            found = made.info.run_id
            created.add(old)
        ids[old] = found
    return created


def missing(source: MlflowClient, run: Run, target: MlflowClient, ids: Ids) -> Missing:
    """Compare a run of the source with the one that it became."""
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
    """List the datasets that a run names."""
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _point(metric: Metric) -> Point:
    return metric.key, metric.step, metric.timestamp, repr(float(metric.value))


def send(run: Run, lacking: Missing, target: MlflowClient, ids: Ids) -> None:
    """Send what a run of the target lacks, but its end: half a run shall not look like a whole one."""
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
    """Give a run of the target the status and the end of the source's."""
    if run.info.end_time is None:
        target.update_run(ids[run.info.run_id], status=run.info.status)
    else:
        target.set_terminated(ids[run.info.run_id], run.info.status, run.info.end_time)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
