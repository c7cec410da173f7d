"""Extract a trained network's first filters and the activation maps of its layers for given images.

N images, C channels, H height, W width, P pixels a side, K classes.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from convoy.core import console
from convoy.core.errors import NetworkError
from convoy.models.build import Padded, Product, Sum
from convoy.models.layer_types import ACTIVATIONS
from convoy.models.trained import NormalizedModel, full_float32

Depth = Literal["low", "middle", "high"]

MOST_MAPS = 8  # maps kept per layer
BORDER = 16  # divisor of a map's side that gives its border: two cells of 32; maps below 16 cells have none
READABLE_SIDES = (4, 2, 1)  # smallest sides of a map that shows a shape, in cells, tried in this order

_REFINES = (
    _NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    Product,
    *(getattr(nn, name) for name, _ in ACTIVATIONS.values()),
)
"""Layers behind a convolution whose output is still that convolution's map, channel by channel."""


@dataclass
class Layer:
    """Describe a convolution's output after the norm and the activation behind it.

    Attributes:
        convolution: name of the convolution in `network.named_modules()`.
        name: of the convolution, or of the unit that returns its map.
        operations: class names of the modules that the map went through, or of that unit.
        volume: (C, H, W).
        end: name of the last module that returns the map, and the number of its call, from 0.
    """

    convolution: str
    name: str
    operations: list[str]
    volume: tuple[int, ...]
    end: tuple[str, int]


@dataclass(frozen=True)
class ActivationMap:
    """Hold one channel of a layer's output.

    Attributes:
        channel: its number in the volume, from 0.
        strength: its largest value outside the border, where padding creates edges that are not in the image.
        values: (H, W).
    """

    channel: int
    strength: float
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageFeatures:
    """Hold one image's (K,) probabilities, and the strongest maps of each layer, strongest first."""

    probabilities: npt.NDArray[np.float32]
    strongest: dict[Depth, list[ActivationMap]]


@dataclass(frozen=True)
class Features:
    """Hold a network's first filters, up to three of its layers, and their maps for each image.

    Attributes:
        first: name of the first convolution; None if the network has none.
        filters: its (C, KH, KW, 3) weights; (C, KH, KW, 1) if each filter sees a single channel.
        gray: whether the training images are gray: the statistics of their channels are equal.
        layers: at most three; fewer if the network has fewer convolutions.
        convolutions: number of convolutions that ran.
        passed_over: whether there are deeper layers, whose maps are smaller.
    """

    first: str | None
    filters: npt.NDArray[np.float32] | None
    gray: bool
    layers: dict[Depth, Layer]
    convolutions: int
    passed_over: bool
    images: list[ImageFeatures]


def find(model: NormalizedModel, images_u8: Sequence[npt.NDArray[np.uint8]]) -> Features:
    """Run (P, P, 3) RGB images through a network in evaluation mode; return its filters and its strongest maps.

    Runs in float32 on the model's device, one image at a time.

    Raises:
        NetworkError: the network outputs NaN.
    """
    with torch.inference_mode(), full_float32():
        trace = _Trace()
        with _hooked(model.network, trace.record):
            model(_pixels(model, images_u8[0]))
        convolutions = trace.layers
        layers = choose(convolutions)
        images = [
            _image_features(model, _pixels(model, image_u8), layers)
            for image_u8 in console.track(images_u8, "compute feature maps", len(images_u8))
        ]
    first = convolutions[0].convolution if convolutions else None
    weights = (
        model.network.state_dict()[f"{first}.weight"] if first else None
    )  # a buffer in a whitening layer
    return Features(
        first=first,
        filters=None if weights is None else weights.detach().cpu().numpy().transpose(0, 2, 3, 1),
        gray=all(len(set(statistic.flatten().tolist())) == 1 for statistic in (model.mean, model.std)),
        layers=layers,
        convolutions=len(convolutions),
        passed_over=bool(layers) and list(layers.values())[-1] is not convolutions[-1],
        images=images,
    )


def choose(layers: Sequence[Layer]) -> dict[Depth, Layer]:
    """Pick a layer at each depth, of those whose maps are large enough to read: the first, the middle and the last."""
    for side in READABLE_SIDES:
        readable = [layer for layer in layers if min(layer.volume[1:]) >= side]
        if len(readable) >= len(get_args(Depth)):
            return {"low": readable[0], "middle": readable[len(readable) // 2], "high": readable[-1]}
    depths: tuple[Depth, ...] = ("low", "high")
    return dict(zip(depths, layers, strict=False))


class _Trace:
    """Follow the output of each convolution through the modules behind it, by the identity of tensors."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        # The newest output of each. Weak: holding every volume of a large network would take gigabytes.
        self._newest: list[weakref.ref[Tensor]] = []

    def record(self, name: str, call: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as wide as torch's hooks)
        """Record a module that has run, in the order of execution."""
        if not isinstance(output, Tensor):
            return
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            self.layers.append(Layer(name, name, [kind], tuple(output.shape[1:]), (name, call)))
            self._newest.append(weakref.ref(output))
        elif isinstance(module, Sum):
            bodies = [n for n, layer in enumerate(self.layers) if layer.end == (f"{name}.body", call)]
            if layer := self._extend(bodies, name, call, output):
                layer.name, layer.operations = name, [kind]
        elif isinstance(module, _REFINES):
            if layer := self._extend(self._makers(inputs[0]), name, call, output):
                layer.operations.append(kind)
        elif layer := self._extend(self._makers(output), name, call, output):
            if isinstance(module, Padded):
                layer.name = name
            elif any(module.children()) and not isinstance(module, nn.Sequential):
                layer.name, layer.operations = name, [kind]

    def _makers(self, tensor: Tensor) -> list[int]:
        """Find the layer whose newest output is this very tensor; units return that of their last layer."""
        return [n for n, newest in enumerate(self._newest) if newest() is tensor]

    def _extend(self, makers: list[int], name: str, call: int, output: Tensor) -> Layer | None:
        if not makers:
            return None
        n = makers[0]
        self._newest[n] = weakref.ref(output)
        self.layers[n].end, self.layers[n].volume = (name, call), tuple(output.shape[1:])
        return self.layers[n]


def _image_features(model: NormalizedModel, pixels: Tensor, layers: dict[Depth, Layer]) -> ImageFeatures:
    depths = {layer.end: depth for depth, layer in layers.items()}
    volumes: dict[Depth, npt.NDArray[np.float32]] = {}

    def keep(name: str, call: int, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as wide as torch's hooks)
        if depth := depths.get((name, call)):
            volumes[depth] = output[0].cpu().numpy().copy()  # layers behind may write over it

    with _hooked(model.network, keep):
        probabilities = model(pixels)[0].softmax(dim=0).cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise NetworkError(
            "the network outputs NaN: its weights have diverged. "
            "Train with a lower rate: dvc exp run -S train.lr=0.01"
        )
    return ImageFeatures(probabilities, {depth: _strongest(volumes[depth]) for depth in layers})


def _strongest(volume: npt.NDArray[np.float32]) -> list[ActivationMap]:
    """Rank the channels of (C, H, W) by their largest value inside the border."""
    rows, columns = (slice(side // BORDER, side - side // BORDER) for side in volume.shape[1:])
    strengths = volume[:, rows, columns].max(axis=(1, 2))
    ranked = np.argsort(-strengths, kind="stable")[:MOST_MAPS]
    # Copies: views would keep the whole volume of every image.
    return [ActivationMap(int(n), float(strengths[n]), volume[n].copy()) for n in ranked]


def _pixels(model: NormalizedModel, image_u8: npt.NDArray[np.uint8]) -> Tensor:
    """Convert (P, P, 3) to (1, 3, P, P), on the model's device."""
    return torch.from_numpy(np.array(image_u8)).to(model.mean.device).permute(2, 0, 1).unsqueeze(0).float()


@contextmanager
def _hooked(
    network: nn.Module, record: Callable[[str, int, nn.Module, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call `record` with name, number of the call, module, inputs and output after each module inside has run."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def call(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as wide as torch's hooks)
            record(name, calls[name], module, inputs, output)
            calls[name] += 1

        return call

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
