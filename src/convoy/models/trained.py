"""A trained network: the module from pixels to logits, and its files `weights.pt` and `model.json`.

weights.pt holds tensors only, model.json everything else that rebuilds the network. Neither holds a time or a run's
identity, so equal training gives equal bytes.
"""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from convoy.core import console, files
from convoy.core.allocator import memory_kept
from convoy.core.contract import DEFAULT_BACKGROUND, FACTS, WEIGHTS, Tta
from convoy.core.errors import NetworkError, RequestError
from convoy.models import views
from convoy.models.build import Auxiliary, build
from convoy.models.spec import Spec


class NormalizedModel(nn.Module):
    """Normalise stored pixels, then run the network: the only place where pixels are normalised.

    Training, evaluation, timing and the exported graph all run this module, so their normalisation cannot differ.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        temperature: float = 1.0,
        tta: Tta = "none",
    ) -> None:
        """Wrap a network from (N, 3, H, W) normalised float32 to (N, K) logits.

        Mean and std are those of each channel, in 0..1 units; the 0 of a constant channel is raised to 1/255, one step
        of an 8-bit pixel. In evaluation mode, logits are the mean of the image's `views`, divided by the temperature.
        """
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.tta = tta
        # Not persistent: model.json holds these values, weights.pt does not repeat them.
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel([max(value, 1 / 255) for value in std]), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, 3, H, W) float32 pixels in 0..255 to (N, K) logits."""
        has_views = self.tta != "none" and not self.training
        if has_views:
            pixels = views.of(pixels, self.tta)
        logits: Tensor = self.network(self.normalize(pixels))
        if has_views:
            logits = views.mean(logits, self.tta)
        if self.training or self.temperature == 1:
            return logits
        return logits / self.temperature

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map (N, 3, H, W) float32 pixels in 0..255 to what the network takes."""
        return (pixels / 255 - self.mean) / self.std


class ModelFacts(BaseModel):
    """Everything that is needed to use weights: the content of model.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    spec: Spec
    classes: list[str]
    image_px: int
    fit: str
    background: str = DEFAULT_BACKGROUND  # not in the files of earlier versions
    mean: list[float]  # per channel, 0..1 units
    std: list[float]  # per channel, 0..1 units
    temperature: float = Field(1.0, gt=0)  # not in the files of earlier versions
    tta: Tta = "none"  # likewise
    crop_share: float = Field(1.0, gt=0, le=1)  # likewise


def make(facts: ModelFacts, *, auxiliary: bool = False) -> NormalizedModel:
    """Build the network with fresh weights; auxiliary heads are for training only."""
    network = build(facts.spec, len(facts.classes), facts.image_px, auxiliary=auxiliary)
    return NormalizedModel(network, facts.mean, facts.std, temperature=facts.temperature, tta=facts.tta)


def save(folder: Path, model: NormalizedModel, facts: ModelFacts) -> None:
    """Write the weights, on the CPU and contiguous, and the facts; auxiliary heads are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = tuple(
        f"{name}." for name, module in model.network.named_children() if isinstance(module, Auxiliary)
    )
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.network.state_dict().items()
        if not name.startswith(heads)
    }
    with (folder / WEIGHTS).open("wb") as file:  # by Python, which reports what the disk does not take
        torch.save(state, file)
    files.write_json(folder / FACTS, facts.model_dump(mode="json"))


def load(folder: Path) -> tuple[NormalizedModel, ModelFacts]:
    """Rebuild a trained network on the CPU, in evaluation mode.

    Raises:
        NetworkError: the folder holds no model, or its two files do not match.
    """
    try:
        facts = ModelFacts.model_validate(files.read_json(folder / FACTS))
        state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NetworkError(
            f"{error.filename} does not exist. Train a model first: dvc repro train"
        ) from error
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{folder / WEIGHTS} holds pickled code and is not loaded. Restore it with: dvc checkout {folder}"
        ) from error
    except (ValueError, RuntimeError, RequestError) as error:  # of pydantic and json, torch, the spec
        raise NetworkError(
            f"{folder} holds no model that this version can read: {error}\n"
            f"Restore it with `dvc checkout {folder}`, or train again with `dvc repro --force train`."
        ) from error
    model = make(facts)
    try:
        model.network.load_state_dict(state)
    except RuntimeError as error:
        raise NetworkError(
            f"{folder / WEIGHTS} does not match {folder / FACTS}: {error}\n"
            f"Restore both with: dvc checkout {folder}"
        ) from error
    return model.eval(), facts


@memory_kept()
def predict_logits(
    model: NormalizedModel, images_u8: npt.NDArray[np.uint8], batch_size: int
) -> npt.NDArray[np.float32]:
    """Predict in float32, on a GPU if there is one, else on the CPU, where the model is left in evaluation mode.

    The (N, P, P, 3) RGB images are read batch by batch, so they may be mapped from a file. The network sees at most
    `batch_size` images at once, views included, or the views of a single image.

    Returns:
        (N, K) logits; not finite where the network's output is not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    batches: list[npt.NDArray[np.float32]] = []
    batch_size = max(1, batch_size // len(views.WEIGHTS[model.tta]))
    starts = range(0, len(images_u8), batch_size)
    with torch.inference_mode(), full_float32():
        for start in console.track(starts, "predict batches", len(starts)):
            batch = torch.from_numpy(np.array(images_u8[start : start + batch_size]))
            pixels = batch.to(device).permute(0, 3, 1, 2).float()
            batches.append(model(pixels).cpu().numpy())
    return np.concatenate(batches)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute matrix products and convolutions in IEEE float32 within the context, whatever training set.

    TF32 keeps 10 bits of the mantissa: enough to train with, not to measure with.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _per_channel(values: Sequence[float]) -> Tensor:
    """Shape three values to broadcast over (N, 3, H, W)."""
    return torch.tensor(list(values), dtype=torch.float32).view(1, 3, 1, 1)
