"""Open, continue and write a run. Nothing here contacts a server, and no error of tracking stops the work.

Everything goes into the run's journal, which the uploader delivers to MLflow.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import contract, files, params
from convoy.core.console import info
from convoy.repo import identity
from convoy.tracking import outbox, settings
from convoy.tracking.journal import Entry, Journal, State, state

CHECK_SECONDS = 60.0
"""How often a run checks, at checkpoints, that an uploader is running."""

OFFERED = "offered.txt"
"""File of the outbox: ids of the runs that `mlflow run` opened and that a pipeline has joined, one per line."""

PIPELINE = (params.PARAMS_FILE, Path("dvc.yaml"), Path("data.dvc"))
"""Files that define what a run was made of."""

DIFF = "workspace.diff"


@dataclass(frozen=True)
class Reference:
    """Name a run by Convoy's id, which the exported model carries too, and by that of the run that trained its weights."""

    run_id: str
    training: str


class Run:
    """Log params, metrics, files and the model of one training.

    A disk that takes no more entries is reported once; the work continues.
    """

    def __init__(self, reference: Reference, journal: Journal | None, known: State | None = None) -> None:
        """Write to a run; `journal` is None if the disk has no room for one, `known` what it already holds."""
        self.reference = reference
        self._journal = journal
        self._published = {name: set(steps) for name, steps in (known or State()).published.items()}
        self._warned = False
        self._checked = time.monotonic()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log params by their flat name, such as `train.lr`; MLflow keeps the first value, a changed one becomes a tag."""
        flat = {name: str(value) for name, value in params.flatten(values).items()}
        self._append({"kind": "params", "params": flat})

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics named `where/what`; `step` counts epochs from 1 and makes a curve, 0 means a result."""
        self._log_points([(name, float(value), step, now_ms()) for name, value in values.items()])

    def log_points(self, points: Iterable[tuple[str, float, int, int]]) -> None:
        """Log points of curves, which are on disk when this returns: call it at checkpoints.

        Points that the journal already has are left out, so a resumed training publishes nothing twice.

        Args:
            points: name, value, step, and time in milliseconds since 1970.
        """
        fresh = [
            (name, float(value), step, when)
            for name, value, step, when in points
            if step not in self._published.get(name, ())
        ]
        if fresh:
            self._log_points(fresh, sync=True)
            self._check_uploader()

    def log_result(self, nested: Mapping[str, Any]) -> None:
        """Log a stage's metrics file: nested numbers become `where/what`, anything else is left out.

        A metric of which this run has a curve is left out: the curve ends with the same number.
        """
        now = now_ms()
        points = [
            (name, value, 0, now)
            for name, value in flatten_metrics(nested).items()
            if not any(self._published.get(name, ()))
        ]
        self._append({"kind": "points", "points": points, "result": True})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Attach a file, or the content of a folder, as artifacts: copied now, uploaded later."""
        self._write(lambda journal: [{"kind": "files", "at": journal.copy_in(path), "folder": folder}])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._append({"kind": "tags", "tags": dict(tags)})

    def log_dataset(self, digest: str, folder: Path) -> None:
        """Log the packed dataset as the run's input; MLflow takes 36 characters of a digest."""

        def entries(_: Journal) -> list[Entry]:
            profile = (folder / "dataset.json").read_text(encoding="utf-8")
            return [{"kind": "dataset", "digest": digest[:32], "source": str(folder), "profile": profile}]

        self._write(entries)

    def log_onnx(self, path: Path, *beside: Path) -> None:
        """Log a verified ONNX file as the run's model, byte for byte, and the files that belong to it."""

        def entries(journal: Journal) -> list[Entry]:
            digest = files.sha256(path)
            return [
                {"kind": "tags", "tags": {contract.ONNX_SHA256: digest}},
                {"kind": "model", "at": journal.copy_in(path, *beside), "sha256": digest},
            ]

        self._write(entries)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Have processor, memory, disk, network and GPU sampled while the block runs."""
        self._append({"kind": "system", "on": True})
        try:
            yield
        finally:
            self._append({"kind": "system", "on": False})

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, or as SCHEDULED: stopped, to be resumed later.

        The first end counts; nothing can be logged after it.
        """
        self._append({"kind": "end", "status": status, "time_ms": now_ms()}, sync=True)
        self.close()

    def close(self) -> None:
        """Close the journal; the run stays as it is."""
        if self._journal:
            self._journal.close()
            self._journal = None

    def _log_points(self, points: list[tuple[str, float, int, int]], *, sync: bool = False) -> None:
        for name, _, step, _ in points:
            self._published.setdefault(name, set()).add(step)
        self._append({"kind": "points", "points": points}, sync=sync)

    def _append(self, entry: Entry, *, sync: bool = False) -> None:
        self._write(lambda _: [entry], sync=sync)

    def _write(self, entries: Callable[[Journal], list[Entry]], *, sync: bool = False) -> None:
        """Write unless the run has ended; report the first error."""
        if self._journal is None:
            return
        try:
            for entry in entries(self._journal):
                self._journal.append(entry, sync=sync)
        except (OSError, ValueError) as error:
            if not self._warned:
                self._warned = True
                _warn_incomplete(self.reference, error)

    def _check_uploader(self) -> None:
        """Start another uploader if the last one was killed: a training may last for days."""
        if self._journal and time.monotonic() - self._checked > CHECK_SECONDS:
            self._checked = time.monotonic()
            outbox.start_uploader(self._journal.folder.parent)


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
    if os.environ.get("DVC_EXP_NAME"):
        all_tags[contract.DVC_EXPERIMENT] = os.environ["DVC_EXP_NAME"]
    if stage:
        all_tags[contract.STAGE] = f"{stage} running"
    entry: dict[str, Any] = {
        "kind": "open",
        "time_ms": now_ms(),
        "uri": settings.uri(),
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
        _warn_incomplete(reference, error)
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
        _warn_incomplete(reference, error)
        return Run(reference, None)
    outbox.start_uploader(where)
    return Run(reference, journal, known)


def is_open(run_id: str) -> bool:
    """Check whether a run's journal is here and has not ended."""
    known = state(outbox.folder() / run_id) if run_id else State()
    return bool(known.opened and not known.ended)


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
            if reason := identity.write_diff(diff):
                run.set_tags({contract.DIFF: f"none: {reason}"})
            else:
                run.log_file(diff, "pipeline")
    except OSError as error:
        run.set_tags({contract.DIFF: f"none: {error!s:.300}"})


def _warn_incomplete(reference: Reference, error: Exception) -> None:
    info(f"Tracking of run {reference.run_id} is incomplete: {error!s:.300}. The work continues.")


def flatten_metrics(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten a metrics file to MLflow's `where/what` names, numbers only."""
    flat: dict[str, float] = {}
    for key, item in nested.items():
        if isinstance(item, Mapping):
            flat |= flatten_metrics(item, f"{prefix}{key}/")
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            flat[f"{prefix}{key}"] = float(item)
    return flat


def now_ms() -> int:
    """Return the time as MLflow does, in milliseconds since 1970."""
    return int(time.time() * 1000)
