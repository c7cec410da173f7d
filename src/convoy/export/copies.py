"""Copies of the verified graph in another arithmetic, each measured on its own: INT8 for processors, float16 for GPUs.

A copy is kept only within limits of its own, which are looser than those of the float32 graph; the figures of one that
is not kept, and the reason, are in verification.json and on the model card.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from convoy.core import contract
from convoy.core.console import info
from convoy.core.dataset import Dataset
from convoy.core.errors import ConvoyError
from convoy.core.intervals import CONFIDENCE, gain_interval
from convoy.export import quantize
from convoy.export.comparison import (
    Comparison,
    ReferencePredictions,
    Sample,
    compare_batches,
    compare_from_files,
    compare_odd_sizes,
)
from convoy.export.golden import GoldenImages
from convoy.export.onnx_model import OnnxModel
from convoy.export.settings import ExportParams

INT8_FLIPS = 0.05
"""Largest share of test images whose class INT8 may change, to the better or the worse."""

INT8_GAP = 0.5
"""Largest probability gap of INT8: beyond it, an image is seen as something else, whatever the accuracy."""

INT8_GOLDEN_GAP = 0.02
"""Limit for golden images that INT8 answers: processors round differently."""

FP16_GAP = 0.02
"""Largest probability gap of float16, on a processor that computes it in float32."""

Refused = Literal["", "error", "speed", "accuracy", "flips", "gap", "repeated"]


@dataclass(frozen=True)
class Measured:
    """Hold what every test image showed of a graph, from delivered files.

    Attributes:
        right: (n,) whether each image is classified correctly.
        sample: some of the images, with the probabilities that evaluation measured.
        golden: golden images that the graph answered.
        checks: comparisons that it passed.
    """

    reference: ReferencePredictions
    right: npt.NDArray[np.bool_]
    sample: Sample
    golden: GoldenImages
    checks: tuple[Comparison, ...]


@dataclass(frozen=True)
class Int8:
    """Hold an INT8 graph with its figures.

    Attributes:
        refused: which limit it breaches; empty if it is kept.
        figures: for verification.json.
        graph: serialized; empty if it is not kept.
        measured: None if it is not kept.
    """

    refused: Refused
    figures: dict[str, Any]
    graph: bytes = b""
    measured: Measured | None = None


def make(
    deploy: Path, dataset: Path, data: Path, measured: Measured, params: ExportParams
) -> tuple[Measured | None, dict[str, Any]]:
    """Write the copies that params.yaml enables and that are within their limits beside `model.unverified.onnx`.

    Returns:
        What was measured of the INT8 copy if it is kept and to be served, and the figures of all copies for verification.json.
    """
    source = deploy / contract.UNVERIFIED
    figures: dict[str, Any] = {}
    served: Measured | None = None
    if params.int8 == "auto":
        copy = int8(source, Dataset.load(dataset), data, measured, params)
        figures["int8"] = copy.figures
        if not copy.refused:
            (deploy / contract.INT8).write_bytes(copy.graph)
            served = copy.measured if params.serve == "int8" else None
    if params.fp16:
        content, figures["fp16"] = fp16(source, measured.sample, params)
        if content:
            (deploy / contract.FP16).write_bytes(content)
    return served, figures


def int8(path: Path, dataset: Dataset, data: Path, measured: Measured, limits: ExportParams) -> Int8:
    """Make an INT8 copy and measure it on every test image, from delivered files; print whether it is kept.

    Raises:
        DataError: a delivered file is missing or has changed.
    """
    geometry = measured.sample.geometry
    try:
        found = quantize.search(path, dataset, geometry, limits.int8_max_accuracy_drop)
    except ConvoyError:
        raise
    except Exception as error:  # noqa: BLE001 (onnxruntime's tools raise what they like; the float32 graph is verified)
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _not_kept("error", f"onnxruntime cannot quantize this network: {cause}", {"kept": False})
    figures: dict[str, Any] = {
        "kept": False,
        "speedup": found.speedup,
        "least_speedup": quantize.LEAST_SPEEDUP,
        "fp32_ms": found.fp32_ms,
        "int8_ms": found.int8_ms,
        "calibration_images": min(quantize.CALIBRATION_IMAGES, len(dataset.labels("train"))),
        "validation_images": found.images,
        "fp32_correct_on_val": found.fp32_correct,
        "tried": [asdict(each) | {"recipe": str(each.recipe)} for each in found.tried],
    }
    if not found.chosen:
        reason = (
            f"it is {found.speedup:.2f} times as fast as FP32 for one image ({found.fp32_ms:.2f} ms, INT8 {found.int8_ms:.2f} "
            f"ms); at least {quantize.LEAST_SPEEDUP} times is required"
        )
        return _not_kept("speed", reason, figures)
    model = OnnxModel(found.graph)
    flips = int(INT8_FLIPS * len(measured.right))
    own = limits.model_copy(update={"max_label_flips": flips, "max_probability_gap": INT8_GAP})
    whole, right, sample, golden = compare_from_files(
        model, data, measured.reference, geometry, own, golden_gap=INT8_GOLDEN_GAP
    )
    fixed, regressed = int((right & ~measured.right).sum()), int((measured.right & ~right).sum())
    low, high = gain_interval(fixed, regressed, len(right), CONFIDENCE)
    drop = (regressed - fixed) / len(right)
    figures |= {
        "recipe": str(found.chosen),
        "accuracy": float(right.mean()),
        "accuracy_drop": drop,
        "accuracy_drop_low": -high,
        "accuracy_drop_high": -low,
        "max_accuracy_drop": limits.int8_max_accuracy_drop,
        **whole.figures(),
    }
    whole.name = f"INT8, {whole.name}"
    repeated = [
        *compare_batches(model, replace(sample, probabilities=_answers(model, sample)), limits),
        compare_odd_sizes(model, geometry, limits),
    ]
    points = f"{100 * drop:.2f} points (95 % interval {-100 * high:.2f} to {-100 * low:.2f})"
    if -low > limits.int8_max_accuracy_drop:
        most = f"export.int8_max_accuracy_drop allows {100 * limits.int8_max_accuracy_drop:g}, at the upper end of the interval"
        images = f"{len(right):,} test images"
        return _not_kept("accuracy", f"on {images} it loses {points} of accuracy; {most}", figures)
    for comparison in repeated:
        comparison.name = f"INT8, {comparison.name}"
    for comparison in (whole, *repeated):
        if not comparison.within_limits:
            refused: Refused = (
                "repeated" if comparison is not whole else "flips" if whole.flips > flips else "gap"
            )
            return _not_kept(refused, _in_words(comparison), figures)
    info(f"INT8 copy: {found.speedup:.2f} times as fast as FP32, accuracy drop {points}; kept")
    answered = Measured(measured.reference, right, sample, golden, (whole, *repeated))
    return Int8("", figures | {"kept": True}, found.graph, answered)


def _not_kept(refused: Refused, reason: str, figures: dict[str, Any]) -> Int8:
    info(f"INT8 copy: not kept, since {reason}")
    return Int8(refused, figures | {"refused": refused, "reason": reason})


def _in_words(comparison: Comparison) -> str:
    """Describe the figures of a comparison, with their limits."""
    figures = comparison.figures()
    return (
        f"{comparison.name}: {comparison.flips} of {comparison.images} images change class (at most "
        f"{figures['max_label_flips']}), largest probability gap {comparison.gap:.2g} (at most "
        f"{figures['max_probability_gap']:g})"
    )


def _answers(model: OnnxModel, sample: Sample) -> npt.NDArray[np.float32]:
    """Predict the sample image by image, for the comparison with batches."""
    served_u8 = sample.geometry.uncropped(sample.squares_u8)
    return np.concatenate([model(image_u8[np.newaxis]) for image_u8 in served_u8])


def fp16(path: Path, sample: Sample, limits: ExportParams) -> tuple[bytes, dict[str, Any]]:
    """Convert the network to float16, and compare it on a sample; return the graph, if it is kept, and its figures.

    On a processor onnxruntime computes float16 in float32, so that this shows what rounding the weights does, not what a GPU
    answers, nor how fast. Resizing and normalisation stay in float32, so do inputs and outputs.
    """
    graph = onnx.load(path)
    with _without_side_effects():
        from onnxruntime.transformers.float16 import (  # noqa: PLC0415 (few exports need it)
            convert_float_to_float16,
        )

        names, _ = quantize.quantized_layers(graph.graph, float_ends=False)
        half: onnx.ModelProto = convert_float_to_float16(
            onnx.shape_inference.infer_shapes(graph),
            keep_io_types=True,
            node_block_list=[node.name for node in graph.graph.node if node.name not in names],
        )
    properties = {entry.key: entry.value for entry in graph.metadata_props} | {contract.PRECISION: "float16"}
    del half.metadata_props[:]
    onnx.helper.set_model_props(half, properties)
    half.graph.ClearField("value_info")
    content = bytes(half.SerializeToString())
    own = limits.model_copy(
        update={"max_label_flips": len(sample.paths) // 100, "max_probability_gap": FP16_GAP}
    )
    comparison = Comparison("float16, on a CPU (computed in float32)", own)
    answers = _answers(OnnxModel(content), sample)
    comparison.add(sample.paths, sample.probabilities, answers)
    kept = comparison.within_limits
    figures = comparison.figures() | {"kept": kept, "measured_on_gpu": False, "bytes": len(content)}
    info(f"float16 copy: {'kept' if kept else 'not kept'}; {_in_words(comparison)}")
    return content if kept else b"", figures


@contextlib.contextmanager
def _without_side_effects() -> Iterator[None]:
    """Restore sys.path, to which onnxruntime.transformers adds its own folder."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
