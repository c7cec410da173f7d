"""A trained network as files: `weights.pt`, tensors only, and `model.json`, what rebuilds the rest.

Neither holds a time or a run's identity, so that equal training gives equal bytes.
"""

import pickle
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from convoy.core import files
from convoy.core.errors import NetworkError, RequestError
from convoy.models.assembled import Auxiliary
from convoy.models.build import build
from convoy.models.deployable import NormalizedModel
from convoy.models.spec import Spec

WEIGHTS = "weights.pt"
FACTS = "model.json"


class ModelFacts(BaseModel):
    """Hold what must travel with weights to use them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    spec: Spec
    classes: list[str]
    image_px: int
    fit: str
    mean: list[float]  # per channel, 0..1 units
    std: list[float]  # per channel, 0..1 units


def make(facts: ModelFacts, *, auxiliary: bool = False) -> NormalizedModel:
    """Build the network that the facts describe, with fresh weights; auxiliary heads are for training alone."""
    network = build(facts.spec, len(facts.classes), facts.image_px, auxiliary=auxiliary)
    return NormalizedModel(network, facts.mean, facts.std)


def save(folder: Path, model: NormalizedModel, facts: ModelFacts) -> None:
    """Write the weights, moved to the CPU and made contiguous, and the facts; auxiliary heads are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = tuple(
        f"{name}." for name, module in model.network.named_children() if isinstance(module, Auxiliary)
    )
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.network.state_dict().items()
        if not name.startswith(heads)
    }
    torch.save(state, folder / WEIGHTS)
    files.write_json(folder / FACTS, facts.model_dump(mode="json"))


def load(folder: Path) -> tuple[NormalizedModel, ModelFacts]:
    """Rebuild a trained network on the CPU, in evaluation mode.

    Raises:
        NetworkError: the folder holds no model, or its files do not belong together.
    """
    try:
        facts = ModelFacts.model_validate(files.read_json(folder / FACTS))
        state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NetworkError(
            f"{error.filename} does not exist. Train a model first: dvc repro train"
        ) from error
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{folder / WEIGHTS} is no file of tensors alone and is not loaded. "
            f"Get it back with: dvc checkout {folder}"
        ) from error
    except (ValueError, RuntimeError, RequestError) as error:
        # What pydantic, json and the grammar raise, and torch for half a file.
        raise NetworkError(
            f"{folder} holds no model that this version reads: {error}\n"
            f"Get it back with `dvc checkout {folder}`, or make it anew with `dvc repro --force train`."
        ) from error
    model = make(facts)
    try:
        model.network.load_state_dict(state)
    except RuntimeError as error:
        raise NetworkError(
            f"{folder / WEIGHTS} and {folder / FACTS} do not belong together: {error}\n"
            f"Get both back with: dvc checkout {folder}"
        ) from error
    return model.eval(), facts
