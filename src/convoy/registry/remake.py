"""Give a store the run and the model that it should have of a proven file: delivered, logged again, or made again."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelStatus, Metric, Run

from convoy.core import params, yaml
from convoy.core.console import info
from convoy.core.files import read_json
from convoy.registry import artifacts
from convoy.registry.artifacts import ModelArtifacts
from convoy.registry.client import SHA256, Registry, RegistryError
from convoy.registry.proven import Proven
from convoy.repo import identity
from convoy.tracking import model as models
from convoy.tracking import outbox, settings, stages, store
from convoy.tracking import run as runs
from convoy.tracking.journal import FILE, Journal, state

DATA_HASH = "convoy.data_hash"


def deliver(run_id: str) -> None:
    """See a run delivered that still waits in the outbox.

    Raises:
        RegistryError: it is being written, or its store does not take it.
    """
    where = outbox.folder()
    if not (where / run_id / FILE).exists():
        return
    outbox.close_orphan(where, where / run_id, between_stages=True)
    if not state(where / run_id).ended:
        raise RegistryError(
            f"run {run_id} is still being written, its pipeline has not ended. Register it when `dvc repro` is done."
        )
    if reasons := outbox.wait_until_uploaded([run_id], where, None):
        raise RegistryError("\n".join(reasons.values()))


def logged(registry: Registry, proven: Proven) -> tuple[Run, LoggedModel]:
    """Find the run and the logged model of a proven file; where the store lacks them, make them again.

    Raises:
        RegistryError: the store does not answer or does not take them.
    """
    deliver(proven.run_id)
    run = find(registry, proven.run_id)
    if run is None:
        info(
            f"{registry.address} has no run {proven.run_id}: it is made again from this workspace (its curves are lost)"
        )
        _remake(proven)
        deliver(proven.run_id)
        run = find(registry, proven.run_id)
        if run is None:
            raise RegistryError(
                f"run {proven.run_id} was delivered to another store than {registry.address}. Set MLFLOW_TRACKING_URI "
                "as it was when the run was made, or remove the run's folder from outbox/."
            )
    model = logged_model(registry, run, proven.sha256)
    if (
        model is None
        or not ModelArtifacts.at(registry, str(model.artifact_location), f"run {proven.run_id}").has_model
    ):
        info(f"{registry.address} has lost the model of run {proven.run_id}: it is logged again")
        model = _log_again(registry, run, proven, model)
    return run, model


def find(registry: Registry, run_id: str) -> Run | None:
    """Look a run up by Convoy's id."""
    return registry.ask(f"look up run {run_id}", lambda: store.find(run_id, registry.client))


def logged_model(registry: Registry, run: Run, sha256: str) -> LoggedModel | None:
    """Find the model of these bytes that a run logged; None where it was deleted or broken off."""
    query = f"source_run_id = '{run.info.run_id}'"
    found = registry.ask(
        f"list the models of run {run.info.run_id}",
        lambda: registry.client.search_logged_models([run.info.experiment_id], filter_string=query),
    )
    ready = (one for one in found if one.status == LoggedModelStatus.READY)
    return next((one for one in ready if one.tags.get(SHA256) == sha256), None)


def _log_again(registry: Registry, run: Run, proven: Proven, lost: LoggedModel | None) -> LoggedModel:
    """Log the model into the run that it comes from; one whose files are gone is removed first."""

    def write() -> LoggedModel:
        if lost:
            registry.client.delete_logged_model(lost.model_id)
        with tempfile.TemporaryDirectory() as scratch:
            artifacts.copy(proven.folder, Path(scratch))
            return models.log(registry.client, run, Path(scratch), proven.sha256, _results(run))

    return registry.ask(f"log the model of run {proven.run_id}", write)


def _results(run: Run) -> Iterator[Metric]:
    """Name the results of a run, which MLflow shows with its model."""
    for name, value in run.data.metrics.items():
        if name.startswith(("test/", "deploy/")):
            yield Metric(name, value, int(run.info.end_time or run.info.start_time or 0), 0)


def _remake(proven: Proven) -> None:
    """Write the run's journal again, from what its outputs say.

    It gets params only where params.yaml is as it was, and results only where they are of this run.
    """
    where = outbox.folder()
    same_params = params.digest(yaml.read(params.PARAMS_FILE)) == proven.identity["params_hash"]
    reference = stages.latest(list(stages.STAGE_PARAMS))
    is_workspace = reference.run_id == proven.run_id
    training = reference.training if is_workspace else proven.run_id
    name = stages.run_name(*stages.STAGE_PARAMS) if same_params else f"restored {proven.run_id}"
    tags = identity.process_tags() | {
        "convoy.run_id": proven.run_id,
        "convoy.training": training,
        "mlflow.source.git.commit": proven.identity["git_commit"],
        DATA_HASH: proven.identity["data_hash"],
        "convoy.params_hash": proven.identity["params_hash"],
        "convoy.remade": "from the DVC cache: the store had no such run",
    }
    entry = {
        "kind": "open",
        "time_ms": runs.now_ms(),
        "uri": settings.uri(),
        "experiment": settings.experiment(),
        "name": name,
        "tags": tags,
        "writer": outbox.writer(),
        "resumed": False,
        "parent": "",
        "offered": "",
    }
    with outbox.held(where):
        journal = Journal(where / proven.run_id)
        journal.append(entry, sync=True)
    run = runs.Run(runs.Reference(proven.run_id, training), journal)
    content = yaml.read(params.PARAMS_FILE)
    for stage, sections in stages.STAGE_PARAMS.items():
        if same_params:
            run.log_params({key: content[key] for key in sections})
        path = stages.METRICS / f"{stage}.json"
        if is_workspace and path.exists():
            run.log_result(read_json(path))
    beside = [proven.folder / one for one in artifacts.BESIDE if (proven.folder / one).is_file()]
    run.log_onnx(proven.folder / "model.onnx", *beside)
    run.end("FINISHED")
