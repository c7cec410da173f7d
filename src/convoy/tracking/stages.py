"""Open, continue and end a training's run from the stages that make it.

`train` opens the run, or joins the one that `mlflow run` opened; `evaluate` and
`export` continue it; `export` ends it. A run that has ended is never rewritten: when
`train` came from DVC's cache, the stage that does run opens a new one, tagged with
the training that it reuses, and copies that training's params and final metrics. Only a
training that was stopped goes on in its own run.

Stages find the run through `build/runs/<stage>.json`, which no stage depends on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convoy.core import params, yaml
from convoy.core.errors import RequestError, TrainingPaused
from convoy.core.files import read_json
from convoy.repo import identity
from convoy.tracking import naming, outbox
from convoy.tracking.journal import STAGE
from convoy.tracking.opening import continue_run, is_open, open_run
from convoy.tracking.run import Reference, Run, write_reference

RUNS = Path("build/runs")
METRICS = Path("build/metrics")
DATASET = Path("build/dataset/dataset.json")

STAGE_PARAMS = {
    "train": ("seed", "data", "network", "train"),
    "evaluate": ("evaluate",),
    "export": ("export",),
}
"""The sections of params.yaml that each stage logs, in order of stages; `train` also logs those of `prepare`."""


def expect() -> None:
    """Have the courier start while the caller imports what it works with: both take seconds, on a core each.

    Started later, it would take them from training where that fills every core.
    """
    where = outbox.folder()
    with suppress(OSError):  # a full disk; it is said where the run is opened
        where.mkdir(exist_ok=True)
        outbox.start_uploader(where, outbox.writer())


@contextmanager
def training(data_hash: str, resumed: str | None = None) -> Iterator[Run]:
    """Open the run of a training and log its params; leave it RUNNING for the stages that follow.

    Args:
        data_hash: of the packed dataset.
        resumed: id of the run that this training goes on with; its points are not published again.
    """
    run_id = resumed or identity.mint_run_id()
    tags = {"convoy.data_hash": data_hash}
    run = open_run(Reference(run_id, run_id), run_name("train"), tags, stage="train", resumed=bool(resumed))
    with _writing("train", run):
        yield run


@contextmanager
def continuing(stage: str, data_hash: str) -> Iterator[Run]:
    """Continue the run of the stage before, or open one that reuses its training if that run has ended."""
    earlier = list(STAGE_PARAMS)[: list(STAGE_PARAMS).index(stage)]
    run = _continued(latest(earlier), stage, data_hash, earlier, begun=False)
    # The last stage is done when `finishing` says so.
    with _writing(stage, run, done=stage != list(STAGE_PARAMS)[-1]):
        yield run


@contextmanager
def finishing(stage: str) -> Iterator[Run]:
    """Take up the run that an earlier command of the same stage continued, end it as FINISHED, see it delivered."""
    if not (RUNS / f"{stage}.json").exists():
        raise RequestError(
            f"{RUNS / stage}.json is missing: the stage's first command makes it. Type: dvc repro {stage}"
        )
    data_hash = read_json(DATASET)["hash"] if DATASET.exists() else "unknown"
    run = _continued(latest([stage]), stage, data_hash, list(STAGE_PARAMS)[:-1], begun=True)
    with _writing(stage, run):
        yield run
        run.set_tags({STAGE: f"{stage} done"})
        run.end("FINISHED")
    where = outbox.folder()
    outbox.say_once(outbox.wait_until_uploaded([run.reference.run_id], where, outbox.WAIT_SECONDS), where)


@contextmanager
def standalone(
    name: str, tags: Mapping[str, str], parent: Reference | None = None, resumed: str | None = None
) -> Iterator[Run]:
    """Open a run that no stage belongs to, such as a sweep or one of its trials, and end it.

    Args:
        name: shown in MLflow.
        tags: beyond those that every run has.
        parent: the run that MLflow shows this one under.
        resumed: id of the run that goes on, such as that of a sweep which was stopped.
    """
    run_id = resumed or identity.mint_run_id()
    run = open_run(Reference(run_id, run_id), name, tags, parent=parent, resumed=bool(resumed))
    with _ending(run):
        yield run
        run.end("FINISHED")


def latest(stages: Sequence[str]) -> Reference:
    """Read the run that these stages wrote to: the one still open, else that of the last stage.

    A stage that was restored from DVC's cache brings the reference of the run in which it
    was made, which may be older than the run that `train` has open now.
    """
    paths = [path for path in (RUNS / f"{stage}.json" for stage in stages) if path.exists()]
    found = [Reference(content["run_id"], content["training"]) for content in map(read_json, paths)]
    for reference in reversed(found):
        if is_open(reference.run_id):
            return reference
    return found[-1] if found else Reference(run_id="", training="unknown")


def copy_results(run: Run, stages: Sequence[str]) -> None:
    """Copy what earlier stages were given and measured, from the files that DVC restored."""
    for stage in stages:
        run.log_params(_own_params(stage))
        path = METRICS / f"{stage}.json"
        if path.exists():
            run.log_result(read_json(path))


def exported_identity(run: Run, data_hash: str) -> dict[str, str]:
    """State where an exported model comes from, as `convoy.core.contract.IDENTITY` names it."""
    return {
        "run_id": run.reference.run_id,
        "git_commit": identity.git_state().get("mlflow.source.git.commit", "none"),
        "data_hash": data_hash,
        "params_hash": params.digest(yaml.read(params.PARAMS_FILE)),
    }


def run_name(*stages: str) -> str:
    """Name a run by its params, and by what they change of the commit's for these stages."""
    return naming.run_name(section for stage in stages for section in STAGE_PARAMS[stage])


def _continued(
    reference: Reference, stage: str, data_hash: str, earlier: Sequence[str], *, begun: bool
) -> Run:
    """Continue a run, or open one that has the params and results of the stages before."""
    if run := continue_run(reference, stage, begun=begun):
        return run
    fresh = Reference(identity.mint_run_id(), reference.training)
    run = open_run(fresh, run_name(*STAGE_PARAMS), {"convoy.data_hash": data_hash}, stage=stage)
    copy_results(run, earlier)
    return run


@contextmanager
def _writing(stage: str, run: Run, *, done: bool = True) -> Iterator[None]:
    """Write to a run as `stage`, leave it open at the end, and say if its store does not take it."""
    try:
        with _ending(run):
            write_reference(RUNS / f"{stage}.json", run.reference)
            run.log_params(_own_params(stage))
            yield
            if done:
                run.set_tags({STAGE: f"{stage} done"})
    finally:
        outbox.warn_once(run.reference.run_id, outbox.folder())


@contextmanager
def _ending(run: Run) -> Iterator[None]:
    """End a run as its work ends: Ctrl-C as KILLED, a pause as SCHEDULED, an error as FAILED; else leave it open."""
    try:
        yield
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except TrainingPaused:
        run.end("SCHEDULED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    finally:
        run.close()


def _own_params(stage: str) -> dict[str, Any]:
    content = yaml.read(params.PARAMS_FILE)
    return {key: content[key] for key in STAGE_PARAMS[stage]}
