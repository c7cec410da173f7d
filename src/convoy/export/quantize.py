"""Make an INT8 copy of the verified graph, if it is fast and accurate enough: static QDQ, calibrated on training images.

A search over per-tensor or per-channel weights, the calibration method, and whether the first and last layer stay in FP32.
Validation images choose; `copies` then measures the chosen graph on the test split. Resizing, normalisation, temperature and
softmax stay in float32. Nothing here imports torch.
"""

import contextlib
import io
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx

from convoy.core import console, contract
from convoy.core.dataset import Dataset
from convoy.core.shards import Reader
from convoy.export.onnx_model import OnnxModel
from convoy.images.decode import decode
from convoy.images.resize import Geometry

CALIBRATION_IMAGES = 128
"""Training images that the ranges of activations are taken from."""

VALIDATION_IMAGES = 1000
"""Most validation images that compare the candidates of the search."""

LEAST_SPEEDUP = 1.3
"""Least ratio of the times of FP32 and INT8 for a single image."""

BATCH_PIXELS = 2**19
"""Most pixels in a batch of calibration images: the calibration holds all activations of a batch."""

WARM_UP, ROUNDS = 3, 30
"""Untimed and timed calls; FP32 and INT8 take turns, so that other work of the machine slows both."""

PERCENTILE = 99.99

WEIGHTED = ("Conv", "Gemm", "MatMul")

Method = Literal["minmax", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Recipe:
    """Hold one choice of the search.

    Attributes:
        method: which ranges of activations are represented: all, or 99.99 % of the values.
        per_channel: whether each filter of a layer has a scale of its own.
        float_ends: whether the first and the last layer stay in float32.
    """

    method: Method
    per_channel: bool
    float_ends: bool

    def __str__(self) -> str:
        """Describe the choice in words."""
        ends = "first and last layer in FP32" if self.float_ends else "all layers in INT8"
        return f"{'per channel' if self.per_channel else 'per tensor'}, {self.method}, {ends}"


@dataclass(frozen=True)
class Tried:
    """Hold what a choice reached: validation images classified correctly, and those whose class differs from FP32's."""

    recipe: Recipe
    correct: int
    flips: int


@dataclass(frozen=True)
class Search:
    """Hold the outcome of a search.

    Attributes:
        graph: serialized INT8 graph that validation images chose; empty where none is fast enough.
        fp32_ms: median time of FP32 for one image, in milliseconds.
        int8_ms: median time of INT8: of the chosen graph, or of the fastest where none is fast enough.
        tried: choices in the order tried.
        chosen: that of `graph`; None where none is fast enough.
        images: number of validation images.
        fp32_correct: of them classified correctly by FP32.
    """

    graph: bytes
    fp32_ms: float
    int8_ms: float
    tried: tuple[Tried, ...]
    chosen: Recipe | None
    images: int
    fp32_correct: int

    @property
    def speedup(self) -> float:
        """Return by how much INT8 is faster."""
        return self.fp32_ms / self.int8_ms


RECIPES = tuple(
    Recipe(method, per_channel, float_ends)
    for float_ends in (False, True)
    for method in METHODS
    for per_channel in (False, True)
)
"""In the order of the search: the fastest first, since layers in FP32 cost most of what INT8 gains."""


def search(path: Path, dataset: Dataset, geometry: Geometry, max_drop: float) -> Search:
    """Try quantization settings in turn, until one is accurate enough on validation images.

    That is one that loses at most half of `max_drop` on them, since on other images it may lose more. Where none does, the
    most accurate is chosen. The first, which is the fastest, is timed at once: if it is not 1.3 times as fast, none is.

    Args:
        path: verified FP32 graph.
        dataset: whose training images calibrate and whose validation images choose.
        geometry: of the graph.
        max_drop: largest loss of accuracy, 0..1.
    """
    graph, fp32 = onnx.load(path), path.read_bytes()
    val_u8 = dataset.images("val")[:VALIDATION_IMAGES]
    labels = dataset.labels("val")[:VALIDATION_IMAGES]
    expected = _classes(OnnxModel(fp32), val_u8, geometry)
    least = (expected == labels).sum() - max_drop / 2 * len(labels)
    tried: list[Tried] = []
    graphs: dict[Recipe, bytes] = {}
    ranges: dict[Method, Any] = {}
    fp32_ms = int8_ms = 0.0
    with tempfile.TemporaryDirectory() as scratch, console.slow("quantize to INT8"):
        for recipe in RECIPES:
            if recipe.method not in ranges:
                batches = _batches(calibration_images(dataset), geometry)
                ranges[recipe.method] = _calibrate(path, recipe.method, batches, Path(scratch))
            graphs[recipe] = _quantized(graph, recipe, ranges[recipe.method])
            if not tried:
                fp32_ms, int8_ms = time_by_turns(fp32, graphs[recipe], geometry.image_px)
                if fp32_ms < LEAST_SPEEDUP * int8_ms:
                    break
            answered = _classes(OnnxModel(graphs[recipe]), val_u8, geometry)
            tried.append(Tried(recipe, int((answered == labels).sum()), int((answered != expected).sum())))
            if tried[-1].correct >= least:
                break
    chosen = max(tried, key=lambda each: each.correct).recipe if tried else None  # the first of equal ones
    if chosen and chosen != RECIPES[0]:
        fp32_ms, int8_ms = time_by_turns(fp32, graphs[chosen], geometry.image_px)
    is_fast = chosen is not None and fp32_ms >= LEAST_SPEEDUP * int8_ms
    return Search(
        graph=graphs[chosen] if chosen and is_fast else b"",
        fp32_ms=fp32_ms,
        int8_ms=int8_ms,
        tried=tuple(tried),
        chosen=chosen if is_fast else None,
        images=len(labels),
        fp32_correct=int((expected == labels).sum()),
    )


def time_by_turns(first: bytes, second: bytes, image_px: int) -> tuple[float, float]:
    """Measure the median milliseconds of two graphs for one image on one thread, in turns."""
    image_u8 = np.random.default_rng(0).integers(0, 256, (1, image_px, image_px, 3), dtype=np.uint8)
    models = OnnxModel(first, threads=1), OnnxModel(second, threads=1)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM_UP + ROUNDS):
        for model, taken in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model(image_u8)
            if turn >= WARM_UP:
                taken.append(time.perf_counter() - start)
    return float(np.median(seconds[0])) * 1e3, float(np.median(seconds[1])) * 1e3


def calibration_images(dataset: Dataset) -> Sequence[npt.NDArray[np.uint8]]:
    """Return training images evenly spread over the split, as the network sees them or larger."""
    count = dataset.splits["train"][1] - dataset.splits["train"][0]
    rows = np.unique(np.linspace(0, count - 1, min(count, CALIBRATION_IMAGES)).astype(int)).tolist()
    if dataset.store == "encoded":
        encoded = Reader(dataset.folder)
        return [
            decode(encoded[row], background=dataset.background, max_truncated=1.0).image_u8 for row in rows
        ]
    images_u8 = dataset.images("train")
    return [np.asarray(images_u8[row]) for row in rows]


def quantized_layers(graph: onnx.GraphProto, *, float_ends: bool) -> tuple[list[str], list[str]]:
    """Name the nodes that are quantized, and their types: from the first to the last layer with weights."""
    weighted = [n for n, node in enumerate(graph.node) if node.op_type in WEIGHTED]
    first, last = weighted[0], weighted[-1]
    if float_ends and len(weighted) > 2:
        first, last = first + 1, last - 1
    nodes = graph.node[first : last + 1]
    return [node.name for node in nodes], sorted({node.op_type for node in nodes})


def _calibrate(
    path: Path,
    method: Method,
    batches: Iterator[npt.NDArray[np.uint8]],
    scratch: Path,
) -> Any:  # noqa: ANN401 (a type of onnxruntime's)
    """Record the ranges of all activations."""
    from onnxruntime.quantization import (  # noqa: PLC0415 (few exports need it)
        CalibrationMethod,
        create_calibrator,
    )

    copy = scratch / f"{method}.onnx"  # onnxruntime writes files of its own beside it
    copy.write_bytes(path.read_bytes())
    _, types = quantized_layers(onnx.load(path).graph, float_ends=False)
    kind, options = CalibrationMethod.MinMax, {}
    if method == "percentile":
        kind, options = CalibrationMethod.Percentile, {"symmetric": False, "percentile": PERCENTILE}
    with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints each step
        calibrator = create_calibrator(
            copy,
            types,
            augmented_model_path=str(scratch / f"{method}-augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        for images_u8 in batches:
            calibrator.collect_data(_Batch(images_u8))
        return calibrator.compute_data()


class _Batch:
    """Give one batch, once, as onnxruntime's CalibrationDataReader does."""

    def __init__(self, images_u8: npt.NDArray[np.uint8]) -> None:
        self._left = [{contract.IMAGE: images_u8}]

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """Return the inputs of the graph; None at the end."""
        return self._left.pop() if self._left else None


def _quantized(graph: onnx.ModelProto, recipe: Recipe, ranges: Any) -> bytes:  # noqa: ANN401 (as above)
    """Insert QuantizeLinear and DequantizeLinear around the layers; the file keeps inputs, outputs and metadata."""
    from onnxruntime.quantization import QDQQuantizer, QuantType  # noqa: PLC0415 (as above)

    model = onnx.ModelProto()
    model.CopyFrom(onnx.shape_inference.infer_shapes(graph))
    names, types = quantized_layers(model.graph, float_ends=recipe.float_ends)
    is_arm = platform.machine().lower() in {"arm64", "aarch64"}
    quantizer = QDQQuantizer(
        model,
        per_channel=recipe.per_channel,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if is_arm else QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=types,
        extra_options={},
    )
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: onnx.ModelProto = quantizer.model.model
    made.producer_name, made.producer_version = graph.producer_name, graph.producer_version
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    properties[contract.PRECISION] = f"int8 ({recipe})"
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, properties)
    made.graph.ClearField("value_info")
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _batches(
    images_u8: Sequence[npt.NDArray[np.uint8]], geometry: Geometry
) -> Iterator[npt.NDArray[np.uint8]]:
    """Give images as the network sees them, in batches for the graph."""
    squares_u8 = np.stack([geometry(image_u8) for image_u8 in images_u8])
    size = max(1, BATCH_PIXELS // geometry.image_px**2)
    for start in range(0, len(squares_u8), size):
        yield geometry.uncropped(squares_u8[start : start + size])


def _classes(
    model: OnnxModel, squares_u8: npt.NDArray[np.uint8], geometry: Geometry
) -> npt.NDArray[np.int64]:
    """Predict the class numbers of (n, P, P, 3) packed images."""
    parts = [
        model(geometry.uncropped(np.asarray(squares_u8[start : start + 32]))).argmax(axis=1)
        for start in range(0, len(squares_u8), 32)
    ]
    return np.concatenate(parts)
