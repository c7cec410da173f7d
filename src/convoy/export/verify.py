"""Prove that what is served is what was measured, in a process that never imports torch.

A graph that passes gets the name `model.onnx`; so a file of that name has been proven.
"""

import sys
from pathlib import Path
from typing import Any, cast

from convoy.core import contract, files
from convoy.core.dataset import Fit
from convoy.core.errors import VerificationError
from convoy.core.intervals import wilson
from convoy.export import checks, latency, machine, model_card
from convoy.export.comparison import Comparison
from convoy.export.measured import Measured
from convoy.export.onnx_model import OnnxModel
from convoy.export.settings import ExportParams
from convoy.images.resize import Geometry


def prove(deploy: Path, trained: Path, data: Path, evaluation: Path, params: ExportParams) -> dict[str, Any]:
    """Check `model.unverified.onnx` over the whole test split and rename it to `model.onnx`.

    Writes `verification.json` and `model_card.md` beside it. On failure there is no
    `model.onnx`, and the unproven graph stays to be looked at.

    Args:
        deploy: folder in which `graph.build` left the unproven graph.
        trained: folder that training wrote, timed in eager torch by another process.
        data: what was delivered.
        evaluation: folder that evaluation wrote.
        params: the limits.

    Returns:
        `{"deploy": {"accuracy": …, "label_flips": …, "max_probability_gap": …, "latency_ms_p50": …, …}}`.

    Raises:
        ProofError: naming the check that failed, its figures and the worst image.
    """
    _refuse_torch()
    unproven, proven = deploy / contract.UNVERIFIED, deploy / contract.VERIFIED
    if not unproven.is_file():
        raise VerificationError(
            f"{unproven} does not exist, so there is nothing to prove. Build it: dvc repro export"
        )
    for name in (contract.VERIFIED, contract.VERIFICATION, contract.MODEL_CARD):
        (deploy / name).unlink(missing_ok=True)
    served = OnnxModel(unproven)
    measured = Measured.load(evaluation)
    _refuse_other_classes(served, measured, unproven, evaluation)
    geometry = Geometry(
        int(served.properties[contract.IMAGE_PX]), cast("Fit", served.properties[contract.FIT])
    )

    whole, correct, sample = checks.from_files(served, data, measured, geometry, params)
    _insist(whole, served, unproven)
    batches = checks.in_batches(served, measured, sample, params)
    odd = checks.odd_sizes(served, geometry, params)
    for comparison in (*batches, odd):
        _insist(comparison, served, unproven)
    shift, control = checks.negative_control(unproven, measured, sample, params)
    timed = latency.measure(unproven, trained, geometry.image_px, params.latency_runs)
    _refuse_torch()

    low, high = wilson(correct, whole.images)
    verification = {
        "model": _identity(served, unproven),
        "accuracy": correct / whole.images,
        "accuracy_low": low,
        "accuracy_high": high,
        "checks": [comparison.figures() for comparison in (whole, *batches, odd)],
        "negative_control": checks.figures_of_control(shift, control),
        "latency": timed,
        "torch_imported": False,
        "versions": machine.versions(),
        "hardware": machine.hardware(),
    }
    files.write_json(deploy / contract.VERIFICATION, verification)
    model_card.write(deploy / contract.MODEL_CARD, verification, measured.summary)
    unproven.rename(proven)
    return {
        "deploy": {
            "accuracy": correct / whole.images,
            "label_flips": whole.flips,
            "max_probability_gap": max(comparison.gap for comparison in (whole, *batches, odd)),
            **timed["onnx"],
            **{f"eager_{name}": figure for name, figure in timed["eager"].items()},
            "size_mb": proven.stat().st_size / 1e6,
        }
    }


def _refuse_torch() -> None:
    """Keep the proof to what a server has: with torch in the process it would show less than it says."""
    if "torch" in sys.modules:
        raise VerificationError(
            "torch is imported in the process that proves the served graph, which must do without it. "
            "Run the proof by itself: python pipelines/export.py prove"
        )


def _refuse_other_classes(served: OnnxModel, measured: Measured, unproven: Path, evaluation: Path) -> None:
    if served.classes != measured.classes:
        raise VerificationError(
            f"{unproven} answers with the classes {', '.join(served.classes)}; {evaluation} measured "
            f"{', '.join(measured.classes)}. Bring both up to date: dvc repro"
        )


def _insist(comparison: Comparison, served: OnnxModel, unproven: Path) -> None:
    if not comparison.within:
        raise VerificationError(
            f"the exported graph does not answer as it was measured.\n{comparison.explain(served.classes)}\n"
            f"{unproven} stays to be looked at (convoy predict {unproven} IMAGE); there is no {contract.VERIFIED}. "
            "Measure and export once more with `dvc repro --force evaluate export`; if it stays, look for a layer "
            "that computes something else in ONNX, or raise the limit in params.yaml if the figures are good enough."
        )


def _identity(served: OnnxModel, unproven: Path) -> dict[str, Any]:
    """Say which file was proven and what it comes from."""
    return {
        "file": contract.VERIFIED,
        "sha256": files.sha256(unproven),
        "bytes": unproven.stat().st_size,
        "input": served.properties[contract.INPUT],
        "version": served.properties[contract.VERSION],
        "identity": {key: served.properties[f"convoy.{key}"] for key in contract.IDENTITY},
    }
