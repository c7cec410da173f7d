"""How far two sets of answers to the same images lie apart: the one judge of every check in the proof.

n images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.export.settings import ExportParams


@dataclass(frozen=True)
class Worst:
    """Hold the image whose two answers lie furthest apart; a changed class outweighs any gap."""

    image: str
    flipped: bool
    gap: float
    expected: npt.NDArray[np.float32]  # (K,) probabilities
    found: npt.NDArray[np.float32]  # (K,) probabilities


class Comparison:
    """Count label flips and keep the largest probability gap, batch by batch.

    Attributes:
        name: what is compared with what, in words.
        images: how many were compared.
        flips: images whose most probable class differs.
        gap: largest difference of any probability of any image, 0..1; infinite where one is no number.
        worst: the image to look at first.
    """

    def __init__(self, name: str, limits: ExportParams) -> None:
        self.name = name
        self.limits = limits
        self.images = 0
        self.flips = 0
        self.gap = 0.0
        self.worst: Worst | None = None

    def add(
        self,
        names: Sequence[str],
        expected: npt.NDArray[np.float32],
        found: npt.NDArray[np.float32],
    ) -> None:
        """Compare (n, K) probabilities with (n, K) probabilities of the same n images, n >= 1."""
        flipped = expected.argmax(axis=1) != found.argmax(axis=1)
        gaps = np.abs(expected - found).max(axis=1)
        # NaN is larger than no limit: without this it would pass.
        gaps = np.where(np.isfinite(gaps), gaps, np.inf)
        self.images += len(names)
        self.flips += int(flipped.sum())
        self.gap = max(self.gap, float(gaps.max()))
        n = int(np.lexsort((gaps, flipped))[-1])
        worst = Worst(names[n], bool(flipped[n]), float(gaps[n]), expected[n], found[n])
        if self.worst is None or (worst.flipped, worst.gap) > (self.worst.flipped, self.worst.gap):
            self.worst = worst

    @property
    def within(self) -> bool:
        """Tell whether both figures are inside the limits of params.yaml."""
        return self.flips <= self.limits.max_label_flips and self.gap <= self.limits.max_probability_gap

    def figures(self) -> dict[str, Any]:
        """Give every figure beside its limit, as verification.json keeps them."""
        return {
            "check": self.name,
            "images": self.images,
            "label_flips": self.flips,
            "max_label_flips": self.limits.max_label_flips,
            "probability_gap": self.gap,
            "max_probability_gap": self.limits.max_probability_gap,
        }

    def explain(self, classes: Sequence[str]) -> str:
        """Say what exceeds which limit, and show both answers for the worst image."""
        lines = [
            (
                f"{self.name}: {self.flips} of {self.images} images change class "
                f"(export.max_label_flips is {self.limits.max_label_flips}), the largest probability gap is {self.gap:.3g} "
                f"(export.max_probability_gap is {self.limits.max_probability_gap:g})."
            )
        ]
        if self.worst:
            lines += [
                f"Worst image: {self.worst.image}",
                f"  expected {_top(self.worst.expected, classes)}",
                f"  found    {_top(self.worst.found, classes)}",
            ]
        return "\n".join(lines)


def _top(probabilities: npt.NDArray[np.float32], classes: Sequence[str]) -> str:
    """Phrase the three most probable classes."""
    if not np.isfinite(probabilities).all():
        return "no numbers (NaN)"
    order = np.argsort(-probabilities, kind="stable")[:3]
    return ", ".join(f"{classes[k]} {probabilities[k]:.6f}" for k in order)
