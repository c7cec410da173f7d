"""Write values into params.yaml so that everything else in it stays as it was typed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from convoy.core import files, params, yaml
from convoy.core.errors import RequestError
from convoy.sweep.space import at, replaced, written


def apply(values: Mapping[str, Any], path: Path = params.PARAMS_FILE) -> list[str]:
    """Replace values in the file's own text; comments keep their column where the new value leaves room.

    Args:
        values: by flat key, such as `train.lr`.
        path: the params file.

    Returns:
        A line for each value that changed.

    Raises:
        RequestError: the file cannot be written, or says another thing than it should afterwards.
    """
    text = path.read_text(encoding="utf-8")
    content = json.loads(json.dumps(yaml.read(path)))  # what an anchor shares is two values from here on
    root = YAML(typ="safe", pure=True).compose(text)
    changes = []
    places = [(_find(root, key.split(".")), key, value) for key, value in values.items()]
    for node, key, value in sorted(places, key=lambda place: place[0].start_mark.index, reverse=True):
        start, end = node.start_mark.index, node.end_mark.index
        old, new = text[start:end], written(value)
        if at(content, key) == value:
            continue
        if "\n" in old:
            raise RequestError(f"{path} writes {key} over several lines. Type its value yourself: {new}")
        changes.append(f"{key}: {old} → {new}")
        text = text[:start] + new + _padded(text[end:], len(new) - len(old))
    if yaml.load(text) != replaced(content, values):
        raise RequestError(
            f"{path} is written in a way that hides where its values stand (anchors, perhaps). Type them yourself."
        )
    try:
        files.write_text(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}. Nothing was changed.") from error
    return list(reversed(changes))


def _find(node: Node | None, parts: list[str]) -> Node:
    """Find the node of a value."""
    for part in parts:
        inside = {key.value: value for key, value in node.value} if isinstance(node, MappingNode) else {}
        if part not in inside:
            raise RequestError(
                f"{params.PARAMS_FILE} has no {'.'.join(parts)} any more. Restore it: git checkout {params.PARAMS_FILE}"
            )
        node = inside[part]
    return cast("Node", node)


def _padded(rest: str, longer: int) -> str:
    """Move the comment behind a value back to its column, leaving one space at least."""
    line, mark, after = rest.partition("\n")
    bare = line.lstrip(" ")
    if not bare.startswith("#"):
        return rest
    spaces = max(1, len(line) - len(bare) - longer)
    return " " * spaces + bare + mark + after
