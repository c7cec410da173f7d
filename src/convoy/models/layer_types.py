"""The layers of a spec: one class per kind of layer, with its arguments and their ranges.

`spec` turns YAML into these, `shapes` infers the volume that each makes, `build` makes its torch module. To add a layer:
a class here with its word in `LAYERS`, entries in `shapes` and `build`; a layer with a window also needs an entry in
`_through` of `explain/table.py`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
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
"""Words for activations: the `torch.nn` class of each, and that class's arguments."""

_LOW_AND_HIGH = {"hardtanh": ("min_val", -1.0, "max_val", 1.0), "rrelu": ("lower", 1 / 8, "upper", 1 / 3)}
"""Activations with one argument that must be less than another, with torch's defaults of both."""

OVER_CHANNELS = ("softmax", "softmin", "log_softmax", "glu")  # over all channels of a pixel; torch's dim=1

Count = Annotated[int, Field(ge=1)]
Epsilon = Annotated[float, Field(gt=0)]  # added to a variance; torch's default is 1e-5
Margin = Annotated[int, Field(ge=0)]
Sides = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]  # one number, or [height, width]
Margins = Margin | Annotated[list[Margin], Field(min_length=2, max_length=2)]
WIDEST_WHITENED = 16  # pixels: the covariance of larger patches takes minutes
NAME = r"^[A-Za-z0-9_]+$"
Name = Annotated[str, Field(pattern=NAME)]


class Layer(BaseModel):
    """Hold one layer's arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    bodies: ClassVar[tuple[str, ...]] = ()
    """Arguments that are themselves lists of layers."""

    word: str  # as in the YAML line
    location: Annotated[str, Field(exclude=True)] = ""  # such as `networks/mine.yaml:12, layer 3 (conv)`
    name: Name | None = None  # of the module; else word and number

    @classmethod
    def arguments(cls) -> list[str]:
        """List the arguments; a line may give the first without its name, as in `max_pool: 2`."""
        return [name for name in cls.model_fields if name not in ("word", "location", "name")]

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialise in the grammar of the YAML file, with every argument spelled out."""
        arguments = handler(self)
        word = arguments.pop("word")
        if arguments["name"] is None:
            del arguments["name"]
        for inlined in ("values", "branches"):  # stand beside `name` in the line
            arguments |= arguments.pop(inlined, {})
        return {word: arguments}


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


class Whiten(Layer):
    """Convolve the image with fixed filters that whiten its patches, computed from training images.

    Makes 2 x 3 x kernel height x kernel width channels; a bias of each is learnt.
    """

    kernel: Sides = 2
    stride: Sides = 1
    padding: Margins | Literal["same", "valid"] = 0
    bias: bool = True
    eps: Annotated[float, Field(gt=0)] = 5e-4  # added to the variance of each response; airbench94's

    @model_validator(mode="after")
    def _check_kernel(self) -> "Whiten":
        if max(pair(self.kernel)) > WIDEST_WHITENED:
            raise ValueError(f"`kernel` is {self.kernel}, but at most {WIDEST_WHITENED} pixels are whitened")
        return self

    def conv(self) -> Conv:
        """Return the convolution that has the same shapes."""
        height, width = pair(self.kernel)
        return Conv(
            word="conv",
            filters=2 * 3 * height * width,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            bias=self.bias,
        )


class Norm(Layer):
    """Normalise each channel over the batch."""

    over: Literal["batch"] = "batch"
    eps: Epsilon = 1e-5
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of a new batch in running statistics; torch's
    scale: bool = True  # whether a factor per channel is learnt; the bias always is


class GroupNorm(Layer):
    """Normalise groups of channels of each image; it does not depend on the batch."""

    groups: Count
    eps: Epsilon = 1e-5


class LayerNorm(Layer):
    """Normalise each pixel over its channels, as ConvNeXt does, or a flat row over its numbers."""

    eps: Epsilon = 1e-5


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

    @model_validator(mode="after")
    def _check_values(self) -> "Activation":
        for name, value in self.values.items():
            if name == "approximate":
                fits, allowed = value in ("none", "tanh"), "'none' or 'tanh'"
            else:
                fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
                allowed = "a number"
            if not fits:
                raise ValueError(f"`{name}` is {abbreviate(value)}, but should be {allowed}")
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
    """Reduce each window to one value; windows do not overlap unless `stride` is smaller than `kernel`."""

    kernel: Sides
    stride: Sides | None = None
    padding: Margins = 0
    ceil: bool = False  # allow a last window that extends beyond the edge

    @model_validator(mode="after")
    def _check_padding(self) -> "Pool":
        for margin, side in zip(pair(self.padding), pair(self.kernel), strict=True):
            if margin > side // 2:
                raise ValueError(f"`padding` is {margin}, but at most half of the kernel ({side // 2}) fits")
        return self


class AdaptivePool(Layer):
    """Pool to given sides, whatever the input's."""

    side: Sides


class GlobalAvgPool(Layer):
    """Keep the mean of each channel, as a volume of 1 x 1."""


class Dropout(Layer):
    """Zero elements at random while training."""

    share: Annotated[float, Field(ge=0, lt=1)]


class Scale(Layer):
    """Multiply by a fixed factor, such as logits by 1 / inputs of the last dense layer."""

    factor: float

    @model_validator(mode="after")
    def _check_factor(self) -> "Scale":
        if self.factor == 0:
            raise ValueError("`factor` is 0, which erases its input, but should be another number")
        return self


class Flatten(Layer):
    """Turn the volume into one row of numbers."""


class Dense(Layer):
    """Connect every input to every output; `classes` stands for the number of classes of the data."""

    units: Count | Literal["classes"]
    bias: bool = True


class Residual(Layer):
    """Add the input to the output of `body`; `shortcut` fits the input to the body's volume.

    In training the body's output is left out for a share `drop` of the images, and divided by 1 - drop for the others:
    stochastic depth (Huang et al. 2016), in the form of torchvision and timm.
    """

    bodies: ClassVar[tuple[str, ...]] = ("body", "shortcut")

    body: Layers
    shortcut: Layers = ()
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Multiply(Layer):
    """Multiply the input by the output of `layers`: squeeze-and-excitation, and other gates."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    layers: Layers


class Branches(Layer):
    """Run lists of layers in parallel and concatenate their outputs in depth: the inception unit."""

    branches: Annotated[dict[Name, Layers], Field(min_length=2)]  # in order


class Repeat(Layer):
    """Chain the same layers several times, each time with separate weights."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    times: Count
    layers: Layers


class Group(Layer):
    """Chain layers under one name; named blocks expand to groups."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    layers: Layers
    block: Name | None = None  # the named block it was expanded from; names the module


class Auxiliary(Layer):
    """Attach an auxiliary head that adds `weight` times its loss to the training loss; absent after training."""

    bodies: ClassVar[tuple[str, ...]] = ("layers",)

    weight: Annotated[float, Field(gt=0, le=10)]
    layers: Layers


LAYERS: dict[str, type[Layer]] = {
    "conv": Conv,
    "whiten": Whiten,
    "norm": Norm,
    "group_norm": GroupNorm,
    "layer_norm": LayerNorm,
    "local_response_norm": LocalResponseNorm,
    "max_pool": Pool,
    "avg_pool": Pool,
    "adaptive_avg_pool": AdaptivePool,
    "adaptive_max_pool": AdaptivePool,
    "global_avg_pool": GlobalAvgPool,
    "dropout": Dropout,
    "scale": Scale,
    "flatten": Flatten,
    "dense": Dense,
    "residual": Residual,
    "multiply": Multiply,
    "branches": Branches,
    "repeat": Repeat,
    "group": Group,
    "auxiliary": Auxiliary,
    **dict.fromkeys(ACTIVATIONS, Activation),
}


def pair(sides: int | Sequence[int]) -> tuple[int, int]:
    """Expand one number, or [height, width], to (height, width)."""
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


def abbreviate(value: object, depth: int = 2) -> str:
    """Format a value for a message, shortened: aliases of aliases in YAML would fill the memory."""
    shown = 4 if depth else 0
    if isinstance(value, Mapping):
        items = [f"{key}: {abbreviate(item, depth - 1)}" for key, item in islice(value.items(), shown)]
        return f"{{{', '.join(items + ['…'] * (len(value) > len(items)))}}}"
    if isinstance(value, list | tuple):
        items = [abbreviate(item, depth - 1) for item in islice(value, shown)]
        return f"[{', '.join(items + ['…'] * (len(value) > len(items)))}]"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
