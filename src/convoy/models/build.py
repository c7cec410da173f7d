"""Build a torch module from a spec.

N images, C channels, H height, W width, K classes. A volume is (C, H, W) in code
and H×W×C in messages; a flat row is (C,).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convoy.models import modules, torchvision
from convoy.models.shapes import LARGEST_PX, TooSmallError, Volume, describe, infer, too_small
from convoy.models.spec import Spec


def build(spec: Spec, classes: int, image_px: int, *, auxiliary: bool = False) -> nn.Module:
    """Build a network with fresh weights from torch's global random state.

    Args:
        spec: what to build.
        classes: K, the width of the head.
        image_px: side of the images, in pixels.
        auxiliary: whether to build auxiliary heads, as training does.

    Returns:
        A module from (N, 3, image_px, image_px) normalised float32 to (N, K) logits; in training mode
        with auxiliary heads, to `WithAuxiliary`.

    Raises:
        NetworkError: the images are too small, naming the layer, its input and the smallest side
            that works; or layers that do not fit each other at any size.
    """
    network = assemble(spec, classes, image_px, auxiliary=auxiliary)
    if spec.torchvision is not None:
        return torchvision.make(spec.torchvision, classes, image_px)
    network.to_empty(device=torch.get_default_device())
    _initialise(network, spec)
    return network.train()


def assemble(spec: Spec, classes: int, image_px: int, *, auxiliary: bool = False) -> nn.Module:
    """Build a network on the meta device, without allocating weights.

    Raises:
        NetworkError: as `build` does.
    """
    if spec.torchvision is None:
        steps = infer(spec, classes, image_px)
        with torch.device("meta"):
            return modules.network(steps, auxiliary=auxiliary).eval()
    try:
        network = _skeleton(spec.torchvision, classes, image_px)
        _run_named(network, (3, image_px, image_px))
    except TooSmallError as error:
        works = smallest_px_of_torchvision(spec.torchvision, classes, image_px + 1)
        raise too_small(spec, image_px, error, works) from error
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


def _skeleton(name: str, classes: int, image_px: int) -> nn.Module:
    """Make a torchvision network on the meta device."""
    try:
        with _WeightlessMode():
            return torchvision.make(name, classes, image_px).to("meta").eval()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise TooSmallError(f"torchvision's {name}: {_reason(error)}") from error


class _WeightlessMode(TorchFunctionMode):
    """Put only weights on the meta device: RegNet's constructor computes its widths with real tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 (as torch)
        """Make uninitialised and constant tensors on the meta device."""
        given = kwargs or {}
        if func in {torch.empty, torch.zeros, torch.ones} and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


def _run_named(network: nn.Module, volume: Volume) -> Volume:
    """Run a torchvision network; name the layer that fails and its input."""
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
            return tuple(network(torch.empty((2, *volume), device="meta")).shape[1:])
    except (RuntimeError, ValueError, AssertionError) as error:
        name, given = running[-1] if running else ("its first layer", volume)
        raise TooSmallError(f"{name} cannot take the volume {describe(given)} ({_reason(error)})") from error
    finally:
        for handle in handles:
            handle.remove()


def smallest_px_of_torchvision(name: str, classes: int, start: int) -> int | None:
    """Find the smallest image side from `start` on, up to LARGEST_PX, that a torchvision network accepts."""
    network = None if torchvision.fixes_side(name) else _skeleton(name, classes, start)
    for side in range(start, LARGEST_PX + 1):
        try:
            _run_named(network or _skeleton(name, classes, side), (3, side, side))
        except TooSmallError:
            continue
        return side
    return None


def _reason(error: Exception) -> str:
    """Keep torch's reason, without its trace."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
