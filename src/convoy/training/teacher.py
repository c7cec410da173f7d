"""A trained network that teaches the one being trained, after Hinton et al., Distilling the Knowledge in a Neural Network, 2015."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from convoy.core import params
from convoy.core.errors import NetworkError, RequestError
from convoy.models import trained
from convoy.models.trained import ModelFacts, NormalizedModel
from convoy.training import weight_pins

KEY = "train.teacher"
REMEDY = f"or set {KEY}: none"


class Teacher:
    """Answer for the images that a training shows, with weights that never change.

    No `nn.Module`, so that neither optimizer, checkpoint, moving average nor the switch to training mode reaches the weights.
    """

    def __init__(self, model: NormalizedModel, facts: ModelFacts, resolved: str, sha256: str) -> None:
        """Take a model and its facts, the source that it was pinned for, and a digest of its files.

        Temperature and test-time views that the model is served with are left out: `train.teacher_temperature` divides the logits of
        both networks, and views would multiply the time of a step.
        """
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.model.temperature, self.model.tta = 1.0, "none"
        self.facts = facts
        self.resolved = resolved
        self.sha256 = sha256

    def __deepcopy__(self, _memo: object) -> Self:
        """Return itself: averaged weights (`train.ema`) copy a training, and the teacher never changes."""
        return self

    def __str__(self) -> str:
        """Describe it for log and tags."""
        return f"{self.facts.network} of {self.resolved} (sha256 {self.sha256[:16]})"

    def to(self, device: torch.device) -> None:
        """Move the weights to where the batches are."""
        self.model.to(device)

    def logits(self, pixels_u8: Tensor) -> Tensor:
        """Map (N, 3, H, W) uint8 to (N, K) float32, computed in the number format of the caller.

        Images of another side than the teacher was trained on are resized to it, by bilinear interpolation, antialiased.
        """
        side = self.facts.image_px
        with torch.no_grad():
            pixels = pixels_u8.float()
            if pixels.shape[-1] != side:
                pixels = interpolate(pixels, (side, side), mode="bilinear", antialias=True)
            logits: Tensor = self.model(pixels)
            return logits.float()


def load(source: str, classes: Sequence[str], folder: Path = weight_pins.FOLDER) -> Teacher | None:
    """Load the teacher that was pinned for a source, None for `none`; nothing is downloaded.

    Args:
        source: `train.teacher`.
        classes: of the dataset, in the order of its logits.
        folder: that holds the pins.

    Raises:
        RequestError: the teacher has other classes, or another order of them; weights without the model's facts.
        NetworkError: no pin, no file, other files than were pinned, files that are not a model's, or numbers that are not finite.
    """
    if source == weight_pins.NONE:
        return None
    pin = weight_pins.find(source, None, folder, key=KEY)
    path = pin.verify(folder)
    if len(pin.sha256) == 1:
        raise RequestError(
            f"{KEY} {source} is a file of weights, which does not state its network, classes and normalisation. Name a run (runs:/ID), a "
            f"registered model (models:/NAME@ALIAS) or the folder of a model, such as build/model, {REMEDY}"
        )
    try:
        model, facts = trained.load(path.parent)
    except NetworkError as error:
        raise NetworkError(
            f"The files pinned for {KEY} {source} are not a model that can teach: {str(error).splitlines()[0]}\n"
            f"Pin another: convoy weights use SOURCE, {REMEDY}"
        ) from error
    for name, value in model.network.state_dict().items():
        if not torch.isfinite(value).all():
            raise NetworkError(
                f"{KEY} {source} holds numbers that are not finite, first in {name}, so it can teach nothing. Pin another model: convoy "
                f"weights use SOURCE, {REMEDY}"
            )
    _check_classes(source, facts.classes, list(classes))
    return Teacher(model, facts, pin.resolved, params.digest(pin.sha256))


def _check_classes(source: str, own: list[str], classes: list[str]) -> None:
    """Refuse a teacher whose logits stand for other classes.

    Raises:
        RequestError: with the difference.
    """
    if own == classes:
        return
    lacks, adds = ([name for name in a if name not in b] for a, b in ((classes, own), (own, classes)))
    parts = [
        f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (("it lacks", lacks), ("only it has", adds))
        if names
    ]
    if not parts:
        position = next(index for index, name in enumerate(classes) if own[index] != name)
        parts = [
            f"in another order, first at class {position}: {own[position]} instead of {classes[position]}"
        ]
    raise RequestError(
        f"{KEY} {source} was trained for {len(own)} classes that are not the {len(classes)} of the dataset: {'; '.join(parts)}. "
        f"Train a teacher on this dataset, {REMEDY}"
    )
