"""Output for people: messages, progress (a bar in a terminal, plain lines elsewhere) and tables."""

import io
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from convoy.core import escaping

T = TypeVar("T")

PLAIN_SECONDS = 5.0
"""Shortest time between two plain progress lines, in seconds, so that a log stays readable."""

SLOW_SECONDS = 2.0
"""Time after which silent work is stated, in seconds."""

STEADY_SECONDS = 10.0
"""Longest time between two plain lines of a `Heartbeat`, in seconds."""


def info(text: str, *, stderr: bool = False) -> None:
    """Print a status line and flush, so that a log file has it at once; names in it are inert (`escaping.lines`)."""
    # A single write, since a `Heartbeat` prints from another thread.
    print(f"{escaping.lines(text)}\n", end="", file=sys.stderr if stderr else sys.stdout, flush=True)


def print_json(content: Any) -> None:  # noqa: ANN401 (as wide as JSON)
    """Print a JSON value on one line, for programs."""
    print(escaping.json_line(content), flush=True)


class Heartbeat:
    """Print a line whenever nothing was printed for a while: work that stays silent looks like work that hangs.

    Example:
        with slow("import torch"):
            import torch
    """

    def __init__(self, describe: Callable[[float], str], first_s: float, every_s: float) -> None:
        """Print `describe(seconds since the start)` after `first_s` seconds without a line, then after `every_s` each."""
        self.describe = describe
        self.first_s = first_s
        self.every_s = every_s
        self._restarted, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Start waiting."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._ended = True
        self._restarted.set()
        self._thread.join()

    def restart(self) -> None:
        """Wait from now on, since a line was printed."""
        self._restarted.set()

    def _beat(self) -> None:
        began, wait_s = time.monotonic(), self.first_s
        while not self._ended:
            if self._restarted.wait(wait_s):
                self._restarted.clear()
            else:
                info(self.describe(time.monotonic() - began))
            wait_s = self.every_s


def slow(what: str) -> Heartbeat:
    """State what is happening if it takes more than two seconds, and again every ten."""
    return Heartbeat(lambda seconds: f"{what} … {seconds:.0f} s", SLOW_SECONDS, STEADY_SECONDS)


class RateColumn(ProgressColumn):
    """Show items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Render the current rate; empty until it is known."""
        return Text(rate(task.speed, self.unit) if task.speed else "")


class ProgressBar:
    """Show how much of a task is done, how fast it goes and how long it takes: every progress display of Convoy.

    In a terminal a bar; elsewhere a line at most every `plain_seconds`.

    Example:
        with ProgressBar("decode images", total=1000) as bar:
            bar.advance(10)
            bar.print("a line above the bar")
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        *,
        done: int = 0,
        stderr: bool = False,
        plain_seconds: float = PLAIN_SECONDS,
        unit: str = "",
    ) -> None:
        """Prepare a display.

        Args:
            description: the activity, such as `decode images`.
            total: number of items, if known.
            done: items done before; they do not count in the rate.
            stderr: print to standard error, where standard output holds JSON.
            plain_seconds: interval of plain lines, in seconds; infinity: none.
            unit: of the items, such as `images`, shown with the rate.
        """
        self.description = description
        self.total = total
        self.done = done
        self._before = done
        self._stderr = stderr
        self._unit = unit
        self._plain_seconds = plain_seconds
        self._started = self._printed = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Show the bar, in a terminal."""
        stream = sys.stderr if self._stderr else sys.stdout
        if stream.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                RateColumn(self._unit),
                TimeRemainingColumn(compact=True),
                console=Console(
                    stderr=self._stderr, highlight=False, markup=False, emoji=False, soft_wrap=True
                ),
                transient=True,
            )
            self._bar.add_task(self.description, total=self.total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def advance(self, count: int = 1) -> None:
        """Count items as done."""
        self.update(done=self.done + count)

    def update(self, *, description: str | None = None, done: int | None = None) -> None:
        """Replace the description, or the number of items that are done."""
        self.description = self.description if description is None else description
        self.done = self.done if done is None else done
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=self.description, completed=self.done)
            return
        now = time.monotonic()
        if now - self._printed >= self._plain_seconds:
            self._printed = now
            self.print(self._plain())

    @property
    def in_terminal(self) -> bool:
        """Whether a bar is shown."""
        return self._bar is not None

    @property
    def remaining_s(self) -> float | None:
        """Estimate the seconds that are left, from the rate so far; None without a total or a rate."""
        speed = self._per_second()
        return (self.total - self.done) / speed if self.total and speed else None

    def print(self, line: str) -> None:
        """Print a line; in a terminal it stands above the bar."""
        if self._bar:
            self._bar.console.print(escaping.lines(line))
        else:
            info(line, stderr=self._stderr)

    def _per_second(self) -> float:
        elapsed_s = time.monotonic() - self._started
        return (self.done - self._before) / elapsed_s if elapsed_s else 0.0

    def _plain(self) -> str:
        total = f" of {self.total:,}" if self.total else ""
        speed = self._per_second()
        left = f", {(self.total - self.done) / speed:,.0f} s left" if self.total and speed else ""
        return f"{self.description}: {self.done:,}{total}{left}" + (
            f" ({rate(speed, self._unit)})" if speed else ""
        )


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield items while showing progress.

    Args:
        items: anything iterable; consumed once, in order.
        what: the activity, such as `decode images`.
        total: number of items, if known.
    """
    with ProgressBar(what, total) as bar:
        for item in items:
            yield item
            bar.advance()


def rate(per_second: float, unit: str = "") -> str:
    """Format a rate: whole numbers, with decimals below 10 so that slow work does not read as 0/s."""
    number = f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
    return f"{number} {unit}/s" if unit else f"{number}/s"


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[int] = (), indent: int = 0
) -> str:
    """Lay out rows in aligned columns, as plain text of any width.

    Args:
        header: titles of the columns; all empty: no title line.
        rows: cells, as many as titles; shown by `str`.
        right: indices of the columns aligned to the right, such as those of numbers.
        indent: spaces before each line.
    """
    grid = Table(box=None, pad_edge=False, show_header=any(header), header_style="", padding=(0, 2, 0, 0))
    for index, title in enumerate(header):
        grid.add_column(Text(title), justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(escaping.visible(str(cell))) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=10_000, color_system=None).print(grid)
    return "\n".join(" " * indent + line.rstrip() for line in stream.getvalue().splitlines())
