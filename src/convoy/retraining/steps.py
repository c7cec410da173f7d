"""Go through the steps of a round: each is timed, spoken of in one line, and named where it fails."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from convoy.core.console import info
from convoy.retraining.facts import Step


class Noted:
    """Take down what came of a step, in a few words."""

    def __init__(self) -> None:
        """Begin with nothing to say."""
        self.text = ""

    def __call__(self, text: str) -> None:
        """Say what came of it."""
        self.text = text


class Steps:
    """Keep the steps of a round, in the order in which they ran."""

    def __init__(self) -> None:
        """Begin before the first step."""
        self.done: list[Step] = []
        self.failed = ""

    @contextmanager
    def step(self, name: str) -> Iterator[Noted]:
        """Time a step; one that fails is kept too, and its name in `failed`."""
        noted, began, failed = Noted(), time.monotonic(), ""
        try:
            yield noted
        except BaseException:  # Ctrl-C as well: the report says in which step it came
            self.failed = name
            failed = "failed"
            raise
        finally:
            seconds = time.monotonic() - began
            self.done.append(Step(name, round(seconds, 2), noted.text))
            info(f"[retrain] {name:<16} {seconds:7.1f} s  {failed or noted.text}".rstrip())

    @property
    def last(self) -> str:
        """Name the step in which the round is or ended."""
        return self.failed or (self.done[-1].name if self.done else "")
