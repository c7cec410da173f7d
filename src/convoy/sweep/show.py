"""How far a sweep is: a line for each trial that ended; in a terminal a bar under them."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convoy.sweep.results import Results, Row, epochs
from convoy.sweep.space import describe

PLAIN_S = 60.0
"""Seconds without a line after which a log says what is running."""


class Show:
    """Print what is new since the last look, to standard output or, beside JSON, to standard error."""

    def __init__(self, known: Results, target: int, workers: int, *, aside: bool) -> None:
        """Take what was known before, which is not printed again."""
        self._known = {row.number for row in known.rows if row.state != "running"}
        self._before = known.done
        self._target = target
        self._workers = workers
        self._started = self._spoke = time.monotonic()
        self._console = Console(stderr=aside, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Show a bar where somebody looks."""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("sweep", total=self._target, completed=self._before, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._console.print(text)
        self._console.file.flush()
        self._spoke = time.monotonic()

    def update(self, results: Results) -> None:
        """Print the trials that ended since the last call."""
        for row in results.rows:
            if row.state != "running" and row.number not in self._known:
                self._known.add(row.number)
                self.say(self._line(row, results))
        running = [row for row in results.rows if row.state == "running"]
        now = ", ".join(f"trial {row.number} {_epoch(row)}" for row in running) or "starting"
        if self._bar:
            per_minute = 60 * (results.done - self._before) / (time.monotonic() - self._started)
            rate = f"{per_minute:.1f}/min" if per_minute else ""
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=results.done, description=f"sweep: {now}", rate=rate)
        elif time.monotonic() - self._spoke > PLAIN_S:
            self.say(f"running: {now}")

    def _line(self, row: Row, results: Results) -> str:
        metric = results.request.sweep.metric
        words = [
            f"trial {row.number}",
            f"{metric} {row.value:.4f}" if row.value is not None else row.reason.partition("\n")[0],
        ]
        words += [
            describe(row.values),
            f"{row.state}{f' at epoch {epochs(row)}' if row.state == 'pruned' else ''}",
        ]
        words.append(f"{row.seconds or 0.0:.1f} s")
        if results.best and results.best.value is not None:
            words.append(f"best {results.best.value:.4f} (trial {results.best.number})")
        left = self._target - results.done
        done = results.done - self._before
        if left > 0 and done:
            seconds = (time.monotonic() - self._started) / done * left
            words.append(f"{results.done} of {self._target}, ETA {seconds:,.0f} s")
        return "  ".join(words)


def _epoch(row: Row) -> str:
    return f"epoch {min(row.epochs + 1, row.of)}/{row.of}" if row.of else ""
