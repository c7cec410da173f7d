"""Read a network from networks/NAME.yaml and check it, without importing torch.

A line of its layers is a word (`- relu`), a word with its first argument (`- max_pool: 2`), or a word with named
arguments (`- conv: {filters: 6, kernel: 5}`). Named blocks are expanded; errors name file, line and layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)
from pydantic_core import ErrorDetails

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.core.yaml import LocatedDict, LocatedList, line_of
from convoy.models import timm, torchvision
from convoy.models.layer_types import (
    ACTIVATIONS,
    LAYERS,
    NAME,
    Activation,
    Auxiliary,
    Branches,
    Count,
    Layer,
    Layers,
    Repeat,
    Whiten,
    abbreviate,
)

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path("networks")
KEYS = ("layers", "blocks", "init", "twin", "made_for", "torchvision", "timm")

MAX_LAYERS = 10_000  # of a network: far above any that trains, far below what blocks within blocks could make
MAX_DEPTH = 32  # of lists of layers; Python's recursion limit, a few times higher, reports no line

SYNONYMS = {
    "linear": "dense",
    "fc": "dense",
    "batchnorm2d": "norm",
    "batch_norm": "norm",
    "groupnorm": "group_norm",
    "layernorm": "layer_norm",
    "layernorm2d": "layer_norm",
    "lrn": "local_response_norm",
    "localresponsenorm": "local_response_norm",
    "concat": "branches",
    "inception": "branches",
    "sequential": "group",
    "swish": "silu",
    "se": "multiply",
    "squeeze_excitation": "multiply",
    "squeezeexcitation": "multiply",
}
"""Names of layers in other libraries, in lower case, for the message about an unknown word."""

_ARGUMENT_MARK = "$"


class Zoo(Protocol):
    """A library of classifiers that a spec can name in one line."""

    def names(self) -> list[str]:
        """List its classifiers."""

    def check(self, name: str, where: str) -> None:
        """Refuse an unknown classifier with the nearest spelling."""

    def fixes_side(self, name: str) -> bool:
        """Return whether a classifier is built for one image side only."""

    def make(self, name: str, classes: int, image_px: int) -> "nn.Module":
        """Build a classifier with fresh weights."""

    def pretrained(self, name: str, label: str | None = None) -> torchvision.Pretrained:
        """Look up a classifier's published weights."""


ZOOS: dict[str, Zoo] = {"torchvision": torchvision, "timm": timm}
"""Libraries by the key of a spec that names one of their classifiers."""


class MadeFor(BaseModel):
    """The images and classes that a network was published for: the defaults of `convoy network show`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image_px: Count
    classes: Count


class Spec(BaseModel):
    """A network: either layers, or the name of a classifier of torchvision's or timm's.

    Attributes:
        init: initial weights. torch: the defaults of torch's layers. kaiming: convolutions from N(0, 2 / fan out),
            dense layers from N(0, 0.01), biases 0, as in torchvision's VGG: deep networks without norms need it. dirac:
            torch's, but the first filters of each convolution pass its input channels on, and dense layers have a standard
            deviation of 1, to be followed by `scale`, as in Keller Jordan's airbench94: it learns in few epochs.
        twin: torchvision's classifier of exactly this structure, whose weights fit tensor by tensor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    torchvision: str | None = None
    timm: str | None = None
    layers: Layers = ()
    init: Literal["torch", "kaiming", "dirac"] = "torch"
    twin: str | None = None
    made_for: Annotated[MadeFor | None, Field(exclude=True)] = None

    @property
    def classifier(self) -> tuple[str, str] | None:
        """The library that makes the whole network, a key of `ZOOS`, and its name there; None if it has layers."""
        return next(((zoo, name) for zoo in ZOOS if (name := getattr(self, zoo))), None)

    @field_validator("layers", mode="before")
    @classmethod
    def _parse_layers(cls, value: object) -> object:
        return SpecParser().layers(value)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the alternative that is not in use."""
        return {key: value for key, value in handler(self).items() if value}


def load(name: str, folder: Path = FOLDER) -> Spec:
    """Read `folder/name.yaml`.

    Raises:
        RequestError: the file does not exist; an unknown word or argument, or an invalid value, naming
            file and line; an unknown classifier.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        if not folder.is_dir():
            raise RequestError(
                f"{folder}/ does not exist in {Path.cwd()}. Change to the repository's root and try again."
            )
        known = names(folder)
        hint = did_you_mean(name, known) if known else "; the folder has none"
        raise RequestError(
            f"there is no network `{name}` in {folder}/{hint}{'' if hint.endswith('?') else '.'} "
            f"Set network.name to an existing network, or add {path}."
        )
    content = yaml.read_located(path)
    _check_keys(content, path)
    for key, zoo in ZOOS.items():
        if key in content:
            zoo.check(str(content[key]), f"{path}:{line_of(content, key)}")
            return Spec.model_validate({"name": name, key: str(content[key])})
    parser = SpecParser(str(path))
    if "blocks" in content:
        parser.define_blocks(content["blocks"], line_of(content, "blocks"))
    layers = parser.layers(content["layers"], line=line_of(content, "layers"))
    others = {key: content[key] for key in ("init", "twin", "made_for") if key in content}
    try:
        return Spec.model_validate({"name": name, "layers": layers, **others})
    except ValidationError as error:
        raise RequestError(
            "\n".join(_explain_key(detail, content, path) for detail in error.errors())
        ) from error


def names(folder: Path = FOLDER) -> list[str]:
    """List the networks of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _explain_key(detail: ErrorDetails, content: LocatedDict, path: Path) -> str:
    """Turn one pydantic error about a key other than `layers` into a line with file and line."""
    first, *inner = (str(part) for part in detail["loc"])
    line = line_of(content[first], inner[0]) if inner else 0
    location = f"{path}:{line or line_of(content, first)}"
    key = ".".join([first, *inner])
    if detail["type"] == "missing":
        return f"{location}: `{key}` is missing"
    if detail["type"] == "extra_forbidden":
        return f"{location}: unknown key `{key}`{did_you_mean(inner[0], MadeFor.model_fields)}"
    return f"{location}: `{key}` is {abbreviate(detail['input'])}, but {detail['msg'].removeprefix('Input ')}"


def _check_keys(content: LocatedDict, path: Path) -> None:
    for key in content:
        if key not in KEYS:
            raise RequestError(
                f"{path}:{line_of(content, key)}: unknown key `{key}`{did_you_mean(key, KEYS)}"
            )
    zoo = next((key for key in content if key in ZOOS), None)
    if zoo and len(content) > 1:
        other = next(key for key in content if key != zoo)
        raise RequestError(
            f"{path}:{line_of(content, other)}: `{other}` cannot be combined with `{zoo}:`, which names "
            f"a whole network. Keep either `layers:` or `{zoo}: NAME`."
        )
    if not zoo and "layers" not in content:
        raise RequestError(f"{path} must have either `layers:`, `torchvision: NAME` or `timm: NAME`.")


class Block(NamedTuple):
    """A named block: its arguments with their defaults (None: required), and its layers as YAML."""

    takes: Mapping[str, object]
    layers: object


@dataclass
class SpecParser:
    """Parse the layers of one spec.

    Attributes:
        file: named in messages; empty where the spec is not a file.
        blocks: the spec's named blocks.
    """

    file: str = ""
    blocks: dict[str, Block] = field(default_factory=dict)
    _count: int = 0
    _repeats: int = 1
    _depth: int = 0
    _open_blocks: tuple[str, ...] = ()
    _argument_scopes: dict[int, tuple[object, tuple[str, ...]]] = field(default_factory=dict)
    """Lists that are arguments of a block, by id, with the blocks around the line that gives them."""

    def define_blocks(self, value: object, line: int = 0) -> None:
        """Read the `blocks:` of a spec.

        Raises:
            RequestError: a block has the name of a layer or a name that no module can have, a key other
                than `takes` and `layers`, or an argument that none of its layers uses.
        """
        if not isinstance(value, Mapping):
            raise RequestError(
                f"{self._at(line)}blocks: expected `name:` with `layers:` below it, found {abbreviate(value)}"
            )
        self.blocks = {name: self._block(name, body, line_of(value, name)) for name, body in value.items()}

    def layers(self, value: object, path: str = "", line: int = 0) -> tuple[Layer, ...]:
        """Parse a list of layers; `path` leads to it in messages, such as `layer 3 (residual), body `.

        Raises:
            RequestError: naming file, line and layer, the value found and the allowed ones.
        """
        if not isinstance(value, list | tuple) or not value:
            raise RequestError(
                f"{self._at(line)}{path}layers: expected a list with one layer per line, found {abbreviate(value)}"
            )
        if self._depth == MAX_DEPTH:
            raise RequestError(f"{self._at(line)}{path}layers: nested more than {MAX_DEPTH} lists deep.")
        outer = self._open_blocks
        self._open_blocks = self._argument_scopes.get(id(value), (None, outer))[1]
        self._depth += 1
        layers = tuple(
            self._layer(item, f"{path}layer {number}", _line_of_layer(value, number - 1))
            for number, item in enumerate(value, start=1)
        )
        self._depth -= 1
        self._open_blocks = outer
        return layers

    def _at(self, line: int) -> str:
        """Start a message with file and line, as far as they are known."""
        return f"{self.file}:{line}, " if self.file and line else f"{self.file}, " if self.file else ""

    def _layer(self, item: object, label: str, line: int) -> Layer:
        if isinstance(item, Layer):
            return item
        location = f"{self._at(line)}{label}"
        word, given = _split(item, location)
        self._count += self._repeats
        if self._count > MAX_LAYERS:
            raise RequestError(f"{location}: more than {MAX_LAYERS:,} layers. Repeat fewer blocks.")
        if word in self.blocks:
            return self._expanded(word, given, f"{label} ({word})", line)
        if word not in LAYERS:
            raise RequestError(f"{location}: unknown layer `{word}`{self._suggestion(word)}")
        kind, label = LAYERS[word], f"{label} ({word})"
        location = f"{self._at(line)}{label}"
        if issubclass(kind, Auxiliary) and ", " in label:
            raise RequestError(f"{location}: auxiliary heads belong in the outermost list of layers.")
        if issubclass(kind, Whiten) and label != f"layer 1 ({word})":
            raise RequestError(
                f"{location}: it must be the first layer of the outermost list, since its filters are computed from images. "
                "Move it there, or use a conv."
            )
        if issubclass(kind, Branches):
            arguments = self._branches(given, label, line)
        else:
            arguments = _arguments(given, kind, word, location)
            self._parse_bodies(kind, arguments, label, line)
        return _validated(kind, location, word=word, **arguments)

    def _suggestion(self, word: str) -> str:
        likely = SYNONYMS.get(word.lower(), word.lower())
        if likely in LAYERS:
            return f"; did you mean `{likely}`?"
        return did_you_mean(word, [*LAYERS, *self.blocks])

    def _parse_bodies(self, kind: type[Layer], arguments: dict[str, Any], label: str, line: int) -> None:
        """Parse the arguments that are themselves lists of layers, in place."""
        outer, times = self._repeats, arguments.get("times")
        if issubclass(kind, Repeat) and isinstance(times, int) and times > 0:
            self._repeats *= times
        for body in kind.bodies:
            if body not in arguments:
                continue
            if arguments[body] or kind.model_fields[body].is_required():
                path = f"{label}, {'' if body == 'layers' else f'{body} '}"
                arguments[body] = self.layers(arguments[body], path, line)
            else:
                arguments[body] = ()
        self._repeats = outer

    def _branches(self, given: object, label: str, line: int) -> dict[str, Any]:
        """Parse branches, a list of lists or a mapping of names to lists; an empty list passes its input on."""
        named: dict[str, object] = {}
        if isinstance(given, list | tuple):
            named = {f"branch{number}": branch for number, branch in enumerate(given, start=1)}
        elif isinstance(given, Mapping):
            named = dict(given)
        arguments: dict[str, Any] = {"name": named.pop("name")} if isinstance(named.get("name"), str) else {}
        if len(named) < 2:
            raise RequestError(
                f"{self._at(line)}{label}: expected two or more lists of layers, such as "
                f"{{narrow: [{{conv: …}}], wide: [{{conv: …}}]}}, found {abbreviate(given)}"
            )
        arguments["branches"] = {
            name: () if branch in ([], ()) else self.layers(branch, f"{label}, {name} ", line)
            for name, branch in named.items()
        }
        return arguments

    def _block(self, name: str, body: object, line: int) -> Block:
        location = f"{self._at(line)}block `{name}`"
        if name in LAYERS:
            raise RequestError(f"{location} has the name of a layer. Rename the block.")
        if not re.fullmatch(NAME, name):
            raise RequestError(f"{location}: a name has only letters, digits and _. Rename the block.")
        if not isinstance(body, Mapping) or "layers" not in body:
            raise RequestError(
                f"{location} must have `layers:` and a list below it, found {abbreviate(body)}"
            )
        for key in body:
            if key not in ("takes", "layers"):
                raise RequestError(
                    f"{self._at(line_of(body, key))}block `{name}`: unknown key `{key}`"
                    f"{did_you_mean(key, ['takes', 'layers'])}"
                )
        takes = body.get("takes", {})
        if not isinstance(takes, Mapping) or "name" in takes:
            raise RequestError(
                f"{location}: `takes` lists arguments, such as {{filters, stride: 1}} (`name` is reserved), "
                f"found {abbreviate(takes)}"
            )
        used = _referenced(body["layers"], set())
        for argument in takes:
            if argument not in used:
                raise RequestError(
                    f"{self._at(line_of(takes, argument))}block `{name}` takes `{argument}`, but none of its layers "
                    f"uses `${argument}`. Use it, or remove it."
                )
        return Block(dict(takes), body["layers"])

    def _expanded(self, word: str, given: object, label: str, line: int) -> Layer:
        """Fill in a named block's arguments and make it a group."""
        location = f"{self._at(line)}{label}"
        block, outer = self.blocks[word], self._open_blocks
        if word in outer:
            cycle = " → ".join((*outer[outer.index(word) :], word))
            raise RequestError(f"{location}: block `{word}` contains itself: {cycle}.")
        named = _named(given, list(block.takes), word, location)
        values = {**block.takes, **{key: value for key, value in named.items() if key != "name"}}
        missing = [f"`{name}`" for name, value in values.items() if value is None]
        if missing:
            raise RequestError(
                f"{location}: {', '.join(missing)} must be given. The block takes: {', '.join(block.takes)}"
            )
        for value in named.values():  # a list of layers given as an argument may use the block itself
            if isinstance(value, list | tuple):
                self._argument_scopes.setdefault(id(value), (value, outer))
        filled = self._filled(word, values)
        self._open_blocks = (*outer, word)
        layers = self.layers(filled, f"{label}, ", line)
        self._open_blocks = outer
        group = LAYERS["group"]
        return _validated(group, location, word="group", name=named.get("name"), layers=layers, block=word)

    def _filled(self, word: str, values: Mapping[str, object]) -> object:
        """Copy a block's raw layers, with their lines, putting values in place of `$argument`."""
        # Copies by the original's id: aliases share them, lest they grow without bound.
        done: dict[int, object] = {}

        def fill(raw: object, line: int) -> object:
            if isinstance(raw, str) and raw.startswith(_ARGUMENT_MARK):
                name = raw[1:]
                if name not in values:
                    add = f"; it takes none: add `takes: {{{name}}}`"
                    raise RequestError(
                        f"{self._at(line)}block `{word}` takes no argument `{name}`"
                        f"{did_you_mean(name, values) if values else add}"
                    )
                return values[name]
            if isinstance(raw, list | tuple) and id(raw) not in done:
                lines = [line_of(raw, index) for index in range(len(raw))]
                items = LocatedList(map(fill, raw, lines))
                items.lines, done[id(raw)] = lines, items
            elif isinstance(raw, Mapping) and id(raw) not in done:
                content = LocatedDict({key: fill(item, line_of(raw, key)) for key, item in raw.items()})
                content.lines, done[id(raw)] = {key: line_of(raw, key) for key in raw}, content
            return done.get(id(raw), raw)

        return fill(self.blocks[word].layers, 0)


def _line_of_layer(container: object, index: int) -> int:
    """Prefer the line of the layer's word to that of its dash."""
    item = container[index] if isinstance(container, list | tuple) else None
    if isinstance(item, LocatedDict) and item.lines:
        return min(item.lines.values())
    return line_of(container, index)


def _referenced(raw: object, seen: set[int]) -> set[str]:
    """Collect the names used as `$name`, visiting what aliases share only once."""
    if isinstance(raw, str) and raw.startswith(_ARGUMENT_MARK):
        return {raw[1:]}
    if not isinstance(raw, Mapping | list | tuple) or id(raw) in seen:
        return set()
    seen.add(id(raw))
    items = raw.values() if isinstance(raw, Mapping) else raw
    return {name for item in items for name in _referenced(item, seen)}


def _split(item: object, location: str) -> tuple[str, object]:
    """Split a line into its word and the word's arguments."""
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        word, given = next(iter(item.items()))
        return str(word), given
    raise RequestError(
        f"{location}: expected one layer, such as `- relu` or `- conv: {{filters: 6, kernel: 5}}`, "
        f"found {abbreviate(item)}"
    )


def _arguments(given: object, kind: type[Layer], word: str, location: str) -> dict[str, Any]:
    if not issubclass(kind, Activation):
        return dict(_named(given, kind.arguments(), word, location))
    values = dict(_named(given, list(ACTIVATIONS[word][1]), word, location))
    name = {"name": values.pop("name")} if "name" in values else {}
    return {"values": values, **name}


def _named(given: object, known: list[str], word: str, location: str) -> Mapping[str, Any]:
    """Name the arguments of a line; a lone value is the first argument."""
    if not isinstance(given, Mapping):
        if not known:
            raise RequestError(f"{location} takes no arguments, found {abbreviate(given)}. Write `- {word}`.")
        return {known[0]: given}
    for argument in given:
        if argument not in (*known, "name"):
            hint = did_you_mean(argument, known) if known else "; it takes none"
            raise RequestError(f"{location}: unknown argument `{argument}`{hint}")
    return given


def _validated(kind: type[Layer], location: str, **arguments: object) -> Layer:
    try:
        return kind.model_validate({"location": location, **arguments})
    except ValidationError as error:
        raise RequestError(f"{location}: {_explain_layer(error)}") from error


def _explain_layer(error: ValidationError) -> str:
    """Report each wrong argument once, with every allowed form (a union reports each alternative)."""
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
            faults.setdefault(f"`{detail['input']}` is not a name: use only letters, digits and _", [])
        else:
            if detail["type"] in {"list_type", "too_short", "too_long"}:
                message = "[height, width]"
            verb = "holds" if argument in lists else "is"
            fault = f"`{argument}` {verb} {abbreviate(detail['input'])}, but should be "
            faults.setdefault(fault, []).append(message)
    return "; ".join(f"{fault}{' or '.join(dict.fromkeys(allowed))}" for fault, allowed in faults.items())
