"""YAML that remembers its lines, so that an error can name one."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from convoy.core.errors import RequestError


class LocatedList(list[Any]):
    """Be a list that knows the line of each item, from 1."""

    lines: list[int]
    inside: tuple[str, ...] | None = (
        None  # as an argument of a block: the blocks around the line that gives it
    )


class LocatedDict(dict[str, Any]):
    """Be a mapping that knows the line of each key, from 1."""

    lines: dict[str, int]


def read(path: Path) -> LocatedDict:
    """Load a YAML mapping.

    Raises:
        RequestError: the file is not YAML, is no mapping, refers to itself, or has a key twice, naming file and line.
    """
    try:
        root = YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))
        if not isinstance(root, MappingNode):
            raise RequestError(f"{path} must hold `key: value` lines, such as `layers:` and a list below it.")
        content = _read(root, path, (), {})
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not valid YAML: it is no UTF-8 text ({error.reason})") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise RequestError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except YAMLError as error:  # a character that YAML does not have: no mark, several lines
        raise RequestError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise RequestError(f"{path}: lists and mappings stand too deep in each other. Use blocks.") from error
    if not isinstance(content, LocatedDict):
        raise TypeError("a mapping node makes a mapping")
    return content


def line_of(container: object, key: str | int) -> int:
    """Give the line of an item, 0 where the container was not read from a file."""
    if isinstance(container, LocatedList) and isinstance(key, int):
        return container.lines[key]
    if isinstance(container, LocatedDict) and isinstance(key, str):
        return container.lines.get(key, 0)
    return 0


def at(file: str, line: int) -> str:
    """Begin a message with its place; a spec that is no file has none, and line 0 is unknown."""
    if not file:
        return ""
    return f"{file}:{line}, " if line else f"{file}, "


def brief(value: object, depth: int = 2) -> str:
    """Write a value for a message, cut short: aliases of aliases would fill the memory."""
    most = 4
    if isinstance(value, Mapping):
        items = [
            f"{key}: {brief(item, depth - 1)}" for key, item in islice(value.items(), most if depth else 0)
        ]
        return f"{{{', '.join(items + ['…'] * (len(value) > len(items)))}}}"
    if isinstance(value, list | tuple):
        items = [brief(item, depth - 1) for item in islice(value, most if depth else 0)]
        return f"[{', '.join(items + ['…'] * (len(value) > len(items)))}]"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _read(node: Node, path: Path, inside: tuple[int, ...], done: dict[int, Any]) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Turn a node into Python values.

    `inside` holds the nodes on the way, which an alias may lead back to; `done` what was read of
    earlier ones: aliases of aliases would otherwise grow without bound.
    """
    line = node.start_mark.line + 1
    if id(node) in inside:
        raise RequestError(
            f"{path}:{line}: the alias here contains itself. Write the layers out, or use a block."
        )
    if id(node) not in done:
        done[id(node)] = _make(node, path, (*inside, id(node)), done)
    return done[id(node)]


def _make(node: Node, path: Path, inside: tuple[int, ...], done: dict[int, Any]) -> Any:  # noqa: ANN401 (as wide as YAML)
    if isinstance(node, SequenceNode):
        items = LocatedList(_read(item, path, inside, done) for item in node.value)
        items.lines = [item.start_mark.line + 1 for item in node.value]
        return items
    if isinstance(node, MappingNode):
        content = LocatedDict()
        content.lines = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise RequestError(f"{path}:{at}: a key must be one word, found a list or a mapping.")
            key = str(key_node.value)
            if key in content:
                raise RequestError(
                    f"{path}:{at}: `{key}` stands here and on line {content.lines[key]}. Keep one of them."
                )
            content[key] = _read(value_node, path, inside, done)
            content.lines[key] = at
        return content
    try:
        return YAML(typ="safe", pure=True).constructor.construct_object(node, deep=True)
    except (
        ValueError
    ) as error:  # text that its tag, written or resolved, does not allow, such as the date 2024-13-45
        raise RequestError(
            f"{path}:{node.start_mark.line + 1}: not valid YAML: {brief(node.value)}: {error}"
        ) from error
