"""The trials of a study as rows: for the console, for programs, for MLflow."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from convoy.core import yaml
from convoy.sweep.request import Request
from convoy.sweep.study import DIED, EPOCHS, REASON, begun

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True)
class Row:
    """Say what became of a trial.

    Attributes:
        number: Optuna's, 0 for the first; numbers are missing where a trial was lost and tried again.
        state: complete | pruned | failed | running.
        value: of the metric: in the epoch that was kept, or in the last one of a pruned trial.
        values: what it tried, by flat key.
        epochs: trained so far.
        of: epochs that it was to train; 0 where that was never said.
        seconds: from beginning to end.
        reason: why it failed.
    """

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    epochs: int
    of: int
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class Results:
    """Hold a study's rows and the best of them."""

    request: Request
    rows: tuple[Row, ...]
    best: Row | None

    @classmethod
    def of(cls, request: Request, trials: Sequence[FrozenTrial]) -> "Results":
        """Read the trials; those that were lost and are tried again are left out."""
        rows = tuple(_row(request, trial) for trial in begun(trials))
        complete = [row for row in rows if row.state == "complete"]
        sign = -1 if request.direction == "maximize" else 1
        best = min(complete, key=lambda row: (sign * (row.value or 0.0), row.number), default=None)
        return cls(request, rows, best)

    def count(self, *states: str) -> int:
        """Count the trials in some states."""
        return sum(row.state in states for row in self.rows)

    @property
    def done(self) -> int:
        """Count the trials that came to an end."""
        return self.count("complete", "pruned", "failed")

    def facts(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return {
            "study": self.request.name,
            "metric": self.request.sweep.metric,
            "direction": self.request.direction,
            "inputs": self.request.inputs,
            "best": asdict(self.best) if self.best else None,
            "trials": [asdict(row) for row in self.rows],
        }

    def table(self) -> str:
        """Write the trials as CSV."""
        text = io.StringIO()
        keys = list(self.request.sweep.space)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "state", self.request.sweep.metric, *keys, "epochs", "seconds", "reason"])
        for row in self.rows:
            values = [yaml.inline(row.values[key]) if key in row.values else "" for key in keys]
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            value = "" if row.value is None else repr(row.value)
            writer.writerow([row.number, row.state, value, *values, row.epochs, seconds, row.reason])
        return text.getvalue()

    def lines(self) -> list[str]:
        """Lay the trials out for people, by number; the best is marked."""
        keys = list(self.request.sweep.space)
        cells = [["trial", "state", self.request.sweep.metric, *keys, "epochs", "seconds", ""]]
        for row in self.rows:
            mark = "best" if row == self.best else row.reason.partition("\n")[0]
            values = [yaml.inline(row.values[key]) if key in row.values else "" for key in keys]
            value = "" if row.value is None else f"{row.value:.4f}"
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            cells.append([str(row.number), row.state, value, *values, epochs(row), seconds, mark])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]


def epochs(row: Row) -> str:
    """Say how far a trial trained."""
    return f"{row.epochs}/{row.of}" if row.of else ""


def _row(request: Request, trial: FrozenTrial) -> Row:
    state = STATES[trial.state]
    reason = trial.user_attrs.get(REASON) or (DIED if state == "failed" else "")
    return Row(
        number=trial.number,
        state=state,
        value=trial.value if state in {"complete", "pruned"} else None,
        values={
            one.key: one.value(trial.params[one.key]) for one in request.space if one.key in trial.params
        },
        epochs=max(trial.intermediate_values, default=0),
        of=trial.user_attrs.get(EPOCHS, 0),
        seconds=trial.duration.total_seconds() if trial.duration else None,
        reason=reason,
    )
