"""What the service counts, for Prometheus: requests, their time, images by class, the queue, and which model answers."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from convoy.serving.model import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of request times: a small model answers in a millisecond, a large image takes a second."""

IMAGES = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Count requests and answers.

    Attributes:
        registry: of prometheus_client, for further metrics.
    """

    def __init__(
        self, served: Callable[[], ServedModel], waiting: Callable[[], int], problem: Callable[[], str]
    ) -> None:
        """Prepare the metrics; `served`, `waiting` and `problem` are read whenever they are shown."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "convoy_requests", "Requests, by path and status.", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "convoy_request_seconds",
            "Time from the head of a request to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._images = Counter(
            "convoy_images", "Images that were classified, by class.", ["class"], registry=self.registry
        )
        self._refused = Counter(
            "convoy_images_refused",
            "Images and requests that got an error, by its code.",
            ["code"],
            registry=self.registry,
        )
        self._abstained = Counter(
            "convoy_images_abstained", "Answers below serve.min_confidence.", registry=self.registry
        )
        self._batches = Histogram(
            "convoy_batch_images",
            "Images that were classified at once.",
            buckets=IMAGES,
            registry=self.registry,
        )
        queue = Gauge("convoy_queue_images", "Images that wait.", registry=self.registry)
        queue.set_function(waiting)
        degraded = Gauge(
            "convoy_degraded",
            "1 while /readyz reports a problem, such as a champion that failed verification.",
            registry=self.registry,
        )
        degraded.set_function(lambda: float(bool(problem())))
        self.registry.register(_ModelInfo(served))
        ProcessCollector(registry=self.registry)
        self._of_path: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._of_class: dict[str, Counter] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; called in the event loop's thread."""
        counters = self._of_path.get((path, status))
        if counters is None:
            counters = self._requests.labels(path, str(status)), self._seconds.labels(path)
            self._of_path[path, status] = counters
        counters[0].inc()
        counters[1].observe(seconds)

    def refused(self, code: str) -> None:
        """Count an image or request that got an error."""
        self._refused.labels(code).inc()

    def abstained(self) -> None:
        """Count an answer below `serve.min_confidence`."""
        self._abstained.inc()

    def batch(
        self,
        _images_u8: Sequence[npt.NDArray[np.uint8]],
        probabilities: npt.NDArray[np.float32],
        _contents: Sequence[bytes | None],
        served: ServedModel,
    ) -> None:
        """Count the classes of a batch: an observer of `Answerer`."""
        self._batches.observe(len(probabilities))
        for index in probabilities.argmax(axis=1).tolist():
            name = served.model.classes[index]
            counter = self._of_class.get(name)
            if counter is None:
                counter = self._of_class[name] = self._images.labels(name)
            counter.inc()

    def text(self) -> bytes:
        """Format all metrics for Prometheus."""
        return generate_latest(self.registry)


class _ModelInfo(Collector):
    """Name the model that answers now, as the labels of a metric that is 1."""

    def __init__(self, served: Callable[[], ServedModel]) -> None:
        self._served = served

    def collect(self) -> list[Metric]:
        """Read the model."""
        served = self._served()
        labels = {
            "model": served.public_name,
            "version": served.version,
            "run_id": served.run_id,
            "sha256": served.sha256,
        }
        info = GaugeMetricFamily("convoy_model_info", "The model that answers.", labels=list(labels))
        info.add_metric(list(labels.values()), 1)
        return [info]
