"""Classify image files with an exported model: numpy, Pillow and onnxruntime, no torch."""

import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.core import escaping
from convoy.core.console import info, print_json
from convoy.core.contract import VERIFIED
from convoy.core.errors import DataError, RequestError
from convoy.export.onnx_model import SECONDS_PER_IMAGE, OnnxModel, chunks
from convoy.images.decode import decode, read
from convoy.images.formats import NotAnImageError
from convoy.images.litter import claims_to_be_image, is_litter

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
    that neither hold an image nor have an image's suffix are skipped; links that stay inside are
    followed; every other link, and what cannot be read, gets a reason.

    Raises:
        RequestError: the model does not exist, or is a folder or an image: the argument was left out.
        VerificationError: the model is not valid ONNX, or was not exported by Convoy.
    """
    # Not a generator itself: a missing model is reported at once.
    if model.is_dir() or claims_to_be_image(model.name):
        meant = (
            [model / VERIFIED] if (model / VERIFIED).is_file() else [Path("build/deploy") / VERIFIED, model]
        )
        raise RequestError(
            f"MODEL comes first, and {model} is {'a folder' if model.is_dir() else 'an image'}. Type: "
            f"convoy predict {shlex.join(map(str, [*meant, *paths]))}"
        )
    return _predictions(OnnxModel(model, seconds_per_image=SECONDS_PER_IMAGE), paths)


def show(predictions: Iterable[Prediction], *, as_json: bool) -> int:
    """Print a line per file, plain or JSON, and return the exit code: 1 if a file has no prediction."""
    failed = 0
    for prediction in predictions:
        failed += prediction.reason is not None
        if as_json:
            print_json(prediction.as_json())
            continue
        path = escaping.visible(str(prediction.path))
        if prediction.reason is not None:
            info(f"{path}: ERROR: {escaping.visible(prediction.reason)}")
        else:
            probability = prediction.probabilities[prediction.label]
            info(f"{path}: {escaping.visible(prediction.label)} {probability:.4f}")
    return 1 if failed else 0


def _predictions(model: OnnxModel, paths: Sequence[Path]) -> Iterator[Prediction]:
    """Read a chunk ahead, so that images of equal size share a batch."""
    read = (item for path in paths for item in _read(path, model.background))
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


def _read(path: Path, background: str) -> Iterator[Item]:
    """Decode a file, or every image below a folder."""
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a folder above may not be entered)
        yield from _decoded(path, background)
        return
    empty = True
    for file, reason in _walk(path):
        for item in [(file, None, reason)] if reason else _decoded(file, background, images_only=True):
            empty = False
            yield item
    if empty:
        yield path, None, "contains no images"


def _walk(top: Path) -> Iterator[tuple[Path, str]]:
    """List the files below a folder in order of name; what cannot be listed with the reason, else an empty one.

    Each link to a folder is followed once, and not at all if it leads to a folder that it is in: that is listed already.
    """
    root = Path(os.path.realpath(top))
    followed: set[Path] = set()
    todo = [top]
    while todo:
        path = todo.pop()
        try:
            if path != top and path.is_symlink():
                link, target = Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(path))
                if not target.is_relative_to(root):
                    yield path, f"is a link to {target}, outside of {top}: give that path as well"
                    continue
                if target.is_symlink() or not target.exists():
                    yield path, f"is a link to {path.readlink()}, which leads nowhere"
                    continue
                if target.is_dir():
                    if link in followed or link.is_relative_to(target):
                        continue
                    followed.add(link)
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                names = sorted(os.listdir(path), reverse=True)  # noqa: PTH208 (only the names are needed)
                todo += [path / name for name in names if not is_litter(name)]
            else:
                yield path, "" if stat.S_ISREG(mode) else "is a pipe, a socket or a device"
        except OSError as error:
            yield path, f"cannot be read: {error.strerror}"


def _decoded(path: Path, background: str, *, images_only: bool = False) -> Iterator[Item]:
    """Decode a file; for `images_only` yield nothing if it is neither an image nor called like an image."""
    try:
        yield path, decode(read(path), background=background).image_u8, None
    except NotAnImageError as error:
        if not images_only or claims_to_be_image(path.name):
            yield path, None, str(error)
    except DataError as error:
        yield path, None, str(error)
    except OSError as error:
        yield path, None, f"cannot be read: {error.strerror}"
