"""What a verdict rests on: the compared models, their predictions on n unseen test images, and their latency."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convoy.core.console import track
from convoy.core.intervals import wilson
from convoy.export.image_index import Images
from convoy.export.latency import WARM_UP
from convoy.export.onnx_model import OnnxModel
from convoy.gate.result import ClassFigures, Comparison, Flip, Share
from convoy.gate.test_images import TestImages

MOST_FLIPS = 100
"""Changed predictions of each kind that a result lists."""

ROUNDS = 5
MOST_TIMED = 64
"""Images per round, at most; `LEAST_TIMED` also of a slow model, where there are fewer some are timed twice."""
LEAST_TIMED = 20
BUDGET_S = 15.0
"""Seconds that the timing may take in all, unless the least images take longer."""


@dataclass(frozen=True)
class ModelUnderTest:
    """Name a model's files and origin.

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
    """Hold a model's predictions.

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
        return Share(correct, images, correct / images, *wilson(correct, images, confidence))


@dataclass(frozen=True)
class Latency:
    """Hold the latency of each model.

    Attributes:
        images: timed per round.
        p50_ms: of each model: the median over rounds of the time that half of the images took at most.
        p95_ms: likewise, 95 % of the images.
        ratio: how many times as long the first model takes as the second: the median over all pairs of calls,
            made right after each other. None where there is a single model.
    """

    images: int
    p50_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    ratio: float | None


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
    def untested(self) -> frozenset[str]:
        """Collect the classes of the data without a test image, seen or unseen."""
        return frozenset(self.test_images.classes).difference(self.test_images.labels)

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
        """List images that exactly one model classifies correctly: regressions first, the most certain first."""
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


def measure_latency(models: Sequence[OnnxModel], images_u8: Sequence[npt.NDArray[np.uint8]]) -> Latency:
    """Time one or two models, opened with `export.latency.THREADS`, on single (H, W, 3) images.

    By turns: load and temperature of the machine then affect both alike.
    """
    warm = [_seconds(models, image_u8) for image_u8 in images_u8[:WARM_UP]]
    count = int(np.clip(BUDGET_S / (ROUNDS * max(sum(warm[-1]), 1e-9)), LEAST_TIMED, MOST_TIMED))
    count = max(LEAST_TIMED, min(count, len(images_u8)))
    chosen = [images_u8[n % len(images_u8)] for n in range(count)]
    calls = [
        _seconds(models, image_u8, backwards=number % 2 == 1)
        for number, image_u8 in enumerate(track(chosen * ROUNDS, "gate: measure latency", ROUNDS * count))
    ]
    seconds = np.array(calls).reshape(ROUNDS, count, len(models))
    p50, p95 = (np.median(np.percentile(seconds, q, axis=1), axis=0) * 1e3 for q in (50, 95))
    ratio = float(np.median(seconds[..., 0] / seconds[..., 1])) if len(models) == 2 else None
    return Latency(count, tuple(p50.tolist()), tuple(p95.tolist()), ratio)


def _seconds(
    models: Sequence[OnnxModel], image_u8: npt.NDArray[np.uint8], *, backwards: bool = False
) -> list[float]:
    """Time a call of each model; the order alternates, since the second model finds the image in the cache."""
    seconds = [0.0] * len(models)
    order = range(len(models))
    for number in reversed(order) if backwards else order:
        start = time.perf_counter()
        models[number](image_u8[np.newaxis])
        seconds[number] = time.perf_counter() - start
    return seconds
