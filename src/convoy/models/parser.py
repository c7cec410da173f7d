"""Turn what a spec's YAML holds into layers: named blocks are filled in, every error names its line.

A line is a word (`- relu`), a word with its first argument (`- max_pool: 2`), or a
word with named arguments (`- conv: {filters: 6, kernel: 5}`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.models import filling
from convoy.models.filling import Block
from convoy.models.layer_types import ACTIVATIONS, LAYERS, Activation, Auxiliary, Branches, Layer, Repeat
from convoy.models.yaml_lines import LocatedDict, LocatedList, at, brief, line_of

MOST_LAYERS = 10_000
"""Most layers of a network: far above any that trains, far below what blocks within blocks could make."""

ELSEWHERE = {
    "linear": "dense",
    "fc": "dense",
    "batchnorm2d": "norm",
    "batch_norm": "norm",
    "lrn": "local_response_norm",
    "localresponsenorm": "local_response_norm",
    "concat": "branches",
    "inception": "branches",
    "sequential": "group",
    "swish": "silu",
}
"""What other libraries call a layer, in lower case, for the message about an unknown word."""

MOST_NESTED = 32
"""Most lists of layers within each other; Python's own limit, a few times higher, names no place."""


@dataclass
class Reader:
    """Read the layers of one spec.

    Attributes:
        file: named in messages; empty where the spec is no file.
        blocks: the spec's named blocks.
    """

    file: str = ""
    blocks: dict[str, Block] = field(default_factory=dict)
    _read: int = 0
    _times: int = 1
    _nested: int = 0
    _inside: tuple[str, ...] = ()

    def define(self, value: object, line: int = 0) -> None:
        """Take the spec's `blocks:`.

        Raises:
            RequestError: as `filling.define` does.
        """
        self.blocks = filling.define(value, self.file, line)

    def layers(self, value: object, where: str = "", line: int = 0) -> tuple[Layer, ...]:
        """Read a list of layers; `where` leads to it in messages, such as `layer 3 (residual), body `.

        Raises:
            RequestError: naming file, line and layer, what was found and what is allowed.
        """
        if not isinstance(value, list | tuple) or not value:
            raise RequestError(
                f"{at(self.file, line)}{where}layers: expected a list with one layer per line, found {brief(value)}"
            )
        if self._nested == MOST_NESTED:
            raise RequestError(
                f"{at(self.file, line)}{where}layers: more than {MOST_NESTED} lists of layers stand in each other. Nest fewer."
            )
        outer = self._inside
        if isinstance(value, LocatedList) and value.inside is not None:
            self._inside = value.inside
        self._nested += 1
        layers = tuple(
            self._layer(item, f"{where}layer {n}", self._line(value, n - 1, item))
            for n, item in enumerate(value, start=1)
        )
        self._nested -= 1
        self._inside = outer
        return layers

    def _line(self, container: object, place: int, item: object) -> int:
        if isinstance(item, LocatedDict) and item.lines:
            return min(item.lines.values())
        return line_of(container, place)

    def _layer(self, item: object, label: str, line: int) -> Layer:
        """Read one line of a spec."""
        if isinstance(item, Layer):
            return item
        where = f"{at(self.file, line)}{label}"
        word, given = _split(item, where)
        self._read += self._times
        if self._read > MOST_LAYERS:
            raise RequestError(f"{where}: this is more than {MOST_LAYERS:,} layers. Repeat fewer blocks.")
        if word in self.blocks:
            return self._block(word, given, f"{label} ({word})", line)
        if word not in LAYERS:
            raise RequestError(f"{where}: unknown layer `{word}`{self._nearest(word)}")
        kind, label = LAYERS[word], f"{label} ({word})"
        where = f"{where} ({word})"
        if issubclass(kind, Auxiliary) and ", " in label:
            raise RequestError(
                f"{where}: an auxiliary head stands in the outermost list of layers. Move it there."
            )
        if issubclass(kind, Branches):
            arguments = self._branches(given, label, line)
        else:
            arguments = self._arguments(given, kind, word, where)
            self._bodies(kind, arguments, label, line)
        try:
            return kind.model_validate({"word": word, "place": where, **arguments})
        except ValidationError as error:
            raise RequestError(f"{where}: {_explain(error)}") from error

    def _nearest(self, word: str) -> str:
        meant = ELSEWHERE.get(word.lower(), word.lower())
        return (
            f"; did you mean `{meant}`?" if meant in LAYERS else did_you_mean(word, [*LAYERS, *self.blocks])
        )

    def _bodies(self, kind: type[Layer], arguments: dict[str, Any], label: str, line: int) -> None:
        """Read the arguments that are themselves lists of layers."""
        times = arguments.get("times")
        outer = self._times
        if issubclass(kind, Repeat) and isinstance(times, int) and times > 0:
            self._times *= times
        for body in kind.bodies:
            optional = not kind.model_fields[body].is_required()
            if arguments.get(body) or (body in arguments and not optional):
                arguments[body] = self.layers(
                    arguments[body], f"{label}, {'' if body == 'layers' else f'{body} '}", line
                )
            elif body in arguments:
                arguments[body] = ()
        self._times = outer

    def _branches(self, given: object, label: str, line: int) -> dict[str, Any]:
        """Read branches from a list of lists, or from names with a list each; an empty list passes on what arrives."""
        named: dict[str, object] = {}
        if isinstance(given, list | tuple):
            named = {f"branch{n}": branch for n, branch in enumerate(given, start=1)}
        elif isinstance(given, Mapping):
            named = dict(given)
        arguments: dict[str, Any] = {"name": named.pop("name")} if isinstance(named.get("name"), str) else {}
        if len(named) < 2:
            raise RequestError(
                f"{at(self.file, line)}{label}: expected two or more lists of layers, such as {{narrow: [{{conv: …}}], "
                f"wide: [{{conv: …}}]}}, found {brief(given)}"
            )
        arguments["branches"] = {
            name: () if branch in ([], ()) else self.layers(branch, f"{label}, {name} ", line)
            for name, branch in named.items()
        }
        return arguments

    def _block(self, word: str, given: object, label: str, line: int) -> Layer:
        """Fill a named block's arguments in and make it a group."""
        where = f"{at(self.file, line)}{label}"
        block, outer = self.blocks[word], self._inside
        if word in self._inside:
            way = " → ".join((*outer[outer.index(word) :], word))
            raise RequestError(
                f"{where}: block `{word}` contains itself: {way}. Let one of them use layers alone."
            )
        known = list(block.takes)
        named = _named(given, known, word, where)
        values = {**block.takes, **{key: value for key, value in named.items() if key != "name"}}
        missing = [f"`{name}`" for name, value in values.items() if value is None]
        if missing:
            raise RequestError(
                f"{where}: {', '.join(missing)} must be given. The block takes: {', '.join(known)}"
            )
        for value in named.values():
            if isinstance(value, LocatedList) and value.inside is None:
                value.inside = outer  # layers as an argument are none of the block's own
        filled = filling.fill(word, block, values, self.file)
        self._inside = (*outer, word)
        layers = self.layers(filled, f"{label}, ", line)
        self._inside = outer
        try:
            return LAYERS["group"].model_validate(
                {"word": "group", "place": where, "name": named.get("name"), "layers": layers, "block": word}
            )
        except ValidationError as error:
            raise RequestError(f"{where}: {_explain(error)}") from error

    def _arguments(self, given: object, kind: type[Layer], word: str, where: str) -> dict[str, Any]:
        """Name the arguments; one that stands alone is the first."""
        activation = issubclass(kind, Activation)
        known = list(ACTIVATIONS[word][1]) if activation else kind.arguments()
        named = _named(given, known, word, where)
        if not activation:
            return dict(named)
        values = {key: value for key, value in named.items() if key != "name"}
        return {"values": values} | ({"name": named["name"]} if "name" in named else {})


def _named(given: object, known: list[str], word: str, where: str) -> Mapping[str, Any]:
    """Name the arguments of a line; one that stands alone is the first."""
    if not isinstance(given, Mapping):
        if not known:
            raise RequestError(f"{where} takes no arguments, found {brief(given)}. Write `- {word}`.")
        return {known[0]: given}
    for argument in given:
        if argument not in (*known, "name"):
            hint = did_you_mean(argument, known) if known else "; it takes none"
            raise RequestError(f"{where}: unknown argument `{argument}`{hint}")
    return given


def _split(item: object, where: str) -> tuple[str, object]:
    """Take a line apart into its word and what is given to it."""
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        word, given = next(iter(item.items()))
        return str(word), given
    raise RequestError(
        f"{where}: expected one layer, such as `- relu` or `- conv: {{filters: 6, kernel: 5}}`, found {brief(item)}"
    )


def _explain(error: ValidationError) -> str:
    """Say each wrong argument once, with all that it may be (a union reports every alternative)."""
    faults: dict[str, list[str]] = {}
    details = error.errors()
    lists = {detail["loc"][0] for detail in details if detail["loc"] and isinstance(detail["loc"][-1], int)}
    for detail in details:
        argument = detail["loc"][0] if detail["loc"] else ""
        if argument in lists and not isinstance(detail["loc"][-1], int):
            continue  # of [0, 3] the 0 is wrong, not that it is no single number
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if not argument:
            faults.setdefault(message, [])
        elif detail["type"] == "missing":
            faults.setdefault(f"`{argument}` is missing", [])
        elif detail["type"] == "string_pattern_mismatch":
            faults.setdefault(f"`{detail['input']}` is no name: only letters, digits and _ make one", [])
        else:
            if detail["type"] in {"list_type", "too_short", "too_long"}:
                message = "[height, width]"
            verb = "holds" if argument in lists else "is"
            faults.setdefault(f"`{argument}` {verb} {brief(detail['input'])}, but should be ", []).append(
                message
            )
    return "; ".join(f"{fault}{' or '.join(dict.fromkeys(wanted))}" for fault, wanted in faults.items())
