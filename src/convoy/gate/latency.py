"""Latency of candidate and champion on single test images, timed by turns.

Load and temperature of the machine then affect both alike.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.core.console import track
from convoy.export.latency import WARM_UP
from convoy.export.onnx_model import OnnxModel

ROUNDS = 5
IMAGES = 64
"""Most images per round."""
LEAST_IMAGES = 20
"""Also of a slow model; where there are fewer, some are timed twice."""
BUDGET_S = 15.0
"""Seconds that the timing may take in all, unless the least images take longer."""


@dataclass(frozen=True)
class Latency:
    """Hold the latency of each model.

    Attributes:
        images: timed per round.
        p50_ms: of each model: the median over rounds of the time that half of the images took at most.
        p95_ms: likewise, 95 % of the images.
        ratio: how many times as long the first model takes as the second: the median over all
            pairs of calls, one right after the other. None where there is one model.
    """

    images: int
    p50_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    ratio: float | None


def measure(models: Sequence[OnnxModel], images_u8: Sequence[npt.NDArray[np.uint8]]) -> Latency:
    """Time one or two models, opened with `export.latency.THREADS`, on single (H, W, 3) images."""
    warm = [_seconds(models, image_u8) for image_u8 in images_u8[:WARM_UP]]
    count = int(np.clip(BUDGET_S / (ROUNDS * max(sum(warm[-1]), 1e-9)), LEAST_IMAGES, IMAGES))
    count = max(LEAST_IMAGES, min(count, len(images_u8)))
    chosen = [images_u8[n % len(images_u8)] for n in range(count)]
    calls = [
        _seconds(models, image_u8, backwards=number % 2 == 1)
        for number, image_u8 in enumerate(track(chosen * ROUNDS, "gate: measure latency", ROUNDS * count))
    ]
    seconds = np.array(calls).reshape(ROUNDS, count, len(models))
    p50, p95 = (np.median(np.percentile(seconds, q, axis=1), axis=0) * 1e3 for q in (50, 95))
    return Latency(
        images=count,
        p50_ms=tuple(p50.tolist()),
        p95_ms=tuple(p95.tolist()),
        ratio=float(np.median(seconds[..., 0] / seconds[..., 1])) if len(models) == 2 else None,
    )


def _seconds(
    models: Sequence[OnnxModel], image_u8: npt.NDArray[np.uint8], *, backwards: bool = False
) -> list[float]:
    """Time one call of each model; the order alternates, since the second model finds the image in the cache."""
    batch_u8 = image_u8[np.newaxis]
    seconds = [0.0] * len(models)
    order = range(len(models))
    for number in reversed(order) if backwards else order:
        start = time.perf_counter()
        models[number](batch_u8)
        seconds[number] = time.perf_counter() - start
    return seconds
