"""Turn a spec into a torch module, its widths and heights inferred by torch itself.

N images, C channels, H height, W width, K classes. A volume is (C, H, W) in code
and H×W×C in messages; a flat row is (C,).

A network is first assembled on torch's meta device, where tensors have a shape
and no memory: each layer runs on the volume that arrives and so says what it
passes on. Weights are allocated only once everything fits.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convoy.errors import NetworkError
from convoy.networks import catalog
from convoy.networks.layers import MisfitError, Volume, describe, passed_on, reason, sequence
from convoy.networks.spec import Spec

LARGEST_PX = 1024
"""Largest image side that the search for a working one tries, in pixels: the most that params.yaml allows."""


def build(spec: Spec, classes: int, image_px: int) -> nn.Module:
    """Make a network with fresh weights from torch's global random state.

    Args:
        spec: what to build.
        classes: K, the width of the head.
        image_px: side of the images, in pixels.

    Returns:
        A module from (N, 3, image_px, image_px) normalised float32 to (N, K) logits.

    Raises:
        NetworkError: the images are too small, naming the layer, the volume that arrived and the
            smallest side that works; or layers that do not fit each other at any size.
    """
    network = assemble(spec, classes, image_px)
    if spec.torchvision is not None:
        return catalog.make(spec.torchvision, classes, image_px)
    network.to_empty(device=torch.get_default_device())
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return network.train()


def assemble(spec: Spec, classes: int, image_px: int) -> nn.Module:
    """Make a network on the meta device: every shape is known and no weight is allocated.

    Raises:
        NetworkError: as `build` does.
    """
    try:
        network, made = _assemble(spec, classes, image_px)
    except MisfitError as misfit:
        smallest = _smallest(spec, classes, image_px)
        remedy = (
            f"The smallest that works is {smallest}: set data.image_px to it, or choose another network.name."
            if smallest
            else f"No side up to {LARGEST_PX} works: correct the layer, or choose another network.name."
        )
        raise NetworkError(
            f"{spec.name} does not take images of {image_px} px: {misfit}. {remedy}"
        ) from misfit
    if made != (classes,):
        raise NetworkError(
            f"{spec.name} ends in {describe(made)}, not in one number for each of the {classes} classes. "
            "Let its last layers be `- flatten` and `- dense: classes`."
        )
    return network


def _assemble(spec: Spec, classes: int, image_px: int) -> tuple[nn.Module, Volume]:
    """Make a network on the meta device, and say what leaves it."""
    volume: Volume = (3, image_px, image_px)
    if spec.torchvision is None:
        with torch.device("meta"), torch.no_grad():
            return sequence(spec.layers, volume, classes, "")
    network = _skeleton(spec.torchvision, classes, image_px)
    return network, _run_named(network, volume)


def _skeleton(name: str, classes: int, image_px: int) -> nn.Module:
    """Make a torchvision network on the meta device."""
    try:
        with _WeightlessMode():
            return catalog.make(name, classes, image_px).to("meta").eval()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise MisfitError(f"torchvision's {name} says: {reason(error)}") from error


class _WeightlessMode(TorchFunctionMode):
    """Allocate no weights, yet compute what a constructor computes: RegNet derives its widths with tensors."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (as torch declares it)
        """Send what makes uninitialised or constant tensors to the meta device."""
        given = kwargs or {}
        if func in {torch.empty, torch.zeros, torch.ones} and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


def _run_named(network: nn.Module, volume: Volume) -> Volume:
    """Run a torchvision network, watching which layer is at work when it fails."""
    at_work: list[tuple[str, Volume]] = []

    def enter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: at_work.append((name, tuple(inputs[0].shape[1:])))

    handles = [
        module.register_forward_pre_hook(enter(f"layer {name} ({type(module).__name__})"))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        with torch.no_grad():
            return passed_on(network, volume)
    except (RuntimeError, ValueError, AssertionError) as error:
        name, arrived = at_work[-1] if at_work else ("its first layer", volume)
        raise MisfitError(f"{name} cannot take the volume {describe(arrived)} ({reason(error)})") from error
    finally:
        for handle in handles:
            handle.remove()


def _smallest(spec: Spec, classes: int, image_px: int) -> int | None:
    """Find the next larger side that works; sides below one that is too small are not tried."""
    network: nn.Module | None = None
    if spec.torchvision is not None and not catalog.fixes_side(spec.torchvision):
        network = _skeleton(spec.torchvision, classes, image_px)
    for side in range(image_px + 1, LARGEST_PX + 1):
        try:
            if network is None:
                _assemble(spec, classes, side)
            else:
                _run_named(network, (3, side, side))
        except MisfitError:
            continue
        return side
    return None
