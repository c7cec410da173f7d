"""The model card: what a user of `model.onnx` must know, and nothing that was not measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core import files, templates


def write(path: Path, verification: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Write the card as Markdown.

    Args:
        path: the file.
        verification: content of verification.json.
        summary: content of evaluation's summary.json.
    """
    context = {"verification": verification, "data": summary}
    files.write_text(path, templates.render("convoy.export", "model_card.md.j2", context, {"cell": _cell}))


def _cell(text: str) -> str:
    """Keep a class name inside its table cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
