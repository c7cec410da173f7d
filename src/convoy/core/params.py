"""Strict reading of params.yaml: every key known, every value in range, nothing defaulted.

params.yaml holds each value once, so a section's class declares types, ranges and descriptions and never a
default. The class lives beside the code that it configures; a stage reads only the sections that dvc.yaml lists.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    # The `examples` of a field hold the value of the shipped params.yaml, for messages about a missing key.


class TopLevel(Section):
    """The one value of params.yaml that belongs to no section."""

    seed: Annotated[
        int,
        Field(ge=0, lt=2**32, description="starting weights, order of images, augmentation", examples=[1]),
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
    content = read(path)
    if name not in content:
        raise without_section(name, kind, content, path)
    return check(name, kind, content[name], path)


def seed(path: Path = PARAMS_FILE) -> int:
    """Read the seed.

    Raises:
        RequestError: it is missing or out of range.
    """
    return check("", TopLevel, {key: value for key, value in read(path).items() if key == "seed"}, path).seed


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


def without_section(name: str, kind: type[Section], present: Iterable[str], path: Path) -> RequestError:
    """Describe a section that params.yaml lacks, with the lines that add it."""
    message = f"{path} has no `{name}`{did_you_mean(name, present)} Restore it: git checkout {path}"
    if defaults := default_at(kind, []):
        message += f"\nOr add it with its defaults:\n{yaml.dump({name: defaults})}"
    return RequestError(message)


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
        return f"missing key {key}: {_remedy(kind, where, path)}"
    return f"{key} is {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _remedy(kind: type[Section], where: list[str], path: list[str]) -> str:
    """Write the line that adds a missing key with its default, as in the shipped params.yaml."""
    default = default_at(kind, where)
    if default is None:
        return f"add it (git diff {PARAMS_FILE} shows what it was)"
    text = yaml.inline(default)
    parent = f"to `{'.'.join(path[:-1])}`" if path[:-1] else "without indentation"
    return f"its default is {text}. Add this line {parent} in {PARAMS_FILE}:\n    {path[-1]}: {text}"


def default_at(kind: type[Section], where: Sequence[str]) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Return the value of a key in the shipped params.yaml, which its field has as example; None where it has none."""
    if not where:
        values = {name: default_at(kind, [name]) for name in kind.model_fields}
        return None if None in values.values() else values
    field = kind.model_fields[where[0]]
    inner = field.annotation
    if field.examples:
        value: Any = field.examples[0]
        for part in where[1:]:
            value = value[part]
        return value
    return default_at(inner, where[1:]) if isinstance(inner, type) and issubclass(inner, Section) else None


def _keys_at(kind: type[Section], where: list[str]) -> list[str]:
    """List the keys allowed at a place inside a section."""
    for part in where:
        inner = kind.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            return []
        kind = inner
    return list(kind.model_fields)
