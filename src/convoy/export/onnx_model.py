"""Run an exported model in onnxruntime: verification, the gate and `convoy predict` all use this class.

N images of H x W pixels; K classes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from convoy.core import contract
from convoy.core.errors import RequestError, VerificationError

CHUNK_IMAGES = 64
CHUNK_BYTES = 32 * 2**20
"""Most images and bytes of pixels in a chunk: the graph holds them as float32, at four times the size."""

T = TypeVar("T")


class OnnxModel:
    """Predict probabilities of raw pixels.

    Attributes:
        classes: names, in the order of the probabilities.
        properties: the file's metadata, with the run, commit, data and params that it comes from.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0) -> None:
        """Open a model from a file or its bytes; 0 leaves the number of threads per operation to onnxruntime.

        Raises:
            RequestError: the file does not exist.
            VerificationError: the file is not valid ONNX, or was not exported by Convoy.
        """
        name = str(model) if isinstance(model, Path) else "the model"
        if isinstance(model, Path) and not model.is_file():
            raise RequestError(f"{name} does not exist. `dvc repro` makes build/deploy/{contract.VERIFIED}.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # a lower level would print errors that are raised as well
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise VerificationError(
                f"{name} is not a valid ONNX file: {cause}\n"
                "Restore it with `dvc checkout`, or export again: dvc repro export"
            ) from error
        self.properties: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        required = [contract.CLASSES, contract.IMAGE_PX, contract.FIT, contract.VERSION]
        missing = [f"the metadata {key}" for key in required if key not in self.properties]
        if [node.name for node in self._session.get_inputs()] != [contract.IMAGE]:
            missing.append(f"a single input `{contract.IMAGE}`")
        if contract.PROBABILITIES not in [node.name for node in self._session.get_outputs()]:
            missing.append(f"an output `{contract.PROBABILITIES}`")
        if missing:
            raise VerificationError(
                f"{name} was not exported by Convoy: it lacks {', '.join(missing)}. "
                f"Use build/deploy/{contract.VERIFIED}, which `dvc repro` makes."
            )
        self.classes: tuple[str, ...] = tuple(json.loads(self.properties[contract.CLASSES]))

    def __call__(self, images_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map (N, H, W, 3) RGB pixels to (N, K) probabilities."""
        probabilities: npt.NDArray[np.float32]
        (probabilities,) = self._session.run([contract.PROBABILITIES], {contract.IMAGE: images_u8})
        return probabilities

    def predict_mixed(self, images_u8: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Map (H, W, 3) images of any sizes to (N, K) probabilities; equal sizes share a batch."""
        probabilities = np.empty((len(images_u8), len(self.classes)), np.float32)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for n, image_u8 in enumerate(images_u8):
            by_shape.setdefault(image_u8.shape, []).append(n)
        for same in by_shape.values():
            probabilities[same] = self(np.stack([images_u8[n] for n in same]))
        return probabilities


def chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Split a stream into lists that fit into memory: at most 64 items, and 32 MiB unless a single item is larger.

    `size` gives the bytes of an item. Items are read no further ahead than the next list.
    """
    chunk: list[T] = []
    held = 0
    for item in items:
        weight = size(item)
        if chunk and (len(chunk) == CHUNK_IMAGES or held + weight > CHUNK_BYTES):
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += weight
    if chunk:
        yield chunk
