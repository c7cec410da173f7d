"""Find what a trained network sees: its first filters, and where its layers answer in an image.

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
from convoy.evaluation.inference import full_float32
from convoy.models.assembled import Padded, Sum
from convoy.models.deployable import NormalizedModel
from convoy.models.layer_types import ACTIVATIONS

Depth = Literal["low", "middle", "high"]

MOST_MAPS = 8
"""Maps kept of each layer."""
BORDER = 16
"""Share of a map's side that is border, as its divisor: two cells of 32; maps below 16 cells have none."""
READABLE_SIDES = (4, 2, 1)
"""Smallest sides of a map, in cells, that a layer is sought with: smaller maps show no shape."""

_REFINES = (_NormBase, nn.LayerNorm, *(getattr(nn, name) for name, _ in ACTIVATIONS.values()))
"""Layers behind a convolution whose output is still that convolution's map."""


@dataclass
class Layer:
    """Follow a convolution's output through the norm and the activation behind it.

    Attributes:
        convolution: name of the convolution, as `network.named_modules()` has it.
        name: of the convolution, or of the unit that hands its map on.
        operations: class names of the modules that the map went through, or of that unit.
        volume: (C, H, W).
        end: name of the module that the map leaves last, and which call of it, from 0.
    """

    convolution: str
    name: str
    operations: list[str]
    volume: tuple[int, int, int]
    end: tuple[str, int]

    @property
    def side(self) -> int:
        """Give the smaller side of its maps, in cells."""
        return min(self.volume[1:])


@dataclass(frozen=True)
class ActivationMap:
    """Hold one channel of a layer's output.

    Attributes:
        channel: its number in the volume, from 0.
        strength: its largest value, leaving out the border, where padding makes edges that no image has.
        values: (H, W).
    """

    channel: int
    strength: float
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """Hold what the network makes of one image: (K,) probabilities, and each layer's strongest maps, strongest first."""

    probabilities: npt.NDArray[np.float32]
    strongest: dict[Depth, list[ActivationMap]]


@dataclass(frozen=True)
class Features:
    """Hold a network's first filters, the layers that were looked into, and what they make of each image.

    Attributes:
        first: name of the first convolution; None where the network has none.
        filters: its (C, KH, KW, 3) weights; (C, KH, KW, 1) where each filter sees one channel alone.
        gray: whether the network learned from gray images, as equal statistics of its channels tell.
        layers: at most three; fewer where the network has fewer convolutions.
        convolutions: how many convolutions worked on the image.
        passed_over: whether there are deeper layers, whose maps are smaller.
        images: in the order given.
    """

    first: str | None
    filters: npt.NDArray[np.float32] | None
    gray: bool
    layers: dict[Depth, Layer]
    convolutions: int
    passed_over: bool
    images: list[Seen]


def find(model: NormalizedModel, images_u8: Sequence[npt.NDArray[np.uint8]]) -> Features:
    """Run images through a network and keep its filters and its strongest maps.

    Runs in float32 on the device where the model is, one image at a time.

    Args:
        model: in evaluation mode.
        images_u8: at least one, each (P, P, 3) RGB.

    Raises:
        NetworkError: the network answers with NaN.
    """
    with torch.inference_mode(), full_float32():
        found = _convolutions(model, _pixels(model, images_u8[0]))
        layers = choose(found)
        seen = [
            _seen(model, _pixels(model, image_u8), layers)
            for image_u8 in console.track(images_u8, "find features of images", len(images_u8))
        ]
    deepest = list(layers.values())[-1] if layers else None
    return Features(
        first=found[0].convolution if found else None,
        filters=_filters(model.network, found[0].convolution) if found else None,
        gray=all(len(set(one.flatten().tolist())) == 1 for one in (model.mean, model.std)),
        layers=layers,
        convolutions=len(found),
        passed_over=deepest is not None and deepest is not found[-1],
        images=seen,
    )


def choose(layers: Sequence[Layer]) -> dict[Depth, Layer]:
    """Pick a layer at each depth: the first, the one in the middle and the last whose maps are large enough to read.

    Args:
        layers: in the order in which they run.
    """
    for side in READABLE_SIDES:
        readable = [layer for layer in layers if layer.side >= side]
        if len(readable) >= len(get_args(Depth)):
            return {"low": readable[0], "middle": readable[len(readable) // 2], "high": readable[-1]}
    depths: tuple[Depth, ...] = ("low", "high")
    return dict(zip(depths, layers, strict=False))


def _convolutions(model: NormalizedModel, pixels: Tensor) -> list[Layer]:
    """List the convolutions in the order in which they run, each followed as far as its map goes on."""
    trace = _Trace()
    with _watching(model.network, trace.note):
        model(pixels)
    return trace.layers


class _Trace:
    """Follow what each convolution makes through the modules behind it, by the identity of tensors."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        # What each made last. Weak: holding every volume of a large network would take gigabytes.
        self._newest: list[weakref.ref[Tensor]] = []

    def note(self, name: str, call: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as wide as torch's hooks)
        """Take in that a module has run."""
        if not isinstance(output, Tensor):
            return
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            self.layers.append(Layer(name, name, [kind], _volume(output), (name, call)))
            self._newest.append(weakref.ref(output))
        elif isinstance(module, Sum):
            if layer := self._go_on(
                (n for n, one in enumerate(self.layers) if one.end == (f"{name}.body", call)),
                name,
                call,
                output,
            ):
                layer.name, layer.operations = name, [kind]
        elif isinstance(module, _REFINES):
            if layer := self._go_on(self._made(inputs[0]), name, call, output):
                layer.operations.append(kind)
        elif layer := self._go_on(self._made(output), name, call, output):
            if isinstance(module, Padded):
                layer.name = name
            elif any(module.children()) and not isinstance(module, nn.Sequential):
                layer.name, layer.operations = name, [kind]

    def _made(self, tensor: Tensor) -> Iterator[int]:
        """Find the layer whose newest output this very tensor is; units hand their last layer's on."""
        return (n for n, newest in enumerate(self._newest) if newest() is tensor)

    def _go_on(self, found: Iterator[int], name: str, call: int, output: Tensor) -> Layer | None:
        n = next(found, None)
        if n is None:
            return None
        self._newest[n] = weakref.ref(output)
        self.layers[n].end, self.layers[n].volume = (name, call), _volume(output)
        return self.layers[n]


def _seen(model: NormalizedModel, pixels: Tensor, layers: dict[Depth, Layer]) -> Seen:
    depths = {layer.end: depth for depth, layer in layers.items()}
    volumes: dict[Depth, npt.NDArray[np.float32]] = {}

    def keep(name: str, call: int, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as wide as torch's hooks)
        if depth := depths.get((name, call)):
            volumes[depth] = output[0].cpu().numpy().copy()  # layers behind may write over it

    with _watching(model.network, keep):
        probabilities = model(pixels)[0].softmax(dim=0).cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise NetworkError(
            "the network answers with NaN: its weights have diverged, and its maps show nothing. "
            "Train with a smaller rate: dvc exp run -S train.lr=0.01"
        )
    return Seen(probabilities, {depth: _strongest(volumes[depth]) for depth in layers})


def _strongest(volume: npt.NDArray[np.float32]) -> list[ActivationMap]:
    """Rank the channels of (C, H, W) by their largest value inside."""
    rows, columns = (slice(side // BORDER, side - side // BORDER) for side in volume.shape[1:])
    strengths = volume[:, rows, columns].max(axis=(1, 2))
    ranked = np.argsort(-strengths, kind="stable")[:MOST_MAPS]
    # Copies: views would keep the whole volume of every image.
    return [ActivationMap(int(n), float(strengths[n]), volume[n].copy()) for n in ranked]


def _filters(network: nn.Module, name: str) -> npt.NDArray[np.float32]:
    convolution = network.get_submodule(name)
    weights: npt.NDArray[np.float32] = convolution.get_parameter("weight").detach().cpu().numpy()
    return weights.transpose(0, 2, 3, 1)


def _pixels(model: NormalizedModel, image_u8: npt.NDArray[np.uint8]) -> Tensor:
    """Make (1, 3, P, P) of (P, P, 3), on the model's device."""
    return torch.from_numpy(np.array(image_u8)).to(model.mean.device).permute(2, 0, 1).unsqueeze(0).float()


def _volume(output: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = output.shape
    return channels, height, width


@contextmanager
def _watching(
    network: nn.Module, note: Callable[[str, int, nn.Module, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call `note` with name, number of the call, module, inputs and output after each module inside has run."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def call(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (as wide as torch's hooks)
            note(name, calls[name], module, inputs, output)
            calls[name] += 1

        return call

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
