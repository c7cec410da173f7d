"""Open, continue and end a training's run from the stages that make it.

`train` opens the run, or joins the one that `mlflow run` opened; `evaluate` and
`export` continue it; `export` ends it. A run that has ended is never rewritten: when
`train` came from DVC's cache, the stage that does run opens a new one, tagged with
the training that it reuses, and copies that training's params and final metrics.

Stages find the run through `build/runs/<stage>.json`, which no stage depends on.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import RunTag
from mlflow.tracking import MlflowClient

from convoy import identity, params
from convoy.console import say
from convoy.errors import RequestError
from convoy.files import read_json
from convoy.tracking import store
from convoy.tracking.run import Reference, Run, write_reference

RUNS = Path("build/runs")
METRICS = Path("build/metrics")

STAGE_PARAMS = {
    "train": ("seed", "data", "network", "train"),
    "evaluate": ("evaluate",),
    "export": ("export",),
}
"""The sections of params.yaml that each stage logs, in order of stages; `train` also logs those of `prepare`."""


@contextmanager
def training(data_hash: str) -> Iterator[Run]:
    """Open the run of a training and log its params; leave it RUNNING for the stages that follow."""
    run_id = identity.mint_run_id()
    with _writing("train", _open(run_id, run_id, data_hash)) as run:
        yield run
        run.set_tags({"convoy.stage": "train done"})


@contextmanager
def continuing(stage: str, data_hash: str) -> Iterator[Run]:
    """Continue the run of the stage before, or open one that reuses its training if that run has ended."""
    earlier = list(STAGE_PARAMS)[: list(STAGE_PARAMS).index(stage)]
    reference = latest(earlier)
    ended = not store.is_running(reference.mlflow_run_id)
    if ended:
        reference = _open(identity.mint_run_id(), reference.training, data_hash)
    with _writing(stage, reference) as run:
        if ended:
            copy_results(run, earlier)
        yield run
        if stage != list(STAGE_PARAMS)[-1]:  # the last stage is done when `finishing` says so
            run.set_tags({"convoy.stage": f"{stage} done"})


@contextmanager
def finishing(stage: str) -> Iterator[Run]:
    """Take up the run that an earlier command of the same stage continued, and end it as FINISHED."""
    if not (RUNS / f"{stage}.json").exists():
        raise RequestError(
            f"{RUNS / stage}.json is missing: the stage's first command makes it. Type: dvc repro {stage}"
        )
    with _writing(stage, latest([stage])) as run:
        yield run
        run.set_tags({"convoy.stage": f"{stage} done"})
        run.end("FINISHED")


def latest(stages: Sequence[str]) -> Reference:
    """Read the run that these stages wrote to: the one still open, else that of the last stage.

    A stage that was restored from DVC's cache brings the reference of the run in which it
    was made, which may be older than the run that `train` has open now.
    """
    found = [
        Reference(**read_json(path)) for path in (RUNS / f"{stage}.json" for stage in stages) if path.exists()
    ]
    for reference in reversed(found):
        if store.is_running(reference.mlflow_run_id):
            return reference
    return found[-1] if found else Reference(run_id="", training="unknown", mlflow_run_id="")


def copy_results(run: Run, stages: Sequence[str]) -> None:
    """Copy what earlier stages were given and measured, from the files that DVC restored."""
    for stage in stages:
        run.log_params(_own_params(stage))
        path = METRICS / f"{stage}.json"
        if path.exists():
            run.log_result(read_json(path))


def exported_identity(run: Run, data_hash: str) -> dict[str, str]:
    """State where an exported model comes from, as `convoy.deploy.contract.IDENTITY` names it."""
    return {
        "run_id": run.reference.run_id,
        "git_commit": identity.git_state().get("mlflow.source.git.commit", "none"),
        "data_hash": data_hash,
        "params_hash": params.digest(params.read_yaml(params.PARAMS_FILE)),
    }


def run_name() -> str:
    """Name a run by what people change most: network, learning rate, epochs."""
    content = params.read_yaml(params.PARAMS_FILE)
    train = content["train"]
    return f"{content['network']['name']} · lr {train['lr']:g} · {train['epochs']} epochs"


@contextmanager
def _writing(stage: str, reference: Reference) -> Iterator[Run]:
    """Write to a run as `stage`; Ctrl-C ends it KILLED, an error FAILED, a normal end is the caller's to say."""
    run = Run(reference, stage)
    write_reference(RUNS / f"{stage}.json", reference)
    try:
        run.set_tags({"convoy.stage": f"{stage} running"})
        run.log_params(_own_params(stage))
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise


def _own_params(stage: str) -> dict[str, Any]:
    content = params.read_yaml(params.PARAMS_FILE)
    return {key: content[key] for key in STAGE_PARAMS[stage]}


def _open(run_id: str, training_id: str, data_hash: str) -> Reference:
    """Create the MLflow run, or join that of `mlflow run`; without one where the store does not answer."""
    experiment = params.section("tracking", store.TrackingParams).experiment
    name = run_name()
    tags = {
        **identity.process_tags(),
        **identity.git_state(),
        "convoy.run_id": run_id,
        "convoy.training": training_id,
        "convoy.data_hash": data_hash,
        "convoy.params_hash": params.digest(params.read_yaml(params.PARAMS_FILE)),
    }
    if os.environ.get("DVC_EXP_NAME"):
        tags["convoy.dvc_experiment"] = os.environ["DVC_EXP_NAME"]
    try:
        client = store.connect()
        mlflow_run_id = _joinable(client)
        if mlflow_run_id:
            client.log_batch(mlflow_run_id, tags=[RunTag(*item) for item in tags.items()])
            client.update_run(mlflow_run_id, name=name)
        else:
            experiment_id = store.experiment(client, experiment).experiment_id
            store.end_abandoned(client, experiment_id)
            mlflow_run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    except Exception as error:  # noqa: BLE001 (a store that is down must not stop a training)
        say(f"Not tracked: {store.uri()} answered {error!s:.300}. The work goes on as run {run_id}.")
        mlflow_run_id = ""
    return Reference(run_id, training_id, mlflow_run_id)


def _joinable(client: MlflowClient) -> str:
    """Name the run that `mlflow run` opened for this pipeline, unless it was taken up already."""
    offered = os.environ.get("MLFLOW_RUN_ID", "")
    if not offered or "convoy.run_id" in client.get_run(offered).data.tags:
        return ""
    return offered
