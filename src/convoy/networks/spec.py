"""Read a network from YAML, one line per layer, and check it without importing torch.

A line is a word (`- relu`), a word with its first argument (`- max_pool: 2`), or
a word with named arguments (`- conv: {filters: 6, kernel: 5}`). `layers.py` turns
each layer class into a torch module. To add a layer: a class here, its word in
`LAYERS`, and its module in `layers.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from convoy.errors import RequestError
from convoy.networks import catalog
from convoy.params import did_you_mean, read_yaml

FOLDER = Path("networks")

ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "hardswish": "Hardswish",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
"""Words for activations, and the `torch.nn` class that each stands for."""

Count = Annotated[int, Field(ge=1)]
Margin = Annotated[int, Field(ge=0)]


class Layer(BaseModel):
    """Hold one layer's arguments; `word` is what the YAML line calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    bodies: ClassVar[tuple[str, ...]] = ()
    """Arguments that are themselves lists of layers."""

    word: str

    @classmethod
    def arguments(cls) -> list[str]:
        """List the arguments; the first one may stand alone, as in `max_pool: 2`."""
        return [name for name in cls.model_fields if name != "word"]

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Give the grammar of the YAML file back, with every argument spelled out."""
        arguments = handler(self)
        return {arguments.pop("word"): arguments}


Layers = tuple[SerializeAsAny[Layer], ...]


class Conv(Layer):
    """Slide `filters` windows of `kernel` x `kernel` over the volume."""

    filters: Count
    kernel: Count
    stride: Count = 1
    padding: Margin | Literal["same", "valid"] = 0  # same: output side = ceil(input side / stride)
    dilation: Count = 1
    groups: Count = 1
    bias: bool = True


class Norm(Layer):
    """Normalise each channel over the batch."""

    over: Literal["batch"] = "batch"


class Activation(Layer):
    """Apply a function to every element."""


class MaxPool(Layer):
    """Keep the largest value of each window; windows do not overlap unless `stride` says so."""

    kernel: Count
    stride: Count | None = None
    padding: Margin = 0


class AvgPool(Layer):
    """Keep the mean of each window; windows do not overlap unless `stride` says so."""

    kernel: Count
    stride: Count | None = None
    padding: Margin = 0


class GlobalAvgPool(Layer):
    """Keep the mean of each channel, as a volume of 1 x 1."""


class Dropout(Layer):
    """Zero elements at random while training."""

    share: Annotated[float, Field(ge=0, lt=1)]


class Flatten(Layer):
    """Turn the volume into one row of numbers."""


class Dense(Layer):
    """Connect every input to every output; `classes` makes as many outputs as the data has classes."""

    units: Count | Literal["classes"]
    bias: bool = True


class Residual(Layer):
    """Add what arrives to what `body` makes of it; `shortcut` fits what arrives to the body's volume."""

    bodies: ClassVar[tuple[str, ...]] = ("body", "shortcut")

    body: Layers
    shortcut: Layers = ()


LAYERS: dict[str, type[Layer]] = {
    "conv": Conv,
    "norm": Norm,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "global_avg_pool": GlobalAvgPool,
    "dropout": Dropout,
    "flatten": Flatten,
    "dense": Dense,
    "residual": Residual,
    **dict.fromkeys(ACTIVATIONS, Activation),
}


class Spec(BaseModel):
    """Describe a network: either layers, or the name of a torchvision classifier."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    torchvision: str | None = None
    layers: Layers = ()

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, value: object) -> tuple[Layer, ...]:
        return parse_layers(value, "")

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the alternative that is not in use."""
        return {key: value for key, value in handler(self).items() if value}


def load(name: str, folder: Path = FOLDER) -> Spec:
    """Read `folder/name.yaml`.

    Raises:
        RequestError: no such network; a word, an argument or a value that the
            grammar does not have; a torchvision name that torchvision does not have.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise RequestError(
            f"there is no network `{name}` in {folder}/{did_you_mean(name, names(folder))} "
            "Set network.name to one of them, or add the file."
        )
    content = read_yaml(path)
    known = ["torchvision", "layers"]
    for key in content:
        if key not in known:
            raise RequestError(f"{path}: unknown key `{key}`{did_you_mean(str(key), known)}")
    if len(content) != 1:
        raise RequestError(f"{path} must hold either `layers:` or `torchvision: NAME`, one of the two.")
    if "torchvision" in content:
        catalog.check(str(content["torchvision"]), str(path))
    try:
        return Spec.model_validate({"name": name, **content})
    except RequestError as error:
        raise RequestError(f"{path}, {error}") from error


def names(folder: Path = FOLDER) -> list[str]:
    """List the networks that a folder describes."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def parse_layers(value: object, where: str) -> tuple[Layer, ...]:
    """Turn a YAML list into layers; `where` leads to the list in messages, such as `layer 3 (residual), body `.

    Raises:
        RequestError: naming the layer, what was found and what is allowed.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RequestError(f"{where}layers: expected a list with one layer per line, found {value!r}")
    return tuple(_layer(item, f"{where}layer {place}") for place, item in enumerate(value, start=1))


def _layer(item: object, where: str) -> Layer:
    """Read one line of a spec."""
    if isinstance(item, Layer):
        return item
    word, given = _split(item, where)
    if word not in LAYERS:
        raise RequestError(f"{where}: unknown layer `{word}`{did_you_mean(word, LAYERS)}")
    kind = LAYERS[word]
    where = f"{where} ({word})"
    arguments = _arguments(given, kind, word, where)
    for body in kind.bodies:
        optional = not kind.model_fields[body].is_required()
        if arguments.get(body) or (body in arguments and not optional):
            arguments[body] = parse_layers(arguments[body], f"{where}, {body} ")
        elif body in arguments:
            arguments[body] = ()
    try:
        return kind.model_validate({"word": word, **arguments})
    except ValidationError as error:
        raise RequestError(f"{where}: {_explain(error)}") from error


def _split(item: object, where: str) -> tuple[str, object]:
    """Take a line apart into its word and what is given to it."""
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        word, given = next(iter(item.items()))
        return str(word), given
    raise RequestError(
        f"{where}: expected one layer, such as `- relu` or `- conv: {{filters: 6, kernel: 5}}`, found {item!r}"
    )


def _arguments(given: object, kind: type[Layer], word: str, where: str) -> dict[str, Any]:
    """Name the arguments; one that stands alone is the first."""
    known = kind.arguments()
    if not isinstance(given, Mapping):
        if not known:
            raise RequestError(f"{where} takes no arguments, found {given!r}. Write `- {word}`.")
        return {known[0]: given}
    for argument in given:
        if argument not in known:
            hint = did_you_mean(str(argument), known) if known else "; it takes none"
            raise RequestError(f"{where}: unknown argument `{argument}`{hint}")
    return dict(given)


def _explain(error: ValidationError) -> str:
    """Say each wrong argument once, with all that it may be (a union reports every alternative)."""
    faults: dict[str, list[str]] = {}
    for detail in error.errors():
        argument = str(detail["loc"][0])
        if detail["type"] == "missing":
            faults[f"`{argument}` is missing"] = []
        else:
            message = detail["msg"].removeprefix("Input ")
            faults.setdefault(f"`{argument}` is {detail['input']!r}, but", []).append(message)
    return "; ".join(f"{fault} {' or '.join(messages)}".rstrip() for fault, messages in faults.items())
