"""Follow the alias champion: fetch, verify and warm a new model, then let it answer; the old one answers until then."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from convoy.core.errors import ConvoyError
from convoy.serving.model import ServedModel

logger = logging.getLogger(__name__)

RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0
"""Time until a version that failed its verification is tried again, doubled each time up to the longest."""


class State(Protocol):
    """What the service reads: the model that answers, and why it is not the champion; empty if it is."""

    served: ServedModel
    problem: str


@dataclass
class Follower:
    """Replace the model of a service whenever the alias moves; failures leave the old one in place.

    Attributes:
        state: of the service.
        look_up: returns number and sha256 of the champion.
        open_champion: fetches, verifies and warms it.
        every_s: seconds between two looks.
    """

    state: State
    look_up: Callable[[], tuple[str, str]]
    open_champion: Callable[[], ServedModel]
    every_s: float
    _failed: tuple[str, str] | None = None
    _failures: int = 0
    _retry_at: float = 0.0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Look in a thread of its own: a registry that is down may take minutes to fail."""
        self._thread = threading.Thread(target=self._run, name="champion", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that is going on is not waited for."""
        self._stopped.set()

    def look(self) -> None:
        """Look once, and replace the model if the alias has moved."""
        try:
            found = self.look_up()
        except Exception as error:  # noqa: BLE001 (MLflow's clients, and what speaks HTTP below them, raise almost anything)
            self._report("The registry does not answer.", _cause(error))
            return
        served = self.state.served
        if found == (served.version, served.sha256):
            self._failed = None
            self._report("")
            return
        if found == self._failed and time.monotonic() < self._retry_at:
            return
        logger.info("version %s is champion: fetching it", found[0])
        try:
            opened = self.open_champion()
        except Exception as error:  # noqa: BLE001 (as above; whatever it is, the old model goes on answering)
            self._failures = self._failures + 1 if found == self._failed else 1
            self._failed = found
            self._retry_at = time.monotonic() + min(LONGEST_RETRY_S, RETRY_S * 2 ** (self._failures - 1))
            self._report(
                f"Version {found[0]} is champion and failed its checks, so it is not served.", _cause(error)
            )
            return
        self.state.served = opened
        self._failed = None
        self._report("")
        logger.info("%s answers now; before: %s", opened.name, served.name)

    def _report(self, problem: str, cause: str = "") -> None:
        """State a problem where anybody reads it, and its cause, which may hold addresses and paths, in the log."""
        if problem and problem != self.state.problem:
            logger.warning("%s %s goes on answering. Cause: %s", problem, self.state.served.name, cause)
        elif not problem and self.state.problem:
            logger.info("%s is the champion again", self.state.served.name)
        self.state.problem = problem

    def _run(self) -> None:
        while not self._stopped.wait(self.every_s):
            self.look()


def _cause(error: Exception) -> str:
    """Return the first line of an error; of others than Convoy's its kind as well."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, ConvoyError) else f"{type(error).__name__}: {text}"
