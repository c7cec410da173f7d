"""Run an exported model in onnxruntime: verification, the gate and `convoy predict` all use this class.

N images of H x W pixels; K classes.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import AttributeProto, TensorProto

from convoy.core import contract
from convoy.core.errors import RequestError, VerificationError

CHUNK_IMAGES = 64
CHUNK_BYTES = 32 * 2**20
"""Most images and bytes of pixels in a chunk: the graph holds them as float32, at four times the size."""

LARGEST_BYTES = 2**31 - 1
"""Limit of protobuf, and so of an ONNX file."""

SECONDS_PER_IMAGE = 10.0
"""Time limit of a model that may be anybody's. The largest networks take a second on one core."""

LEAST_SECONDS = 60.0
"""Shortest time limit of a call, in seconds: it may wait for other work of the machine."""

CPU = ("CPUExecutionProvider",)

T = TypeVar("T")


class OnnxModel:
    """Predict probabilities of raw pixels.

    Attributes:
        classes: names, in the order of the probabilities.
        background: colour behind transparent pixels, for the decoder.
        properties: the file's metadata, with the run, commit, data and params that it comes from.
        providers: of onnxruntime that run the graph, the preferred first.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 0,
        shared: bool = False,
        seconds_per_image: float | None = None,
        providers: Sequence[str] = CPU,
        name: str = "the model",
    ) -> None:
        """Open a model from a file or its bytes.

        Args:
            model: the file, or its content.
            threads: per operation; 0 leaves their number to onnxruntime.
            shared: several threads call the model at once, so the threads of its operations sleep while they wait. By default they
                spin, which is faster for a single caller and takes the cores of others.
            seconds_per_image: time limit of a call, for models of unknown origin; at least a minute per call.
            providers: onnxruntime's execution providers, the preferred first.
            name: of a model that is given as bytes, in messages.

        Raises:
            RequestError: the file does not exist, or is a folder.
            VerificationError: the file is not valid ONNX, was not exported by Convoy, or has what no exported model has:
                data in other files, or control flow.
        """
        name = str(model) if isinstance(model, Path) else name
        self._name, self._seconds_per_image = name, seconds_per_image
        content = read_model(model) if isinstance(model, Path) else model
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # a lower level would print errors that are raised as well
        options.intra_op_num_threads = threads
        if shared:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            _check_self_contained(name, content)
            # From the bytes that were checked, not from the file again.
            self._session = onnxruntime.InferenceSession(content, options, providers=list(providers))
        except VerificationError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise VerificationError(
                f"{name} is not a valid ONNX file: {cause}\n"
                "Restore it with `dvc checkout`, or export again: dvc repro export"
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
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
        self.background = self.properties.get(contract.BACKGROUND, contract.DEFAULT_BACKGROUND)
        if not re.match(contract.BACKGROUND_PATTERN, self.background):
            raise VerificationError(
                f"{name} has the metadata {contract.BACKGROUND} {self.background[:40]!r}, which is no colour. "
                f"Use build/deploy/{contract.VERIFIED}, which `dvc repro` makes."
            )
        self.classes: tuple[str, ...] = tuple(json.loads(self.properties[contract.CLASSES]))

    def __call__(self, images_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map (N, H, W, 3) RGB pixels to (N, K) probabilities.

        Raises:
            VerificationError: the time limit has passed.
        """
        probabilities: npt.NDArray[np.float32]
        outputs, inputs = [contract.PROBABILITIES], {contract.IMAGE: images_u8}
        if self._seconds_per_image is None:
            (probabilities,) = self._session.run(outputs, inputs)
            return probabilities
        options = onnxruntime.RunOptions()
        seconds = max(LEAST_SECONDS, self._seconds_per_image * len(images_u8))
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            (probabilities,) = self._session.run(outputs, inputs, options)
        except Exception as error:  # as above; that of a stopped run is explained
            if not options.terminate:
                raise
            raise VerificationError(
                f"{self._name} did not answer for {len(images_u8)} images of {images_u8.shape[2]} x {images_u8.shape[1]} "
                f"pixels within {seconds:g} s. Use build/deploy/{contract.VERIFIED}, or smaller images."
            ) from error
        finally:
            timer.cancel()
        return probabilities

    def predict_mixed(self, images_u8: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Map (H, W, 3) images of any sizes to (N, K) probabilities; equal sizes share a batch."""
        probabilities = np.empty((len(images_u8), len(self.classes)), np.float32)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for n, image_u8 in enumerate(images_u8):
            by_shape.setdefault(image_u8.shape, []).append(n)
        for same in by_shape.values():
            single = images_u8[same[0]][np.newaxis]  # not copied: it may be large
            probabilities[same] = self(np.stack([images_u8[n] for n in same]) if len(same) > 1 else single)
        return probabilities


def read_model(path: Path) -> bytes:
    """Read the file of a model.

    Raises:
        RequestError: it does not exist, or is a folder.
        VerificationError: it is larger than any ONNX file, or cannot be read.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.onnx"))
        instead = (
            f"Name the file: {path / inside[0]}"
            if inside
            else f"It holds no {contract.VERIFIED}, which `dvc repro` makes."
        )
        raise RequestError(f"{path} is a folder, not a model. {instead}")
    if not path.is_file():
        raise RequestError(f"{path} does not exist. `dvc repro` makes build/deploy/{contract.VERIFIED}.")
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise VerificationError(
                f"{path} is not a valid ONNX file: it has more than {LARGEST_BYTES:,} bytes."
            )
        return path.read_bytes()
    except OSError as error:
        raise VerificationError(f"{path} cannot be read: {error.strerror}.") from error


def _check_self_contained(name: str, content: bytes) -> None:
    """Refuse what no exported model has, and what its sha256 or a time limit would not cover.

    Raises:
        VerificationError: a tensor is stored in another file, or a node contains a subgraph (`Loop`, `If`, `Scan`).
    """
    model = onnx.load_model_from_string(content)
    sparse = [part for tensor in model.graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    tensors = [*model.graph.initializer, *sparse]
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        for attribute in node.attribute:
            if attribute.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS} or attribute.HasField("g"):
                raise VerificationError(
                    f"{name} has control flow (node `{node.op_type}`), which no model of Convoy has and which need not end. "
                    f"Use build/deploy/{contract.VERIFIED}, which `dvc repro` makes."
                )
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            tensors += [attribute.t, *attribute.tensors]
            tensors += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            files = [entry.value for entry in tensor.external_data if entry.key == "location"]
            raise VerificationError(
                f"{name} keeps the tensor `{tensor.name}` in another file ({', '.join(files) or 'without a name'}), which the "
                f"model's sha256 does not cover. Use build/deploy/{contract.VERIFIED}, or write a single file: onnx.save "
                "with save_as_external_data=False"
            )


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
