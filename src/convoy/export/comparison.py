"""Compare predictions of an exported graph with those that were measured: from files, in batches, of odd sizes.

n images of H x W pixels; P, the side of the square that the network sees; K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from convoy.core import files
from convoy.core.errors import VerificationError
from convoy.export.golden import LEAST_GAP, GoldenImages
from convoy.export.onnx_model import CHUNK_IMAGES, OnnxModel, chunks
from convoy.export.settings import ExportParams
from convoy.images.delivery import open_delivery
from convoy.images.resize import Geometry

PREDICTIONS = "predictions.parquet"
SUMMARY = "summary.json"

SAMPLE_IMAGES = 128
SAMPLE_BYTES = 64 * 2**20
"""Most test images, and most bytes of them, that are kept packed for the checks after the first."""

BATCHES = (1, 2, 7, CHUNK_IMAGES)


class Comparison:
    """Count label flips and keep the largest probability gap, batch by batch; every check is a comparison.

    Attributes:
        name: what is compared with what, in words.
        images: number of images compared.
        flips: images whose most probable class differs.
        gap: largest difference of any probability of any image, 0..1; infinite for NaN.
    """

    def __init__(self, name: str, limits: ExportParams) -> None:
        self.name = name
        self.limits = limits
        self.images = 0
        self.flips = 0
        self.gap = 0.0
        # The image to inspect first: flipped, gap, name, expected and actual probabilities.
        self._worst: tuple[bool, float, str, npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None

    def add(
        self, names: Sequence[str], expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]
    ) -> None:
        """Compare (n, K) probabilities with (n, K) probabilities of the same n images, n >= 1."""
        flipped = expected.argmax(axis=1) != actual.argmax(axis=1)
        gaps = np.abs(expected - actual).max(axis=1)
        # NaN exceeds no limit: without this it would pass.
        gaps = np.where(np.isfinite(gaps), gaps, np.inf)
        self.images += len(names)
        self.flips += int(flipped.sum())
        self.gap = max(self.gap, float(gaps.max()))
        n = int(np.lexsort((gaps, flipped))[-1])
        rank = bool(flipped[n]), float(gaps[n])  # a label flip outweighs any gap
        if self._worst is None or rank > self._worst[:2]:
            self._worst = (*rank, names[n], expected[n], actual[n])

    @property
    def within_limits(self) -> bool:
        """Check both figures against the limits of params.yaml."""
        return self.flips <= self.limits.max_label_flips and self.gap <= self.limits.max_probability_gap

    def figures(self) -> dict[str, Any]:
        """Return every figure beside its limit, as in verification.json."""
        return {
            "check": self.name,
            "images": self.images,
            "label_flips": self.flips,
            "max_label_flips": self.limits.max_label_flips,
            "probability_gap": self.gap,
            "max_probability_gap": self.limits.max_probability_gap,
        }

    def explain(self, classes: Sequence[str]) -> str:
        """Describe the figures with their limits, and both predictions for the worst image."""
        text = (
            f"{self.name}: {self.flips} of {self.images} images change class "
            f"(export.max_label_flips is {self.limits.max_label_flips}), the largest probability gap is {self.gap:.3g} "
            f"(export.max_probability_gap is {self.limits.max_probability_gap:g})."
        )
        if self._worst:
            _, _, name, expected, actual = self._worst
            text += f"\nWorst image: {name}\n  expected {_top(expected, classes)}\n  exported {_top(actual, classes)}"
        return text


@dataclass(frozen=True)
class ReferencePredictions:
    """Hold the predictions that evaluation measured for every test image; n images, K classes.

    Attributes:
        paths: delivered files.
        sha256: of the files when they were prepared.
        labels: (n,) class numbers.
        probabilities: (n, K), in the order of `classes`.
        classes: K names.
        summary: counts and metrics, as evaluation wrote them.
    """

    paths: list[str]
    sha256: list[str]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    summary: dict[str, Any]

    @property
    def split(self) -> str:
        """Return the split that was measured: test, or val where there are no test images."""
        return str(self.summary["split"])

    @classmethod
    def load(cls, folder: Path) -> "ReferencePredictions":
        """Read a folder that evaluation wrote.

        Raises:
            VerificationError: a file is missing, or a predicted class is not the most probable.
        """
        for name in (PREDICTIONS, SUMMARY):
            if not (folder / name).is_file():
                raise VerificationError(
                    f"{folder / name} does not exist. Measure the model first: dvc repro evaluate"
                )
        summary = {"split": "test"} | files.read_json(folder / SUMMARY)  # absent in those of earlier versions
        classes = tuple(summary["classes"])
        table = pq.read_table(folder / PREDICTIONS)
        paths, sha256, labels, predicted = (
            table.column(name).to_pylist() for name in ("path", "sha256", "label", "predicted")
        )
        column = table.column("probabilities").combine_chunks()
        probabilities = np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), len(classes))
        for path, name, most_probable in zip(paths, predicted, probabilities.argmax(axis=1), strict=True):
            if name != classes[most_probable]:
                raise VerificationError(
                    f"{folder / PREDICTIONS} is inconsistent: the predicted class of {path} is not "
                    "its most probable class. Measure again: dvc repro --force evaluate"
                )
        number = {name: k for k, name in enumerate(classes)}
        numbers = np.array([number[name] for name in labels], dtype=np.int64)
        return cls(paths, sha256, numbers, probabilities, classes, summary)


@dataclass(frozen=True)
class Sample:
    """Hold some of the test images as the network sees them, with their measured probabilities."""

    paths: list[str]
    squares_u8: npt.NDArray[np.uint8]  # (n, P, P, 3)
    probabilities: npt.NDArray[np.float32]  # (n, K)
    geometry: Geometry


def compare_from_files(
    model: OnnxModel,
    data: Path,
    reference: ReferencePredictions,
    geometry: Geometry,
    limits: ExportParams,
    *,
    golden_gap: float = LEAST_GAP,
) -> tuple[Comparison, npt.NDArray[np.bool_], Sample, GoldenImages]:
    """Predict every test image from its delivered file's bytes and compare with what was measured.

    Returns the comparison, (n,) whether each prediction is correct, a sample for the other checks, and the golden images,
    whose probability gap is limited to `golden_gap` when they are replayed.

    Raises:
        DataError: a delivered file is missing or has changed since it was prepared.
    """
    comparison = Comparison(f"whole {reference.split} split from delivered files", limits)
    golden = GoldenImages(reference.labels, limits.golden_images, golden_gap)
    row_of = {path: row for row, path in enumerate(reference.paths)}
    delivered = sum(sum(images.values()) for images in reference.summary["counts"].values())
    images = open_delivery(data).decoded(
        dict(zip(reference.paths, reference.sha256, strict=True)),
        f"verify {reference.split} images",
        delivered,
        background=model.background,
    )
    # Test rows are sorted by a hash of their pixels, so the first are a fair sample.
    most = min(
        SAMPLE_IMAGES, max(1, int(SAMPLE_BYTES // (3 * (geometry.image_px / geometry.crop_share) ** 2)))
    )
    sample: dict[int, npt.NDArray[np.uint8]] = {}
    right = np.zeros(len(reference.labels), np.bool_)
    for chunk in chunks(images, lambda item: item[2].image_u8.nbytes + len(item[1])):
        rows = np.array([row_of[path] for path, _, _ in chunk])
        probabilities = model.predict_mixed([decoded.image_u8 for _, _, decoded in chunk])
        comparison.add([path for path, _, _ in chunk], reference.probabilities[rows], probabilities)
        right[rows] = probabilities.argmax(axis=1) == reference.labels[rows]
        for (_, content, decoded), row, answer in zip(chunk, rows.tolist(), probabilities, strict=True):
            golden.offer(row, content, decoded, answer)
            if row < most:
                sample[row] = geometry(decoded.image_u8)
    squares_u8 = np.stack([sample[row] for row in range(len(sample))])
    measured = reference.probabilities[: len(sample)]
    return comparison, right, Sample(reference.paths[: len(sample)], squares_u8, measured, geometry), golden


def compare_batches(model: OnnxModel, sample: Sample, limits: ExportParams) -> list[Comparison]:
    """Predict the sample in batches of 1, 2, 7 and many: an exporter may have fixed a batch size."""
    return [compare_sample(f"batches of {size}", model, sample, limits, size) for size in BATCHES]


def compare_odd_sizes(model: OnnxModel, geometry: Geometry, limits: ExportParams) -> Comparison:
    """Predict images of odd sizes, raw and packed as `prepare` packs them, and compare both."""
    comparison = Comparison("odd image sizes, raw against packed", limits)
    px = geometry.image_px
    sizes = [(1, 1), (1, 7), (37, 53), (px, px), (px + 1, 2 * px - 1), (3 * px + 2, px), (480, 640)]
    noise = np.random.default_rng(0)
    for height, width in sizes:
        images_u8 = noise.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        packed_u8 = np.stack([geometry(image_u8) for image_u8 in images_u8])
        comparison.add(
            [f"noise of {height} x {width} pixels"] * 2,
            model(geometry.uncropped(packed_u8)),
            model(images_u8),
        )
    return comparison


def compare_sample(
    name: str, model: OnnxModel, sample: Sample, limits: ExportParams, size: int = CHUNK_IMAGES
) -> Comparison:
    """Predict the sample in batches of `size`, and compare with its probabilities."""
    comparison = Comparison(name, limits)
    for start in range(0, len(sample.paths), size):
        part = slice(start, start + size)
        served_u8 = sample.geometry.uncropped(sample.squares_u8[part])
        comparison.add(sample.paths[part], sample.probabilities[part], model(served_u8))
    return comparison


def _top(probabilities: npt.NDArray[np.float32], classes: Sequence[str]) -> str:
    """Format the three most probable classes."""
    if not np.isfinite(probabilities).all():
        return "NaN"
    order = np.argsort(-probabilities, kind="stable")[:3]
    return ", ".join(f"{classes[k]} {probabilities[k]:.6f}" for k in order)
