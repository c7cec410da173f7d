"""Classify image files with an exported model: numpy, Pillow and onnxruntime, no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core.console import info
from convoy.core.errors import DataError
from convoy.export.onnx_model import OnnxModel, chunks
from convoy.images.decode import FORMATS, decode
from convoy.images.delivery import is_litter

Item = tuple[Path, npt.NDArray[np.uint8] | None, str | None]
"""A file with its decoded image, or with the reason why it has none."""


@dataclass(frozen=True)
class Prediction:
    """Hold the probabilities that a file's image got, 0..1 of every class, or the reason why it has no prediction."""

    path: Path
    reason: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return the most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def as_json(self) -> dict[str, Any]:
        """Return plain data: `path` with either `error`, or `class`, `probability` and `probabilities`."""
        if self.reason is not None:
            return {"path": str(self.path), "error": self.reason}
        return {
            "path": str(self.path),
            "class": self.label,
            "probability": self.probabilities[self.label],
            "probabilities": self.probabilities,
        }


def predict(model: Path, paths: Sequence[Path]) -> Iterator[Prediction]:
    """Classify every image, in the order given; folders are walked in order of name.

    A file that cannot be classified gets a reason and does not stop the rest. Inside folders, files
    that neither hold an image nor have an image's suffix are skipped.

    Raises:
        RequestError: the model does not exist.
        VerificationError: the model is not valid ONNX, or was not exported by Convoy.
    """
    return _predictions(
        OnnxModel(model), paths
    )  # not a generator itself: a missing model is reported at once


def show(predictions: Iterable[Prediction], *, as_json: bool) -> int:
    """Print a line per file, plain or JSON, and return the exit code: 1 if a file has no prediction."""
    failed = 0
    for prediction in predictions:
        failed += prediction.reason is not None
        if as_json:
            info(json.dumps(prediction.as_json(), ensure_ascii=False))
        elif prediction.reason is not None:
            info(f"{prediction.path}: ERROR: {prediction.reason}")
        else:
            info(f"{prediction.path}: {prediction.label} {prediction.probabilities[prediction.label]:.4f}")
    return 1 if failed else 0


def _predictions(model: OnnxModel, paths: Sequence[Path]) -> Iterator[Prediction]:
    """Read a chunk ahead, so that images of equal size share a batch."""
    read = (item for path in paths for item in _read(path))
    for chunk in chunks(read, lambda item: 0 if item[1] is None else item[1].nbytes):
        images_u8 = [image_u8 for _, image_u8, _ in chunk if image_u8 is not None]
        probabilities = iter(model.predict_mixed(images_u8))
        for path, image_u8, reason in chunk:
            if image_u8 is None:
                yield Prediction(path, reason)
            elif np.isfinite(row := next(probabilities)).all():
                yield Prediction(path, probabilities=dict(zip(model.classes, row.tolist(), strict=True)))
            else:
                yield Prediction(path, "the model outputs NaN")


def _read(path: Path) -> Iterator[Item]:
    """Decode a file, or every image below a folder."""
    if not path.is_dir():
        yield _decoded(path)
        return
    empty = True
    for file in sorted(path.rglob("*")):
        if is_litter(file.relative_to(path).as_posix()) or not file.is_file():
            continue
        item = _decoded(file)
        if item[1] is not None or _is_meant_as_image(file):
            empty = False
            yield item
    if empty:
        yield path, None, "contains no images"


def _decoded(path: Path) -> Item:
    try:
        return path, decode(path.read_bytes()).image_u8, None
    except DataError as error:
        return path, None, str(error)
    except OSError as error:
        return path, None, f"cannot be read: {error.strerror}"


def _is_meant_as_image(path: Path) -> bool:
    """Distinguish a damaged image, which must be reported, from a file of another kind."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (OSError, Image.DecompressionBombError):
        known = Image.registered_extensions()
        return known.get(path.suffix.lower()) in FORMATS
