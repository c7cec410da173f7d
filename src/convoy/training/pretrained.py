"""Starting weights: read a pinned file without running its code, and copy its tensors into a network.

Tensors are matched by name if the names are the same, else in order: torchvision's weights and a spec of the
same structure differ only in names; in order, their tensors agree in kind (weight, bias, running_mean, …) and shape.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convoy.core.contract import FACTS
from convoy.core.errors import NetworkError
from convoy.models.build import Auxiliary
from convoy.models.spec import ZOOS, Spec
from convoy.training import weight_pins

NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the tensors of the network, beside those of the optimizer."""

PREFIXES = ("model.network.", "module.", "_orig_mod.", "model.", "network.")
"""What wrappers put before every name: Convoy's training, DistributedDataParallel, torch.compile, other projects."""

MODEL_FACTS = "convoy"  # key of Convoy's checkpoints that holds the model's facts, as JSON text

COUNTER = "num_batches_tracked"
"""A buffer of batch norms that old files lack; nothing in Convoy computes with it."""

AUXILIARY = re.compile(r"(aux(iliary)?\d*|AuxLogits)\.")
"""Beginnings of the names of auxiliary heads: Convoy's, torchvision's GoogLeNet's and Inception's."""

LISTED = 6  # most names that one line spells out

_REMEDY = "Save only the network's tensors: torch.save(network.state_dict(), 'weights.pt')"


class WeightFacts(BaseModel):
    """Hold what must come along with weights; other keys of a model.json are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    classes: list[str]  # of the head, in its order
    mean: list[float]  # of the input normalisation, per channel, in 0..1 units
    std: list[float]


@dataclass(frozen=True)
class StartingWeights:
    """Hold weights to start from, and what must come along with them."""

    source: str  # as `network.weights` names it
    resolved: str  # what that stood for when it was pinned
    file: Path
    network: str  # name of the network that they are meant for
    tensors: dict[str, Tensor]  # in the file's order
    facts: WeightFacts | None  # None: unknown
    sha256: str = ""  # of the file


def load(source: str, spec: Spec, folder: Path = weight_pins.FOLDER) -> StartingWeights | None:
    """Load the weights that were pinned for a source, None for `none`; nothing is downloaded.

    Raises:
        RequestError: an unknown form of source; `imagenet` for a network that torchvision does not have.
        NetworkError: no pin, no file, another file than was pinned, or a file that holds more than tensors.
    """
    if source == weight_pins.NONE:
        return None
    pin = weight_pins.find(source, spec, folder)
    path = pin.verify(folder)
    tensors, facts = read_file(path)
    if len(pin.sha256) > 1:
        file = path.with_name(FACTS)
        facts = parse_facts(file.read_text(encoding="utf-8"), file)
    if pin.classifier:
        zoo, name = pin.classifier
        published = ZOOS[zoo].pretrained(name, pin.resolved)
        facts = WeightFacts(classes=published.classes, mean=published.mean, std=published.std)
    return StartingWeights(source, pin.resolved, path, spec.name, tensors, facts, pin.weights_sha256)


def read_file(path: Path) -> tuple[dict[str, Tensor], WeightFacts | None]:
    """Load tensors by name, and the facts of a checkpoint of Convoy's, on the CPU.

    The file is mapped into memory where its format allows it; code in it never runs.

    Raises:
        NetworkError: the file holds pickled code, is damaged, or holds no tensors.
    """
    content = _read_tensors(path) if _is_safetensors(path) else _unpickle(path)
    if not isinstance(content, Mapping):
        raise NetworkError(f"{path} holds a {type(content).__name__}, not tensors by name. {_REMEDY}")
    nested: Mapping[Any, Any] = next(
        (content[key] for key in NESTED if isinstance(content.get(key), Mapping)), content
    )
    tensors = {str(name): value for name, value in nested.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join([str(name) for name in content][:5]) + (", …" if len(content) > 5 else "") or "none"
        raise NetworkError(f"{path} holds no tensors (its keys: {keys}). {_REMEDY}")
    text = content.get(MODEL_FACTS)
    return _without_prefixes(tensors), parse_facts(text, path) if isinstance(text, str) else None


def parse_facts(text: str, path: Path) -> WeightFacts:
    """Read the facts of a model from JSON text that `path` holds.

    Raises:
        NetworkError: the text is not JSON, or lacks classes, mean or std.
    """
    try:
        return WeightFacts.model_validate(json.loads(text))
    except ValueError as error:  # pydantic's and json's errors are ValueErrors
        raise NetworkError(
            f"{path} does not hold classes, mean and std as Convoy writes them: {error}\n"
            "Use the folder of a model that `dvc repro train` made."
        ) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, which cannot hold code."""
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise NetworkError(
            f"{path} is damaged or not a safetensors file: {error}\n"
            "Fetch it again from its source: convoy weights use SOURCE"
        ) from error


def _unpickle(path: Path) -> object:
    try:
        # Files older than torch 1.6 are no zip archives, and those cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called or path.read_bytes()[:1] == pickle.PROTO:
            code = f"pickled code ({called[1]})" if called else "a pickle of more than tensors"
            raise NetworkError(
                f"{path} holds {code}, which could execute anything, so it is not loaded (weights_only). "
                f"{_REMEDY}, if you trust the file."
            ) from error
        raise NetworkError(
            f"{path} is not a file of weights: torch.load cannot read it. {_REMEDY}"
        ) from error
    except Exception as error:  # bytes that mean nothing to an unpickler make it raise anything
        reason = str(error).splitlines()[0] if str(error) else "it is truncated"
        raise NetworkError(
            f"{path} is damaged or not a file of weights: {reason}\n"
            "Fetch it again from its source: convoy weights use SOURCE"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Recognise the format by its start: the size of its JSON header, 8 bytes, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every name."""
    own = {name: value for name, value in tensors.items() if name.startswith(PREFIXES[0])}
    tensors = own or tensors  # a LightningModule may hold more tensors than its network's
    for prefix in (*PREFIXES, *PREFIXES):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


@dataclass(frozen=True)
class Grafted:
    """Report what became of each tensor."""

    source: str  # of the weights, as `network.weights` names it
    resolved: str
    head: str  # what became of the head, and why
    taken: tuple[str, ...]  # the network's names of what was copied
    reinitialised: tuple[str, ...]  # the network's names of what starts fresh
    ignored: tuple[str, ...]  # the file's names of what has no counterpart in the network

    def lines(self) -> list[str]:
        """Render the report: names if they are few, else counts."""
        lines = [f"starting weights from {self.source}: {len(self.taken)} tensors copied; head {self.head}"]
        if self.reinitialised:
            lines.append(f"reinitialised: {_listed(self.reinitialised)}")
        if self.ignored:
            lines.append(f"ignored: {_listed(self.ignored)}")
        return lines


def graft(network: nn.Module, starting: StartingWeights, classes: Sequence[str]) -> Grafted:
    """Copy starting weights into a network; a head made for other classes keeps its fresh weights.

    Auxiliary heads are copied if they fit; the network's own otherwise start fresh, the file's are ignored.
    `classes` are the network's, in the order of its logits.

    Raises:
        NetworkError: the weights are of another architecture, naming the first tensor that does not fit.
    """
    auxiliary = {name: module for name, module in network.named_modules() if isinstance(module, Auxiliary)}
    prefixes = tuple(f"{name}." for name in auxiliary)
    own, own_auxiliary = _split(network.state_dict(), lambda name: name.startswith(prefixes))
    given, given_auxiliary = _split(
        starting.tensors, lambda name: name not in own and AUXILIARY.match(name) is not None
    )
    head = last_layer(own)
    auxiliary_heads = [
        f"{name}.{n}" for name, module in auxiliary.items() for n in last_layer(module.state_dict())
    ]
    try:
        pairs = pair(own, given, head)
    except MisfitError as misfit:
        given_tensor, expected = misfit.args
        raise NetworkError(
            f"{starting.file} holds another architecture: {given_tensor}, {starting.network} needs {expected}. "
            "Set network.name to the network that these weights belong to, or network.weights to others. (A network "
            "that takes a single image size also needs the data.image_px that it was trained with.)"
        ) from misfit
    keep, reason = _judge_head(len(starting.tensors[pairs[head[0]]]), starting.facts, list(classes))
    with suppress(MisfitError):  # auxiliary heads only help to train, and can start fresh
        pairs |= pair(own_auxiliary, given_auxiliary, auxiliary_heads)
    used = set(pairs.values())
    taken = {name: pairs[name] for name in pairs if keep or name not in {*head, *auxiliary_heads}}
    tensors = own | own_auxiliary
    for name, source in taken.items():
        tensors[name].copy_(starting.tensors[source])
    return Grafted(
        source=starting.source,
        resolved=starting.resolved,
        head=reason,
        taken=tuple(name for name in tensors if name in taken),
        reinitialised=tuple(name for name in tensors if name not in taken and not name.endswith(COUNTER)),
        ignored=tuple(name for name in starting.tensors if name not in used),
    )


class MisfitError(Exception):
    """Report which tensor of a file does not fit: what the file has, and what the network needs there."""


def pair(own: Mapping[str, Tensor], given: Mapping[str, Tensor], heads: Collection[str]) -> dict[str, str]:
    """Map each tensor of a network, in order, to the tensor of a file that belongs there.

    The first dimension of `heads` may differ: it is the number of classes.

    Raises:
        MisfitError: naming the first tensor that does not fit.
    """
    names = [name for name in own if not name.endswith(COUNTER)]
    sources = [name for name in given if not name.endswith(COUNTER)]
    if set(names) == set(sources):
        sources = names
    pairs: dict[str, str] = {}
    for number, (name, source) in enumerate(zip_longest(names, sources), start=1):
        if name is None or source is None or not _fits(own[name], given[source], name, source, heads):
            raise MisfitError(
                f"tensor {number} is {f'{source} {shape(given[source])}' if source else 'missing'}",
                f"{name} {shape(own[name])}" if name else "nothing more",
            )
        pairs[name] = source
        counter, counted = (_sibling(each, COUNTER) for each in (name, source))
        if name.endswith(".running_mean") and counter in own and counted in given:
            pairs[counter] = counted
    return pairs


def last_layer(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name weight and bias of the last layer that maps to classes."""
    weight = [name for name, tensor in tensors.items() if name.endswith("weight") and tensor.ndim > 1][-1]
    return [name for name in (weight, _sibling(weight, "bias")) if name in tensors]


def shape(tensor: Tensor) -> str:
    """Write a shape as `64×3×7×7`."""
    return "×".join(str(side) for side in tensor.shape) or "a single number"


def _split(
    tensors: Mapping[str, Tensor], auxiliary: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate the tensors on the way from image to logits from those of auxiliary heads."""
    main = {name: tensor for name, tensor in tensors.items() if not auxiliary(name)}
    return main, {name: tensor for name, tensor in tensors.items() if name not in main}


def _fits(own: Tensor, given: Tensor, name: str, source: str, heads: Collection[str]) -> bool:
    """Compare kind and shape; the width of a head may differ."""
    if name.rpartition(".")[2] != source.rpartition(".")[2] or own.ndim != given.ndim:
        return False
    return own.shape[1:] == given.shape[1:] if name in heads else own.shape == given.shape


def _judge_head(width: int, facts: WeightFacts | None, classes: list[str]) -> tuple[bool, str]:
    """Decide whether a head of `width` classes serves for `classes`; give the reason."""
    if width != len(classes):
        return False, f"new: {len(classes)} classes instead of {width}"
    if facts is None:
        return True, f"kept: it also has {width} classes, with unknown names"
    if facts.classes != classes:
        was, now = next(pair for pair in zip(facts.classes, classes, strict=True) if pair[0] != pair[1])
        return False, f"new: other classes, such as {now} instead of {was}"
    return True, f"kept: the same {width} classes"


def _sibling(name: str, ending: str) -> str:
    unit, dot, _ = name.rpartition(".")
    return unit + dot + ending


def _listed(names: Sequence[str]) -> str:
    """List tensors if they are few; else count them, and name the layers that they are in."""
    if len(names) <= LISTED:
        return ", ".join(names)
    units = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return f"{len(names)} tensors in {', '.join(units[:LISTED])}{', …' if len(units) > LISTED else ''}"
