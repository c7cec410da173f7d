"""The compared models as local files, and what their predictions on unseen test images show.

n test images that neither model was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convoy.core.intervals import wilson
from convoy.export.image_index import Images
from convoy.gate.latency import Latency
from convoy.gate.result import ClassFigures, Comparison, Flip, Share
from convoy.gate.test_images import TestImages

MOST_FLIPS = 100
"""Changed predictions of each kind that a result lists."""


@dataclass(frozen=True)
class ModelUnderTest:
    """Name one model's files and origin.

    Attributes:
        name: such as `convoy/7`.
        sha256: the registered hash of `onnx`.
        images: what it was trained and tested on; None where that is unknown.
        recorded_accuracy: 0..1, from the verification at registration; None where that is unknown.
        verification: content of its `verification.json`; None where there is none.
        created_ms: when it was registered, in milliseconds since 1970.
    """

    name: str
    onnx: Path
    sha256: str
    images: Images | None
    recorded_accuracy: float | None
    verification: Mapping[str, Any] | None
    created_ms: int


@dataclass(frozen=True)
class UnavailableModel:
    """Name a registered champion whose file is gone or damaged; `reason` is half a sentence."""

    name: str
    reason: str
    recorded_accuracy: float | None


@dataclass(frozen=True)
class Predictions:
    """Hold the predictions of one model.

    Attributes:
        classes: of the model.
        names: (n,) predicted classes, as strings.
        probability: (n,) of the predicted class, 0..1.
        correct: (n,) whether the prediction is the label.
    """

    classes: tuple[str, ...]
    names: npt.NDArray[np.object_]
    probability: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]

    def share(self, confidence: float) -> Share | None:
        """Compute the accuracy with its Wilson interval; None where there are no images."""
        images, correct = len(self.correct), int(self.correct.sum())
        if not images:
            return None
        low, high = wilson(correct, images, confidence)
        return Share(correct, images, correct / images, low, high)


@dataclass(frozen=True)
class Evidence:
    """Hold both models' predictions and the images that they were made on.

    Attributes:
        champion: None where there is none yet.
        labels: (n,) class names, as strings.
        paths: of the n images.
        champion_predictions: None where the champion is missing, unreadable or the candidate itself.
        excluded: reason to number of test images that are not among the n.
        comparison: None where there are no two predictions, or no image.
        latency: None where nothing was timed.
    """

    candidate: ModelUnderTest
    champion: ModelUnderTest | UnavailableModel | None
    test_images: TestImages
    labels: npt.NDArray[np.object_]
    paths: tuple[str, ...]
    candidate_predictions: Predictions
    champion_predictions: Predictions | None
    excluded: Mapping[str, int]
    comparison: Comparison | None
    latency: Latency | None

    @property
    def identical(self) -> bool:
        """Whether the candidate is the champion."""
        return isinstance(self.champion, ModelUnderTest) and self.champion.sha256 == self.candidate.sha256

    @property
    def no_comparison(self) -> str:
        """State why there is nothing to compare with; empty where there is."""
        if self.champion is None:
            return "there is no champion yet"
        if isinstance(self.champion, UnavailableModel):
            return f"the champion {self.champion.name} cannot be read: {self.champion.reason}"
        return "the candidate is the champion" if self.identical else ""

    @cached_property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Compute each class's recall under both models."""
        number_of = {name: number for number, name in enumerate(self.test_images.classes)}
        number = np.array([number_of[label] for label in self.labels], np.int64)
        images = np.bincount(number, minlength=len(number_of))

        def recalls(predictions: Predictions | None) -> list[float | None]:
            if predictions is None:
                return [None] * len(number_of)
            correct = np.bincount(number[predictions.correct], minlength=len(number_of))
            return [
                float(correct[k] / images[k]) if images[k] and name in predictions.classes else None
                for name, k in number_of.items()
            ]

        candidate, champion = recalls(self.candidate_predictions), recalls(self.champion_predictions)
        return tuple(map(ClassFigures, number_of, images.tolist(), candidate, champion))

    def flips(self) -> tuple[Flip, ...]:
        """List images that only one model classifies correctly: regressions first, the most certain first."""
        candidate, champion = self.candidate_predictions, self.champion_predictions
        if champion is None:
            return ()
        kinds: dict[Literal["broken", "fixed"], npt.NDArray[np.bool_]] = {
            "broken": ~candidate.correct & champion.correct,
            "fixed": candidate.correct & ~champion.correct,
        }
        flips: list[Flip] = []
        for kind, flipped in kinds.items():
            indices = np.flatnonzero(flipped)
            order = np.argsort(-candidate.probability[indices], kind="stable")
            flips += [
                Flip(
                    path=self.paths[n],
                    label=str(self.labels[n]),
                    champion=str(champion.names[n]),
                    candidate=str(candidate.names[n]),
                    champion_probability=float(champion.probability[n]),
                    candidate_probability=float(candidate.probability[n]),
                    kind=kind,
                )
                for n in indices[order][:MOST_FLIPS]
            ]
        return tuple(flips)
