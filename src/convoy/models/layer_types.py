"""The words of a spec: one class per kind of layer, with its arguments and their ranges.

`reading.py` turns YAML into these, `volumes.py` knows the volume that each makes,
`table/tabulate.py` its parameters, `layers.py` its torch module. To add a layer: a class
here, its word in `LAYERS`, and a function of its own in those three; one with a window
also wants a line in `table/field.py`, one with memory of its own in `table/kept.py`.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from convoy.models.yaml_lines import brief

ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "relu": ("ReLU", ()),
    "relu6": ("ReLU6", ()),
    "leaky_relu": ("LeakyReLU", ("negative_slope",)),
    "prelu": ("PReLU", ("init",)),
    "rrelu": ("RReLU", ("lower", "upper")),
    "elu": ("ELU", ("alpha",)),
    "celu": ("CELU", ("alpha",)),
    "selu": ("SELU", ()),
    "gelu": ("GELU", ("approximate",)),
    "silu": ("SiLU", ()),
    "mish": ("Mish", ()),
    "hardswish": ("Hardswish", ()),
    "hardsigmoid": ("Hardsigmoid", ()),
    "hardtanh": ("Hardtanh", ("min_val", "max_val")),
    "hardshrink": ("Hardshrink", ("lambd",)),
    "sigmoid": ("Sigmoid", ()),
    "log_sigmoid": ("LogSigmoid", ()),
    "tanh": ("Tanh", ()),
    "tanhshrink": ("Tanhshrink", ()),
    "softplus": ("Softplus", ("beta", "threshold")),
    "softshrink": ("Softshrink", ("lambd",)),
    "softsign": ("Softsign", ()),
    "softmax": ("Softmax", ()),
    "softmin": ("Softmin", ()),
    "log_softmax": ("LogSoftmax", ()),
    "softmax2d": ("Softmax2d", ()),
    "threshold": ("Threshold", ("threshold", "value")),
    "glu": ("GLU", ()),
}
"""Words for activations: the `torch.nn` class that each stands for, and that class's arguments."""

_LOW_AND_HIGH = {"hardtanh": ("min_val", -1.0, "max_val", 1.0), "rrelu": ("lower", 1 / 8, "upper", 1 / 3)}
"""Activations with an argument that must lie below another one, with torch's defaults of both."""

OVER_CHANNELS = ("softmax", "softmin", "log_softmax", "glu")
"""Activations that look at all channels of a place at once; torch calls that dim=1."""

Count = Annotated[int, Field(ge=1)]
Margin = Annotated[int, Field(ge=0)]
Sides = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]  # one number, or [height, width]
Margins = Margin | Annotated[list[Margin], Field(min_length=2, max_length=2)]


NAME = r"^[A-Za-z0-9_]+$"


class Layer(BaseModel):
    """Hold one layer's arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    bodies: ClassVar[tuple[str, ...]] = ()
    """Arguments that are themselves lists of layers."""
    itself: ClassVar[tuple[str, ...]] = ("word", "place", "name")
    """Fields that are no arguments of the layer's own."""

    word: str  # what the YAML line calls it
    place: Annotated[str, Field(exclude=True)] = ""  # where it was read, such as networks/mine.yaml:12
    name: Annotated[str, Field(pattern=NAME)] | None = None  # of the module; else word and number

    @classmethod
    def arguments(cls) -> list[str]:
        """List the arguments; the first one may stand alone, as in `max_pool: 2`."""
        return [name for name in cls.model_fields if name not in cls.itself]

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Give the grammar of the YAML file back, with every argument spelled out."""
        arguments = handler(self)
        if arguments["name"] is None:
            del arguments["name"]
        return {arguments.pop("word"): arguments}


Layers = tuple[SerializeAsAny[Layer], ...]


class Conv(Layer):
    """Slide `filters` windows over the volume; each makes one channel."""

    filters: Count
    kernel: Sides
    stride: Sides = 1
    padding: Margins | Literal["same", "valid"] = 0  # same: output side = ceil(input side / stride)
    padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = "zeros"
    dilation: Sides = 1
    groups: Count = 1
    bias: bool = True


class Norm(Layer):
    """Normalise each channel over the batch."""

    over: Literal["batch"] = "batch"
    eps: Annotated[float, Field(gt=0)] = 1e-5  # added to the variance; torch's default


class LocalResponseNorm(Layer):
    """Divide each value by a power of its neighbours in depth, as AlexNet did in 2012.

    x / (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta, which is torch's
    form: the paper's alpha is not divided by size. Defaults are torch's.
    """

    size: Count
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


class Activation(Layer):
    """Apply a function to every element."""

    values: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Give the arguments back beside each other, as the line had them."""
        arguments = handler(self)
        kept = {"name": arguments["name"]} if arguments["name"] is not None else {}
        return {arguments["word"]: kept | arguments["values"]}

    @model_validator(mode="after")
    def _values_that_torch_takes(self) -> "Activation":
        for name, value in self.values.items():
            if name == "approximate":
                fits, wanted = value in ("none", "tanh"), "'none' or 'tanh'"
            else:
                fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
                wanted = "a number"
            if not fits:
                raise ValueError(f"`{name}` is {brief(value)}, but should be {wanted}")
        if self.word == "threshold" and len(self.values) < len(ACTIVATIONS[self.word][1]):
            raise ValueError("`threshold` and `value` must both be given")
        if self.word in _LOW_AND_HIGH:
            low, least, high, most = _LOW_AND_HIGH[self.word]
            bottom, top = self.values.get(low, least), self.values.get(high, most)
            if bottom >= top:
                raise ValueError(f"`{low}` is {bottom:g}, but should be less than `{high}`, {top:g}")
        if self.word == "celu" and self.values.get("alpha") == 0:
            raise ValueError("`alpha` is 0, but should be another number")
        if self.word == "softshrink" and self.values.get("lambd", 0) < 0:
            raise ValueError(f"`lambd` is {self.values['lambd']}, but should be greater than or equal to 0")
        return self


class Pool(Layer):
    """Make one value of each window; windows do not overlap unless `stride` says so."""

    kernel: Sides
    stride: Sides | None = None
    padding: Margins = 0
    ceil: bool = False  # let a last window stand over the edge

    @model_validator(mode="after")
    def _at_most_half_padding(self) -> "Pool":
        for margin, side in zip(pair(self.padding), pair(self.kernel), strict=True):
            if margin > side // 2:
                raise ValueError(f"`padding` is {margin}, but at most half of the kernel ({side // 2}) fits")
        return self


class AdaptivePool(Layer):
    """Make a volume of given sides, whatever the sides that arrive."""

    side: Sides


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


class Branches(Layer):
    """Run lists of layers side by side and concatenate what they make in depth: the inception unit."""

    branches: Annotated[
        dict[Annotated[str, Field(pattern=NAME)], Layers], Field(min_length=2)
    ]  # by name, in order

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Give the branches back under their names, as the line had them."""
        arguments = handler(self)
        kept = {"name": arguments["name"]} if arguments["name"] is not None else {}
        return {arguments["word"]: kept | arguments["branches"]}


class Repeat(Layer):
    """Chain the same layers several times, each time with weights of their own."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    times: Count
    layers: Layers


class Group(Layer):
    """Chain layers under one name; a named block becomes this."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    layers: Layers
    block: Annotated[str, Field(pattern=NAME)] | None = None  # that it was made from; names the module


class Auxiliary(Layer):
    """Train what lies before by a head of its own, which adds `weight` times its loss; training only."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    weight: Annotated[float, Field(gt=0, le=10)]
    layers: Layers


LAYERS: dict[str, type[Layer]] = {
    "conv": Conv,
    "norm": Norm,
    "local_response_norm": LocalResponseNorm,
    "max_pool": Pool,
    "avg_pool": Pool,
    "adaptive_avg_pool": AdaptivePool,
    "adaptive_max_pool": AdaptivePool,
    "global_avg_pool": GlobalAvgPool,
    "dropout": Dropout,
    "flatten": Flatten,
    "dense": Dense,
    "residual": Residual,
    "branches": Branches,
    "repeat": Repeat,
    "group": Group,
    "auxiliary": Auxiliary,
    **dict.fromkeys(ACTIVATIONS, Activation),
}


def pair(sides: int | list[int]) -> tuple[int, int]:
    """Give one number, or [height, width], as height and width."""
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])
