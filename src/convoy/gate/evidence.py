"""What was found about both models on today's unseen test images: the ground that every criterion stands on.

n images that neither has seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from convoy.core.intervals import wilson
from convoy.gate.contender import ModelUnderTest, UnavailableModel
from convoy.gate.latency import Timed
from convoy.gate.result import ClassFigures, Comparison, Flip, Share
from convoy.gate.test_images import TestImages

KEPT = 100
"""Flipped images of each kind that a judgement names."""


@dataclass(frozen=True)
class Side:
    """Hold the answers of one model.

    Attributes:
        classes: that it serves.
        names: (n,) the class that it answers, as strings.
        probability: (n,) that it gives this class, 0..1.
        right: (n,) whether the class is the label.
    """

    classes: tuple[str, ...]
    names: npt.NDArray[np.object_]
    probability: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]

    def share(self, confidence: float) -> Share | None:
        """Count right answers; None where there are no images."""
        images, correct = len(self.right), int(self.right.sum())
        if not images:
            return None
        low, high = wilson(correct, images, confidence)
        return Share(correct, images, correct / images, low, high)


@dataclass(frozen=True)
class Facts:
    """Hold both sides, and the images that they were judged on.

    Attributes:
        champion: None where there is none yet.
        labels: (n,) class names, as strings.
        paths: of the n images.
        theirs: answers of a champion that can be read and is not the candidate itself.
        excluded: reason to number of test images that are not among the n.
        relabelled: today's test images that had another label when the champion was made.
        comparison: where there is `theirs`, and an image.
        timed: None where nothing was timed.
        size_bytes: of the candidate's file.
    """

    candidate: ModelUnderTest
    champion: ModelUnderTest | UnavailableModel | None
    today: TestImages
    labels: npt.NDArray[np.object_]
    paths: tuple[str, ...]
    ours: Side
    theirs: Side | None
    excluded: Mapping[str, int]
    relabelled: int
    comparison: Comparison | None
    timed: Timed | None
    size_bytes: int

    @property
    def same(self) -> bool:
        """Tell whether the candidate is the champion."""
        return isinstance(self.champion, ModelUnderTest) and self.champion.sha256 == self.candidate.sha256

    @property
    def no_comparison(self) -> str:
        """Say why there is nothing to compare with; empty where there is."""
        if self.champion is None:
            return "there is no champion yet"
        if isinstance(self.champion, UnavailableModel):
            return f"the champion {self.champion.name} cannot be read: {self.champion.reason}"
        return "the candidate is the champion" if self.same else ""

    @cached_property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Give each of today's classes its recall under both."""
        number_of = {name: number for number, name in enumerate(self.today.classes)}
        number = np.array([number_of[label] for label in self.labels], np.int64)
        images = np.bincount(number, minlength=len(number_of))

        def recalls(side: Side | None) -> list[float | None]:
            if side is None:
                return [None] * len(number_of)
            right = np.bincount(number[side.right], minlength=len(number_of))
            return [
                float(right[k] / images[k]) if images[k] and name in side.classes else None
                for name, k in number_of.items()
            ]

        columns = zip(number_of, images.tolist(), recalls(self.ours), recalls(self.theirs), strict=True)
        return tuple(ClassFigures(*row) for row in columns)

    def flips(self) -> tuple[Flip, ...]:
        """Name images that one gets right and the other wrong: broken ones first, the surest answers first."""
        if self.theirs is None:
            return ()
        found: list[Flip] = []
        kinds: dict[Literal["broken", "fixed"], npt.NDArray[np.bool_]] = {
            "broken": ~self.ours.right & self.theirs.right,
            "fixed": self.ours.right & ~self.theirs.right,
        }
        for kind, which in kinds.items():
            places = np.flatnonzero(which)
            surest = places[np.argsort(-self.ours.probability[places], kind="stable")][:KEPT]
            found += [
                Flip(
                    path=self.paths[n],
                    label=str(self.labels[n]),
                    champion=str(self.theirs.names[n]),
                    candidate=str(self.ours.names[n]),
                    champion_probability=float(self.theirs.probability[n]),
                    candidate_probability=float(self.ours.probability[n]),
                    kind=kind,
                )
                for n in surest
            ]
        return tuple(found)
