"""The one YAML reader and writer: YAML 1.2 by ruamel.yaml, as DVC reads and writes params.yaml and dvc.lock."""

import copy
import io
import json
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node

from convoy.core import files
from convoy.core.errors import RequestError


def load(text: str, name: str = "YAML text") -> Any:  # noqa: ANN401 (as wide as YAML)
    """Parse a YAML document into plain Python values.

    Args:
        text: the document.
        name: the file that it comes from, for messages.

    Raises:
        RequestError: naming file and line of what is not valid YAML, or of a key that occurs twice.
    """
    return copy.deepcopy(_parse(text, name))  # callers may change it


def read(path: Path) -> dict[str, Any]:
    """Load a YAML file that holds a mapping.

    Raises:
        RequestError: the file does not exist, is not UTF-8 or valid YAML, or holds no mapping.
    """
    try:
        content = load(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise RequestError(
            f"{path} does not exist in {Path.cwd()}. Change to the repository's root and try again."
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} must hold `key: value` lines; it holds {type(content).__name__}.")
    return content


def dump(content: Any, *, flow: bool = False) -> str:  # noqa: ANN401 (as wide as YAML)
    """Write plain values as YAML, keys in their order: a document in block style, or `flow`: one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = flow
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment] # declared None, read as a flag
    writer.width = 10_000
    stream = io.StringIO()
    writer.dump(content, stream)
    text = stream.getvalue()
    return text.removesuffix("...\n").strip() if flow else text


def inline(value: Any) -> str:  # noqa: ANN401 (as wide as YAML)
    """Write a value on one line as a person would type it: 0.00001, not 1e-05."""
    if isinstance(value, float):
        text = f"{Decimal(repr(value)):f}"
        return text if "." in text else f"{text}.0"
    return dump(value, flow=True)


def get(content: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Look up a flat key, such as `train.lr`, in nested mappings."""
    value: Any = content
    for part in key.split("."):
        value = value[part]
    return value


def replaced(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested mappings with other values under some flat keys."""
    changed = json.loads(json.dumps(content, default=str))  # a deep copy that shares nothing, as anchors do
    for key, value in values.items():
        parent, _, last = key.rpartition(".")
        (get(changed, parent) if parent else changed)[last] = value
    return dict(changed)


def update(path: Path, values: Mapping[str, Any]) -> list[str]:
    """Replace values in the text of a YAML file; all else, comments and their columns included, stays as typed.

    ruamel's own round trip would lay out anew what a person aligned, indented or spelled differently.

    Args:
        path: a file that holds a mapping.
        values: by flat key, such as `train.lr`.

    Returns:
        A line `key: old → new` for each value that changed, in the order of the file.

    Raises:
        RequestError: a key is missing, the value cannot be replaced in place, or the file cannot be written.
    """
    content = read(path)
    text = path.read_bytes().decode()  # keeps CRLF
    root = YAML(typ="safe", pure=True).compose(text)
    nodes = [(_node(path, root, key), key) for key in values]
    changes: list[str] = []
    for node, key in sorted(nodes, key=lambda pair: pair[0].start_mark.index, reverse=True):
        if get(content, key) == values[key]:
            continue
        start, end = node.start_mark.index, node.end_mark.index
        old, new = text[start:end], inline(values[key])
        if "\n" in old:
            raise RequestError(f"{path} spreads {key} over several lines. Edit it by hand: {key}: {new}")
        changes.insert(0, f"{key}: {old} → {new}")
        text = text[:start] + new + _aligned(text[end:], len(new) - len(old))
    if load(text) != replaced(content, values):
        lines = ", ".join(f"{key}: {inline(value)}" for key, value in values.items())
        raise RequestError(
            f"{path} shares values by anchors or has another layout that cannot be edited. Edit it by hand: {lines}"
        )
    try:
        if changes:
            files.write_text(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}. Nothing was changed.") from error
    return changes


def _node(path: Path, node: Node | None, key: str) -> Node:
    """Find the node of a flat key's value."""
    for part in key.split("."):
        members = {name.value: value for name, value in node.value} if isinstance(node, MappingNode) else {}
        if part not in members:
            raise RequestError(f"{path} has no key {key}. Restore it: git checkout {path}")
        node = members[part]
    if node is None:  # an empty document; `read` refuses it before
        raise RequestError(f"{path} is empty. Restore it: git checkout {path}")
    return node


def _aligned(rest: str, longer: int) -> str:
    """Move the comment after a value back to its column, leaving at least one space."""
    line, newline, below = rest.partition("\n")
    comment = line.lstrip(" ")
    if not comment.startswith("#"):
        return rest
    return " " * max(1, len(line) - len(comment) - longer) + comment + newline + below


@lru_cache(maxsize=32)
def _parse(text: str, name: str) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Parse; a stage reads params.yaml once per section, so the last documents are kept."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        key = str(error.problem).partition("found duplicate key ")[2].partition(" with value")[0]
        raise RequestError(f"{name}{line}: the key {key} occurs twice. Keep one of them.") from error
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        hint = " Indent with spaces, not tabs." if "\\t" in str(error.problem) else ""
        raise RequestError(f"{name}{line} is not valid YAML: {error.problem}.{hint}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{name} is not valid YAML: {str(error).splitlines()[0]}") from error
