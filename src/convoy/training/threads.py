"""The number of threads that a training on the CPU computes with: all that it may use, fewer on a machine that is busy.

The threads of a convolution wait for each other at every step of it, so a thread without a core of its own stops all of them:
on 2 cores of which other work takes one, two threads are several times as slow as one. Results differ in the last bits with the
number, so a resumed training keeps that of its start.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import conv2d

from convoy.core import console
from convoy.core.cpus import usable_cpus

GAIN = 1.5
"""Fewer threads are taken if they are so many times as fast; on a quiet machine they never are."""

PATIENCE_S = 15.0
"""Time for which the machine must stay busy, in seconds: Convoy's own helpers work while a stage starts."""

PAUSE_S = 0.5  # between two measurements
REPEATS = 10  # of a measurement, timed together: some of them are lucky on a busy machine, too
IMAGES, CHANNELS, SIDE = 8, 32, 32  # of the convolution that is measured: images per thread


class Threads(NamedTuple):
    """Hold a number of threads, and the reason for it if it is not simply the number of cores."""

    number: int
    reason: str = ""

    def line(self) -> str:
        """Describe it for the log."""
        count = "1 thread" if self.number == 1 else f"{self.number} threads"
        return f"{count}: {self.reason}" if self.reason else count


def choose(started_with: int | None = None) -> Threads:
    """Choose, set and print the number of torch's threads.

    `OMP_NUM_THREADS` decides it if it is set, else the CPUs that this process may use (`usable_cpus`), of which fewer are taken
    where they are faster. On a GPU nothing is measured.

    Args:
        started_with: number that a resumed training began with, which is kept.
    """
    usable = usable_cpus()
    limit = min(
        torch.get_num_threads(), usable
    )  # torch counts the machine's CPUs, not the quota of a container
    named = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)), None)
    if named:
        limit = torch.get_num_threads()
    if started_with is not None and started_with <= max(usable, limit):
        kept = f"as this training began with; now it would be {limit}" if started_with != limit else ""
        chosen = Threads(started_with, kept)
    elif started_with is not None:
        chosen = Threads(
            limit, f"this training began with {started_with}, so results may differ in the last bits"
        )
    elif named:
        chosen = Threads(limit, f"{named} is set")
    elif limit == 1 or torch.cuda.is_available():
        chosen = Threads(limit)
    else:
        with console.slow("measuring how many threads are fastest"):
            chosen = on_busy_machine(limit, seconds)
    torch.set_num_threads(chosen.number)
    console.info(chosen.line())
    return chosen


def on_busy_machine(limit: int, measure: Callable[[int], float]) -> Threads:
    """Choose fewer threads than `limit` if they are faster for as long as `PATIENCE_S`.

    `measure` returns the seconds that some work takes with a number of threads.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        best, took = limit, measure(limit)
        all_took = took
        for number in _fewer(limit):
            took_now = measure(number)
            if took_now >= took:
                break
            best, took = number, took_now
        if all_took < GAIN * took:
            return Threads(limit)
        if time.monotonic() >= until:
            return Threads(
                best,
                f"this machine is busy with other work, and {limit} would be {all_took / took:.1f} times as slow. "
                "Set OMP_NUM_THREADS to choose the number",
            )
        time.sleep(PAUSE_S)


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
