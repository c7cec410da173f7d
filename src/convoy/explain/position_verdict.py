"""Judge from accuracies whether a shuffle of the pixels hurt the CNN and left the dense network as it was."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

SPREADS = 3
"""How many spreads a change must exceed before it is more than the luck of the seeds."""
WIDTH = 100
"""Characters of a line of prose."""

CNN, DENSE = "CNN", "dense network"


@dataclass(frozen=True)
class Pair:
    """Hold one network's accuracies, 0..1, one per seed, without and with the shuffle.

    Attributes:
        step: accuracy that one image is worth.
    """

    in_place: tuple[float, ...]
    shuffled: tuple[float, ...]
    step: float

    @property
    def loss(self) -> float:
        """Give what the shuffle took from the mean accuracy; negative where it rose."""
        return fmean(self.in_place) - fmean(self.shuffled)

    @property
    def spread(self) -> float:
        """Give the way from the lowest to the highest seed, in the arm where it is longer.

        Seeds that agree to the last image still do not tell accuracies apart that are closer
        than one image.
        """
        return max(*(max(arm) - min(arm) for arm in (self.in_place, self.shuffled)), self.step)

    @property
    def bound(self) -> float:
        """Give the change that is still taken for luck."""
        return SPREADS * self.spread

    def as_json(self) -> dict[str, Any]:
        """Give plain data: accuracies by seed, and what follows from them."""
        return {
            "in_place": list(self.in_place),
            "shuffled": list(self.shuffled),
            "loss": self.loss,
            "spread": self.spread,
        }


@dataclass(frozen=True)
class Verdict:
    """Hold both networks' accuracies and say what they show."""

    cnn: Pair
    dense: Pair
    seeds: tuple[int, ...]

    @property
    def cnn_is_hurt(self) -> bool:
        """Say whether the CNN lost more than the seeds explain."""
        return self.cnn.loss > self.cnn.bound

    @property
    def dense_is_as_it_was(self) -> bool:
        """Say whether the dense network changed, down or up, by no more than the seeds explain."""
        return abs(self.dense.loss) <= self.dense.bound

    @property
    def holds(self) -> bool:
        """Say whether both conditions of the experiment hold."""
        return self.cnn_is_hurt and self.dense_is_as_it_was

    def as_json(self) -> dict[str, Any]:
        """Give plain data."""
        return {
            "seeds": list(self.seeds),
            "spreads": SPREADS,
            "cnn": self.cnn.as_json() | {"is_hurt": self.cnn_is_hurt},
            "dense": self.dense.as_json() | {"is_as_it_was": self.dense_is_as_it_was},
            "holds": self.holds,
        }

    def lines(self) -> Iterator[str]:
        """Write the table and what follows from it."""
        yield from self._table()
        yield ""
        yield from prose(
            f"Accuracy in %, mean over the seeds {', '.join(map(str, self.seeds))}, each in brackets. Spread: from "
            "the lowest seed to the highest, in place or shuffled, whichever is more."
        )
        yield ""
        yield from prose(self._of_cnn())
        yield from prose(self._of_dense())
        if not self.holds:
            yield from prose(
                "So this run does not show what the experiment is about. Another --seed draws images, shuffle "
                "and starting weights anew; the default data is where it was set up to show."
            )

    def _table(self) -> Iterator[str]:
        pairs = {CNN: self.cnn, DENSE: self.dense}
        arms = {name: (_arm(pair.in_place), _arm(pair.shuffled)) for name, pair in pairs.items()}
        width = max(len(arm) for both in arms.values() for arm in both)
        yield f"{'':<13}  {'in place':<{width}}  {'shuffled':<{width}}  {'loss':>5}  {SPREADS} × spread"
        for name, pair in pairs.items():
            in_place, shuffled = arms[name]
            yield (
                f"{name:<13}  {in_place:<{width}}  {shuffled:<{width}}  {points(pair.loss):>5}  "
                f"{points(pair.bound):>10}"
            )

    def _of_cnn(self) -> str:
        change, bound = _change(self.cnn), f"{SPREADS} × spread, {points(self.cnn.bound)}"
        if self.cnn_is_hurt:
            return f"CNN: the {change} exceeds {bound}: the shuffle hurts it."
        return f"CNN: the {change} is no loss that exceeds {bound}: no more than the luck of the seeds."

    def _of_dense(self) -> str:
        change, bound = _change(self.dense), f"{SPREADS} × spread, {points(self.dense.bound)}"
        if self.dense_is_as_it_was:
            return f"Dense network: the {change} does not exceed {bound}: the shuffle leaves it as it was."
        return f"Dense network: the {change} exceeds {bound}: more than the luck of the seeds."


def prose(text: str) -> list[str]:
    """Break a paragraph into lines."""
    return textwrap.wrap(text, WIDTH)


def points(share: float) -> str:
    """Write a difference of accuracies in percentage points."""
    return f"{round(100 * share, 1) + 0.0:.1f}"  # + 0.0 makes -0 a 0


def _change(pair: Pair) -> str:
    return f"{'gain' if points(pair.loss).startswith('-') else 'loss'} of {points(abs(pair.loss))} points"


def _arm(accuracies: tuple[float, ...]) -> str:
    each = " ".join(f"{100 * one:.1f}" for one in accuracies)
    return f"{100 * fmean(accuracies):.1f} ({each})"
