"""Show what an answer depends on: cover parts of the image, one after another, and measure how the probability falls.

P, the side of the square that the network sees, in pixels; G, the side of the heat map, in cells.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, section 4.2 (arXiv:1311.2901).
"""

import asyncio
import io
import time
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import Response
from PIL import Image

from convoy.core import contract
from convoy.core.dataset import Fit
from convoy.core.errors import DataError
from convoy.images.decode import decode
from convoy.images.resize import Geometry
from convoy.serving import answers, received
from convoy.serving.answers import Refusal, refused_image
from convoy.serving.model import ServedModel

GRID = 8
MOST_GRID = 14
"""Largest G: the model then answers 197 images for one request."""

BYTES = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": dict.fromkeys(
            ("image/jpeg", "image/png", "image/webp", "application/octet-stream"), BYTES
        ),
    }
}
PARAMETERS = [
    {
        "name": "class",
        "in": "query",
        "description": "whose probability is measured; the default is the most probable one",
        "schema": {"type": "string"},
    },
    {
        "name": "grid",
        "in": "query",
        "description": "cells of a side",
        "schema": {"type": "integer", "minimum": 2, "maximum": MOST_GRID, "default": GRID},
    },
]
TEXT, NUMBER = {"type": "string"}, {"type": "number"}
OCCLUSION: dict[str, Any] = {
    "class": TEXT,
    "probability": NUMBER,
    "drops": {"type": "array", "items": {"type": "array", "items": NUMBER}},
    "model": TEXT,
    "version": TEXT,
    "run_id": TEXT,
    "ms": {"type": "object", "properties": {"total": NUMBER}},
    "request_id": TEXT,
}
SEEN: dict[int | str, dict[str, Any]] = {
    200: {"description": "The square that the network sees.", "content": {"image/png": BYTES}}
}

BATCH = 16
"""Images of a batch: the time limit is checked between batches."""

GRAY = 128
"""Colour of the patch; it is twice as wide as a cell, so that neighbours overlap by half."""


@dataclass(frozen=True)
class HeatMap:
    """Hold what covering each part of an image does to the probability of a class.

    Attributes:
        label: the class.
        probability: of the class for the uncovered image, 0..1.
        drops: (G, G), by how much it falls where the patch is centred on that cell; negative where it rises.
    """

    label: str
    probability: float
    drops: npt.NDArray[np.float32]


class OutOfTime(Exception):  # noqa: N818 (an answer, not a fault of the service)
    """The time limit has passed before the whole map was measured."""


def geometry(served: ServedModel) -> Geometry:
    """Return the resizing that the model's graph starts with."""
    properties = served.model.properties
    return Geometry(
        int(properties[contract.IMAGE_PX]),
        cast("Fit", properties[contract.FIT]),
        float(properties.get(contract.CROP_SHARE, 1)),
    )


def heat_map(
    served: ServedModel,
    image_u8: npt.NDArray[np.uint8],
    label: str | None = None,
    grid: int = GRID,
    deadline: float = float("inf"),
) -> HeatMap:
    """Measure the heat map of an image.

    Args:
        served: the model.
        image_u8: (H, W, 3) pixels.
        label: a class; None takes the most probable one.
        grid: G; at most P.
        deadline: of `time.monotonic`, after which no further batch is run.

    Raises:
        OutOfTime: the deadline has passed.
    """
    resizing = geometry(served)
    square_u8 = resizing(image_u8)
    cells = min(grid, len(square_u8))
    rows = []
    for first in range(0, cells * cells + 1, BATCH):
        if time.monotonic() > deadline:
            raise OutOfTime
        last = min(first + BATCH, cells * cells + 1)
        covered_u8 = np.stack(
            [_covered(square_u8, n - 1, cells) if n else square_u8 for n in range(first, last)]
        )
        rows.append(served.predict(list(resizing.uncropped(covered_u8))))
    probabilities = np.concatenate(rows)
    index = served.model.classes.index(label) if label is not None else int(probabilities[0].argmax())
    of_class = probabilities[:, index]
    drops = (of_class[0] - of_class[1:]).reshape(cells, cells)
    return HeatMap(served.model.classes[index], float(of_class[0]), drops)


def _covered(square_u8: npt.NDArray[np.uint8], cell: int, cells: int) -> npt.NDArray[np.uint8]:
    """Copy a (P, P, 3) square with a patch centred on a cell, counted row by row from 0."""
    side = len(square_u8)
    margin = max(1, side // (2 * cells))
    covered_u8 = square_u8.copy()
    top, left = (n * side // cells for n in divmod(cell, cells))
    bottom, right = ((n + 1) * side // cells for n in divmod(cell, cells))
    covered_u8[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = GRAY
    return covered_u8


def _json_answer(properties: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Describe an answer for the OpenAPI document."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {200: {"description": "The answer.", "content": {"application/json": {"schema": schema}}}}


def add_routes(app: FastAPI) -> None:
    """Add `POST /occlusion` and `POST /seen` to the service."""
    turn = asyncio.Semaphore(1)

    @app.post(
        "/occlusion", openapi_extra={**BODY, "parameters": PARAMETERS}, responses=_json_answer(OCCLUSION)
    )
    async def occlusion(request: Request) -> Response:
        """Return by how much the probability of a class falls where a gray patch covers the image."""
        served, params = app.state.served, app.state.params
        label, grid = _options(request.url.query, served)
        content = await _image(request)
        if turn.locked():
            raise Refusal(
                429,
                "busy",
                "Another heat map is being computed. Send the request again after a second.",
                [(b"retry-after", b"1")],
            )
        began = time.perf_counter()
        deadline = time.monotonic() + params.timeout_s
        async with turn:
            try:
                image_u8 = await asyncio.to_thread(_decoded, content, served, params.max_pixels)
                made = await asyncio.to_thread(heat_map, served, image_u8, label, grid, deadline)
            except OutOfTime:
                raise Refusal(
                    503,
                    "timed_out",
                    f"The heat map was not finished within {params.timeout_s:g} s. Send a smaller `grid`, such as 4.",
                    [(b"retry-after", b"1")],
                ) from None
        answer = {
            "class": made.label,
            "probability": made.probability,
            "drops": [[round(drop, 6) for drop in row] for row in made.drops.tolist()],
            **answers.origin(served),
            "ms": {"total": round((time.perf_counter() - began) * 1000, 3)},
            "request_id": request.scope["convoy.request_id"],
        }
        return Response(answers.dumps(answer), media_type="application/json")

    @app.post("/seen", openapi_extra=BODY, response_class=Response, responses=SEEN)
    async def seen(request: Request) -> Response:
        """Return the square that the network sees of an image, as PNG."""
        served, params = app.state.served, app.state.params
        content = await _image(request)
        return Response(
            await asyncio.to_thread(_seen, content, served, params.max_pixels), media_type="image/png"
        )


def _seen(content: bytes, served: ServedModel, max_pixels: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(geometry(served)(_decoded(content, served, max_pixels))).save(stream, format="PNG")
    return stream.getvalue()


def _decoded(content: bytes, served: ServedModel, max_pixels: int) -> npt.NDArray[np.uint8]:
    try:
        return decode(content, background=served.model.background, max_pixels=max_pixels).image_u8
    except DataError as error:
        raise refused_image(error) from error


async def _image(request: Request) -> bytes:
    """Read the only image of a request.

    Raises:
        Refusal: there are several.
    """
    headers, params = request.scope["convoy.headers"], request.app.state.params
    body = await received.read_body(headers, request.receive, params)
    found, _ = await received.contents(headers.get(b"content-type", b"").decode("latin-1"), body, params)
    if len(found) > 1:
        raise Refusal(422, "several_images", f"The request has {len(found)} images. Send one.")
    return found[0]


def _options(query: str, served: ServedModel) -> tuple[str | None, int]:
    """Read `class` and `grid` of a query.

    Raises:
        Refusal: there is no such class, or no such grid.
    """
    stated: dict[str, Any] = {
        name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()
    }
    label, grid = stated.get("class"), stated.get("grid", str(GRID))
    if label is not None and label not in served.model.classes:
        raise Refusal(422, "bad_parameter", "The model has no such class. GET /model lists its classes.")
    if not (grid.isascii() and grid.isdigit() and len(grid) < 3 and 2 <= int(grid) <= MOST_GRID):
        raise Refusal(422, "bad_parameter", f"grid must be a whole number from 2 to {MOST_GRID}.")
    return label, int(grid)
