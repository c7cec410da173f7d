"""The run of a training as its stages see it: `train` opens it, `evaluate` and `export` continue it, `export` ends it.

`train` opens a run, or joins the one that `mlflow run` opened. A run that has ended is never rewritten:
if `train` came from DVC's cache, the stage that does run opens a new one, tagged with the training
that it reuses, and copies that training's params and final metrics. Only a training that was stopped
continues in its own run.

Stages find the run through `build/runs/<stage>.json`, which no stage depends on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convoy.core import contract, files, params, yaml
from convoy.core.errors import RequestError, TrainingPaused
from convoy.repo import git, identity
from convoy.tracking import outbox
from convoy.tracking.run import Reference, Run, continue_run, is_open, open_run

RUNS = Path("build/runs")
METRICS = Path("build/metrics")
DATASET = Path("build/dataset/dataset.json")

STAGE_PARAMS = {
    "train": ("seed", "data", "network", "train"),
    "evaluate": ("evaluate",),
    "export": ("export",),
}
"""The sections of params.yaml that each stage logs, in the order of stages; `train` also logs those of `prepare`."""

LAST = "export"

NAME_STARTS = ("network.name", "train.lr", "train.epochs")
"""The params that people change most; every run name begins with them."""

NAME_PARAMS = 3
"""Further params that fit into a name."""

NAME_CHARACTERS = 24
"""Longest value of a param in a name."""


def start_uploader() -> None:
    """Start the uploader while the caller imports its libraries: both take seconds, on a core each.

    Started later, it would take those seconds from a training that uses every core.
    """
    where = outbox.folder()
    with suppress(OSError):  # a full disk, which is reported when the run is opened
        where.mkdir(exist_ok=True)
        outbox.start_uploader(where, outbox.writer())


@contextmanager
def training(data_hash: str, resumed: str | None = None) -> Iterator[Run]:
    """Open the run of a training, or the `resumed` one, and log its params; leave it RUNNING for the next stages."""
    run = open_run(run_name("train"), {contract.DATA_HASH: data_hash}, stage="train", resumed=resumed)
    with _stage("train", run):
        yield run


@contextmanager
def continuing(stage: str, data_hash: str) -> Iterator[Run]:
    """Continue the run of the stage before, or open one that reuses its training if that run has ended."""
    run = _continue_or_open(stage, data_hash, begun=False)
    # The last stage is done only when `finishing` ends it.
    with _stage(stage, run, done=stage != LAST):
        yield run


@contextmanager
def finishing(stage: str) -> Iterator[Run]:
    """Continue the run of an earlier command of the same stage, end it as FINISHED and wait for its delivery."""
    if not (RUNS / f"{stage}.json").exists():
        raise RequestError(
            f"{RUNS / stage}.json is missing; the stage's first command writes it. Type: dvc repro {stage}"
        )
    data_hash = files.read_json(DATASET)["hash"] if DATASET.exists() else "unknown"
    run = _continue_or_open(stage, data_hash, begun=True)
    with _stage(stage, run):
        yield run
        run.set_tags({contract.STAGE: f"{stage} done"})
        run.end("FINISHED")
    where = outbox.folder()
    outbox.warn_once(outbox.wait_until_uploaded([run.reference.run_id], where, outbox.WAIT_SECONDS), where)


@contextmanager
def standalone(
    name: str, tags: Mapping[str, str], parent: Reference | None = None, resumed: str | None = None
) -> Iterator[Run]:
    """Open a run that belongs to no stage, such as a sweep or one of its trials, and end it.

    Arguments are those of `open_run`; `resumed` may be the run of a sweep that was stopped.
    """
    run = open_run(name, tags, parent=parent, resumed=resumed)
    with _ending(run):
        yield run
        run.end("FINISHED")


def latest(stages: Sequence[str]) -> Reference:
    """Read the run that these stages wrote to: the one still open, else that of the last stage.

    A stage that was restored from DVC's cache brings the reference of the run in which it
    was made, which may be older than the run that `train` has open now.
    """
    paths = [path for path in (RUNS / f"{stage}.json" for stage in stages) if path.exists()]
    runs = [Reference(content["run_id"], content["training"]) for content in map(files.read_json, paths)]
    for reference in reversed(runs):
        if is_open(reference.run_id):
            return reference
    return runs[-1] if runs else Reference(run_id="", training="unknown")


def exported_identity(run: Run, data_hash: str) -> dict[str, str]:
    """Return where an exported model comes from, by the keys of `convoy.core.contract.IDENTITY`."""
    return {
        "run_id": run.reference.run_id,
        "git_commit": identity.git_state().get(contract.GIT_COMMIT, "none"),
        "data_hash": data_hash,
        "params_hash": params.digest(yaml.read(params.PARAMS_FILE)),
    }


def run_name(*stages: str) -> str:
    """Name a run `convnet · lr 0.02 · 12 epochs`, then by the stages' params that differ from the commit's."""
    now = params.flatten(yaml.read(params.PARAMS_FILE))
    committed = params.flatten(_committed_params())
    sections = {section for stage in stages for section in STAGE_PARAMS[stage]}
    network, lr, epochs = (now[key] for key in NAME_STARTS)
    parts = [f"{network}", f"lr {_short(lr)}", f"{epochs} epoch{'' if epochs == 1 else 's'}"]
    others = [
        f"{key.rpartition('.')[2]} {_short(value)}"
        for key, value in now.items()
        if key not in NAME_STARTS and key.partition(".")[0] in sections and committed.get(key, value) != value
    ]
    more = [f"{len(others) - NAME_PARAMS} more"] if len(others) > NAME_PARAMS else []
    return " · ".join([*parts, *others[:NAME_PARAMS], *more])


def _committed_params() -> Mapping[str, Any]:
    """Read params.yaml of the commit; empty if there is none or it is not valid YAML."""
    try:
        content = yaml.load(git.ask(Path.cwd(), "show", f"HEAD:./{params.PARAMS_FILE}"))
    except RequestError:
        return {}
    return content if isinstance(content, dict) else {}


def _short(value: object) -> str:
    """Shorten a param's value for a run name."""
    if isinstance(value, float):
        return f"{value:g}"
    text = "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    return text if len(text) <= NAME_CHARACTERS else f"{text[: NAME_CHARACTERS - 1]}…"


def _continue_or_open(stage: str, data_hash: str, *, begun: bool) -> Run:
    """Continue the run of this stage if it has begun, else of those before; or open one that reuses its training.

    A new run gets the params and results of the stages before, which DVC restored.
    """
    earlier = list(STAGE_PARAMS)[: list(STAGE_PARAMS).index(stage)]
    reference = latest([stage] if begun else earlier)
    if run := continue_run(reference, stage, begun=begun):
        return run
    tags = {contract.DATA_HASH: data_hash}
    run = open_run(run_name(*STAGE_PARAMS), tags, stage=stage, training=reference.training)
    for name in earlier:
        run.log_params(_own_params(name))
        if (path := METRICS / f"{name}.json").exists():
            run.log_result(files.read_json(path))
    return run


@contextmanager
def _stage(stage: str, run: Run, *, done: bool = True) -> Iterator[None]:
    """Write to a run as `stage`, leave it open at the end, and warn if its store does not take it."""
    try:
        with _ending(run):
            files.write_json(RUNS / f"{stage}.json", asdict(run.reference))
            run.log_params(_own_params(stage))
            yield
            if done:
                run.set_tags({contract.STAGE: f"{stage} done"})
    finally:
        outbox.warn_if_failing(run.reference.run_id, outbox.folder())


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
