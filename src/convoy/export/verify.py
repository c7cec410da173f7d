"""Verify that the exported graph predicts what was measured, in a process that never imports torch.

A graph that passes is renamed to `model.onnx`, so every file of that name has been verified.

n images of H x W pixels; P, the side of the square that the network sees; K classes.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import numpy_helper

from convoy.core import contract, files
from convoy.core.dataset import Fit
from convoy.core.errors import VerificationError
from convoy.core.intervals import wilson
from convoy.export import card, copies, latency
from convoy.export.comparison import (
    Comparison,
    ReferencePredictions,
    Sample,
    compare_batches,
    compare_from_files,
    compare_odd_sizes,
    compare_sample,
)
from convoy.export.copies import Measured
from convoy.export.onnx_model import OnnxModel
from convoy.export.settings import ExportParams
from convoy.images.resize import Geometry

SHIFTS = (1 / 255, 0.1, 1.0)
"""Errors of the negative control's mean, in 0..1 units: from one step of an 8-bit pixel to the whole range.
The smallest error that the comparison detects is its sensitivity."""


def verify(deploy: Path, data: Path, dataset: Path, evaluation: Path, params: ExportParams) -> dict[str, Any]:
    """Check `model.unverified.onnx` over all images that evaluation measured, and rename it to `model.onnx`.

    Writes `verification.json`, `model_card.md` and golden images beside it, and the copies that params.yaml enables. On
    failure there is no `model.onnx`, and the unverified graph stays for inspection.

    Args:
        deploy: folder of the graph.
        data: the delivery.
        dataset: packed images, which calibrate an INT8 copy; not read without one.
        evaluation: what was measured.
        params: limits, and which copies are made.

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
    earlier = (
        contract.VERIFIED,
        contract.VERIFICATION,
        contract.MODEL_CARD,
        contract.BOM,
        contract.SIGNATURE,
    )
    for name in (*earlier, *contract.COPIES):
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

    whole, right, sample, golden = compare_from_files(
        model, data, reference, geometry, params, golden_gap=params.max_probability_gap
    )
    comparisons = [whole, *compare_batches(model, sample, params), compare_odd_sizes(model, geometry, params)]
    _refuse_differences(comparisons, unverified, model)
    shift, control = negative_control(unverified, sample, params)
    measured = Measured(reference, right, sample, golden, tuple(comparisons))
    int8, made = copies.make(deploy, dataset, data, measured, params)
    served = deploy / contract.INT8 if int8 else unverified
    result = int8 or measured
    timed = latency.measure(served, geometry.image_px, params.latency_runs)
    _refuse_torch()

    checks = [*result.checks, *comparisons] if int8 else comparisons
    correct, images = int(result.right.sum()), len(result.right)
    low, high = wilson(correct, images)
    verification = {
        "model": {
            "file": contract.VERIFIED,
            "sha256": files.sha256(served),
            "bytes": served.stat().st_size,
            "precision": "int8" if int8 else "fp32",
            "input": model.properties[contract.INPUT],
            "version": model.properties[contract.VERSION],
            "identity": {key: model.properties[f"convoy.{key}"] for key in contract.IDENTITY},
        },
        "split": reference.split,
        "accuracy": correct / images,
        "accuracy_low": low,
        "accuracy_high": high,
        "checks": [comparison.figures() for comparison in checks],
        "negative_control": control.figures() | {"mean_shift": shift, "caught": True},
        "latency": timed,
        "copies": made,
        "torch_imported": False,
        "versions": latency.versions(),
        "hardware": latency.hardware(),
    }
    result.golden.write(deploy / contract.GOLDEN, model.classes, model.background)
    files.write_json(deploy / contract.VERIFICATION, verification)
    card.write(deploy, evaluation, params, None)
    if int8:
        unverified.rename(deploy / contract.FP32)
    verified = served.rename(deploy / contract.VERIFIED)
    return {
        "deploy": {
            "accuracy" if reference.split == "test" else "accuracy_on_val": correct / images,
            "label_flips": checks[0].flips,
            "max_probability_gap": max(comparison.gap for comparison in checks),
            **timed["onnx"],
            **{f"eager_{name}": figure for name, figure in timed["eager"].items()},
            "size_mb": verified.stat().st_size / 1e6,
            **{f"int8_{name}": made["int8"][name] for name in ("speedup",) if name in made.get("int8", {})},
        }
    }


def _refuse_differences(comparisons: Sequence[Comparison], unverified: Path, model: OnnxModel) -> None:
    """Refuse a graph that exceeds a limit.

    Raises:
        VerificationError: with the figures of the comparison, and what to do.
    """
    for comparison in comparisons:
        if not comparison.within_limits:
            raise VerificationError(
                f"the exported graph does not reproduce the measured predictions.\n{comparison.explain(model.classes)}\n"
                f"{unverified} is kept for inspection (convoy predict IMAGE --model {unverified}); there is no {contract.VERIFIED}. "
                "Measure and export again: `dvc repro --force evaluate export`. If it fails again, look for a layer "
                "that computes something else in ONNX, or raise the limit in params.yaml if the figures are acceptable."
            )


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
        comparison = compare_sample(f"negative control: mean off by {shift:.4f}", wrong, sample, limits)
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


def _refuse_torch() -> None:
    """Keep verification to what a server has: with torch in the process it would show less than it claims."""
    if "torch" in sys.modules:
        raise VerificationError(
            "torch is imported in the process that verifies the exported graph, which must run without it. "
            "Verify in a process of its own: python pipelines/export.py verify"
        )
