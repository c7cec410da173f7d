"""Progress for people: a bar with rate and ETA in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
from rich.text import Text

T = TypeVar("T")

PLAIN_SECONDS = 5.0
"""Shortest time between two plain progress lines, in seconds: a log should stay readable."""


class RateColumn(ProgressColumn):
    """Show items per second."""

    def render(self, task: Task) -> Text:
        """Render the current speed, blank until there is one."""
        return Text(_rate(task.speed) if task.speed else "")


def say(text: str) -> None:
    """Print one line of news for people, at once even when a log file reads it."""
    print(text, flush=True)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass items through while showing how many went by, how fast, and how long is left.

    Args:
        items: anything iterable; consumed once, in order.
        what: the activity, such as `decode images`.
        total: number of items, where it is known beforehand.
    """
    if sys.stdout.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=Console(), transient=True) as progress:
            yield from progress.track(items, total=total, description=what)
        return
    started = spoke = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - spoke >= PLAIN_SECONDS:
            spoke = now
            rate = done / (now - started)
            left = f" of {total:,}, {(total - done) / rate:,.0f} s left" if total else ""
            say(f"{what}: {done:,}{left} ({_rate(rate)})")


def _rate(per_second: float) -> str:
    """Phrase a rate: whole numbers, but what takes seconds each shall not read as 0/s."""
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"
