"""Compare the images that a service answers with those that its model was trained on: /drift and /metrics show it."""

import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from convoy.core.contract import BASELINE
from convoy.core.errors import ConvoyError
from convoy.data.statistics import STATISTICS, columns, measure
from convoy.serving.model import ServedModel

WINDOW = 5_000
"""Latest measured images that are compared."""

PER_SECOND = 50.0
"""Most images that are measured per second: a small image takes as long to measure as to decode."""

LEAST_IMAGES = 100
"""Images below which /metrics shows no drift."""

COMPARE_SECONDS = 10.0
"""A comparison is made anew after this time."""


@dataclass
class DriftWindow:
    """Measure some of the images that are answered, and compare the latest with the model's baseline.

    It is an observer of `batches.Answerer`; a model that replaces another starts an empty window.
    """

    window: int = WINDOW
    per_second: float = PER_SECOND
    _model: ServedModel | None = None
    _rows: "deque[npt.NDArray[np.float32]]" = field(default_factory=deque)
    _labels: deque[str] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _allowed: float = 0.0
    _refilled: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 (looked up when it is called)
    _made: tuple[float, dict[str, Any]] | None = None

    def __call__(
        self,
        images_u8: Sequence[npt.NDArray[np.uint8]],
        probabilities: npt.NDArray[np.float32],
        contents: Sequence[bytes | None],
        served: ServedModel,
    ) -> None:
        """Measure as many of the N images as the rate allows; (N, K) probabilities give their classes."""
        labels = probabilities.argmax(axis=1)
        for n in range(self._take(len(images_u8))):
            content = contents[n]
            size = len(content) if content is not None else images_u8[n].nbytes
            row = measure(images_u8[n], size)
            with self._lock:
                if self._model is not served:
                    self._start(served)
                self._rows.append(row)
                self._labels.append(served.model.classes[int(labels[n])])

    def compare(self, served: ServedModel) -> dict[str, Any]:
        """Compare the window with the baseline of the model that answers now.

        Takes up to a second, so it is called off the event loop.

        Returns:
            `drift`, `images`, `baseline_images` and `statistics`, as `data.drift.compare` returns them; or `problem`, if the
            model has no baseline beside it.
        """
        with self._lock:
            if self._model is not served:
                self._start(served)
            if self._made and time.monotonic() - self._made[0] < COMPARE_SECONDS:
                return self._made[1]
            rows, labels = array("f"), Counter(self._labels)
            for row in self._rows:
                rows.frombytes(row.tobytes())
        made = _compare(served.folder / BASELINE, rows, labels)
        with self._lock:
            self._made = time.monotonic(), made
        return made

    def refresh(self, served: ServedModel) -> None:
        """Compare anew for /metrics, once there are enough images to show anything; `COMPARE_SECONDS` apart at least."""
        with self._lock:
            is_worth_it = self._model is served and len(self._rows) >= LEAST_IMAGES
        if is_worth_it:
            self.compare(served)

    def latest(self) -> dict[str, Any]:
        """Return the last comparison; empty before the first, and once another model answers."""
        with self._lock:
            return self._made[1] if self._made else {}

    def _start(self, served: ServedModel) -> None:
        self._model, self._made = served, None
        self._rows, self._labels = deque(maxlen=self.window), deque(maxlen=self.window)

    def _take(self, wanted: int) -> int:
        """Return how many images may be measured now; unused allowance of a second is kept."""
        with self._lock:
            now = time.monotonic()
            self._allowed += (now - self._refilled) * self.per_second
            self._allowed, self._refilled = min(self._allowed, self.per_second), now
            taken = min(wanted, int(self._allowed))
            self._allowed -= taken
            return taken


class DriftMetrics(Collector):
    """Show the last comparison to Prometheus: `convoy_drift_psi` of each statistic, and the number of images compared."""

    def __init__(self, window: DriftWindow) -> None:
        self._window = window

    def collect(self) -> list[Metric]:
        """Read the last comparison."""
        latest = self._window.latest()
        psi = GaugeMetricFamily(
            "convoy_drift_psi",
            "Population stability index of the images answered, against those of training; from 0.25 strong.",
            labels=["statistic"],
        )
        for each in latest.get("statistics", ()):
            psi.add_metric([each["statistic"]], each["psi"])
        images = GaugeMetricFamily("convoy_drift_images", "Latest images that were compared.")
        images.add_metric([], latest.get("images", 0))
        return [psi, images]


def _compare(path: Path, rows: "array[float]", labels: Counter[str]) -> dict[str, Any]:
    from convoy.data import drift  # noqa: PLC0415 (half a second of imports that no prediction needs)

    try:
        known = drift.Baseline.read(path)
    except ConvoyError:
        return {"problem": f"There is no {BASELINE} beside the model, so drift is not measured."}
    count = len(rows) // len(STATISTICS)
    found = drift.compare_measured(known, columns(rows), labels) if count else []
    return {
        "drift": drift.strongest(found),
        "images": count,
        "baseline_images": known.images,
        "statistics": [asdict(each) for each in found],
    }
