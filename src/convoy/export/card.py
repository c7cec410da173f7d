"""Write what describes a verified model: the model card for people and model hubs, and the bill of materials for programs.

Both state known facts only: what was measured, what params.yaml states, and what went into the model.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core import contract, escaping, files, templates
from convoy.export import bom
from convoy.export.comparison import SUMMARY
from convoy.export.settings import ExportParams

HEADER = "---\n"
"""Begins and ends the YAML that model hubs read."""


def write(deploy: Path, evaluation: Path, params: ExportParams, energy: Mapping[str, Any] | None) -> None:
    """Write model_card.md and bom.json from verification.json and the evaluation's summary.json.

    Args:
        deploy: folder of the model.
        evaluation: folder that evaluation wrote.
        params: states the licence.
        energy: `kwh`, `co2_kg` and `how` of the whole run; None or without them where it is unknown.
    """
    verification = files.read_json(deploy / contract.VERIFICATION)
    summary = {"split": "test"} | files.read_json(evaluation / SUMMARY)
    known = energy if energy and "kwh" in energy else None
    licence = None if params.licence == "unknown" else params.licence
    files.write_text(deploy / contract.MODEL_CARD, render(verification, summary, licence, known))
    files.write_json(deploy / contract.BOM, bom.make(verification, summary, licence, known))


def render(
    verification: Mapping[str, Any],
    data: Mapping[str, Any],
    licence: str | None = None,
    energy: Mapping[str, Any] | None = None,
) -> str:
    """Render the model card; no name in it is markup."""
    context = {"verification": verification, "data": data, "licence": licence, "energy": energy}
    filters: dict[str, templates.Filter] = {
        "code": escaping.code,
        "prose": escaping.prose,
        "yaml": _quoted,
    }
    return templates.render("convoy.export", "model_card.md.j2", context, filters)


def _quoted(text: str) -> str:
    """Write text as a YAML string in which nothing is markup, for readers that take the header for Markdown."""
    inert = re.sub(r"[^A-Za-z0-9 _-]", lambda match: f"\\U{ord(match[0]):08x}", text)
    return f'"{inert}"'


def without_header(card: str) -> str:
    """Remove the YAML at the beginning, for readers that would show it as text."""
    if not card.startswith(HEADER):
        return card
    return card.partition(f"\n{HEADER}")[2].lstrip("\n")
