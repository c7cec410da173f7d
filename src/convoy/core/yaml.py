"""The one YAML reader and writer: YAML 1.2 by ruamel.yaml, as DVC reads and writes params.yaml and dvc.lock."""

import copy
import errno
import io
import json
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from convoy.core import files
from convoy.core.errors import RequestError


class LocatedList(list[Any]):
    """A list that carries the line of each item in its file, from 1."""

    lines: list[int]


class LocatedDict(dict[str, Any]):
    """A mapping that carries the line of each key in its file, from 1."""

    lines: dict[str, int]


def line_of(container: object, key: str | int) -> int:
    """Return the line of an item; 0 where the container was not read from a file."""
    if isinstance(container, LocatedList) and isinstance(key, int):
        return container.lines[key]
    return container.lines.get(str(key), 0) if isinstance(container, LocatedDict) else 0


def load(text: str, name: str = "YAML text") -> Any:  # noqa: ANN401 (as wide as YAML)
    """Parse a YAML document into plain Python values.

    Args:
        text: the document.
        name: the file that it comes from, for messages.

    Raises:
        RequestError: naming file and line of what is not valid YAML, or of a key that occurs twice.
    """
    return copy.deepcopy(_parse_plain(text, name))  # callers may change it


def read(path: Path) -> dict[str, Any]:
    """Load a YAML file that holds a mapping.

    Raises:
        RequestError: the file does not exist, is not UTF-8 or valid YAML, or holds no mapping.
    """
    return _mapping(path, load)


def read_located(path: Path) -> LocatedDict:
    """Load a YAML file like `read`, with the line of every key and list item; keys become strings.

    Raises:
        RequestError: as `read`, and for an alias that contains itself.
    """
    content = _mapping(path, partial(_parse, constructor=_LocatedConstructor))
    if not isinstance(content, LocatedDict):
        raise TypeError("_LocatedConstructor makes LocatedDicts")
    return content


def _mapping(path: Path, parse: Callable[[str, str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise RequestError(
            f"{path} does not exist in {Path.cwd()}. Change to the repository's root and try again."
        ) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise RequestError(f"{path} is no file. Move it away, and restore it: git checkout {path}") from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        raise RequestError(
            f"{path}:{before.count(10) + 1} is not UTF-8 text: byte 0x{error.object[error.start]:02x} after "
            f"`{before.rpartition(bytes([10]))[2].decode(errors='replace')[-40:]}`. Type that character again in an editor that saves "
            "UTF-8, or convert a file that is Latin-1: "
            f"iconv -f ISO-8859-1 -t UTF-8 {path} > utf-8.yaml && mv utf-8.yaml {path}"
        ) from error
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "nothing" if content is None else "a single value"
        raise RequestError(f"{path} must hold `key: value` lines; it holds {kind}.")
    return content


def dump(content: Any, *, flow: bool = False) -> str:  # noqa: ANN401 (as wide as YAML)
    """Write plain values as YAML, keys in their order: a document in block style, or `flow`: one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = flow
    # [{a: 1}] instead of [a: 1], which is the same, but `dvc exp run -S` does not read it
    writer.brace_single_entry_mapping_in_flow_sequence = True
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
            target, mode = path.resolve(), path.stat().st_mode  # a link stays one
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            files.write_text(target, text)
            target.chmod(mode)
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


class _Constructor(SafeConstructor):
    """Report a duplicate key without its values, which may be aliases of aliases and fill the memory."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:  # noqa: ANN401, ARG002 (as ruamel declares it)
        if key in mapping:
            raise DuplicateKeyError(problem=f"the key `{key}` occurs twice", problem_mark=key_node.start_mark)
        return True


class _LocatedConstructor(_Constructor):
    """Construct lists and mappings with their lines."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 (as ruamel declares it)
        if node in self.recursive_objects:
            raise ConstructorError(problem="an alias contains itself", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:  # text that does not fit its tag, such as the date 2024-13-45
            raise ConstructorError(problem=str(error), problem_mark=node.start_mark) from error

    def located_list(self, node: SequenceNode) -> LocatedList:
        items = LocatedList(self.construct_object(item, deep=True) for item in node.value)
        items.lines = [_line(item) for item in node.value]
        return items

    def located_dict(self, node: MappingNode) -> LocatedDict:
        plain = self.construct_mapping(node, deep=True)
        content = LocatedDict({str(key): value for key, value in plain.items()})
        content.lines = {str(self.construct_object(key)): _line(key) for key, _ in node.value}
        return content


_LocatedConstructor.add_constructor("tag:yaml.org,2002:seq", _LocatedConstructor.located_list)
_LocatedConstructor.add_constructor("tag:yaml.org,2002:map", _LocatedConstructor.located_dict)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


@lru_cache(maxsize=32)
def _parse_plain(text: str, name: str) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Parse; a stage reads params.yaml once per section, so the last documents are kept."""
    return _parse(text, name, _Constructor)


def _parse(text: str, name: str, constructor: type[SafeConstructor]) -> Any:  # noqa: ANN401 (as wide as YAML)
    parser = YAML(typ="safe", pure=True)
    parser.Constructor = constructor
    try:
        return parser.load(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        if isinstance(error, DuplicateKeyError):
            raise RequestError(f"{name}{line}: {error.problem}. Keep one of them.") from error
        hint = " Indent with spaces, not tabs." if "\\t" in str(error.problem) else ""
        raise RequestError(f"{name}{line} is not valid YAML: {error.problem}.{hint}") from error
    except RecursionError as error:
        raise RequestError(f"{name} is not valid YAML: lists and mappings are nested too deeply.") from error
    except (YAMLError, ValueError) as error:
        raise RequestError(f"{name} is not valid YAML: {str(error).splitlines()[0]}") from error
