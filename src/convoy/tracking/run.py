"""Write a run down. Nothing here contacts a server, and nothing fails for tracking's sake.

Everything goes into the run's journal, which a courier delivers to MLflow (`courier.py`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.core import files, params
from convoy.core.console import info
from convoy.tracking import outbox
from convoy.tracking.journal import Journal, State

WATCH_SECONDS = 60.0
"""How often it is looked whether a courier is at work, at checkpoints."""


@dataclass(frozen=True)
class Reference:
    """Name a run.

    Attributes:
        run_id: minted by Convoy; stands in the exported model and in MLflow's tag `convoy.run_id`.
        training: `run_id` of the run that trained the weights; another run where a training is reused.
    """

    run_id: str
    training: str


class Run:
    """Log params, metrics, files and the model of one training.

    A disk that takes nothing more is said once; the work goes on without.
    """

    def __init__(self, reference: Reference, journal: Journal | None, known: State | None = None) -> None:
        """Write to the run that `reference` names.

        Args:
            reference: the run.
            journal: None where the disk has no room for one.
            known: what the journal says already.
        """
        self.reference = reference
        self.ended = False
        self._journal = journal
        self._published = {name: set(steps) for name, steps in (known or State()).published.items()}
        self._complained = False
        self._watched = time.monotonic()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log params by their flat name, such as `train.lr`; MLflow keeps the first value, a changed one becomes a tag."""
        flat = {name: str(value) for name, value in params.flatten(values).items()}
        self._append({"kind": "params", "params": flat})

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics named `where/what`; `step` counts epochs from 1 and makes a curve, 0 means a result."""
        self._points([(name, float(value), step, now_ms()) for name, value in values.items()])

    def log_points(self, points: Iterable[tuple[str, float, int, int]]) -> None:
        """Log points of curves, and have them on the disk when this returns: call it at checkpoints.

        What the journal has already is left out, so that a training that goes on publishes nothing twice.

        Args:
            points: name, value, step, and time in milliseconds since 1970.
        """
        fresh = [
            (name, float(value), step, when)
            for name, value, step, when in points
            if step not in self._published.get(name, ())
        ]
        if fresh:
            self._points(fresh, sync=True)
            self._watch_courier()

    def log_result(self, nested: Mapping[str, Any]) -> None:
        """Log a stage's metrics file: nested numbers become `where/what`, anything else is left out.

        What this run has a curve of stays as it is: the curve ends with the same number.
        """
        now = now_ms()
        points = [
            (name, value, 0, now)
            for name, value in numbers(nested).items()
            if not any(self._published.get(name, ()))
        ]
        self._append({"kind": "points", "points": points, "result": True})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Attach a file, or what a folder holds, as artifacts: copied now, uploaded later."""
        self._try(
            lambda journal: journal.append({"kind": "files", "at": journal.keep(path), "folder": folder})
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._append({"kind": "tags", "tags": dict(tags)})

    def log_dataset(self, digest: str, folder: Path) -> None:
        """Log the packed dataset as the run's input; MLflow keeps 36 characters of a digest."""

        def write(journal: Journal) -> None:
            facts = (folder / "dataset.json").read_text(encoding="utf-8")
            journal.append(
                {"kind": "dataset", "digest": digest[:32], "source": str(folder), "profile": facts}
            )

        self._try(write)

    def log_onnx(self, path: Path, *beside: Path) -> None:
        """Log a proven ONNX file as the run's model, byte for byte, with signature, input example and what belongs to it."""

        def write(journal: Journal) -> None:
            digest = files.sha256(path)
            journal.append({"kind": "tags", "tags": {"convoy.onnx_sha256": digest}})
            journal.append({"kind": "model", "at": journal.keep(path, *beside), "sha256": digest})

        self._try(write)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Have processor, memory, disk, network and GPU sampled while the block runs."""
        self._append({"kind": "system", "on": True})
        try:
            yield
        finally:
            self._append({"kind": "system", "on": False})

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, or as SCHEDULED: stopped, and to go on later.

        The first end counts; nothing can be logged after it.
        """
        self._append({"kind": "end", "status": status, "time_ms": now_ms()}, sync=True)
        self.ended = True
        self.close()

    def close(self) -> None:
        """Let go of the journal; the run stays as it is."""
        if self._journal:
            self._journal.close()
            self._journal = None

    def _points(self, points: list[tuple[str, float, int, int]], *, sync: bool = False) -> None:
        for name, _, step, _ in points:
            self._published.setdefault(name, set()).add(step)
        self._append({"kind": "points", "points": points}, sync=sync)

    def _append(self, entry: Mapping[str, Any], *, sync: bool = False) -> None:
        self._try(lambda journal: journal.append(entry, sync=sync))

    def _try(self, write: Callable[[Journal], None]) -> None:
        """Write unless the run has ended; what the disk refuses is said once."""
        if self._journal is None:
            return
        try:
            write(self._journal)
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                info(untracked(self.reference.run_id, error))

    def _watch_courier(self) -> None:
        """Start another courier if the one at work was killed; a training may last for days."""
        if self._journal and time.monotonic() - self._watched > WATCH_SECONDS:
            self._watched = time.monotonic()
            outbox.start_uploader(self._journal.folder.parent)


def untracked(run_id: str, error: Exception) -> str:
    """Phrase what a disk that takes nothing means."""
    return f"Run {run_id} is not wholly tracked: {error!s:.300}. The work goes on."


def write_reference(path: Path, reference: Reference) -> None:
    """Keep a reference for the stages that follow."""
    files.write_json(path, asdict(reference))


def numbers(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten a metrics file to MLflow's `where/what` names, numbers only."""
    flat: dict[str, float] = {}
    for key, item in nested.items():
        if isinstance(item, Mapping):
            flat |= numbers(item, f"{prefix}{key}/")
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            flat[f"{prefix}{key}"] = float(item)
    return flat


def now_ms() -> int:
    """Tell the time as MLflow does, in milliseconds since 1970."""
    return int(time.time() * 1000)
