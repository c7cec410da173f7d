"""Carry logged models to another store: what the page of a run shows as its models."""

from collections.abc import Iterator
from dataclasses import dataclass

from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.tracking import MlflowClient

from convoy.tracking.migration.ids import ORIGIN, Ids

VERSIONS = "mlflow.modelVersions"
"""Tag of a logged model: the registered versions that were made of it."""


def models(client: MlflowClient, experiment: str) -> Iterator[LoggedModel]:
    """Walk the logged models of an experiment, oldest first."""
    token: str | None = None
    order = [{"field_name": "creation_timestamp", "ascending": True}]
    while True:
        page = client.search_logged_models([experiment], order_by=order, page_token=token)
        yield from page
        if not (token := page.token):
            return


def match_models(target: MlflowClient, experiment: str, carried: list[LoggedModel], ids: Ids) -> int:
    """Find the model of the target for each of the source's, or create it; `ids` learns all of them.

    Returns:
        How many were created.
    """
    there = {one.tags[ORIGIN]: one.model_id for one in models(target, experiment) if ORIGIN in one.tags}
    for model in carried:
        if (found := there.get(model.model_id)) is None:
            made = target.create_logged_model(
                experiment,
                name=model.name,
                source_run_id=ids.get(model.source_run_id or "") or None,
                tags={ORIGIN: model.model_id},
                params=dict(model.params),
                model_type=model.model_type or None,
            )
            found = made.model_id
        ids[model.model_id] = found
    return sum(model.model_id not in there for model in carried)


def complete(model: LoggedModel, target: MlflowClient, ids: Ids) -> None:
    """Give a model of the target the tags, metrics and state of the source's."""
    there = target.get_logged_model(ids[model.model_id])
    lacking = {key: value for key, value in _tags(model, ids).items() if there.tags.get(key) != value}
    if lacking:
        target.set_logged_model_tags(there.model_id, lacking)
    for run_id, metric in _missing_metrics(model, there, ids):
        target.log_batch(run_id, metrics=[metric])
    if there.status != model.status and LoggedModelStatus.is_finalized(model.status):
        target.finalize_logged_model(there.model_id, model.status)


def incomplete(model: LoggedModel, target: MlflowClient, ids: Ids) -> list[str]:
    """Name what a model of the target lacks, artifacts aside."""
    there = target.get_logged_model(ids[model.model_id])
    parts = {
        "tags": any(there.tags.get(key) != value for key, value in _tags(model, ids).items()),
        "params": any(there.params.get(key) != value for key, value in model.params.items()),
        "metrics": bool(_missing_metrics(model, there, ids)),
        "status": there.status != model.status,
    }
    return [name for name, lacks in parts.items() if lacks]


def _tags(model: LoggedModel, ids: Ids) -> dict[str, str]:
    own = {key: ids.translate(value) for key, value in model.tags.items() if key != VERSIONS}
    return own | {ORIGIN: model.model_id}


def _missing_metrics(model: LoggedModel, there: LoggedModel, ids: Ids) -> list[tuple[str, Metric]]:
    """List the metrics that runs which are carried have logged of a model, each with its run in the target."""
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
    """Say which models a run of the target does not name yet; `total` counts those of the source's."""

    total: int
    inputs: list[LoggedModelInput]
    outputs: list[LoggedModelOutput]

    def parts(self) -> list[str]:
        """Name what is missing."""
        return ["models"] if self.inputs or self.outputs else []


def links(run: Run, target: MlflowClient, ids: Ids) -> Links:
    """Compare the models that a run took and made, those aside that were deleted."""
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


def tie(run: Run, target: MlflowClient, ids: Ids) -> int:
    """Tie a run to the models that it took and made.

    Returns:
        How many were not tied to it yet.
    """
    found = links(run, target, ids)
    if found.inputs:
        target.log_inputs(ids[run.info.run_id], models=found.inputs)
    if found.outputs:
        target.log_outputs(ids[run.info.run_id], found.outputs)
    return len(found.inputs) + len(found.outputs)


def _inputs(run: Run) -> list[LoggedModelInput]:
    return list(run.inputs.model_inputs) if run.inputs else []


def _outputs(run: Run) -> list[LoggedModelOutput]:
    return list(run.outputs.model_outputs) if run.outputs else []
