"""Write the run of a training as its stages do: `train` opens it, `evaluate` and `export` continue it, `export` ends it.

`train` opens a run, or joins the one that `mlflow run` opened. A run that has ended is never rewritten:
if `train` came from DVC's cache, the stage that does run opens a new one, tagged with the training
that it reuses, and copies that training's params and final metrics. Only a training that was stopped
continues in its own run.

Stages find the run through `build/runs/<stage>.json`, which no stage depends on. Everything goes into the run's
journal, which the uploader delivers to MLflow: nothing here contacts a server, and no error of tracking stops the work.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from convoy.core import contract, files, params, pipeline, yaml
from convoy.core.console import info
from convoy.core.dataset import FACTS_FILE
from convoy.core.errors import RequestError, TrainingPaused
from convoy.core.inputs import InputsChanged, watch
from convoy.core.stage import is_stopped
from convoy.repo import git, identity
from convoy.tracking import outbox, settings
from convoy.tracking.journal import Journal, State, state
from convoy.tracking.run import Reference, Run, now_ms, warn_incomplete

RUNS = Path("build/runs")
METRICS = Path("build/metrics")
DATASET = Path("build/dataset") / FACTS_FILE

STAGE_PARAMS = {
    "train": ("seed", "data", "network", "train"),
    "evaluate": ("evaluate",),
    "export": ("export",),
}
"""The sections of params.yaml that each stage logs, in the order of stages; `train` also logs those of `prepare`."""

LAST = "export"

NAME_STARTS = ("network.name", "train.lr", "train.epochs")  # those that people change most
NAME_WHOLE = ("data.", "train.transfer.freeze")  # beginnings of params that a name always has, whole
NAME_PARAMS = 3  # further params that fit into a name
TAG_CHARACTERS = 1000  # longest list of inputs that changed
NAME_CHARACTERS = 24  # longest value of a param in a name
NAME_LENGTH = 250  # of MLflow's column
GENERATED = re.compile(r"[a-z]{5}-[a-z]{4}")  # names such as `oaken-pots`, by which DVC calls an experiment
OFFERED = "offered.txt"  # file of the outbox: ids of `mlflow run`'s runs that a pipeline has joined
PIPELINE = (params.PARAMS_FILE, pipeline.PIPELINE, pipeline.DATA_IMPORT)  # what a run was made of
DIFF = "workspace.diff"


def open_run(
    name: str,
    tags: Mapping[str, str],
    *,
    stage: str = "",
    training: str = "",
    resumed: str | None = None,
    parent: Reference | None = None,
) -> Run:
    """Open a new run or a resumed one; a disk without room for it is reported and stops nothing.

    Args:
        name: shown in MLflow.
        tags: beyond those that every run has.
        stage: the stage that opens it; empty for a run of no stage.
        training: id of the run that trained the weights; empty for this one.
        resumed: id of the run that continues; its journal may have been delivered and removed.
        parent: the run that MLflow shows this one under.
    """
    run_id = resumed or identity.mint_run_id()
    reference = Reference(run_id, training or run_id)
    where = outbox.folder()
    workspace = identity.workspace_tags()
    all_tags = {
        **identity.process_tags(),
        **workspace,
        contract.RUN_ID: run_id,
        contract.TRAINING: reference.training,
        **tags,
    }
    source, md5 = _imported(pipeline.data_import())
    if source or md5:
        all_tags[contract.DATA] = " ".join(filter(None, (source, md5[:7])))
    if os.environ.get("DVC_EXP_NAME"):
        all_tags[contract.DVC_EXPERIMENT] = os.environ["DVC_EXP_NAME"]
    if stage:
        all_tags[contract.STAGE] = f"{stage} running"
        if resumed:
            all_tags[contract.INPUTS_CHANGED] = "no"
    if (reason := workspace.get(contract.GIT_UNKNOWN)) and parent is None:
        # Of a command with --json, standard output is the answer alone.
        info(f"Warning: the run records no commit and no uncommitted changes: {reason}", stderr=True)
    entry: dict[str, Any] = {
        "kind": "open",
        "time_ms": now_ms(),
        "uri": settings.uri(),
        "repository": str(where.parent),
        "experiment": settings.experiment(),
        "name": name,
        "tags": all_tags,
        "writer": outbox.writer(),
        "resumed": bool(resumed),
        "parent": parent.run_id if parent else "",
    }
    try:
        outbox.close_orphans(where, but=run_id)
        with outbox.locked(where):
            journal = Journal(where / run_id)
            known = state(journal.folder)
            # A resumed run joined before, if at all; the run that is offered now will point to it.
            offered = "" if parent else _take_offered(where)
            journal.append({**entry, "offered": offered}, sync=True)
    except OSError as error:
        warn_incomplete(reference, error)
        return Run(reference, None)
    run = Run(reference, journal, known)
    if parent is None:
        _log_pipeline(run, dirty=workspace.get(contract.GIT_DIRTY) == "true")
    outbox.start_uploader(where)
    return run


def continue_run(reference: Reference, stage: str, *, begun: bool) -> Run | None:
    """Continue an open run from another process of the same pipeline.

    `begun`: whether this stage has written to the run before, as a stage's second command expects. Returns None
    if that does not hold, or if the run's journal is not here or has ended.
    """
    where = outbox.folder()
    tags = {key: value for key, value in identity.process_tags().items() if key.startswith("convoy.")}
    entry = {"kind": "tags", "tags": tags | {contract.STAGE: f"{stage} running"}, "writer": outbox.writer()}
    try:
        with outbox.locked(where):
            known = state(where / reference.run_id) if reference.run_id else State()
            if not known.opened or known.ended or (stage in known.stages) != begun:
                return None
            journal = Journal(where / reference.run_id)
            journal.append(entry)
    except OSError as error:
        warn_incomplete(reference, error)
        return Run(reference, None)
    outbox.start_uploader(where)
    return Run(reference, journal, known)


def _take_offered(where: Path) -> str:
    """Return the run that `mlflow run` opened for this pipeline, unless a run has joined it before."""
    offered = os.environ.get("MLFLOW_RUN_ID", "")
    path = where / OFFERED
    taken = path.read_text(encoding="utf-8").split() if path.exists() else []
    if not offered or offered in taken:
        return ""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{offered}\n")
    return offered


def _log_pipeline(run: Run, *, dirty: bool) -> None:
    """Attach the files that define the run, and the diff of a dirty tree."""
    for path in PIPELINE:
        if path.exists():
            run.log_file(path, "pipeline")
    if not dirty:
        return
    try:
        with tempfile.TemporaryDirectory() as scratch:
            diff = Path(scratch) / DIFF
            if not (reason := identity.write_diff(diff)):
                run.log_file(diff, "pipeline")
    except OSError as error:
        reason = f"{error!s:.300}"
    if reason:
        run.set_tags({contract.DIFF: f"none: {reason}"})
        info(
            f"Warning: the run records no uncommitted changes: {reason}. It cannot be restored; commit before a run that matters.",
            stderr=True,
        )


def start_uploader() -> None:
    """Start the uploader while the caller imports its libraries: both take seconds, on a core each.

    Started later, it would take those seconds from a training that uses every core.
    """
    where = outbox.folder()
    with suppress(OSError):  # a full disk, which is reported when the run is opened
        outbox.make_folder(where)
        outbox.start_uploader(where, outbox.writer())


@contextmanager
def training(data_hash: str, resumed: str | None = None) -> Iterator[Run]:
    """Open the run of a training, or the `resumed` one, and log its params; leave it RUNNING for the next stages."""
    run = open_run(run_name("train"), {contract.DATA_HASH: data_hash}, stage="train", resumed=resumed)
    kept = f"The training is complete; its checkpoint and run {run.reference.run_id} are kept."
    with _stage("train", run, kept=kept):
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
    with _stage(stage, run, last=True):
        yield run
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
        journaled = state(outbox.folder() / reference.run_id)
        if reference.run_id and journaled.opened and not journaled.ended:
            return reference
    return runs[-1] if runs else Reference(run_id="", training="unknown")


def exported_identity(run: Run, data_hash: str) -> dict[str, str]:
    """Return where an exported model comes from, by the keys of `convoy.core.contract.IDENTITY`."""
    return {
        "run_id": run.reference.run_id,
        "git_commit": identity.git_state().get(contract.GIT_COMMIT, "none"),
        "data_hash": data_hash,
        "params_hash": params.digest(params.read()),
    }


def run_name(*stages: str) -> str:
    """Name a run `slow-lr · convnet · lr 0.02 · 12 epochs`, then by the stages' params that differ from the commit's.

    The name of a DVC experiment comes first, or last if DVC chose it. Params that decide what is trained on, and other
    data than the commit's, are always in the name.
    """
    now = params.flatten(params.read())
    committed = params.flatten(_committed_params())
    sections = {section for stage in stages for section in STAGE_PARAMS[stage]}
    network, lr, epochs = (now[key] for key in NAME_STARTS)
    parts = [f"{network}", f"lr {_short(lr)}", f"{epochs} epoch{'' if epochs == 1 else 's'}"]
    differing = [
        key
        for key, value in now.items()
        if key not in NAME_STARTS and key.partition(".")[0] in sections and committed.get(key, value) != value
    ]
    whole = [key for key in differing if key.startswith(NAME_WHOLE)]
    parts += [f"{key.rpartition('.')[2]} {_text(now[key])}" for key in whole]
    parts += filter(None, [_delivery()])
    others = [f"{key.rpartition('.')[2]} {_short(now[key])}" for key in differing if key not in whole]
    parts += others[:NAME_PARAMS]
    parts += [f"{len(others) - NAME_PARAMS} more"] if len(others) > NAME_PARAMS else []
    if experiment := os.environ.get("DVC_EXP_NAME"):
        parts.insert(len(parts) if GENERATED.fullmatch(experiment) else 0, experiment)
    name = " · ".join(parts)
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _delivery() -> str:
    """Name the delivery if it is another than the commit's: by its source or, if that is the same, by its hash."""
    old = git.query(Path.cwd(), "show", f"HEAD:./{pipeline.DATA_IMPORT}")
    if not (old and pipeline.DATA_IMPORT.exists()):
        return ""
    before, (source, md5) = _imported(pipeline.parse_import(old)), _imported(pipeline.data_import())
    if (source, md5) == before:
        return ""
    return f"data {source if source != before[0] else md5[:7]}"


def _imported(data: pipeline.DataImport) -> tuple[str, str]:
    """Return the last part of a source's address, and the hash of the data; empty if there is none."""
    return Path(urlsplit(data.address).path).name, data.md5


def _committed_params() -> Mapping[str, Any]:
    """Read params.yaml of the commit; empty if there is none or it is not valid YAML."""
    try:
        content = yaml.load(git.query(Path.cwd(), "show", f"HEAD:./{params.PARAMS_FILE}"))
    except RequestError:
        return {}
    return content if isinstance(content, dict) else {}


def _short(value: object) -> str:
    """Shorten a param's value for a run name."""
    if isinstance(value, float):
        return f"{value:g}"
    text = _text(value)
    return text if len(text) <= NAME_CHARACTERS else f"{text[: NAME_CHARACTERS - 1]}…"


def _text(value: object) -> str:
    """Format a param's value for a run name; of list items with arguments, the word."""
    if not isinstance(value, list):
        return str(value)
    return "+".join("+".join(item) if isinstance(item, Mapping) else str(item) for item in value) or "none"


def _continue_or_open(stage: str, data_hash: str, *, begun: bool) -> Run:
    """Continue the run of this stage if it has begun, else of those before; or open one that reuses its training.

    A stage that failed before continues the run of that attempt. A new run gets the params and results of the stages before, which DVC restored.
    """
    earlier = list(STAGE_PARAMS)[: list(STAGE_PARAMS).index(stage)]
    writers = [stage] if begun else earlier
    reference = latest(writers)
    if run := continue_run(reference, stage, begun=begun):
        return run
    tags, title = {contract.DATA_HASH: data_hash}, run_name(*STAGE_PARAMS)
    where, digest = outbox.folder(), params.digest(_own_params(stage))
    if not begun and (failed := outbox.failed_attempt(where, stage, latest(["train"]).run_id, digest)):
        return open_run(title, tags, stage=stage, training=failed["training"], resumed=failed["run_id"])
    run = open_run(
        title,
        tags,
        stage=stage,
        training=reference.training,
        # A model may carry the id of a run for which the outbox had no room: it stays that of this pipeline.
        resumed=reference.run_id if _is_unrecorded(reference, writers) else None,
    )
    run.log_report(DATASET.parent)
    for name in earlier:
        run.log_params(_own_params(name))
        if (path := METRICS / f"{name}.json").exists():
            run.log_result(files.read_json(path))
    return run


def _is_unrecorded(reference: Reference, stages: Sequence[str]) -> bool:
    """Check whether the outbox took nothing of the run that these stages refer to."""
    paths = [path for path in (RUNS / f"{stage}.json" for stage in stages) if path.exists()]
    return any(
        content["run_id"] == reference.run_id and content.get("recorded") is False
        for content in map(files.read_json, paths)
    )


@contextmanager
def _stage(stage: str, run: Run, *, done: bool = True, last: bool = False, kept: str = "") -> Iterator[None]:
    """Write to a run as `stage`, and end it as FINISHED after the `last`; warn if its store does not take it.

    A stage whose inputs were edited meanwhile fails (`watch.check`). The next attempt at a stage that did not succeed
    continues the run, as a training does from its checkpoint.
    """
    attempt = outbox.attempt(outbox.folder(), stage, latest(["train"]).run_id)
    try:
        with _ending(run):
            unrecorded = {} if run.is_recorded else {"recorded": False}
            files.write_json(RUNS / f"{stage}.json", asdict(run.reference) | unrecorded)
            if stage != "train":
                with suppress(OSError):  # a full disk, which was reported when the run was opened
                    digest = params.digest(_own_params(stage))
                    files.write_json(attempt, asdict(run.reference) | {"params": digest})
            run.log_params(_own_params(stage))
            yield
            if done:
                watch.check(kept)
                run.set_tags({contract.STAGE: f"{stage} done"})
                try:
                    attempt.unlink(missing_ok=True)
                except OSError as error:  # the outbox has become read-only
                    run.report_incomplete(error)
            if last:
                run.end("FINISHED")
    finally:
        outbox.warn_if_failing(run.reference.run_id, outbox.folder())


@contextmanager
def _ending(run: Run) -> Iterator[None]:
    """End a run as its work ends: Ctrl-C as KILLED, a pause as SCHEDULED, an error as FAILED; else leave it open.

    A tag names the inputs that were edited while the stage ran.
    """
    try:
        yield
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except TrainingPaused:
        run.end("SCHEDULED")
        raise
    except InputsChanged as error:
        run.set_tags({contract.INPUTS_CHANGED: "; ".join(error.changes)[:TAG_CHARACTERS]})
        run.end("FAILED")
        raise
    except BaseException:
        run.end("KILLED" if is_stopped() else "FAILED")
        raise
    finally:
        run.close()


def _own_params(stage: str) -> dict[str, Any]:
    content = params.read()
    return {key: content[key] for key in STAGE_PARAMS[stage]}
