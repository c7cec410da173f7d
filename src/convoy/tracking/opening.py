"""Open a run's journal, or go on with it: who writes, where it is to be kept, what it is made of."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core.console import info
from convoy.repo import identity
from convoy.tracking import outbox, settings, snapshot
from convoy.tracking.journal import STAGE, Entry, Journal, state
from convoy.tracking.run import Reference, Run, now_ms, untracked

OFFERED = "offered.txt"
"""Runs that `mlflow run` opened and that were taken up, one id per line."""


def open_run(
    reference: Reference,
    name: str,
    tags: Mapping[str, str],
    *,
    stage: str = "",
    resumed: bool = False,
    parent: Reference | None = None,
) -> Run:
    """Open a run, or one that is gone on with; a disk without room for it is said and stops nothing.

    Args:
        reference: the run.
        name: shown in MLflow.
        tags: beyond those that every run has.
        stage: that opens it; empty for a run that belongs to none.
        resumed: whether it goes on; its journal may have been delivered and removed.
        parent: the run that MLflow shows this one under.
    """
    where = outbox.folder()
    facts = {
        **identity.process_tags(),
        **snapshot.tags(),
        "convoy.run_id": reference.run_id,
        "convoy.training": reference.training,
        **tags,
    }
    if os.environ.get("DVC_EXP_NAME"):
        facts["convoy.dvc_experiment"] = os.environ["DVC_EXP_NAME"]
    if stage:
        facts[STAGE] = f"{stage} running"
    entry: dict[str, Any] = {
        "kind": "open",
        "time_ms": now_ms(),
        "uri": settings.uri(),
        "experiment": settings.experiment(),
        "name": name,
        "tags": facts,
        "writer": outbox.writer(),
        "resumed": resumed,
        "parent": parent.run_id if parent else "",
    }
    try:
        outbox.end_all_dead(where, but=reference.run_id)
        run = _write(reference, entry, where)
    except OSError as error:
        info(untracked(reference.run_id, error))
        return Run(reference, None)
    if parent is None:
        _log_pipeline(run, dirty=facts.get("convoy.git_dirty") == "true")
    outbox.start_uploader(where)
    return run


def continue_run(reference: Reference, stage: str, *, begun: bool) -> Run | None:
    """Go on with an open run as another process of the same pipeline.

    Args:
        reference: the run.
        stage: that goes on with it.
        begun: whether this stage has begun in the run, as the second command of a stage finds it.

    Returns:
        None where the run's journal is not here, has ended, or has (not) begun this stage.
    """
    where = outbox.folder()
    tags = {key: value for key, value in identity.process_tags().items() if key.startswith("convoy.")}
    entry = {"kind": "tags", "tags": tags | {STAGE: f"{stage} running"}, "writer": outbox.writer()}
    try:
        with outbox.held(where):
            found = state(where / reference.run_id) if reference.run_id else None
            if not found or not found.opened or found.ended or (stage in found.begun) != begun:
                return None
            journal = Journal(where / reference.run_id)
            journal.append(entry)
    except OSError as error:
        info(untracked(reference.run_id, error))
        return Run(reference, None)
    outbox.start_uploader(where)
    return Run(reference, journal, found)


def is_open(run_id: str) -> bool:
    """Tell whether a run's journal is here and has not ended."""
    found = state(outbox.folder() / run_id) if run_id else None
    return bool(found and found.opened and not found.ended)


def _write(reference: Reference, entry: Entry, where: Path) -> Run:
    """Write the first entry, with the run that `mlflow run` offers if nobody took it up."""
    with outbox.held(where):
        journal = Journal(where / reference.run_id)
        known = state(journal.folder)
        # A run that goes on was taken up before, if at all; the offered one will point to it.
        offered = "" if entry["parent"] else _take_offered(where)
        journal.append({**entry, "offered": offered}, sync=True)
    return Run(reference, journal, known)


def _take_offered(where: Path) -> str:
    """Name the run that `mlflow run` opened for this pipeline, unless it was taken up already."""
    offered = os.environ.get("MLFLOW_RUN_ID", "")
    taken = where / OFFERED
    known = taken.read_text(encoding="utf-8").split() if taken.exists() else []
    if not offered or offered in known:
        return ""
    with taken.open("a", encoding="utf-8") as file:
        file.write(f"{offered}\n")
    return offered


def _log_pipeline(run: Run, *, dirty: bool) -> None:
    """Attach the files that say what the run was made of."""
    for path in snapshot.PIPELINE:
        if path.exists():
            run.log_file(path, "pipeline")
    if not dirty:
        return
    try:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / snapshot.DIFF
            if missing := snapshot.diff(target):
                run.set_tags({"convoy.diff": f"none: {missing}"})
            else:
                run.log_file(target, "pipeline")
    except OSError as error:
        run.set_tags({"convoy.diff": f"none: {error!s:.300}"})
