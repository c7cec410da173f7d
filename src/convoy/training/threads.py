"""The number of threads that a training on the CPU computes with: all that it may use, fewer on a machine that is busy.

The threads of a convolution wait for each other at every step of it, so a thread without a core of its own stops all of them:
on 2 cores of which other work takes one, two threads are several times as slow as one. Other work may also come and go during a
training. Results differ in the last bits with the number, so a resumed training begins with that of its last checkpoint.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch.nn.functional import conv2d

from convoy.core import console
from convoy.core.cpus import usable_cpus
from convoy.training.batch import Batch

GAIN = 1.5
"""Fewer threads are taken if they are so many times as fast; on a quiet machine they never are."""

PATIENCE_S = 15.0
"""Time for which the machine must stay busy, in seconds: Convoy's own helpers work while a stage starts."""

PAUSE_S = 0.5  # between two measurements
REPEATS = 10  # of a measurement, timed together: some of them are lucky on a busy machine, too
IMAGES, CHANNELS, SIDE = 8, 32, 32  # of the convolution that is measured: images per thread


WATCH_S = 15.0
"""Seconds of steps whose mean is compared; what two looks in a row find counts."""

SLOWER = 1.5
"""Ratio of the means from which it is measured whether the machine is busy: larger images take longer, too."""

RETURN_S = 60.0
"""Seconds of steps with fewer threads after which it is measured whether all are faster again."""


class Threads(NamedTuple):
    """Hold a number of threads, and the reason for it if it is not simply the number of cores.

    Attributes:
        most: how many it may become while the training runs; 0: it is given.
    """

    number: int
    reason: str = ""
    most: int = 0

    def line(self) -> str:
        """Describe it for the log."""
        count = "1 thread" if self.number == 1 else f"{self.number} threads"
        return f"{count}: {self.reason}" if self.reason else count


def choose(before: int | None = None) -> Threads:
    """Choose, set and print the number of torch's threads.

    `OMP_NUM_THREADS` decides it if it is set, else the CPUs that this process may use (`usable_cpus`), of which fewer are taken
    where they are faster. On a GPU nothing is measured.

    Args:
        before: number at the last checkpoint of a training that is resumed, which is kept.
    """
    usable = usable_cpus()
    limit = min(
        torch.get_num_threads(), usable
    )  # torch counts the machine's CPUs, not the quota of a container
    named = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)), None)
    if named:
        limit = torch.get_num_threads()
    if before is not None and before <= max(usable, limit):
        kept = f"as at the last checkpoint; now it would be {limit}" if before != limit else ""
        chosen = Threads(before, kept, most=before)
    elif before is not None:
        chosen = Threads(
            limit,
            f"the last checkpoint was computed with {before}, so results may differ in the last bits",
            most=limit,
        )
    elif named:
        chosen = Threads(limit, f"{named} is set")
    elif limit == 1 or torch.cuda.is_available():
        chosen = Threads(limit, most=limit)
    else:
        with console.slow("measuring how many threads are fastest"):
            chosen = on_busy_machine(limit, seconds)._replace(most=limit)
    if named or torch.cuda.is_available():
        chosen = chosen._replace(most=0)
    torch.set_num_threads(chosen.number)
    console.info(chosen.line())
    return chosen


def on_busy_machine(limit: int, measure: Callable[[int], float]) -> Threads:
    """Choose fewer threads than `limit` if they are faster for as long as `PATIENCE_S`.

    `measure` returns the seconds that some work takes with a number of threads.
    """
    until = time.monotonic() + PATIENCE_S
    while (fewer := _fewer_if_faster(limit, measure)) and time.monotonic() < until:
        time.sleep(PAUSE_S)
    return fewer or Threads(limit)


def _fewer_if_faster(limit: int, measure: Callable[[int], float]) -> Threads | None:
    """Choose the fastest number of threads below `limit`; None if it is less than `GAIN` times as fast."""
    best, took = limit, measure(limit)
    all_took = took
    for number in _fewer(limit):
        took_now = measure(number)
        if took_now >= took:
            break
        best, took = number, took_now
    if all_took < GAIN * took:
        return None
    return Threads(
        best,
        f"this machine is busy with other work, and {limit} would be {all_took / took:.1f} times as slow. "
        "Set OMP_NUM_THREADS to choose the number",
    )


def seconds(threads: int) -> float:
    """Measure a convolution and its gradients with so many threads, in seconds."""
    torch.set_num_threads(threads)
    limit = IMAGES * usable_cpus()
    pixels = torch.ones(limit, CHANNELS, SIDE, SIDE, requires_grad=True)
    filters = torch.ones(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    for repeat in range(REPEATS + 1):
        if repeat == 1:  # the first one prepares
            began = time.perf_counter()
        conv2d(pixels, filters).sum().backward()  # type: ignore[no-untyped-call] # torch has no types here
    return time.perf_counter() - began


def _fewer(limit: int) -> list[int]:
    """List smaller numbers to try, in falling order: one core is taken, or half of them, and so on."""
    numbers = {limit - 1}
    half = limit // 2
    while half:
        numbers.add(half)
        half //= 2
    return sorted(numbers - {0}, reverse=True)


class ThreadWatch(pl.Callback):
    """Compute with fewer threads while the machine is busy with other work, and then with all of them again.

    A look at the machine takes a fraction of a second, so there is none as long as steps take as long as they did.
    """

    def __init__(self, chosen: Threads, measure: Callable[[int], float] = seconds) -> None:
        """Begin with what was `chosen`; `measure` as of `on_busy_machine`."""
        self.chosen = chosen
        self.most = chosen.most
        self.measure = measure
        self.changes = 0
        """How often the number changed."""
        self._usual = 0.0  # seconds per image; 0: not known yet
        self._was_busy: bool | None = None  # in the look before; None: there was none
        self._begin()

    def on_train_batch_start(self, *_: object) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self, _trainer: object, _module: object, _outputs: object, batch: Batch, *_: object
    ) -> None:
        """Look at the machine if the last steps took longer than usual, or all threads were not tried for a while."""
        self._seconds += time.monotonic() - self._began
        self._images += len(batch.labels)
        if self.most <= 1:
            return
        if torch.get_num_threads() < self.most:
            if self._seconds >= RETURN_S:
                self._return()
        elif self._seconds >= WATCH_S:
            self._look()

    def line(self) -> str:
        """Describe the number of the training as a whole."""
        if not self.changes:
            return self.chosen.line()
        times = "once" if self.changes == 1 else f"{self.changes} times"
        return f"{self.chosen.line()}; changed {times}, as other work came or ended"

    def state_dict(self) -> dict[str, Any]:
        """Return the largest number for a checkpoint: a resumed training begins with the number at that time."""
        return {"most": self.most}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it, as far as there are so many CPUs; a number that is given now stays."""
        if self.most:
            self.most = max(self.most, min(state_dict["most"], usable_cpus()))

    def _look(self) -> None:
        took = self._seconds / self._images
        if took < SLOWER * self._usual:
            self._usual, self._was_busy = min(took, self._usual), None
        else:
            fewer = _fewer_if_faster(self.most, self.measure)
            torch.set_num_threads(self.most)
            if fewer and self._was_busy:
                self._set(fewer)
            elif not fewer and self._was_busy is False:  # twice: one look may fall into a pause
                self._usual = took
            self._was_busy = bool(fewer)
        self._begin()

    def _return(self) -> None:
        number = torch.get_num_threads()
        if self.measure(self.most) < self.measure(number):
            self._set(Threads(self.most, "the other work on this machine has ended"))
            self._was_busy = None
        else:
            torch.set_num_threads(number)
        self._begin()

    def _set(self, chosen: Threads) -> None:
        torch.set_num_threads(chosen.number)
        self.changes += 1
        console.info(chosen.line())

    def _begin(self) -> None:
        self._seconds, self._images = 0.0, 0
