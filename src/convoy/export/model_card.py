"""The model card: what someone who finds `model.onnx` must know, and nothing that was not measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from convoy.core import files


def write(path: Path, verification: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Write the card as Markdown.

    Args:
        path: the file.
        verification: as the proof found it.
        summary: what evaluation knows of data and accuracy.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convoy.export", "."),
        autoescape=False,  # noqa: S701 (Markdown for people and repositories, rendered by whoever shows it)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    page = environment.get_template("model_card.md.j2").render(proof=verification, data=summary)
    files.write_text(path, page)


def _cell(text: str) -> str:
    """Keep a class name inside its table cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
