"""Frozen layers: the blocks of a network, when each of them trains and how fast, and a check that frozen ones stay.

Epochs count from 0 here, as the trainer counts them, and from 1 in what people read.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from convoy.core.console import info, table
from convoy.core.errors import NetworkError, RequestError, TrainingError
from convoy.core.params import did_you_mean
from convoy.models.build import Auxiliary
from convoy.training.settings import TrainParams, TransferParams

COLUMNS = 10  # most epochs that a plan's table shows: with the names of blocks they fit a line of a log

_FOLLOWS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
"""Layers with weights that belong to the block of the layer before them."""


@dataclass(frozen=True)
class Block:
    """Hold a layer or a unit of layers with the norm, activation and pooling that follow it."""

    name: str
    modules: dict[str, nn.Module] = field(default_factory=dict)  # by name in the network
    loose: dict[str, nn.Parameter] = field(default_factory=dict)  # the network's own, part of no module

    def parameters(self) -> dict[str, nn.Parameter]:
        """Collect its parameters by their names in the network."""
        parts = (module.named_parameters(name) for name, module in self.modules.items())
        return self.loose | dict(chain(*parts))

    def batch_norms(self) -> dict[str, _BatchNorm]:
        """Collect its batch norms, at any depth, by their names in the network."""
        parts = (module.named_modules(prefix=name) for name, module in self.modules.items())
        return {name: inner for name, inner in chain(*parts) if isinstance(inner, _BatchNorm)}


def blocks(network: nn.Module) -> list[Block]:
    """Split a network into blocks, the head last; auxiliary heads are in none of them.

    Children are walked in order, those of a plain `nn.Sequential` in place of it, with names joined by
    dots. A child with weights starts a block, unless it is a norm; a norm and what has no weights belong
    to the block before, or to the first block. Parameters that the network itself holds, such as ViT's
    class token, belong to the first block.

    Raises:
        NetworkError: the network has no weights.
    """
    result: list[Block] = []
    before: dict[str, nn.Module] = {}
    for name, module in _units(network, ""):
        if isinstance(module, _FOLLOWS) or next(module.parameters(), None) is None:
            (result[-1].modules if result else before)[name] = module
        else:
            result.append(Block(name, {name: module}))
    if not result:
        raise NetworkError(
            "the network has no weights, so there is nothing to train. Add a conv or a dense layer to its spec."
        )
    first = result[0]
    loose = dict(network.named_parameters(recurse=False))
    return [Block(first.name, before | first.modules, loose), *result[1:]]


def _units(container: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Walk children in order; subclasses of `nn.Sequential` are units that their authors named."""
    for name, child in container.named_children():
        if type(child) is nn.Sequential:
            yield from _units(child, f"{prefix}{name}.")
        elif not isinstance(child, Auxiliary):
            yield f"{prefix}{name}", child


@dataclass(frozen=True)
class Plan:
    """State for each block, from image to head, in which epochs it is frozen and how fast it learns.

    A pure function of the epoch. What belongs to no block always trains.
    """

    blocks: tuple[str, ...]
    frozen_for: tuple[int | None, ...]  # epochs at the start in which the block is frozen; None: every epoch
    factors: tuple[float, ...]  # learning rate as a share of the head's
    norms_frozen: bool

    @classmethod
    def of(cls, blocks: Sequence[str], params: TrainParams, network: str) -> "Plan":
        """Make the plan of `train.transfer` for the names of blocks, the head last; messages name the `network`.

        The part of a name before a dot stands for several blocks at once: `layer4` is `layer4.0` and `layer4.1`.

        Raises:
            RequestError: a block that the network does not have; a frozen head; the release of a
                block that is not frozen, or later than the last epoch.
        """
        transfer = params.transfer
        count = _frozen_count(blocks, transfer.freeze, network)
        frozen_for: list[int | None] = [None] * count + [0] * (len(blocks) - count)
        for index, epochs in _releases(blocks, count, params, network).items():
            frozen_for[index] = epochs
        factors = [transfer.lr_factor**depth for depth in reversed(range(len(blocks)))]
        return cls(tuple(blocks), tuple(frozen_for), tuple(factors), transfer.batch_norm == "frozen")

    def frozen(self, epoch: int) -> tuple[bool, ...]:
        """Return for each block whether it is frozen in an epoch, 0 for the first."""
        return tuple(epochs is None or epoch < epochs for epochs in self.frozen_for)

    def table(self, rates: Sequence[float]) -> str:
        """Lay out the plan with a row per block and a column per epoch, or in one line if it changes nothing.

        `rates` are the head's learning rates at the first step of each epoch.
        """
        if not (any(self.frozen(0)) or self.norms_frozen or min(self.factors) < 1):
            ends = f"{self.blocks[0]} to {self.blocks[-1]}"
            return f"plan: no block is frozen; all {len(self.blocks)} blocks ({ends}) train at the same learning rate"
        columns = _columns(len(rates), [epochs for epochs in self.frozen_for if epochs])
        rows = []
        for index, (name, epochs) in enumerate(zip(self.blocks, self.frozen_for, strict=True)):
            head = " (head)" if index == len(self.blocks) - 1 else ""
            start = "never" if epochs is None or epochs >= len(rates) else f"epoch {epochs + 1}"
            cells = [
                "frozen" if self.frozen(epoch)[index] else f"{rates[epoch] * self.factors[index]:.3g}"
                for epoch in columns
            ]
            rows.append([f"{name}{head}", start, *cells])
        header = ["block", "trains from", *(str(epoch + 1) for epoch in columns)]
        lines = [
            "plan: learning rate of each block at the first step of an epoch",
            table(header, rows, right=range(2, len(header))),
        ]
        if self.norms_frozen:
            lines.append("batch norms: frozen except in the head (statistics, scale and shift)")
        return "\n".join(lines)


def refuse_without_weights(transfer: TransferParams) -> None:
    """Refuse to freeze random weights, or statistics of no image, where no starting weights are given.

    Raises:
        RequestError: `freeze` or `batch_norm` would freeze something.
    """
    for key, value, harmless in (
        ("freeze", transfer.freeze, "0"),
        ("batch_norm", transfer.batch_norm, "adapt"),
    ):
        if str(value) != harmless:
            raise RequestError(
                f"train.transfer.{key} is {value}, but network.weights is none: frozen weights would stay random. "
                f"Set network.weights (such as imagenet), or train.transfer.{key} to {harmless}."
            )


def _frozen_count(blocks: Sequence[str], freeze: int | str, network: str) -> int:
    """Count the blocks that are frozen at the start."""
    count = freeze if isinstance(freeze, int) else _indices(freeze, blocks, "freeze", network)[-1] + 1
    if count >= len(blocks):
        most = len(blocks) - 1
        raise RequestError(
            f"train.transfer.freeze: {freeze} freezes all {len(blocks)} blocks of {network}, the head `{blocks[-1]}` "
            f"included, which must train. At most {most}{f', or `{blocks[-2]}`' if most else ''}."
        )
    return count


def _releases(blocks: Sequence[str], frozen: int, params: TrainParams, network: str) -> dict[int, int]:
    """Map the index of each block that is released to the epochs for which it is frozen."""
    release = params.transfer.release
    most = params.epochs - 1
    if not isinstance(release, Mapping):
        if frozen and release > most:
            raise RequestError(
                f"train.transfer.release is {release}, but train.epochs is {params.epochs}: no block would ever be "
                f"released. At most {most}; 0: never."
            )
        return {index: release * (frozen - index) for index in range(frozen)} if release else {}
    released: dict[int, int] = {}
    for name, epochs in release.items():
        for index in _indices(name, blocks, "release", network):
            if index >= frozen:
                raise RequestError(
                    f"train.transfer.release: `{blocks[index]}` is not frozen, so it cannot be released. "
                    f"train.transfer.freeze: {params.transfer.freeze} freezes {', '.join(blocks[:frozen]) or 'nothing'}."
                )
            if index in released:
                raise RequestError(f"train.transfer.release names `{blocks[index]}` twice. Name it once.")
            released[index] = epochs
        if epochs > most:
            raise RequestError(
                f"train.transfer.release: `{name}` after {epochs} epochs, but train.epochs is {params.epochs}: it "
                f"would never train. At most {most}, or leave it out."
            )
    return released


def _indices(name: str, blocks: Sequence[str], key: str, network: str) -> list[int]:
    """Find the blocks that a name stands for."""
    indices = [index for index, block in enumerate(blocks) if f"{block}.".startswith(f"{name}.")]
    if not indices:
        raise RequestError(
            f"train.transfer.{key}: {network} has no block `{name}`{did_you_mean(name, blocks)}\n"
            f"Its blocks, from image to head: {', '.join(blocks)}"
        )
    return indices


def _columns(epochs: int, changes: Sequence[int]) -> list[int]:
    """Choose the epochs that a table shows: all, or the ends, the changes, and some between."""
    required = {0, epochs - 1, *(epoch for epoch in changes if epoch < epochs)}
    if len(required) > COLUMNS:
        return _spread(sorted(required), COLUMNS)
    between = [epoch for epoch in range(epochs) if epoch not in required]
    return sorted(required | set(_spread(between, COLUMNS - len(required))))


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Take at most `count` items, evenly spaced, with both ends if there are two or more."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(index * step)] for index in range(count)]


class FrozenLayersCheck(pl.Callback):
    """Check that frozen tensors do not change.

    Hashes every frozen tensor when training starts (after a checkpoint was loaded), and compares it when its
    block is released, or at the end. Keeps nothing in checkpoints: a resumed run hashes what it loaded.
    """

    def __init__(self, network: nn.Module, frozen: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Take the network, and the function from epoch to its frozen tensors by name."""
        self.network = network
        self.frozen = frozen
        self.before: dict[str, str] = {}
        self.unchanged: dict[str, str] = {}

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Hash what is frozen in the epoch that training starts with."""
        self.before = {name: sha256(tensor) for name, tensor in self.frozen(trainer.current_epoch).items()}

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Compare what this epoch releases, before its first step."""
        self._compare(self.before.keys() - self.frozen(trainer.current_epoch).keys())

    def on_train_end(self, *_: object) -> None:
        """Compare what stayed frozen, and print how many tensors were checked."""
        self._compare(self.before.keys())
        if self.unchanged:
            hashes = "".join(self.unchanged[name] for name in sorted(self.unchanged))
            digest = hashlib.sha256(hashes.encode()).hexdigest()
            info(f"frozen: {len(self.unchanged)} tensors unchanged while frozen (sha256 {digest[:12]})")

    def _compare(self, names: Iterable[str]) -> None:
        """Compare tensors with their hashes, which are then dropped.

        Raises:
            TrainingError: naming the tensors that changed.
        """
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        hashes = {name: self.before.pop(name) for name in sorted(names)}
        changed = [name for name, digest in hashes.items() if sha256(tensors[name]) != digest]
        if changed:
            raise TrainingError(
                f"{len(changed)} frozen tensors changed: {', '.join(changed)}. Something other than the optimizer "
                "wrote to them, such as a callback or the network's own forward. Correct it, or take their blocks "
                "out of train.transfer.freeze (for a norm: set train.transfer.batch_norm to adapt)."
            )
        self.unchanged |= hashes


def sha256(tensor: Tensor) -> str:
    """Hash a tensor's bytes, in row-major order whatever its memory layout; 64 hexadecimal digits."""
    flat = tensor.detach().cpu().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
