"""The learning rate as a pure function of the step, so that a resumed training continues the curve."""

import math
from collections.abc import Callable
from typing import Literal

START = 0.1
"""Share of the highest rate that a warm-up begins with."""


def rate(schedule: Literal["one_cycle", "cosine"], warmup: float, steps: int) -> Callable[[int], float]:
    """Make the function from step (0 for the first) to the share of the highest learning rate, 0 to 1.

    Both rise in a straight line over the share `warmup` of all steps; then `one_cycle`
    falls in a straight line and `cosine` along half a wave, both to zero after the last step.
    """
    rising = warmup * steps

    def share(step: int) -> float:
        if step < rising:
            return START + (1 - START) * step / rising
        left = max(0.0, (steps - step) / (steps - rising))
        return left if schedule == "one_cycle" else (1 - math.cos(math.pi * left)) / 2

    return share
