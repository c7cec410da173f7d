"""Read the tensors of a file that somebody else may have written; code in it never runs."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from convoy.core.errors import NetworkError

NESTS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the tensors of the network, beside those of the optimizer."""

PREFIXES = ("model.network.", "module.", "_orig_mod.", "model.", "network.")
"""What wrappers put before every name: Convoy's training, DistributedDataParallel, torch.compile, others' trainings."""

OURS = "convoy"
"""Key of a checkpoint of Convoy's under which it keeps the model's facts, as JSON text."""


class Facts(BaseModel):
    """Hold what must come along with weights; what else a model.json says is of no interest here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    classes: list[str]
    mean: list[float]
    std: list[float]


class Contents(NamedTuple):
    """Hold what a file of weights holds: tensors by name, in its order, and facts where it has them."""

    tensors: dict[str, Tensor]
    facts: Facts | None


def read(path: Path) -> Contents:
    """Load the tensors of a file on the CPU, mapped into memory where its format allows it.

    Raises:
        NetworkError: the file holds pickled code, is damaged, or holds no tensors.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise NetworkError(f"{path} holds a {type(content).__name__}, not tensors by name. {_REMEDY}")
    nested: Mapping[Any, Any] = next(
        (content[key] for key in NESTS if isinstance(content.get(key), Mapping)), content
    )
    tensors = {str(name): value for name, value in nested.items() if isinstance(value, Tensor)}
    if not tensors:
        raise NetworkError(f"{path} holds no tensors (its keys: {_some(content)}). {_REMEDY}")
    facts = content.get(OURS)
    return Contents(_unwrapped(tensors), parse_facts(facts, path) if isinstance(facts, str) else None)


def parse_facts(text: str, path: Path) -> Facts:
    """Read the facts of a model from JSON text that `path` holds.

    Raises:
        NetworkError: it is no JSON, or lacks classes, mean or std.
    """
    try:
        return Facts.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise NetworkError(
            f"{path} does not say classes, mean and std as Convoy writes them: {error}\n"
            "Give the folder of a model that `dvc repro train` made."
        ) from error


_REMEDY = "Save a network's tensors alone: torch.save(network.state_dict(), 'weights.pt')"


def _load(path: Path) -> object:
    try:
        # Files older than torch 1.6 are no zip archives, and those cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called or path.read_bytes()[:1] == pickle.PROTO:
            what = f"pickled code ({called[1]})" if called else "a pickle of more than tensors"
            raise NetworkError(
                f"{path} holds {what}, which could run anything, and is not loaded (weights_only). "
                f"{_REMEDY}, where you trust the file."
            ) from error
        raise NetworkError(f"{path} is no file of weights: torch.load cannot read it. {_REMEDY}") from error
    except Exception as error:  # bytes that mean nothing to an unpickler make it raise anything
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise NetworkError(
            f"{path} is damaged or no file of weights: {reason}\n"
            "Fetch it again from where it came from: convoy weights use SOURCE"
        ) from error


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before every name."""
    own = {name: value for name, value in tensors.items() if name.startswith(PREFIXES[0])}
    tensors = own or tensors  # a LightningModule may hold more tensors than its network's
    for prefix in (*PREFIXES, *PREFIXES):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _some(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") or "none"
