"""Strict reading of params.yaml: every key known, every value in range, nothing defaulted.

params.yaml holds each value once, so a section's class declares types, ranges and descriptions and never a
default. The class lives beside the code that it configures; a stage reads only the sections that dvc.yaml lists.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from convoy.core import yaml
from convoy.core.errors import RequestError

PARAMS_FILE = Path("params.yaml")


class Section(BaseModel):
    """Describe one section of params.yaml: types, ranges, and no key beyond those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    other_names: ClassVar[Mapping[str, str]] = {}
    """Keys of other tools, and the key that does the same here."""


class TopLevel(Section):
    """The one value of params.yaml that belongs to no section."""

    seed: Annotated[
        int,
        Field(ge=0, lt=2**32, description="starting weights, order of images, augmentation"),
    ]  # numpy, torch and Lightning all accept this range


S = TypeVar("S", bound=Section)


_held: Mapping[str, Any] | None = None


@contextmanager
def held(content: Mapping[str, Any]) -> Iterator[None]:
    """Have `read` return this content of params.yaml while the block runs, whatever is edited meanwhile."""
    global _held  # noqa: PLW0603 (a process is one stage)
    _held = content
    try:
        yield
    finally:
        _held = None


def read(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Read params.yaml; in a stage, as it was when the stage began.

    Raises:
        RequestError: the file does not exist or is not valid.
    """
    if _held is not None and path == PARAMS_FILE:
        return copy.deepcopy(dict(_held))
    return yaml.read(path)


def section(name: str, kind: type[S], path: Path = PARAMS_FILE) -> S:
    """Read one section.

    Raises:
        RequestError: listing every unknown, missing or out-of-range key of the section.
    """
    return check(name, kind, _entry(name, path), path)


def seed(path: Path = PARAMS_FILE) -> int:
    """Read the seed.

    Raises:
        RequestError: it is missing or out of range.
    """
    return check("", TopLevel, {"seed": _entry("seed", path)}, path).seed


def check(name: str, kind: type[S], content: Mapping[str, Any], path: Path = PARAMS_FILE) -> S:
    """Validate a mapping against a section's class; `name` prefixes the keys in messages.

    Raises:
        RequestError: listing every unknown, missing or out-of-range key.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [f"  {_explain(name, kind, detail)}" for detail in error.errors()]
        raise RequestError(f"{path} is invalid:\n" + "\n".join(lines)) from error


def digest(content: Mapping[str, Any]) -> str:
    """Hash values independently of order, comments and layout; 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Phrase the nearest known spelling as `; did you mean x?`, or list what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; there are: {', '.join(names)}"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into `a.b.c` keys, as MLflow and `dvc exp run -S` spell them."""
    flat: dict[str, Any] = {}
    for key, item in content.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{name}.")
        else:
            flat[name] = item
    return flat


def _entry(name: str, path: Path) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Read a top-level key."""
    content = read(path)
    if name not in content:
        raise RequestError(
            f"{path} has no `{name}`{did_you_mean(name, content)}. Add it, or restore it: git checkout {path}"
        )
    return content[name]


def _explain(name: str, kind: type[Section], detail: ErrorDetails) -> str:
    """Turn one pydantic error into a line that names the key, its value and what is allowed."""
    where = [str(part) for part in detail["loc"]]
    path = [name, *where] if name else where
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        siblings = [".".join([*path[:-1], sibling]) for sibling in _keys_at(kind, where[:-1])]
        if len(where) == 1 and (meant := kind.other_names.get(where[0])):
            return f"unknown key {key}; did you mean `{name}.{meant}`?"
        return f"unknown key {key}{did_you_mean(key, siblings)}"
    if detail["type"] == "value_error" and not where:  # a rule about several keys
        return f"{name}: {detail['ctx']['error']}"
    if detail["type"] == "missing":
        return f"missing key {key}: add it (git diff {PARAMS_FILE} shows what it was)"
    return f"{key} is {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _keys_at(kind: type[Section], where: list[str]) -> list[str]:
    """List the keys allowed at a place inside a section."""
    for part in where:
        inner = kind.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            return []
        kind = inner
    return list(kind.model_fields)
