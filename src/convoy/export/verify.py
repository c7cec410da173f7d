"""Verify that the exported graph predicts what was measured, in a process that never imports torch.

A graph that passes is renamed to `model.onnx`, so every file of that name has been verified.

n images of H x W pixels; P, the side of the square that the network sees; K classes.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow.parquet as pq
from onnx import numpy_helper

from convoy.core import contract, escaping, files, templates
from convoy.core.dataset import Fit
from convoy.core.errors import VerificationError
from convoy.core.intervals import wilson
from convoy.export import latency
from convoy.export.golden import GoldenImages
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

SHIFTS = (1 / 255, 0.1, 1.0)
"""Errors of the negative control's mean, in 0..1 units: from one step of an 8-bit pixel to the whole range.
The smallest error that the comparison detects is its sensitivity."""


def verify(deploy: Path, data: Path, evaluation: Path, params: ExportParams) -> dict[str, Any]:
    """Check `model.unverified.onnx` over all images that evaluation measured, and rename it to `model.onnx`.

    Writes `verification.json` and `model_card.md` beside it. On failure there is no
    `model.onnx`, and the unverified graph stays for inspection.

    Returns:
        `{"deploy": {"accuracy": …, "label_flips": …, "max_probability_gap": …, "latency_ms_p50": …, …}}`.

    Raises:
        VerificationError: naming the check that failed, its figures and the worst image.
        DataError: a test image is no longer delivered, or has changed.
    """
    _refuse_torch()
    unverified = deploy / contract.UNVERIFIED
    if not unverified.is_file():
        raise VerificationError(f"{unverified} does not exist. Build it: dvc repro export")
    for name in (contract.VERIFIED, contract.VERIFICATION, contract.MODEL_CARD):
        (deploy / name).unlink(missing_ok=True)
    shutil.rmtree(deploy / contract.GOLDEN, ignore_errors=True)
    model = OnnxModel(unverified)
    reference = ReferencePredictions.load(evaluation)
    if model.classes != reference.classes:
        raise VerificationError(
            f"{unverified} has the classes {', '.join(model.classes)}; {evaluation} was measured with "
            f"{', '.join(reference.classes)}. Bring both up to date: dvc repro"
        )
    geometry = Geometry(
        int(model.properties[contract.IMAGE_PX]),
        cast("Fit", model.properties[contract.FIT]),
        float(model.properties.get(contract.CROP_SHARE, 1)),
    )

    whole, correct, sample, golden = compare_from_files(model, data, reference, geometry, params)
    comparisons = [whole, *compare_batches(model, sample, params), compare_odd_sizes(model, geometry, params)]
    for comparison in comparisons:
        if not comparison.within_limits:
            raise VerificationError(
                f"the exported graph does not reproduce the measured predictions.\n{comparison.explain(model.classes)}\n"
                f"{unverified} is kept for inspection (convoy predict {unverified} IMAGE); there is no {contract.VERIFIED}. "
                "Measure and export again: `dvc repro --force evaluate export`. If it fails again, look for a layer "
                "that computes something else in ONNX, or raise the limit in params.yaml if the figures are acceptable."
            )
    shift, control = negative_control(unverified, sample, params)
    timed = latency.measure(unverified, geometry.image_px, params.latency_runs)
    _refuse_torch()

    accuracy, (low, high) = correct / whole.images, wilson(correct, whole.images)
    verification = {
        "model": {
            "file": contract.VERIFIED,
            "sha256": files.sha256(unverified),
            "bytes": unverified.stat().st_size,
            "input": model.properties[contract.INPUT],
            "version": model.properties[contract.VERSION],
            "identity": {key: model.properties[f"convoy.{key}"] for key in contract.IDENTITY},
        },
        "split": reference.split,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "checks": [comparison.figures() for comparison in comparisons],
        "negative_control": control.figures() | {"mean_shift": shift, "caught": True},
        "latency": timed,
        "torch_imported": False,
        "versions": latency.versions(),
        "hardware": latency.hardware(),
    }
    golden.write(deploy / contract.GOLDEN, model.classes, model.background)
    files.write_json(deploy / contract.VERIFICATION, verification)
    files.write_text(deploy / contract.MODEL_CARD, card(verification, reference.summary))
    verified = unverified.rename(deploy / contract.VERIFIED)
    return {
        "deploy": {
            "accuracy" if reference.split == "test" else "accuracy_on_val": accuracy,
            "label_flips": whole.flips,
            "max_probability_gap": max(comparison.gap for comparison in comparisons),
            **timed["onnx"],
            **{f"eager_{name}": figure for name, figure in timed["eager"].items()},
            "size_mb": verified.stat().st_size / 1e6,
        }
    }


def card(verification: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Render the model card from verification.json and the evaluation's summary.json; no name in it is markup."""
    context = {"verification": verification, "data": data}
    filters: dict[str, templates.Filter] = {"code": escaping.code, "prose": escaping.prose}
    return templates.render("convoy.export", "model_card.md.j2", context, filters)


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
    model: OnnxModel, data: Path, reference: ReferencePredictions, geometry: Geometry, limits: ExportParams
) -> tuple[Comparison, int, Sample, GoldenImages]:
    """Predict every test image from its delivered file's bytes and compare with what was measured.

    Returns the comparison, the number of correct predictions, a sample for the other checks, and the golden images.

    Raises:
        DataError: a delivered file is missing or has changed since it was prepared.
    """
    comparison = Comparison(f"whole {reference.split} split from delivered files", limits)
    golden = GoldenImages(reference.labels, limits.golden_images, limits.max_probability_gap)
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
    correct = 0
    for chunk in chunks(images, lambda item: item[2].image_u8.nbytes + len(item[1])):
        rows = np.array([row_of[path] for path, _, _ in chunk])
        probabilities = model.predict_mixed([decoded.image_u8 for _, _, decoded in chunk])
        comparison.add([path for path, _, _ in chunk], reference.probabilities[rows], probabilities)
        correct += int((probabilities.argmax(axis=1) == reference.labels[rows]).sum())
        for (_, content, decoded), row, answer in zip(chunk, rows.tolist(), probabilities, strict=True):
            golden.offer(row, content, decoded, answer)
            if row < most:
                sample[row] = geometry(decoded.image_u8)
    squares_u8 = np.stack([sample[row] for row in range(len(sample))])
    measured = reference.probabilities[: len(sample)]
    return comparison, correct, Sample(reference.paths[: len(sample)], squares_u8, measured, geometry), golden


def compare_batches(model: OnnxModel, sample: Sample, limits: ExportParams) -> list[Comparison]:
    """Predict the sample in batches of 1, 2, 7 and many: an exporter may have fixed a batch size."""
    return [_compare_sample(f"batches of {size}", model, sample, limits, size) for size in BATCHES]


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


def negative_control(path: Path, sample: Sample, limits: ExportParams) -> tuple[float, Comparison]:
    """Find the smallest shift of the mean, in 0..1 units, that a comparison detects; return it with the comparison.

    A check that accepts a wrong graph is worthless.

    Raises:
        VerificationError: not even the largest shift is detected.
    """
    graph = onnx.load(path)
    # `onnx_graph.build` refuses a network without this constant.
    mean = next(constant for constant in graph.graph.initializer if constant.name == contract.MEAN)
    correct_mean = numpy_helper.to_array(mean)
    for shift in SHIFTS:
        mean.CopyFrom(numpy_helper.from_array((correct_mean + shift).astype(np.float32), contract.MEAN))
        wrong = OnnxModel(graph.SerializeToString())
        comparison = _compare_sample(f"negative control: mean off by {shift:.4f}", wrong, sample, limits)
        if not comparison.within_limits:
            return shift, comparison
    raise VerificationError(
        f"The verification detects no error: a graph whose mean is off by {SHIFTS[-1]:g}, the whole range of a pixel, "
        f"passes the same comparison on {comparison.images} images (label flips {comparison.flips}, limit "
        f"{limits.max_label_flips}; largest probability gap {comparison.gap:.3g}, limit "
        f"{limits.max_probability_gap:g}).\nEither the limits in params.yaml accept everything (the defaults are "
        "export.max_label_flips: 0 and export.max_probability_gap: 0.0001), or the network ignores its input: see "
        "build/evaluation/report.html, and train again."
    )


def _compare_sample(
    name: str, model: OnnxModel, sample: Sample, limits: ExportParams, size: int = CHUNK_IMAGES
) -> Comparison:
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


def _refuse_torch() -> None:
    """Keep verification to what a server has: with torch in the process it would show less than it claims."""
    if "torch" in sys.modules:
        raise VerificationError(
            "torch is imported in the process that verifies the exported graph, which must run without it. "
            "Verify in a process of its own: python pipelines/export.py verify"
        )
