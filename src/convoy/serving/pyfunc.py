"""Load a logged model as an MLflow pyfunc: image files or pixels in, classes and probabilities out.

`mlflow models serve | predict | build-docker` and Spark UDFs use it. The logged model brings this file and what it imports
(`tracking/mlflow_writer.py` copies them), so no environment needs Convoy.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from convoy.core.contract import VERIFIED
from convoy.core.errors import DataError, RequestError
from convoy.export.onnx_model import OnnxModel, chunks
from convoy.images.decode import decode, read

IMAGE, PATH = "image", "path"
"""Columns of the input: one of them per row."""


class ImageClassifier:
    """Classify rows of images."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model

    def predict(
        self,
        model_input: "pd.DataFrame | npt.NDArray[Any] | Mapping[str, Any] | Sequence[Any]",
        params: Mapping[str, Any] | None = None,  # noqa: ARG002 (MLflow passes it)
    ) -> pd.DataFrame:
        """Classify images.

        Args:
            model_input: a table, or a mapping of its columns. Column `image` holds the bytes of image files, their base64 text, or
                (H, W, 3) uint8 RGB pixels; column `path` holds files to read. Also accepted: a (N, H, W, 3) uint8 array,
                or a list of bytes and paths.
            params: none are used.

        Returns:
            A row per image, in order: `class`, `probability` and `probabilities` (a list, in the order of the classes), and `error`,
            the reason why an image cannot be decoded; what does not apply is missing (None or NaN).

        Raises:
            RequestError: the input has none of these forms.
        """
        images = list(map(self._decoded, _rows(model_input)))
        rows: list[tuple[str | None, float | None, list[float] | None, str | None]] = []
        for chunk in chunks(images, lambda image: 0 if isinstance(image, str) else image.nbytes):
            readable = [image for image in chunk if not isinstance(image, str)]
            answers = iter(self._model.predict_mixed(readable))
            for image in chunk:
                if isinstance(image, str):
                    rows.append((None, None, None, image))
                    continue
                answer = next(answers)
                best = int(answer.argmax())
                rows.append((self._model.classes[best], float(answer[best]), answer.tolist(), None))
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities", "error"])

    def _decoded(self, row: Any) -> "npt.NDArray[np.uint8] | str":  # noqa: ANN401 (what a table's cell holds)
        """Return (H, W, 3) pixels, or the reason why there are none."""
        try:
            if isinstance(row, Path):
                row = read(row)
            if isinstance(row, str):
                row = base64.b64decode(row, validate=True)
            if isinstance(row, bytes | bytearray | memoryview):
                return decode(bytes(row), background=self._model.background).image_u8
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except binascii.Error:
            return "is text that is not base64. Give an image's bytes or its base64 text, or name a file in the column `path`"
        return _pixels(np.asarray(row))


def _pixels(array: npt.NDArray[Any]) -> "npt.NDArray[np.uint8] | str":
    """Return an array as (H, W, 3) pixels, or the reason why it holds none."""
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or not np.can_cast(array.dtype, np.int64):
        return f"is an array of {array.dtype} and shape {array.shape}; give (H, W, 3) whole numbers from 0 to 255"
    if array.min() < 0 or array.max() > 255:
        return f"has values from {array.min()} to {array.max()}; give RGB pixels from 0 to 255"
    return array.astype(np.uint8, copy=False)  # JSON has no uint8


def _rows(model_input: Any) -> Iterable[Any]:  # noqa: ANN401 (MLflow passes on what its caller gives)
    """List the images of any form of input; a file is a `Path`, text is base64."""
    if isinstance(model_input, np.ndarray) and model_input.dtype != object:
        return [model_input] if model_input.ndim == 3 else list(model_input)
    if isinstance(model_input, Mapping):
        model_input = pd.DataFrame({name: list(column) for name, column in model_input.items()})
    if isinstance(model_input, pd.DataFrame):
        if not {IMAGE, PATH} & set(model_input.columns):
            names = ", ".join(map(str, model_input.columns))
            raise RequestError(
                f"the input has the columns {names}. Name one `{IMAGE}` (bytes or base64 text of files, or pixels) or `{PATH}` (files)."
            )
        images = model_input[IMAGE] if IMAGE in model_input else [None] * len(model_input)
        paths = model_input[PATH] if PATH in model_input else [None] * len(model_input)
        return [
            Path(path) if _is_empty(image) and not _is_empty(path) else image
            for image, path in zip(images, paths, strict=True)
        ]
    if isinstance(model_input, list | tuple | np.ndarray):
        return [Path(row) if isinstance(row, str) else row for row in model_input]
    raise RequestError(
        f"the input is a {type(model_input).__name__}. Give a table with a column `{IMAGE}` or `{PATH}`, a (N, H, W, 3) uint8 "
        "array, or a list of bytes and paths."
    )


def _is_empty(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and np.isnan(cell))


def _load_pyfunc(path: str) -> ImageClassifier:
    """Load what a logged model's folder holds; MLflow calls the function of this name in a flavor's `loader_module`."""
    file = Path(path)
    return ImageClassifier(OnnxModel(file / VERIFIED if file.is_dir() else file))
