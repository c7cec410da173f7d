"""The Open Inference Protocol v2 (KServe, Triton) over HTTP: `POST /v2/models/convoy/infer`, metadata and health.

The tensor `image` has pixels, UINT8 [N, H, W, 3], or N encoded images, BYTES [N]. Tensors are JSON, or binary data after the JSON
(Triton's extension `binary_tensor_data`).

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import asyncio
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import Response

from convoy import __version__
from convoy.core.contract import IMAGE, PROBABILITIES
from convoy.serving import answers, received
from convoy.serving.answers import Refusal
from convoy.serving.batches import Content, Outcome
from convoy.serving.model import ServedModel
from convoy.serving.settings import ServeParams

NAME = "convoy"
"""Of the model in paths."""

CLASS = "class"
OUTPUTS = (PROBABILITIES, CLASS)

HEADER_LENGTH = b"inference-header-content-length"


@dataclass(frozen=True)
class InferRequest:
    """Hold what a client asks for.

    Attributes:
        contents: the N images.
        outputs: name of each output to whether it is sent as binary data.
        id: of the client; empty if it gave none.
    """

    contents: list[Content]
    outputs: dict[str, bool]
    id: str


def add_routes(app: FastAPI) -> None:
    """Add the protocol's routes to the service."""

    @app.get("/v2")
    async def v2() -> Response:
        return _json({"name": NAME, "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live")
    async def v2_live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    async def v2_ready() -> Response:
        return _json({"live": True, "ready": True})

    @app.get("/v2/models/{model}")
    @app.get("/v2/models/{model}/versions/{version}")
    async def v2_model(model: str, version: str = "") -> Response:
        return _json(metadata(_served(app, model, version)))

    @app.get("/v2/models/{model}/ready")
    @app.get("/v2/models/{model}/versions/{version}/ready")
    async def v2_model_ready(model: str, version: str = "") -> Response:
        _served(app, model, version)
        return _json({"name": NAME, "ready": True})

    @app.post("/v2/models/{model}/infer")
    @app.post("/v2/models/{model}/versions/{version}/infer")
    async def v2_infer(request: Request, model: str, version: str = "") -> Response:
        _served(app, model, version)
        headers, params = request.scope["convoy.headers"], app.state.params
        body = await received.read_body(headers, request.receive, params)
        length = headers.get(HEADER_LENGTH, b"").decode("latin-1")
        asked = await asyncio.to_thread(parse, body, length, params)
        exchange = request.scope["convoy.exchange"]
        exchange.images = len(asked.contents)
        outcomes = await app.state.answerer.answer(asked.contents)
        for number, outcome in enumerate(outcomes):
            if refusal := outcome.refusal:
                raise Refusal(
                    refusal.status, refusal.code, f"Image {number} of {len(outcomes)}: {refusal.reason}"
                )
        return _response(asked, outcomes)


def metadata(served: ServedModel) -> dict[str, Any]:
    """Describe the model as the protocol does."""
    return {
        "name": NAME,
        **({"versions": [served.version]} if served.version else {}),
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": IMAGE, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(served.model.classes)]},
            {"name": CLASS, "datatype": "BYTES", "shape": [-1]},
        ],
    }


def parse(body: bytes, header_length: str, params: ServeParams) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: JSON, and binary data after it.
        header_length: bytes of the JSON, where binary data follow; empty: all.
        params: the section `serve`.

    Raises:
        Refusal: the body is not what the protocol describes, or exceeds a limit.
    """
    if header_length and not (header_length.isdigit() and int(header_length) <= len(body)):
        raise _bad("Inference-Header-Content-Length is not the length of the JSON in the body.")
    end = int(header_length) if header_length else len(body)
    try:
        content = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise _bad("The body is not valid JSON.") from error
    if not isinstance(content, dict):
        raise _bad("The body must be a JSON object.")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad(f"`inputs` must have one tensor, `{IMAGE}`.")
    client_id = content.get("id", "")
    if not isinstance(client_id, str):
        raise _bad("`id` must be a string.")
    outputs = _outputs(content)
    return InferRequest(_images(inputs[0], body[end:], params), outputs, client_id)


def _images(tensor: Mapping[str, Any], rest: bytes, params: ServeParams) -> list[Content]:
    """Read the input tensor; `rest` follows the JSON."""
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    if name != IMAGE:
        raise _bad(f"The input must be called `{IMAGE}`.")
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise _bad("`shape` must be a list of whole numbers from 1.")
    is_pixels = datatype == "UINT8"
    if is_pixels and (len(shape) != 4 or shape[3] != 3):
        raise _bad("`shape` of UINT8 pixels must be [N, H, W, 3].")
    if not is_pixels and datatype != "BYTES":
        raise _bad("`datatype` must be UINT8, pixels as [N, H, W, 3], or BYTES, N encoded images.")
    if not is_pixels and (len(shape) not in (1, 2) or shape[1:] not in ([], [1])):
        raise _bad("`shape` of BYTES must be [N] or [N, 1].")
    if shape[0] > params.max_files:
        raise Refusal(
            413,
            "too_many_images",
            f"The tensor has {shape[0]} images, the limit is {params.max_files} (serve.max_files). Send several requests.",
        )
    if is_pixels and shape[1] * shape[2] > params.max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"The images have {shape[2]} x {shape[1]} pixels, the limit is {params.max_pixels:,} (serve.max_pixels).",
        )
    read = _pixels if is_pixels else _encoded
    return read(tensor.get("data"), _binary(tensor, rest), shape)


def _binary(tensor: Mapping[str, Any], rest: bytes) -> bytes | None:
    """Return the binary data of the input tensor; None if its data are in the JSON."""
    parameters = tensor.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        if rest:
            raise _bad("Bytes follow the JSON, and the input has no `binary_data_size`.")
        return None
    if type(size) is not int or size != len(rest):
        raise _bad(f"`binary_data_size` is {size!r:.40}, and {len(rest)} bytes follow the JSON.")
    return rest


def _pixels(data: Any, binary: bytes | None, shape: Sequence[int]) -> list[Content]:  # noqa: ANN401 (as wide as JSON)
    """Read pixels, flat or nested."""
    if binary is not None:
        values = np.frombuffer(binary, np.uint8)
    else:
        try:
            values = np.array(data)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _bad("`data` must be whole numbers, flat or nested as `shape` is.") from error
        if values.dtype.kind not in "iu" or values.size == 0 or values.min() < 0 or values.max() > 255:
            raise _bad("`data` of UINT8 must be whole numbers from 0 to 255.")
    if values.size != math.prod(shape):
        raise _bad(f"`data` has {values.size} values, and `shape` {list(shape)} {math.prod(shape)}.")
    return list(values.reshape(shape).astype(np.uint8))


def _encoded(data: Any, binary: bytes | None, shape: Sequence[int]) -> list[Content]:  # noqa: ANN401 (as above)
    """Read encoded images: base64 in JSON; in binary data the bytes, each after their number."""
    found: list[Content] = []
    if binary is not None:
        at = 0
        while at + 4 <= len(binary):
            (size,) = struct.unpack_from("<I", binary, at)
            if at + 4 + size > len(binary):
                break
            found.append(binary[at + 4 : at + 4 + size])
            at += 4 + size
        if at != len(binary):
            raise _bad("The binary data are cut: an element is longer than what follows its length.")
    else:
        if isinstance(data, list) and all(isinstance(each, list) and len(each) == 1 for each in data):
            data = [each[0] for each in data]
        if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
            raise _bad("`data` of BYTES must be strings: each image in base64.")
        found += [received.from_base64(text) for text in data]
    if len(found) != shape[0]:
        raise _bad(f"`data` has {len(found)} elements, and `shape` {shape[0]}.")
    return found


def _outputs(content: Mapping[str, Any]) -> dict[str, bool]:
    """Read the requested outputs, and whether each is sent as binary data."""
    general = _flag(content, "binary_data_output")
    requested = content.get("outputs")
    if not requested:
        return dict.fromkeys(OUTPUTS, bool(general))
    if not isinstance(requested, list) or not all(isinstance(output, dict) for output in requested):
        raise _bad("`outputs` must be a list of objects with `name`.")
    found = {}
    for output in requested:
        name = output.get("name")
        if name not in OUTPUTS:
            raise _bad(f"There is no output {name!r:.60}; there are: {', '.join(OUTPUTS)}.")
        own = _flag(output, "binary_data")
        found[str(name)] = bool(general if own is None else own)
    return found


def _flag(content: Mapping[str, Any], key: str) -> bool | None:
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _bad("`parameters` must be an object.")
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise _bad(f"`{key}` must be true or false.")
    return value


def _response(asked: InferRequest, outcomes: Sequence[Outcome]) -> Response:
    """Format the answer."""
    served = outcomes[0].served
    probabilities = np.stack([outcome.probabilities for outcome in outcomes])
    names = [served.model.classes[index] for index in probabilities.argmax(axis=1).tolist()]
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, as_binary in asked.outputs.items():
        is_class = name == CLASS
        output: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if is_class else "FP32",
            "shape": [len(names)] if is_class else list(probabilities.shape),
        }
        if as_binary and is_class:
            encoded = [text.encode() for text in names]
            parts.append(b"".join(struct.pack("<I", len(text)) + text for text in encoded))
        elif as_binary:
            parts.append(probabilities.astype("<f4").tobytes())
        else:
            output["data"] = names if is_class else probabilities.reshape(-1).tolist()
        if as_binary:
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        outputs.append(output)
    answer = {
        "model_name": NAME,
        **({"model_version": served.version} if served.version else {}),
        **({"id": asked.id} if asked.id else {}),
        "parameters": {"run_id": served.run_id},
        "outputs": outputs,
    }
    head = answers.dumps(answer)
    if not parts:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH.decode(): str(len(head))}
    return Response(head + b"".join(parts), headers=headers, media_type="application/octet-stream")


def _served(app: FastAPI, model: str, version: str) -> ServedModel:
    """Return the model, if a path names it.

    Raises:
        Refusal: there is no such model or version.
    """
    served: ServedModel = app.state.served
    if model != NAME:
        raise Refusal(404, "not_found", f"There is no model {model[:60]!r}; there is: {NAME}.")
    if version not in ("", served.version):
        known = f"version {served.version}" if served.version else "no version, since it serves a file"
        raise Refusal(404, "not_found", f"There is no version {version[:60]!r}; the service has {known}.")
    return served


def _bad(reason: str) -> Refusal:
    return Refusal(400, "bad_request", reason)


def _json(content: Mapping[str, Any]) -> Response:
    return Response(answers.dumps(content), media_type="application/json")
