"""The named blocks of a spec: what they take, and their layers with arguments filled in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.models.layer_types import LAYERS, NAME
from convoy.models.yaml_lines import LocatedDict, LocatedList, at, brief, line_of


@dataclass(frozen=True)
class Block:
    """Hold a named block: its arguments with their defaults (None where one must be given), and its raw layers."""

    takes: Mapping[str, object]
    layers: object


def define(value: object, file: str, line: int) -> dict[str, Block]:
    """Read the `blocks:` of a spec.

    Args:
        value: as YAML gives it.
        file: named in messages; empty where the spec is no file.
        line: of `blocks:`.

    Raises:
        RequestError: a block has the name of a layer or none that a module can have, something else
            than `takes` and `layers`, or an argument that none of its layers uses.
    """
    if not isinstance(value, Mapping):
        raise RequestError(
            f"{at(file, line)}blocks: expected `name:` with `layers:` below it, found {brief(value)}"
        )
    return {name: _block(name, body, file, line_of(value, name)) for name, body in value.items()}


def fill(name: str, block: Block, values: Mapping[str, object], file: str) -> object:
    """Give the raw layers of a block, which keep their lines, with values in the places of `$argument`.

    Raises:
        RequestError: the layers ask for an argument that the block does not take.
    """
    return _Filling(name, values, file).of(block.layers)


def _block(name: str, body: object, file: str, line: int) -> Block:
    where = f"{at(file, line)}block `{name}`"
    if name in LAYERS:
        raise RequestError(f"{where} has the name of a layer. Call it something else.")
    if not re.fullmatch(NAME, name):
        raise RequestError(f"{where}: only letters, digits and _ make a name. Call it something else.")
    if not isinstance(body, Mapping) or "layers" not in body:
        raise RequestError(f"{where} needs `layers:` and a list below it, found {brief(body)}")
    for key in body:
        if key not in ("takes", "layers"):
            raise RequestError(
                f"{at(file, line_of(body, key))}block `{name}`: unknown key `{key}`"
                f"{did_you_mean(key, ['takes', 'layers'])}"
            )
    takes = body.get("takes", {})
    if not isinstance(takes, Mapping) or "name" in takes:
        raise RequestError(
            f"{where}: `takes` lists arguments, such as {{filters, stride: 1}} (`name` is every layer's), "
            f"found {brief(takes)}"
        )
    used = _arguments_in(body["layers"], set())
    for argument in takes:
        if argument not in used:
            raise RequestError(
                f"{at(file, line_of(takes, argument))}block `{name}` takes `{argument}`, but none of its layers "
                f"says `${argument}`. Use it, or take it out."
            )
    return Block(dict(takes), body["layers"])


def _arguments_in(raw: object, seen: set[int]) -> set[str]:
    """Collect the names that layers ask for as `$name`, looking once at what aliases share."""
    if isinstance(raw, str) and raw.startswith("$"):
        return {raw[1:]}
    if not isinstance(raw, Mapping | list | tuple) or id(raw) in seen:
        return set()
    seen.add(id(raw))
    items = raw.values() if isinstance(raw, Mapping) else raw
    return {name for item in items for name in _arguments_in(item, seen)}


@dataclass
class _Filling:
    """Fill one block in; `done` is what aliases share, which grows without bound if it is copied."""

    block: str
    values: Mapping[str, object]
    file: str
    done: dict[int, object] = field(default_factory=dict)

    def of(self, raw: object) -> object:
        if id(raw) in self.done:
            return self.done[id(raw)]
        if isinstance(raw, list | tuple):
            items = LocatedList(self._item(raw, n, item) for n, item in enumerate(raw))
            items.lines = [line_of(raw, n) for n in range(len(raw))]
            self.done[id(raw)] = items
        elif isinstance(raw, Mapping):
            content = LocatedDict({key: self._item(raw, key, item) for key, item in raw.items()})
            content.lines = {key: line_of(raw, key) for key in raw}
            self.done[id(raw)] = content
        return self.done.get(id(raw), raw)

    def _item(self, raw: object, key: str | int, item: object) -> object:
        if not (isinstance(item, str) and item.startswith("$")):
            return self.of(item)
        name = item[1:]
        if name not in self.values:
            hint = (
                did_you_mean(name, self.values)
                if self.values
                else f"; it takes none: add `takes: {{{name}}}`"
            )
            raise RequestError(
                f"{at(self.file, line_of(raw, key))}block `{self.block}` takes no argument `{name}`{hint}"
            )
        return self.values[name]
