"""ONNX files with fixed predictions of numbered images: real models whose every figure is known beforehand.

An image's number is its colour: red, and 256 times green. The graph looks the prediction up in a table.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from convoy import __version__
from convoy.core import contract

WIDTH = 512
"""Side of the matrices that make a model slow."""


def image_u8(number: int) -> npt.NDArray[np.uint8]:
    """Make a plain image of a colour that is its number's alone."""
    return np.full((8, 8, 3), (number % 256, number // 256, 0), np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_u8(number)).save(stream, format="PNG")
    return stream.getvalue()


def write_onnx(
    path: Path,
    classes: Sequence[str],
    predictions: Sequence[str],
    *,
    certainty: float | Sequence[float] = 0.9,
    products: int = 0,
    dead_bytes: int = 0,
    identity: Mapping[str, str] | None = None,
) -> Path:
    """Write a model that predicts `predictions[n]` for image n with `certainty`, or with that of a list.

    `products` of 512 x 512 matrices for each image make it slow and `dead_bytes` of weights large; zero multiplies both.
    """
    sure = np.broadcast_to(np.asarray(certainty, np.float32), (len(predictions),))
    table = np.repeat(((1 - sure) / (len(classes) - 1))[:, np.newaxis], len(classes), axis=1)
    for number, prediction in enumerate(predictions):
        table[number, list(classes).index(prediction)] = sure[number]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["colour"], keepdims=0),  # (N, 3)
        helper.make_node("MatMul", ["colour", "digits"], ["number"]),  # (N, 1)
        helper.make_node("Squeeze", ["number", "last"], ["flat"]),
        helper.make_node("Round", ["flat"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["row"]),  # (N, K)
    ]
    constants = {
        "sides": np.array([1, 2], np.int64),
        "digits": np.array([[1], [256], [0]], np.float32),
        "last": np.array([1], np.int64),
        "table": table.astype(np.float32),
        "nothing": np.array(0, np.float32),
    }
    wasted = ["number"]
    if products:
        constants |= {"spread": np.ones((1, WIDTH), np.float32), "matrix": np.eye(WIDTH, dtype=np.float32)}
        nodes.append(helper.make_node("MatMul", ["number", "spread"], ["product0"]))
        nodes += [
            helper.make_node("MatMul", [f"product{n}", "matrix"], [f"product{n + 1}"])
            for n in range(products)
        ]
        wasted.append(f"product{products}")
    if dead_bytes:
        constants["dead"] = np.zeros((1, dead_bytes // 4), np.float32)
        nodes.append(helper.make_node("MatMul", ["number", "dead"], ["ballast"]))
        wasted.append("ballast")
    for n, name in enumerate(wasted):
        nodes += [
            helper.make_node("ReduceSum", [name, "last"], [f"sum{n}"], keepdims=1),
            helper.make_node("Mul", [f"sum{n}", "nothing"], [f"none{n}"]),
        ]
    nodes.append(
        helper.make_node("Sum", ["row", *(f"none{n}" for n in range(len(wasted)))], ["probabilities"])
    )
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(classes)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    origin = identity or dict.fromkeys(contract.IDENTITY, "fixed")
    properties = {
        contract.CLASSES: json.dumps(list(classes), ensure_ascii=False),
        contract.IMAGE_PX: "8",
        contract.FIT: "squash",
        contract.VERSION: __version__,
        contract.INPUT: contract.input_in_words("white"),
        **{f"convoy.{key}": text for key, text in origin.items()},
    }
    helper.set_model_props(model, properties)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
