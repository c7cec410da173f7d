"""The one YAML reader and writer: YAML 1.2 by ruamel.yaml, as DVC reads and writes params.yaml and dvc.lock."""

import copy
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

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
