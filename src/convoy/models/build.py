"""Build the torch module of a spec: the modules of its layers, their first weights, networks of torchvision and timm.

N images, C channels, H height, W width, K classes. A volume is (C, H, W) in code and H×W×C in messages; a flat row is (C,).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from convoy.core.errors import NetworkError
from convoy.models import layer_types
from convoy.models.layer_types import ACTIVATIONS, OVER_CHANNELS, pair
from convoy.models.shapes import LARGEST_PX, Step, TooSmallError, Volume, describe, infer, padding, too_small
from convoy.models.spec import ZOOS, Spec

PADS: dict[str, type[nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "replicate": nn.ReplicationPad2d,
    "reflect": nn.ReflectionPad2d,
    "circular": nn.CircularPad2d,
}

OVERWRITABLE = (
    layer_types.Conv,
    layer_types.Whiten,
    layer_types.Norm,
    layer_types.GroupNorm,
    layer_types.LayerNorm,
    layer_types.Dense,
    layer_types.Residual,
    layer_types.Multiply,
    layer_types.Branches,
)
"""Layers whose output is a new tensor that backward does not need, so that a ReLU straight after may overwrite it:
ResNet-18 trains 5 % faster. Other layers pass their input on, or save their output."""


class WithAuxiliary(NamedTuple):
    """The output, in training mode, of a network with auxiliary heads."""

    logits: Tensor  # (N, K)
    auxiliary: tuple[tuple[float, Tensor], ...]  # weight in the loss and (N, K) logits of each head


class Group(nn.Sequential):
    """Chain layers under one name: a unit of the network, which transfer freezes as a whole."""


class Auxiliary(nn.Sequential):
    """An auxiliary head: helps to train the layers before it; the network passes its input on unchanged."""

    def __init__(self, weight: float) -> None:
        """Set the head's weight in the loss; layers are added by name."""
        super().__init__()
        self.weight = weight


class Network(nn.Sequential):
    """Chain layers from image to logits; auxiliary heads run in training mode only."""

    def forward(self, volume: Tensor) -> Tensor | WithAuxiliary:
        """Map (N, 3, H, W) to (N, K) logits, with those of auxiliary heads in training mode."""
        heads = []
        for module in self:
            if not isinstance(module, Auxiliary):
                volume = module(volume)
            elif self.training:
                heads.append((module.weight, module(volume)))
        return WithAuxiliary(volume, tuple(heads)) if heads else volume


class Sum(nn.Module):
    """Add the outputs of `body` and `shortcut`: the residual unit.

    In training the body's output is 0 for a share `drop` of the images, and divided by 1 - drop for the others.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module, drop: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.drop = drop

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the body's output."""
        change: Tensor = self.body(volume)
        if self.training and self.drop:
            each_image = change.new_ones(len(change), *[1] * (change.dim() - 1))
            change = change * functional.dropout(each_image, self.drop)
        total: Tensor = change + self.shortcut(volume)
        return total


class Product(nn.Sequential):
    """Multiply the input by what the layers inside make of it: squeeze-and-excitation."""

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape; a (N, C) output of the layers is a factor per channel."""
        gate: Tensor = super().forward(volume)  # type: ignore[no-untyped-call]  # torch has no types here
        return volume * gate.reshape(*gate.shape, *[1] * (volume.dim() - gate.dim()))


class Whitening(nn.Conv2d):
    """Convolve with fixed filters; only the bias is learnt.

    The filters are a buffer: part of the weights, of checkpoints and of transfer, and no optimizer changes them.
    """

    weight: Tensor

    def __init__(self, *args: Any, eps: float, **kwargs: Any) -> None:  # noqa: ANN401 (as nn.Conv2d takes)
        """Take the arguments of `nn.Conv2d`, and `eps`, which is added to the variance of each response."""
        super().__init__(*args, **kwargs)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight)
        self.eps = eps


class BiasedNorm(nn.BatchNorm2d):
    """Batch norm that learns a bias and no scale."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        # A constant: kernels of every device take a scale, and some refuse a bias without it.
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)


class LayerNorm2d(nn.LayerNorm):
    """Normalise each pixel over its channels, or a row over its numbers."""

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) or (N, C) to the same shape."""
        normed: Tensor = super().forward(volume.movedim(1, -1))
        return normed.movedim(-1, 1)


class Scale(nn.Module):
    """Multiply by a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, volume: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return volume * self.factor


class Branches(nn.Module):
    """Run branches in parallel and concatenate their outputs in depth: the inception unit."""

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, sum of the branches' channels, H', W'), in the order of the branches."""
        return torch.cat([branch(volume) for branch in self.children()], dim=1)


class Padded(nn.Module):
    """Pad unevenly before a convolution; torch's own convolution pads both sides alike."""

    def __init__(self, padding: nn.Module, conv: nn.Conv2d) -> None:
        super().__init__()
        self.padding = padding
        self.conv = conv

    def forward(self, volume: Tensor) -> Tensor:
        """Map (N, C, H, W) to the convolution's output."""
        output: Tensor = self.conv(self.padding(volume))
        return output


S = TypeVar("S", bound=nn.Sequential)


def build_layers(steps: tuple[Step, ...], *, auxiliary: bool) -> Network:
    """Chain the modules of a network, with fresh weights on torch's default device.

    Raises:
        NetworkError: a layer or a branch has the name of an attribute of torch's modules.
    """
    whole = _fill(Network(), steps)
    if not auxiliary:
        for step in steps:
            if isinstance(step.layer, layer_types.Auxiliary):
                delattr(whole, step.name)
    return whole


def _fill(sequence: S, steps: tuple[Step, ...]) -> S:
    """Add a chain's modules to a sequence, by name."""
    previous: layer_types.Layer | None = None
    for step in steps:
        module = _MAKERS[type(step.layer)](step.layer, step)
        if isinstance(module, nn.ReLU) and isinstance(previous, OVERWRITABLE):
            module.inplace = True
        _add(sequence, step.name, module, step)
        previous = step.layer
    return sequence


def _add(parent: nn.Module, name: str, child: nn.Module, step: Step) -> None:
    if hasattr(parent, name):
        label = step.layer.location or step.layer.word
        raise NetworkError(f"{label}: `{name}` is an attribute of torch's modules. Choose another name.")
    parent.add_module(name, child)


def _activation(layer: layer_types.Activation, _step: Step) -> nn.Module:
    arguments = dict(layer.values) | ({"dim": 1} if layer.word in OVER_CHANNELS else {})
    module: nn.Module = getattr(nn, ACTIVATIONS[layer.word][0])(**arguments)
    return module


def _conv(layer: layer_types.Conv, step: Step, kind: Callable[..., nn.Conv2d] = nn.Conv2d) -> nn.Module:
    channels, *sides = step.input
    (top, bottom), (left, right) = padding(layer, tuple(sides))
    even = top == bottom and left == right
    conv = kind(
        channels,
        layer.filters,
        pair(layer.kernel),
        stride=pair(layer.stride),
        padding=(top, left) if even else 0,
        dilation=pair(layer.dilation),
        groups=layer.groups,
        bias=layer.bias,
        padding_mode=layer.padding_mode if even else "zeros",
    )
    return conv if even else Padded(PADS[layer.padding_mode]((left, right, top, bottom)), conv)


def _pool(layer: layer_types.Pool, _step: Step) -> nn.Module:
    kind = nn.MaxPool2d if layer.word == "max_pool" else nn.AvgPool2d
    stride = pair(layer.kernel if layer.stride is None else layer.stride)
    return kind(pair(layer.kernel), stride, pair(layer.padding), ceil_mode=layer.ceil)


def _adaptive_pool(layer: layer_types.AdaptivePool, _step: Step) -> nn.Module:
    kind = nn.AdaptiveMaxPool2d if layer.word == "adaptive_max_pool" else nn.AdaptiveAvgPool2d
    return kind(pair(layer.side))


def _branches(layer: layer_types.Branches, step: Step) -> nn.Module:
    module = Branches()
    for name, part in zip(layer.branches, step.parts, strict=True):
        _add(module, name, _fill(nn.Sequential(), part), step)
    return module


_MAKERS: dict[type[layer_types.Layer], Callable[[Any, Step], nn.Module]] = {
    layer_types.Conv: _conv,
    layer_types.Whiten: lambda layer, step: _conv(layer.conv(), step, partial(Whitening, eps=layer.eps)),
    layer_types.Norm: lambda layer, step: (nn.BatchNorm2d if layer.scale else BiasedNorm)(
        step.input[0], eps=layer.eps, momentum=layer.momentum
    ),
    layer_types.GroupNorm: lambda layer, step: nn.GroupNorm(layer.groups, step.input[0], layer.eps),
    layer_types.LayerNorm: lambda layer, step: LayerNorm2d(step.input[0], layer.eps),
    layer_types.LocalResponseNorm: lambda layer, _step: nn.LocalResponseNorm(
        layer.size, layer.alpha, layer.beta, layer.k
    ),
    layer_types.Activation: _activation,
    layer_types.Pool: _pool,
    layer_types.AdaptivePool: _adaptive_pool,
    layer_types.GlobalAvgPool: lambda _layer, _step: nn.AdaptiveAvgPool2d(1),
    layer_types.Dropout: lambda layer, _step: nn.Dropout(layer.share),
    layer_types.Scale: lambda layer, _step: Scale(layer.factor),
    layer_types.Flatten: lambda _layer, _step: nn.Flatten(),
    layer_types.Dense: lambda layer, step: nn.Linear(step.input[0], step.output[0], bias=layer.bias),
    layer_types.Residual: lambda layer, step: Sum(
        _fill(nn.Sequential(), step.parts[0]), _fill(nn.Sequential(), step.parts[1]), layer.drop
    ),
    layer_types.Multiply: lambda _layer, step: _fill(Product(), step.parts[0]),
    layer_types.Branches: _branches,
    layer_types.Group: lambda _layer, step: _fill(Group(), step.parts[0]),
    layer_types.Repeat: lambda _layer, step: nn.Sequential(*(_fill(Group(), part) for part in step.parts)),
    layer_types.Auxiliary: lambda layer, step: _fill(Auxiliary(layer.weight), step.parts[0]),
}


def build(spec: Spec, classes: int, image_px: int, *, auxiliary: bool = False) -> nn.Module:
    """Build a network with fresh weights from torch's global random state.

    Returns:
        A module from (N, 3, image_px, image_px) normalised float32 to (N, K) logits; in training mode
        with auxiliary heads, to `WithAuxiliary`.

    Raises:
        NetworkError: as `shapes.infer` does.
    """
    network = assemble(spec, classes, image_px, auxiliary=auxiliary)
    if spec.classifier:
        zoo, name = spec.classifier
        return ZOOS[zoo].make(name, classes, image_px)
    network.to_empty(device=torch.get_default_device())
    _initialise(network, spec)
    return network.train()


def assemble(spec: Spec, classes: int, image_px: int, *, auxiliary: bool = False) -> nn.Module:
    """Build a network on the meta device, without allocating weights.

    Raises:
        NetworkError: as `shapes.infer` does; a network of a library that gives something else than logits.
    """
    if spec.classifier is None:
        steps = infer(spec, classes, image_px)
        with torch.device("meta"):
            return build_layers(steps, auxiliary=auxiliary).eval()
    zoo, name = spec.classifier
    try:
        network = _skeleton(zoo, name, classes, image_px)
        output = _run_named(network, (3, image_px, image_px))
    except TooSmallError as error:
        works = smallest_px_of_classifier(zoo, name, classes, image_px + 1)
        raise too_small(spec, image_px, error, works) from error
    if output != (classes,):
        raise NetworkError(
            f"{zoo}'s {name} gives {describe(output)} per image, not one number for each of the {classes} classes. "
            "Choose another network.name."
        )
    return network


def _initialise(network: nn.Module, spec: Spec) -> None:
    """Initialise every layer's weights, in order."""
    for module in network.modules():
        if spec.init == "kaiming" and isinstance(module, nn.Conv2d | nn.Linear):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, 0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise AssertionError(f"{type(module).__name__} has weights but no reset_parameters")
        if spec.init == "dirac":
            _pass_on(module)


def _pass_on(module: nn.Module) -> None:
    """Let the first filters of a convolution pass its input on; spread a dense layer's weights to a deviation of 1."""
    with torch.no_grad():
        if isinstance(module, nn.Conv2d):
            for part in module.weight.chunk(module.groups):
                nn.init.dirac_(part[: part.shape[1]])
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -math.sqrt(3), math.sqrt(3))


def _skeleton(zoo: str, name: str, classes: int, image_px: int) -> nn.Module:
    """Make a network of a library on the meta device."""
    try:
        try:
            with _WeightlessMode():
                return ZOOS[zoo].make(name, classes, image_px).to("meta").eval()
        except RuntimeError:  # perhaps because its constructor computes with values of tensors
            return ZOOS[zoo].make(name, classes, image_px).to("meta").eval()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise TooSmallError(f"{zoo}'s {name}: {_reason(error)}") from error


class _WeightlessMode(TorchFunctionMode):
    """Put only weights on the meta device: RegNet's constructor computes its widths with real tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 (as torch)
        """Make uninitialised and constant tensors on the meta device."""
        given = kwargs or {}
        if func in {torch.empty, torch.zeros, torch.ones} and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


def _run_named(network: nn.Module, volume: Volume) -> Volume:
    """Run a network of a library; name the layer that fails and its input."""
    running: list[tuple[str, Volume]] = []

    def enter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: running.append((name, tuple(inputs[0].shape[1:])))

    handles = [
        module.register_forward_pre_hook(enter(f"layer {name} ({type(module).__name__})"))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        with torch.no_grad():
            output = network(torch.empty((2, *volume), device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        name, given = running[-1] if running else ("its first layer", volume)
        raise TooSmallError(f"{name} cannot take the volume {describe(given)} ({_reason(error)})") from error
    finally:
        for handle in handles:
            handle.remove()
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()


def smallest_px_of_classifier(zoo: str, name: str, classes: int, start: int) -> int | None:
    """Find the smallest image side from `start` on, up to LARGEST_PX, that a library's network accepts."""
    network = None if ZOOS[zoo].fixes_side(name) else _skeleton(zoo, name, classes, start)
    for side in range(start, LARGEST_PX + 1):
        try:
            _run_named(network or _skeleton(zoo, name, classes, side), (3, side, side))
        except TooSmallError:
            continue
        return side
    return None


def _reason(error: Exception) -> str:
    """Keep torch's reason, without its trace."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
