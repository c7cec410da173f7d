"""A network as blocks from image to head: what transfer freezes and releases as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from convoy.core.errors import NetworkError
from convoy.models.modules import Auxiliary

_FOLLOWS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
"""Layers with weights that shape what the layer before them made, and so belong to its block."""


@dataclass(frozen=True)
class Block:
    """Hold a layer or a unit of layers with the norm, activation and pooling that follow it."""

    name: str
    modules: dict[str, nn.Module] = field(default_factory=dict)  # by name in the network
    loose: dict[str, nn.Parameter] = field(default_factory=dict)  # the network's own, part of no module

    def parameters(self) -> dict[str, nn.Parameter]:
        """Collect its parameters by their names in the network."""
        inside = {
            f"{name}.{own}": value
            for name, module in self.modules.items()
            for own, value in module.named_parameters()
        }
        return self.loose | inside

    def batch_norms(self) -> dict[str, _BatchNorm]:
        """Collect its batch norms, at any depth, by their names in the network."""
        return {
            f"{name}.{own}" if own else name: inner
            for name, module in self.modules.items()
            for own, inner in module.named_modules()
            if isinstance(inner, _BatchNorm)
        }


def blocks(network: nn.Module) -> list[Block]:
    """Take a network apart, the head last; auxiliary heads are in none of its blocks.

    The network's children are walked in order, those of a plain `nn.Sequential` in its place, with
    names joined by dots. A child with weights starts a block, unless it is a norm; a norm and what
    has no weights belong to the block before, or to the first one if there is none before.
    Parameters that the network itself holds, such as ViT's class token, belong to the first block.

    Raises:
        NetworkError: there is nothing to train.
    """
    found: list[Block] = []
    before: dict[str, nn.Module] = {}
    for name, module in _units(network, ""):
        if isinstance(module, _FOLLOWS) or next(module.parameters(), None) is None:
            (found[-1].modules if found else before)[name] = module
        else:
            found.append(Block(name, {name: module}))
    if not found:
        raise NetworkError(
            "the network has no weights, so there is nothing to train. Add a conv or a dense layer to its spec."
        )
    first = found[0]
    loose = dict(network.named_parameters(recurse=False))
    return [Block(first.name, before | first.modules, loose), *found[1:]]


def _units(container: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Walk children in order; subclasses of `nn.Sequential` are units that their authors named."""
    for name, child in container.named_children():
        if type(child) is nn.Sequential:
            yield from _units(child, f"{prefix}{name}.")
        elif not isinstance(child, Auxiliary):
            yield f"{prefix}{name}", child
