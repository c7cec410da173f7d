"""Log params, metrics, files and the model of one run to its journal, from which the uploader delivers them to MLflow."""

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import contract, files, params
from convoy.core.console import info
from convoy.core.dataset import REPORT_FILE
from convoy.tracking import outbox
from convoy.tracking.journal import Entry, Journal, State

CHECK_SECONDS = 60.0  # how often a run checks, at checkpoints, that an uploader is running


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
        self.is_recorded = journal is not None
        self._journal = journal
        self._published = {name: set(steps) for name, steps in (known or State()).published.items()}
        self._lacks = ""  # why it is incomplete
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

        A point is name, value, step, and time in milliseconds since 1970. Those that the journal already has are left
        out, so a resumed training publishes nothing twice.
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
        """Log the packed dataset as the run's input, and its report; MLflow takes 36 characters of a digest."""
        facts = {"kind": "dataset", "digest": digest[:32], "source": str(folder)}
        profile = folder / "dataset.json"
        self._write(lambda _: [{**facts, "profile": profile.read_text(encoding="utf-8")}])
        self.log_report(folder)

    def log_report(self, folder: Path) -> None:
        """Attach the report of a packed dataset, if it has one: `dataset/report.html`."""
        if (folder / REPORT_FILE).exists():
            self.log_file(folder / REPORT_FILE, "dataset")

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

        The first end counts; nothing can be logged after it. A run that lacks something is FAILED instead of FINISHED, and a
        tag has the cause.
        """
        if self._lacks and status == "FINISHED":
            self.set_tags({contract.INCOMPLETE: self._lacks})
            status = "FAILED"
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
            self.report_incomplete(error)

    def report_incomplete(self, error: Exception) -> None:
        """Report that something could not be recorded, once; the run cannot be FINISHED any more."""
        if not self._lacks:
            self._lacks = f"{error!s:.300}"
            warn_incomplete(self.reference, error)

    def _check_uploader(self) -> None:
        """Start another uploader if the last one was killed: a training may last for days."""
        if self._journal and time.monotonic() - self._checked > CHECK_SECONDS:
            self._checked = time.monotonic()
            outbox.start_uploader(self._journal.folder.parent)


def warn_incomplete(reference: Reference, error: Exception) -> None:
    """Report what a run could not record, with a remedy where the folder or the disk refuses."""
    remedy = ""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = f' Make the folder writable for this user, for the next run: sudo chown -R "$USER" {outbox.folder()}'
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f" Free disk space, for the next run: df -h {outbox.folder().parent}"
    info(
        f"Tracking of run {reference.run_id} is incomplete: {error!s:.300}. The work continues.{remedy}",
        stderr=True,
    )


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
