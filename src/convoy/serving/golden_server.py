"""Answers of a server to golden images, by Convoy's protocol or the Open Inference Protocol.

A server is addressed by `http://HOST:PORT` (Convoy's `POST /predict`, with the delivered file as body) or by
`http://HOST:PORT/v2/models/NAME` (Open Inference Protocol: decoded pixels as the tensor `image`; KServe, Triton).
"""

import json
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from convoy.core import contract
from convoy.images.decode import decode
from convoy.serving.golden import Answer, ServerError

TIMEOUT_S = 30.0

MOST_BYTES = 64 * 2**20
"""Largest answer of a server that is read."""

V2 = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?$")


def of_server(url: str, classes: Sequence[str], background: str, token: str = "") -> Answer:
    """Answer by requests to a server.

    Args:
        url: of the server, or of a model by the Open Inference Protocol, which takes pixels and names no classes.
        classes: in the order of the probabilities.
        background: colour behind transparent pixels.
        token: bearer token; none is sent if it is empty.
    """
    address = url.rstrip("/").removesuffix("/infer")
    if V2.search(address):
        return _open_inference(f"{address}/infer", classes, background, token)
    address = f"{address.removesuffix('/predict')}/predict?top_k={len(classes)}"

    def answer(content: bytes) -> Mapping[str, float]:
        body = _post(address, content, _media_type(content), token)
        return {str(name): float(value) for name, value in body["probabilities"].items()}

    return answer


def _open_inference(address: str, classes: Sequence[str], background: str, token: str) -> Answer:
    """Send decoded pixels as a tensor, https://github.com/kserve/open-inference-protocol (inference REST API)."""

    def answer(content: bytes) -> Mapping[str, float]:
        image_u8 = decode(content, background=background, max_truncated=1.0).image_u8
        tensor = {
            "name": contract.IMAGE,
            "shape": [1, *image_u8.shape],
            "datatype": "UINT8",
            "data": image_u8.reshape(-1).tolist(),
        }
        request = {"inputs": [tensor], "outputs": [{"name": contract.PROBABILITIES}]}
        body = _post(address, json.dumps(request).encode(), "application/json", token)
        [output] = [each for each in body["outputs"] if each["name"] == contract.PROBABILITIES]
        values = np.asarray(output["data"], np.float64).reshape(-1)
        return dict(zip(classes, values.tolist(), strict=True))

    return answer


def _media_type(content: bytes) -> str:
    for start, kind in ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif")):
        if content.startswith(start):
            return f"image/{kind}"
    return "application/octet-stream"


class _NoRedirect(HTTPRedirectHandler):
    """Follow no redirect: it would take the token to another server."""

    def redirect_request(self, *_: object) -> None:
        """Treat a redirect as a refusal."""


def _post(address: str, content: bytes, media_type: str, token: str) -> dict[str, Any]:
    """Send a request and return the JSON object of the answer.

    Raises:
        ServerError: the server cannot be reached, or refuses.
    """
    headers = {"Content-Type": media_type, "Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = Request(address, content, headers)  # noqa: S310 (http or https, as `verify` checks)
    try:
        with build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as response:
            body = json.loads(response.read(MOST_BYTES))
    except HTTPError as error:
        raise ServerError(_refusal(error)) from error
    except (URLError, OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ServerError(
            f"does not answer: {reason}. Start it (convoy serve), or type the address that it prints"
        ) from error
    except ValueError as error:
        raise ServerError("the answer is no JSON; is this the address of a model server?") from error
    if not isinstance(body, dict):
        raise ServerError("the answer is no JSON object; is this the address of a model server?")
    return body


def _refusal(error: HTTPError) -> str:
    """Describe an error status, with the reason that Convoy's server gives."""
    reason = ""
    try:
        body = json.loads(error.read(2**16))
        reason = str(body["error"]["reason"] if isinstance(body["error"], dict) else body["error"])
    except (ValueError, KeyError, TypeError, OSError):
        pass
    remedy = " Set the token's environment variable (serve.token_env)." if error.code == 401 else ""
    stated = f": {reason.rstrip('.')}" if reason else ""
    return f"status {error.code} {error.reason}{stated}.{remedy}"
