"""Resize an image of any size to the square that the network sees, by an ONNX graph.

`prepare` packs with it in onnxruntime and the exported model starts with it, so a packed
pixel equals a served one. `exclude_outside=1` makes onnxruntime's antialiased Resize agree
with `torch.nn.functional.interpolate(antialias=True)` and Pillow's BILINEAR; without it the
border is off by up to 15/255.

N: images in a batch, H and W: their size, P: side of the square, all in pixels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from convoy.core.dataset import Fit, cropped_side

OPSET = 20
IR_VERSION = 10
"""The newest that the oldest supported onnxruntime reads."""


LARGE_PIXELS = 2**22
"""Pixels above which an image is resized channel by channel: as float32 it would take twelve times its file's pixels."""


def graph(image_px: int, fit: Fit, crop_share: float = 1.0, channels: int = 3) -> onnx.ModelProto:
    """Build the graph from `image`, uint8 (N, H, W, 3), to `pixels`, float32 (N, 3, P, P), whole numbers 0..255.

    squash resizes both sides to P; crop takes the square in the middle first, whose side is `crop_share` of the shorter
    one (cropping afterwards would resize a 1 x 100,000 panorama to P x 100,000 P); letterbox resizes the
    longer side to P and pads with black, evenly, the odd pixel going right and below.
    """
    build = _Builder()
    image = "image"
    size = build.constant("geometry_square", [image_px, image_px])
    if fit == "crop":
        image = _central_square(build, image, crop_share)
    elif fit == "letterbox":
        build.constant("geometry_side", [image_px])
        size = _size_inside(build, image)
    build.node("Cast", [image], "geometry_float", to=TensorProto.FLOAT)
    build.node(
        "Resize",
        ["geometry_float", "", "", size],
        "geometry_resized",
        axes=[1, 2],
        mode="linear",
        antialias=1,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    # After the resize: before it, all pixels of a large image would be moved. onnxruntime 1.32 also fails to move a Transpose
    # through a Resize that has `axes`, which it does where INT8 layers follow.
    build.node("Transpose", ["geometry_resized"], "geometry_planes", perm=[0, 3, 1, 2])
    build.node("Round", ["geometry_planes"], "geometry_rounded")
    build.constant("geometry_black", 0.0)
    build.constant("geometry_white", 255.0)
    whole = "geometry_whole" if fit == "letterbox" else "pixels"
    build.node("Clip", ["geometry_rounded", "geometry_black", "geometry_white"], whole)
    if fit == "letterbox":
        _padded(build, whole, size)
    return build.model(image_px, channels)


@dataclass(frozen=True)
class Geometry:
    """Run the graph on single images, as `prepare` does; safe to call from many threads."""

    image_px: int
    fit: Fit
    crop_share: float = 1.0

    def __call__(self, image_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize one (H, W, 3) uint8 image to (P, P, 3) uint8.

        The channels of a large image are resized after each other, with the same result and a third of the memory.
        """
        if image_u8.shape[:2] == (self.image_px, self.image_px) and self.crop_share == 1:
            return image_u8  # whatever the fit: each output pixel is the input pixel
        height, width, channels = image_u8.shape
        at_once = 1 if height * width > LARGE_PIXELS else channels
        square_u8 = np.empty((self.image_px, self.image_px, channels), np.uint8)
        for first in range(0, channels, at_once):
            part_u8 = image_u8[np.newaxis, ..., first : first + at_once]
            session = _session(self.image_px, self.fit, self.crop_share, at_once)
            (pixels,) = session.run(["pixels"], {"image": part_u8})
            square_u8[..., first : first + at_once] = pixels[0].transpose(1, 2, 0)
        return square_u8

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return the smallest size of an image of these proportions that loses nothing which the square would show."""
        longest = max(width, height)
        if self.fit == "letterbox":
            return -(-width * self.image_px // longest), -(-height * self.image_px // longest)
        side = math.ceil(self.image_px / self.crop_share)
        return side, side

    def uncropped(self, squares_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Surround (n, P, P, 3) packed squares with black, so that the graph makes exactly them of the result."""
        side = int(self.image_px / self.crop_share)
        side += cropped_side(side, self.crop_share) < self.image_px
        before = (side - self.image_px) // 2
        around = (before, side - self.image_px - before)
        return np.pad(squares_u8, ((0, 0), around, around, (0, 0)))


@lru_cache(maxsize=8)
def _session(image_px: int, fit: Fit, crop_share: float, channels: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = 1  # callers have a thread per image; small ones are slower with more
    model = graph(image_px, fit, crop_share, channels).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Builder:
    """Collect nodes and constants of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: float | list[int], kind: type[np.generic] | None = None) -> str:
        """Add int64 numbers, one float32, or what is of another kind."""
        array = np.array(value, dtype=kind or (np.float32 if isinstance(value, float) else np.int64))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:  # noqa: ANN401 (ONNX's own)
        """Add a node, named as its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def model(self, image_px: int, channels: int) -> onnx.ModelProto:
        """Return the graph as a model that onnx has checked, shapes included."""
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", channels])
        square: list[str | int] = ["N", channels, image_px, image_px]
        pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, square)
        body = helper.make_graph(self.nodes, "geometry", [image], [pixels], self.constants)
        model = helper.make_model(
            body,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="convoy",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _central_square(build: _Builder, image: str, crop_share: float) -> str:
    """Crop the square in the middle first, so that nothing is computed on the rest; its side is `cropped_side` of the shorter one."""
    build.node("Shape", [image], "geometry_size", start=1, end=3)  # [H, W]
    build.node("ReduceMin", ["geometry_size"], "geometry_short", keepdims=1)  # [min(H, W)]
    side = "geometry_short"
    if crop_share < 1:
        share = build.constant("geometry_crop_share", crop_share, np.float64)
        build.node("Cast", [side], "geometry_short_double", to=TensorProto.DOUBLE)
        build.node("Mul", ["geometry_short_double", share], "geometry_share")
        build.node("Round", ["geometry_share"], "geometry_share_rounded")
        build.node("Cast", ["geometry_share_rounded"], "geometry_side_or_zero", to=TensorProto.INT64)
        side = build.node(
            "Max", ["geometry_side_or_zero", build.constant("geometry_one", [1])], "geometry_side"
        )
    build.node("Sub", ["geometry_size", side], "geometry_spare")
    build.node("Div", ["geometry_spare", build.constant("geometry_two", [2])], "geometry_from")
    build.node("Add", ["geometry_from", side], "geometry_to")
    axes = build.constant("geometry_axes", [1, 2])
    return build.node("Slice", [image, "geometry_from", "geometry_to", axes], "geometry_cropped")


def _size_inside(build: _Builder, image: str) -> str:
    """Compute [height, width] of the image resized so that its longer side is P.

    In whole numbers: max(1, (2 P side + longest) // (2 longest)), which rounds half up.
    Resize's own keep_aspect_ratio_policy rounds the short side of 1 x 1000 down to zero.
    """
    build.constant("geometry_one", [1])
    build.constant("geometry_two", [2])
    build.node("Shape", [image], "geometry_size", start=1, end=3)  # [H, W]
    build.node("ReduceMax", ["geometry_size"], "geometry_long", keepdims=1)  # [max(H, W)]
    build.node("Mul", ["geometry_size", "geometry_side"], "geometry_scaled")
    build.node("Mul", ["geometry_scaled", "geometry_two"], "geometry_scaled_twice")
    build.node("Add", ["geometry_scaled_twice", "geometry_long"], "geometry_numerator")
    build.node("Mul", ["geometry_long", "geometry_two"], "geometry_denominator")
    build.node("Div", ["geometry_numerator", "geometry_denominator"], "geometry_inside_or_zero")
    return build.node("Max", ["geometry_inside_or_zero", "geometry_one"], "geometry_inside")


def _padded(build: _Builder, whole: str, size: str) -> None:
    """Pad with black to the square."""
    build.node("Sub", ["geometry_square", size], "geometry_missing")
    build.node("Div", ["geometry_missing", "geometry_two"], "geometry_before")
    build.node("Sub", ["geometry_missing", "geometry_before"], "geometry_after")
    build.node("Concat", ["geometry_before", "geometry_after"], "geometry_pads", axis=0)
    axes = build.constant("geometry_axes", [2, 3])
    build.node("Pad", [whole, "geometry_pads", "geometry_black", axes], "pixels")
