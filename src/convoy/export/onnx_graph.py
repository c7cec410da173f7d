"""Export a trained model as one ONNX graph: raw pixels in, probabilities out, preprocessing inside.

N images of H x W pixels; P, the side of the square that the network sees; K classes.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import Tensor, nn

from convoy import __version__
from convoy.core import contract
from convoy.core.dataset import Fit
from convoy.core.errors import NetworkError
from convoy.export.onnx_model import LARGEST_BYTES
from convoy.images import resize
from convoy.models import trained
from convoy.models.trained import NormalizedModel

IMAGE_PROPERTIES = {
    "Image.BitmapPixelFormat": "Rgb8",
    "Image.ColorSpaceGamma": "SRGB",
    "Image.NominalPixelRange": "NominalRange_0_255",
}
"""Metadata of every tensor that is denoted an image, as ONNX has it in MetadataProps.md."""


class _WithProbabilities(nn.Module):
    """Add probabilities to a network; the attribute's name is the prefix of the constants' names in the graph."""

    def __init__(self, deployable: NormalizedModel) -> None:
        super().__init__()
        self.deployable = deployable

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, 3, P, P) pixels in 0..255 to (N, K) probabilities and logits."""
        logits = self.deployable(pixels)
        return logits.softmax(dim=1), logits


def build(model: Path, out: Path, identity: Mapping[str, str]) -> None:
    """Write `model.unverified.onnx`, from uint8 (N, H, W, 3) to (N, K) `probabilities` and `logits`.

    Only verification renames it to `model.onnx`, so files of an earlier export are removed.

    Args:
        model: folder that training wrote.
        out: folder to write into.
        identity: `run_id`, `git_commit`, `data_hash`, `params_hash`; stored in the file.

    Raises:
        NetworkError: ONNX lacks an operation of the network, or the file would be too large.
    """
    deployable, facts = trained.load(model)
    out.mkdir(parents=True, exist_ok=True)
    earlier = (contract.VERIFIED, contract.UNVERIFIED, contract.VERIFICATION, contract.MODEL_CARD)
    for name in (*earlier, contract.BOM, contract.SIGNATURE, *contract.COPIES):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / contract.GOLDEN, ignore_errors=True)
    network = _export(deployable, facts.image_px, facts.network)
    joined: onnx.ModelProto = compose.merge_models(
        resize.graph(facts.image_px, cast("Fit", facts.fit), facts.crop_share),
        network,
        io_map=[("pixels", "pixels")],
        name="convoy",
        producer_name="convoy",
        producer_version=__version__,
    )
    del joined.opset_import[1:]  # onnx lists that of each part, which are the same
    del joined.graph.output[:]  # to name their dimensions anew
    for name in (contract.PROBABILITIES, contract.LOGITS):
        dimensions = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(facts.classes)])
        joined.graph.output.append(dimensions)
    properties = {
        contract.CLASSES: json.dumps(facts.classes, ensure_ascii=False),
        contract.IMAGE_PX: str(facts.image_px),
        contract.FIT: facts.fit,
        contract.VERSION: __version__,
        contract.BACKGROUND: facts.background,
        contract.INPUT: contract.input_in_words(facts.background),
        **{f"convoy.{key}": identity[key] for key in contract.IDENTITY},
        **IMAGE_PROPERTIES,
    }
    _denote(joined.graph.input[0], "IMAGE", ("DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL"))
    for output in joined.graph.output:
        _denote(output, "TENSOR", ("DATA_BATCH", "DATA_FEATURE"))
    if facts.crop_share < 1:
        properties[contract.CROP_SHARE] = str(facts.crop_share)
    helper.set_model_props(joined, properties)
    size = joined.ByteSize()
    if size > LARGEST_BYTES:
        raise NetworkError(
            f"the ONNX file of network {facts.network} would have {size / 1e9:.1f} GB; the limit is "
            f"{LARGEST_BYTES / 1e9:.1f} GB. Choose a smaller network: network.name in params.yaml"
        )
    onnx.checker.check_model(joined, full_check=True)
    onnx.save(joined, out / contract.UNVERIFIED)


def _denote(value: onnx.ValueInfoProto, kind: str, axes: Sequence[str]) -> None:
    """Write what a tensor is, and what each of its axes, as ONNX has it in TypeDenotation.md and DimensionDenotation.md."""
    value.type.denotation = kind
    for dimension, axis in zip(value.type.tensor_type.shape.dim, axes, strict=True):
        dimension.denotation = axis


def _export(deployable: NormalizedModel, image_px: int, name: str) -> onnx.ModelProto:
    """Export float32 `pixels` (N, 3, P, P) to `probabilities` and `logits`.

    Traced with two images: the exporter takes a size of 1 for a constant (pytorch#157621).
    """
    example = torch.zeros(2, 3, image_px, image_px)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                _WithProbabilities(deployable).eval(),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=resize.OPSET,
                input_names=["pixels"],
                output_names=[contract.PROBABILITIES, contract.LOGITS],
                dynamic_shapes={"pixels": {0: torch.export.Dim("N", min=1)}},
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise NetworkError(
            f"network {name} cannot be exported to ONNX: {cause}. Choose layers that ONNX opset {resize.OPSET} "
            "has, for any number of images."
        ) from error
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) without a file name returns a program")
    network = program.model_proto
    if contract.MEAN not in {constant.name for constant in network.graph.initializer}:
        raise NetworkError(
            f"the exported graph of network {name} has no constant {contract.MEAN}, which the negative control of the "
            "verification shifts. Normalise only in convoy/models/trained.py."
        )
    images = network.graph.output[0].type.tensor_type.shape.dim[0]
    if not images.dim_param:
        raise NetworkError(
            f"network {name} accepts only batches of {images.dim_value} images: a layer has fixed the batch size "
            "that it was traced with (pytorch#157621). Look for a reshape with the number of images in its forward."
        )
    _strip_exporter_metadata(network)
    network.ir_version = resize.IR_VERSION
    return network


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's progress and warnings, none of which the user can act on."""
    loggers = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip_exporter_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes: stack traces with this machine's paths, in which equal models differ."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # Shapes of intermediate values are inferred again when the graph is whole.
    graph.ClearField("value_info")
