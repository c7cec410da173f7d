"""What the stages of a run have used together."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convoy.core import files
from convoy.core.console import info
from convoy.energy.meter import rounded

STAGES = ("prepare", "train", "evaluate", "export")


def with_total(metrics: Path, last: dict[str, Any]) -> dict[str, Any]:
    """Add the run's `kwh`, `co2_kg` and `how` to the energy figures of its last stage.

    A stage that came from the cache counts with what it used when it ran: the sum is what it
    took to make what lies in `build/`, not what the latest `dvc repro` used.

    Args:
        metrics: folder of the stages' metrics files.
        last: what `Meter.result` gave for the last stage; {} where it was not metered.

    Returns:
        `last`, with the sum beside the stage's own figures where every stage has its own; said if not.
    """
    if not last:
        return {}
    figures: dict[str, Any] = dict(last["energy"])
    for name in STAGES[:-1]:
        path = metrics / f"{name}.json"
        figures |= files.read_json(path).get("energy", {}) if path.exists() else {}
    absent = [name for name in STAGES if f"{name}_kwh" not in figures]
    if absent:
        info(f"Energy of the run is left out: {metrics}/{absent[0]}.json has none.")
        return last
    total = {
        "kwh": rounded(sum(figures[f"{name}_kwh"] for name in STAGES)),
        "co2_kg": rounded(sum(figures[f"{name}_co2_kg"] for name in STAGES)),
        "how": together(figures[f"{name}_how"] for name in STAGES),
    }
    return {"energy": last["energy"] | total}


def together(words: Iterable[str]) -> str:
    """Join the stages' words: one that all share, else partly measured."""
    found = set(words)
    return found.pop() if len(found) == 1 else "partly measured"
