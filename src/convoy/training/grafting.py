"""Put tensors of a file onto a network: by name where the names are the same, else in order.

Torchvision's weights and a spec of the same structure differ in names alone; in order,
their tensors agree in kind (weight, bias, running_mean, …) and shape.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from torch import Tensor, nn

from convoy.models.modules import Auxiliary

COUNTER = "num_batches_tracked"
"""A buffer of batch norms that files of old lack; nothing in Convoy computes with it."""

AUXILIARY = re.compile(r"(aux(iliary)?\d*|AuxLogits)\.")
"""How names of auxiliary heads begin: Convoy's, torchvision's GoogLeNet's and Inception's."""

LISTED = 6
"""Most names that one line spells out."""


class MisfitError(Exception):
    """Carry which tensor of a file does not fit."""

    def __init__(self, found: str, wanted: str) -> None:
        """Take what the file has, and what the network wants there."""
        super().__init__(found)
        self.found = found
        self.wanted = wanted


class Parts(NamedTuple):
    """Separate the tensors on the way from image to logits from those of auxiliary heads."""

    main: dict[str, Tensor]
    auxiliary: dict[str, Tensor]


class Pairing(NamedTuple):
    """Map the network's names to the file's.

    Attributes:
        body: tensors of the same shape.
        head: the last layer, or that of each auxiliary head: its width is that of the file's classes.
    """

    body: dict[str, str]
    head: dict[str, str]


def own_parts(network: nn.Module) -> Parts:
    """Part a network's tensors."""
    heads = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, Auxiliary))
    tensors = network.state_dict()
    return Parts(
        {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)},
        {name: tensor for name, tensor in tensors.items() if name.startswith(heads)},
    )


def given_parts(tensors: Mapping[str, Tensor], main: Collection[str]) -> Parts:
    """Part a file's tensors; what is called as one of the network's `main` tensors belongs there."""
    aside = {name for name in tensors if AUXILIARY.match(name) and name not in main}
    return Parts(
        {name: tensor for name, tensor in tensors.items() if name not in aside},
        {name: tensor for name, tensor in tensors.items() if name in aside},
    )


def pair(own: Mapping[str, Tensor], given: Mapping[str, Tensor], heads: Collection[str]) -> Pairing:
    """Find for each tensor of a network the one of a file that belongs there.

    Args:
        own: the network's tensors, in order.
        given: the file's, in order.
        heads: the network's names whose first dimension may differ.

    Raises:
        MisfitError: naming the first tensor that does not fit, its shape and the shape wanted.
    """
    wanted = [name for name in own if not name.endswith(COUNTER)]
    found = [name for name in given if not name.endswith(COUNTER)]
    if set(wanted) == set(found):
        found = wanted
    pairs: dict[str, str] = {}
    for place, (name, source) in enumerate(zip_longest(wanted, found), start=1):
        if name is None or source is None or not _fits(own[name], given[source], name, source, heads):
            has = f"{source} {shape(given[source])}" if source else "missing"
            wants = f"{name} {shape(own[name])}" if name else "nothing more"
            raise MisfitError(f"tensor {place} is {has}", wants)
        pairs[name] = source
        counter, counted = (_sibling(each, COUNTER) for each in (name, source))
        if name.endswith(".running_mean") and counter in own and counted in given:
            pairs[counter] = counted
    return Pairing(
        {name: source for name, source in pairs.items() if name not in heads},
        {name: source for name, source in pairs.items() if name in heads},
    )


def last_layer(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name weight and bias of the last layer that maps to classes."""
    weight = [name for name, tensor in tensors.items() if name.endswith("weight") and tensor.ndim > 1][-1]
    return [name for name in (weight, _sibling(weight, "bias")) if name in tensors]


def auxiliary_layers(network: nn.Module) -> list[str]:
    """Name weights and biases of the last layers of a network's auxiliary heads."""
    return [
        f"{name}.{own}"
        for name, module in network.named_modules()
        if isinstance(module, Auxiliary)
        for own in last_layer(module.state_dict())
    ]


def shape(tensor: Tensor) -> str:
    """Write a shape as `64×3×7×7`."""
    return "×".join(str(side) for side in tensor.shape) or "a single number"


def _fits(own: Tensor, given: Tensor, name: str, source: str, heads: Collection[str]) -> bool:
    """Compare kind and shape; the width of a head may differ."""
    if name.rpartition(".")[2] != source.rpartition(".")[2] or own.ndim != given.ndim:
        return False
    return own.shape[1:] == given.shape[1:] if name in heads else own.shape == given.shape


def _sibling(name: str, ending: str) -> str:
    unit, dot, _ = name.rpartition(".")
    return unit + dot + ending


def listed(names: Sequence[str]) -> str:
    """Name tensors where they are few; else say how many, and the layers that they lie in."""
    if len(names) <= LISTED:
        return ", ".join(names)
    units = dict.fromkeys(name.partition(".")[0] for name in names)
    inside = ", ".join(list(units)[:LISTED]) + (", …" if len(units) > LISTED else "")
    return f"{len(names)} tensors in {inside}"
