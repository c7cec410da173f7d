"""What the proof tries on a served graph, each against the same limits.

n images of H x W pixels; P, the side of the square that the network sees; K classes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from convoy.core import console, contract
from convoy.core.errors import DataError, VerificationError
from convoy.export.comparison import Comparison
from convoy.export.measured import Measured
from convoy.export.onnx_model import CHUNK_IMAGES, OnnxModel, chunks
from convoy.export.settings import ExportParams
from convoy.images.decode import decode
from convoy.images.delivery import open_delivery
from convoy.images.resize import Geometry

SAMPLE_IMAGES = 128
SAMPLE_BYTES = 64 * 2**20
"""Most test images, and most bytes of them, that are kept packed for the checks after the first."""

BATCHES = (1, 2, 7, CHUNK_IMAGES)

SHIFTS = (1 / 255, 0.1, 1.0)
"""By how much the negative control's mean is wrong, in 0..1 units: from one step of an 8-bit
pixel to the whole range. The smallest one that is noticed tells how sharp the proof is."""


@dataclass(frozen=True)
class Sample:
    """Hold some of the test images as the network sees them."""

    places: npt.NDArray[np.int64]  # (n,) into Measured
    squares_u8: npt.NDArray[np.uint8]  # (n, P, P, 3)


def from_files(
    served: OnnxModel, data: Path, measured: Measured, geometry: Geometry, limits: ExportParams
) -> tuple[Comparison, int, Sample]:
    """Answer every test image from its delivered file's bytes and compare with what was measured.

    Returns:
        The comparison, the number of correct answers, and a sample for the other checks.

    Raises:
        ProofError: a delivered file is missing or differs from what was prepared.
    """
    comparison = Comparison("whole test split from delivered files", limits)
    waiting = {path: place for place, path in enumerate(measured.paths)}
    changed: list[str] = []
    # An archive can only be read from its beginning, so all files go by, and count as progress.
    total = sum(sum(images.values()) for images in measured.summary["counts"].values())
    delivered = console.track(open_delivery(data).files(), "prove: read delivered files", total)
    # Test rows are sorted by a hash of their pixels, so the first ones are a fair sample.
    room = min(SAMPLE_IMAGES, max(1, SAMPLE_BYTES // (3 * geometry.image_px**2)))
    sample: dict[int, npt.NDArray[np.uint8]] = {}

    def images() -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        for path, content in delivered:
            place = waiting.pop(path, None)
            if place is None:
                continue
            if hashlib.sha256(content).hexdigest() != measured.sha256[place]:
                changed.append(path)
                continue
            try:
                yield place, decode(content).image_u8
            except DataError as error:
                raise VerificationError(f"{data}: {path} was prepared, and now it {error}") from error
            if not waiting:
                return

    correct = 0
    for chunk in chunks(images(), lambda item: item[1].nbytes):
        places = np.array([place for place, _ in chunk])
        found = served.mixed([image_u8 for _, image_u8 in chunk])
        comparison.add([measured.paths[n] for n in places], measured.probabilities[places], found)
        correct += int((found.argmax(axis=1) == measured.labels[places]).sum())
        sample |= {place: geometry(image_u8) for place, image_u8 in chunk if place < room}
    _refuse_gone(data, list(waiting), changed, len(measured.paths))
    kept = sorted(sample)
    squares_u8 = np.stack([sample[place] for place in kept])
    return comparison, correct, Sample(np.array(kept), squares_u8)


def in_batches(
    served: OnnxModel, measured: Measured, sample: Sample, limits: ExportParams
) -> list[Comparison]:
    """Answer the sample in batches of 1, 2, 7 and many: an exporter may have fixed a batch size."""
    return [
        _on_sample(Comparison(f"batches of {size}", limits), served, measured, sample, size)
        for size in BATCHES
    ]


def odd_sizes(served: OnnxModel, geometry: Geometry, limits: ExportParams) -> Comparison:
    """Answer images of odd sizes, raw and packed as `prepare` packs: both answers must agree."""
    comparison = Comparison("odd image sizes, raw against packed", limits)
    px = geometry.image_px
    sizes = [(1, 1), (1, 7), (37, 53), (px, px), (px + 1, 2 * px - 1), (3 * px + 2, px), (480, 640)]
    noise = np.random.default_rng(0)
    for height, width in sizes:
        images_u8 = noise.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        packed_u8 = np.stack([geometry(image_u8) for image_u8 in images_u8])
        names = [f"noise of {height} x {width} pixels"] * 2
        comparison.add(names, served(packed_u8), served(images_u8))
    return comparison


def negative_control(
    model: Path, measured: Measured, sample: Sample, limits: ExportParams
) -> tuple[float, Comparison]:
    """Find the smallest wrong mean that the comparison notices: a check that forgives is none.

    Returns:
        The shift of the mean in 0..1 units, and the comparison that noticed it.

    Raises:
        ProofError: not even the largest is noticed.
    """
    graph = onnx.load(model)
    mean = next((one for one in graph.graph.initializer if one.name == contract.MEAN), None)
    if mean is None:
        raise VerificationError(
            f"{model} has no constant {contract.MEAN}, so the proof cannot show that it notices a wrong one. "
            "Make it again: dvc repro --force export"
        )
    right = numpy_helper.to_array(mean)
    for shift in SHIFTS:
        mean.CopyFrom(numpy_helper.from_array((right + shift).astype(np.float32), contract.MEAN))
        wrong = OnnxModel(graph.SerializeToString())
        comparison = Comparison(f"negative control: mean off by {shift:.4f}", limits)
        _on_sample(comparison, wrong, measured, sample, CHUNK_IMAGES)
        if not comparison.within:
            return shift, comparison
    raise VerificationError(
        f"The proof has no power: a graph whose mean is off by {SHIFTS[-1]:g}, the whole range of a pixel, passes "
        f"the same comparison on {comparison.images} images (label flips {comparison.flips}, limit "
        f"{limits.max_label_flips}; largest probability gap {comparison.gap:.3g}, limit "
        f"{limits.max_probability_gap:g}).\nEither the limits in params.yaml forgive everything "
        "(export.max_label_flips: 0 and export.max_probability_gap: 0.0001 do not), or the network does not look "
        "at its input: see build/evaluation/report.html, and train anew."
    )


def _on_sample(
    comparison: Comparison, served: OnnxModel, measured: Measured, sample: Sample, size: int
) -> Comparison:
    for start in range(0, len(sample.places), size):
        places = sample.places[start : start + size]
        found = served(sample.squares_u8[start : start + size])
        comparison.add([measured.paths[n] for n in places], measured.probabilities[places], found)
    return comparison


def _refuse_gone(data: Path, missing: list[str], changed: list[str], total: int) -> None:
    """Account for every test image: an accuracy over fewer is another accuracy."""
    for paths, verdict in (
        (missing, "no longer delivered"),
        (changed, "no longer the file that was prepared"),
    ):
        if paths:
            raise VerificationError(
                f"{data}: {len(paths)} of {total} test images are {verdict}, the first being {paths[0]}. "
                "The data changed since it was prepared; take it through the pipeline: dvc repro"
            )


def figures_of_control(shift: float, comparison: Comparison) -> dict[str, Any]:
    """Give the control's figures as verification.json keeps them."""
    return {**comparison.figures(), "mean_shift": shift, "caught": True}
