"""The trials of a study: as rows for the console, programs and MLflow, and as Optuna's pictures."""

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as draw

from convoy.core import console, escaping, yaml
from convoy.explain import figures
from convoy.sweep.space import describe
from convoy.sweep.study import BASELINE, EPOCHS, REASON, Request, begun, is_baseline

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
DIED = "its process died twice, perhaps out of memory"

MIN_IMPORTANCES = 4
"""Completed trials from which importances are computed; fewer would give noise alone."""


@dataclass(frozen=True)
class Row:
    """Describe a trial."""

    number: int  # Optuna's, 0 for the first; numbers are missing where a trial was lost and queued again
    state: str  # complete | pruned | failed | running
    value: float | None  # of the metric: in the best epoch, or in the last one of a pruned trial
    values: dict[str, Any]  # what it tried, by flat key
    epochs: int  # trained so far
    of: int  # epochs that it was to train; 0 where it never began to train
    seconds: float | None  # from beginning to end
    reason: str  # why it failed

    @property
    def progress(self) -> str:
        """Show how far the trial trained, such as `3/10`."""
        return f"{self.epochs}/{self.of}" if self.of else ""


@dataclass(frozen=True)
class Results:
    """Hold a study's rows, the best of them and the baseline."""

    request: Request
    rows: tuple[Row, ...]
    best: Row | None
    baseline: Row | None = None  # the trial with the values of params.yaml when the study began

    @classmethod
    def of(cls, request: Request, trials: Sequence[FrozenTrial]) -> "Results":
        """Read the trials; those that were lost and queued again are left out."""
        own = begun(trials)
        rows = tuple(_row(request, trial) for trial in own)
        baseline = next((row for row, trial in zip(rows, own, strict=True) if is_baseline(trial)), None)
        complete = [row for row in rows if row.state == "complete"]
        sign = -1 if request.direction == "maximize" else 1
        best = min(complete, key=lambda row: (sign * (row.value or 0.0), row.number), default=None)
        return cls(request, rows, best, baseline)

    def count(self, *states: str) -> int:
        """Count the trials in some states."""
        return sum(row.state in states for row in self.rows)

    @property
    def done(self) -> int:
        """Count the trials that ended."""
        return self.count("complete", "pruned", "failed")

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {
            "study": self.request.name,
            "metric": self.request.sweep.metric,
            "direction": self.request.direction,
            "inputs": self.request.inputs,
            "networks": self.request.networks,
            "best": asdict(self.best) if self.best else None,
            "baseline": asdict(self.baseline) if self.baseline else None,
            "trials": [asdict(row) for row in self.rows],
        }

    def csv(self) -> str:
        """Return the trials as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self._header(), "reason"])
        writer.writerows(escaping.csv_row([*self._cells(row, repr), row.reason]) for row in self.rows)
        return text.getvalue()

    def table(self) -> str:
        """Lay out the trials by number; the best is marked."""
        rows = []
        for row in self.rows:
            marks = ["best"] * (row == self.best) + ["baseline"] * (row == self.baseline)
            note = ", ".join([*marks, *filter(None, [row.reason.partition("\n")[0]])])
            rows.append([*self._cells(row, "{:.4f}".format), note])
        return console.table([*self._header(), ""], rows)

    def _header(self) -> list[str]:
        sweep = self.request.sweep
        return ["trial", "state", sweep.metric, *sweep.space, "epochs", "seconds"]

    def _cells(self, row: Row, number: Callable[[float], str]) -> list[str]:
        keys = self.request.sweep.space
        values = [yaml.inline(row.values[key]) if key in row.values else "" for key in keys]
        value = "" if row.value is None else number(row.value)
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        return [str(row.number), row.state, value, *values, row.progress, seconds]


class Progress:
    """Print a line for each trial that ends, and show what runs, from any thread."""

    def __init__(self, bar: console.ProgressBar, request: Request) -> None:
        self.bar = bar
        self._request = request
        self._running: dict[int, str] = {}

    def epoch(self, number: int, done: int, of: int) -> None:
        """Show that a trial trains the epoch after `done`."""
        self._running[number] = f"trial {number} epoch {min(done + 1, of)}/{of}"
        self._update()

    def ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Print a trial that ended: a callback of `Study.optimize`."""
        results = Results.of(self._request, study.get_trials(deepcopy=False))
        self._running.pop(trial.number, None)
        self.bar.done = results.done
        for row in results.rows:  # a trial that was lost is not among them
            if row.number == trial.number:
                self.bar.print(_line(row, results, self.bar))
        self._update()

    def _update(self) -> None:
        running = ", ".join(list(self._running.values()))  # the list: other threads may change it meanwhile
        self.bar.update(description=f"sweep: {running or 'starting'}")


def _line(row: Row, results: Results, bar: console.ProgressBar) -> str:
    metric = results.request.sweep.metric
    parts = [
        f"trial {row.number}",
        f"{metric} {row.value:.4f}" if row.value is not None else row.reason.partition("\n")[0],
        describe(row.values),
        f"{row.state} at epoch {row.progress}" if row.state == "pruned" else row.state,
        f"{row.seconds or 0.0:.1f} s",
    ]
    if results.best and results.best.value is not None:
        parts.append(f"best {results.best.value:.4f} (trial {results.best.number})")
    if left := bar.remaining_s:
        parts.append(f"{results.done} of {bar.total}, {left:,.0f} s left")
    return "  ".join(parts)


def _row(request: Request, trial: FrozenTrial) -> Row:
    state = STATES[trial.state]
    values = {
        dimension.key: dimension.value(trial.params[dimension.key])
        for dimension in request.space
        if dimension.key in trial.params
    } | {key: value for key, value in trial.user_attrs.get(BASELINE, {}).items() if key not in trial.params}
    return Row(
        number=trial.number,
        state=state,
        value=trial.value if state in {"complete", "pruned"} else None,
        values=values,
        epochs=max(trial.intermediate_values, default=0),
        of=trial.user_attrs.get(EPOCHS, 0),
        seconds=trial.duration.total_seconds() if trial.duration else None,
        reason=trial.user_attrs.get(REASON) or (DIED if state == "failed" else ""),
    )


def plots(study: optuna.Study, request: Request, folder: Path) -> list[Path]:
    """Draw history.png, slices.png and, of enough trials, importances.png; at least one trial is complete.

    Raises:
        RequestError: a picture cannot be written.
    """
    mpl.use("agg")  # Optuna draws by pyplot, which would otherwise look for a screen
    import matplotlib.pyplot as plt  # noqa: PLC0415 (after the choice of a backend)

    metric = request.sweep.metric
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [trial.value for trial in complete if trial.value is not None]
    keys = set(request.sweep.space)
    # A baseline outside the space has no place on its axes.
    inside = {trial.value for trial in complete if keys <= trial.params.keys()}
    scale = "log" if metric == "val/loss" and max(values) > 5 * min(values) > 0 else "linear"
    with mpl.rc_context(), warnings.catch_warnings():  # Optuna sets a style for the whole process
        warnings.simplefilter("ignore")  # experimental; one value has no range
        history: Any = draw.plot_optimization_history(study, target_name=metric)
        slices: Any = draw.plot_slice(study, target_name=metric)
        first = np.ravel(slices)[0]  # the others share its scale
        for axes in (history, first):
            axes.set_yscale(scale)
        drawn = {"history.png": history.figure, "slices.png": first.figure}
        if sum(keys <= trial.params.keys() for trial in complete) >= MIN_IMPORTANCES and len(inside) > 1:
            importances: Any = draw.plot_param_importances(
                study, params=list(request.sweep.space), target_name=metric
            )
            drawn["importances.png"] = importances.figure
        written = []
        for name, figure in drawn.items():
            for axes in figure.get_axes():
                for axis in (axes.xaxis, axes.yaxis):
                    _label_decades(axis)
            # Optuna's own layout cuts off long names. The colour bar of a single slice is part of a grid that the
            # constrained layout cannot divide.
            single = name == "slices.png" and len(request.sweep.space) == 1
            figure.set_layout_engine("tight" if single else "constrained")
            written.append(figures.write(figure, folder / name))
            plt.close(figure)
    return written


def _label_decades(axis: Axis) -> None:
    """Label a log scale with plain numbers, at 1, 2 and 5 of each decade where there is room."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 40 * low else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
