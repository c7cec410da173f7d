"""The table of a torchvision network, watched while it runs on the meta device: shapes without numbers.

N images, H height, W width, C channels.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convoy.explain.activation_memory import FLOAT
from convoy.explain.rows import Row, Table
from convoy.models.build import assemble
from convoy.models.layer_types import ACTIVATIONS
from convoy.models.spec import Spec

OPERATIONS = {
    **{class_name: word for word, (class_name, _) in ACTIVATIONS.items()},
    "Conv2d": "conv",
    "BatchNorm2d": "norm",
    "MaxPool2d": "max_pool",
    "AvgPool2d": "avg_pool",
    "AdaptiveAvgPool2d": "adaptive_avg_pool",
    "AdaptiveMaxPool2d": "adaptive_max_pool",
    "Dropout": "dropout",
    "Flatten": "flatten",
    "Linear": "dense",
}
"""Words of the grammar for torch's classes; others go by the name of their class."""

TRAINED_IMAGES = 2
"""Images of the pass that measures what backward needs: batch norm refuses to train on one value per channel."""


@dataclass
class _Call:
    """Hold one call of a module, and the calls that it made."""

    name: str
    module: nn.Module
    output: tuple[int, int, int] = (0, 0, 0)
    activation_bytes: int = 0
    calls: list["_Call"] = field(default_factory=list)


def watch(spec: Spec, classes: int, image_px: int) -> Table:
    """Run a one-line spec's network and list the innermost modules that were called.

    Modules whose code reads weights of others, such as attention, have a row with all that they hold. A module that
    is called again has a further row, without its parameters. Operations between modules, such as the sum
    of a residual block, have none. Receptive fields are not known.

    Raises:
        NetworkError: as `build.assemble` does.
    """
    network = assemble(spec, classes, image_px)
    with _slow_attention():
        whole, macs = _run(network, image_px)
        kept = _kept_bytes(network, image_px)
    costs = _Costs(whole, macs)
    loose = [
        Row(name, "parameter", _sides(tuple(value.shape), channels_last=True), value.numel())
        for name, value in costs.loose.items()
    ]
    rows = [_row(call, costs) for call in whole.calls]
    return Table(spec.name, image_px, classes, (*loose, *rows), kept)


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """Let attention run as separate operations: the fused one hides its products from the counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run(network: nn.Module, image_px: int) -> tuple[_Call, dict[str, int]]:
    """Run one image; give the tree of calls, and MACs by module, those of modules inside it included."""
    whole = _Call("", network)
    open_calls = [whole]
    channels_last = False

    def enter(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        call = _Call(names[module], module)
        open_calls[-1].calls.append(call)
        open_calls.append(call)

    def leave(module: nn.Module, inputs: tuple[Any, ...], made: Any) -> None:  # noqa: ANN401 (as modules return)
        nonlocal channels_last
        call = open_calls.pop()
        tensor = made[0] if isinstance(made, tuple) else made
        channels_last = _channels_last(module, before=channels_last)
        call.output = _sides(tuple(tensor.shape[1:]), channels_last=channels_last)
        given = {_storage(value) for value in inputs if isinstance(value, Tensor)}
        call.activation_bytes = 0 if _storage(tensor) in given else FLOAT * prod(tensor.shape[1:])

    names = {module: name for name, module in network.named_modules()}
    handles = [module.register_forward_pre_hook(enter) for module in names if module is not network]
    handles += [module.register_forward_hook(leave) for module in names if module is not network]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network.eval()(torch.empty((1, 3, image_px, image_px), device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    root = type(network).__name__
    macs = {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name != "Global"
    }
    return whole, macs


class _Costs:
    """Hand parameters and MACs out to calls: each goes to the innermost module called that holds it, once."""

    def __init__(self, whole: _Call, macs: dict[str, int]) -> None:
        inside: dict[str, set[str]] = defaultdict(set)
        calls = [whole]
        for call in calls:
            inside[call.name] |= {inner.name for inner in call.calls}
            calls += call.calls
        self._macs = {
            name: macs.get(name, 0) - sum(macs.get(inner, 0) for inner in called)
            for name, called in inside.items()
        }
        self._parameters: Counter[str] = Counter()
        self.loose: dict[str, Tensor] = {}
        for name, value in whole.module.named_parameters():
            holder = name.rpartition(".")[0]
            while holder and holder not in inside:
                holder = holder.rpartition(".")[0]
            if holder:
                self._parameters[holder] += value.numel()
            else:
                self.loose[name] = value

    def take(self, name: str) -> tuple[int, int]:
        """Give a module's parameters and MACs to its first call, none to later ones."""
        return self._parameters.pop(name, 0), self._macs.pop(name, 0)


def _row(call: _Call, costs: _Costs) -> Row:
    parameters, macs = costs.take(call.name)
    parts = tuple(_row(inner, costs) for inner in call.calls)
    kind = type(call.module).__name__
    return replace(
        Row(call.name, OPERATIONS.get(kind, kind), call.output, parameters, macs, parts=parts),
        computes=not parts or parameters + macs > 0,
        activation_bytes=0 if parts else call.activation_bytes,
        **_window(call.module),
    )


def _window(module: nn.Module) -> dict[str, Any]:
    """Read kernel, stride and padding off a convolution or a pooling layer."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return {}
    vertical, horizontal = _pair(module.padding)
    window: dict[str, Any] = {
        "kernel": _pair(module.kernel_size),
        "stride": _pair(module.stride),
        "padding": ((vertical, vertical), (horizontal, horizontal)),
    }
    if isinstance(module, nn.Conv2d):
        window |= {"dilation": _pair(module.dilation), "groups": module.groups}
    return window


def _pair(sides: Any) -> tuple[int, int]:  # noqa: ANN401 (as torch's modules keep it)
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


def _channels_last(module: nn.Module, *, before: bool) -> bool:
    """Follow whether channels stand last, as transformers want them, or first; most modules leave it."""
    kind = type(module).__name__
    if kind in {"Linear", "LayerNorm", "WindowPartition"}:
        return True
    if kind == "Permute":
        return list(module.dims) == [0, 2, 3, 1]  # type: ignore[arg-type]  # torchvision's, a list of four
    return before and kind not in {"Conv2d", "BatchNorm2d", "WindowDepartition"}


def _sides(shape: tuple[int, ...], *, channels_last: bool) -> tuple[int, int, int]:
    """Make (H, W, C) of an output without its batch; a sequence of L tokens is (1, L, C)."""
    if len(shape) == 3 and not channels_last:
        return shape[1], shape[2], shape[0]
    height, width, channels = (1, 1, 1, *shape)[-3:]
    return height, width, channels


def _kept_bytes(network: nn.Module, image_px: int) -> int:
    """Sum the tensors that autograd saves in a training step, weights and buffers left out, per image."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[_storage(tensor)] = tensor.untyped_storage()  # held, so that no other takes its place
        return tensor

    images = torch.empty((TRAINED_IMAGES, 3, image_px, image_px), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = network.train()(images)
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    network.eval()
    del answer  # it alone keeps the graph until here
    return sum(storage.nbytes() for at, storage in storages.items() if at not in own) // TRAINED_IMAGES


def _storage(tensor: Tensor) -> int:
    """Identify the memory behind a tensor, which views share."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 (meta tensors have no address)
