"""Print what a finished pipeline came to: the figures, and where to look next."""

from pathlib import Path

from convoy.core.files import read_json
from convoy.energy.meter import spoken

METRICS = Path("build/metrics")


def summary() -> str:
    """State accuracy, flips and latency of the served graph, the energy of it all, and where report, model and UI are."""
    test = read_json(METRICS / "evaluate.json")["test"]
    exported = read_json(METRICS / "export.json")
    deploy, energy = exported["deploy"], exported.get("energy", {})
    lines = {
        "served accuracy": f"{deploy['accuracy']:.2%} of {test['images']:,} test images, 95 % interval "
        f"{test['accuracy_low']:.2%} to {test['accuracy_high']:.2%}",
        "proof": f"{deploy['label_flips']} label flips, "
        f"largest probability gap {deploy['max_probability_gap']:.1e}",
        "latency": f"{deploy['latency_ms_p50']:.2f} ms (p95 {deploy['latency_ms_p95']:.2f}), "
        f"eager torch {deploy['eager_latency_ms_p50']:.2f}",
        "energy": f"{spoken(energy['kwh'], energy['co2_kg'])} ({energy['how']})"
        if "kwh" in energy
        else "not metered",
        "report": "build/evaluation/report.html",
        "model": "build/deploy/model.onnx (model_card.md beside it)",
        "compare runs": "make ui",
    }
    return "\n".join(f"{name:<17}{text}" for name, text in lines.items())
