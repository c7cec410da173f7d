"""Read the images of a request: a raw body, multipart or JSON, within limits and only in memory."""

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from convoy.serving import addresses
from convoy.serving.answers import Refusal
from convoy.serving.settings import ServeParams

Receive = Callable[[], Awaitable[Any]]

LARGE = 2**16
"""Bytes from which a body is parsed in a thread, so that other requests are answered meanwhile."""


BYTES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
"""Types of bodies that may be an image, beside image/…; the last is what `curl --data-binary @FILE` states unless told otherwise."""

KEYS = ("image", "images", "url", "urls")
"""Of JSON: the first two hold base64, the others addresses."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, params: ServeParams) -> bytes:
    """Read the body of a request.

    Raises:
        Refusal: it is larger than `serve.max_body_mb`.
    """
    most = int(params.max_body_mb * 10**6)
    stated = headers.get(b"content-length", b"")
    if stated.isdigit() and int(stated) > most:
        raise _too_large(int(stated), params)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > most:
            raise _too_large(len(body), params)
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "disconnected", "The connection was closed before the whole body had arrived.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(size, params)
    return b"".join(parts)


async def contents(content_type: str, body: bytes, params: ServeParams) -> tuple[list[bytes], bool]:
    """Extract the encoded images of a body, and whether the body is a list of images.

    Raises:
        Refusal: the body has no image, too many, or is of another type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parse: Callable[[str, bytes], tuple[list[bytes | str], bool]] = _multipart
    elif kind == "application/json" or kind.endswith("+json"):
        parse = _json
    elif kind in BYTES or kind.startswith("image/"):
        if not body:
            raise Refusal(400, "empty_body", "The body is empty. Send the bytes of an image.")
        return [body], False
    else:
        raise Refusal(
            415,
            "unsupported_content_type",
            f"The content type {kind[:80]!r} is not supported. Send an image as image/jpeg, image/png or another image type, several "
            "as multipart/form-data, or base64 as application/json.",
        )
    large = len(body) > LARGE
    given, listed = await asyncio.to_thread(parse, content_type, body) if large else parse(content_type, body)
    if not given:
        raise Refusal(400, "no_image", "The request has no image.")
    if len(given) > params.max_files:
        raise Refusal(
            413,
            "too_many_images",
            f"The request has {len(given)} images, the limit is {params.max_files} (serve.max_files). Send several requests.",
        )
    return [each if isinstance(each, bytes) else await _fetched(each, params) for each in given], listed


async def _fetched(url: str, params: ServeParams) -> bytes:
    """Fetch an image by its address, where that is allowed."""
    if not params.allow_urls:
        raise Refusal(
            422,
            "urls_not_allowed",
            "This service does not fetch images by their address (serve.allow_urls). Send the image itself.",
        )
    return await asyncio.to_thread(addresses.fetch, url, int(params.max_body_mb * 10**6), params.timeout_s)


def _multipart(content_type: str, body: bytes) -> tuple[list[bytes | str], bool]:
    """Split multipart/form-data; each part with a file name is an image."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Refusal(400, "bad_multipart", "The content type multipart/form-data has no boundary.")
    found: list[bytes | str] = []
    parts: list[bytes] = []
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.clear,
                "on_part_data": lambda data, start, end: parts.append(data[start:end]),
                "on_part_end": lambda: found.append(b"".join(parts)),
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "bad_multipart", "The body is not valid multipart/form-data.") from error
    return found, len(found) > 1


def _json(_content_type: str, body: bytes) -> tuple[list[bytes | str], bool]:
    """Read `{"image": BASE64}`, `{"images": [BASE64, …]}`, `{"url": URL}` or `{"urls": [URL, …]}`; addresses stay as they are."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "bad_json", "The body is not valid JSON.") from error
    key = next(iter(content)) if isinstance(content, dict) and len(content) == 1 else None
    if key not in KEYS:
        raise Refusal(
            422,
            "bad_request",
            'The body must be {"image": BASE64}, {"images": [BASE64, …]}, {"url": URL} or {"urls": [URL, …]}.',
        )
    listed = key in ("images", "urls")
    texts = content[key] if listed else [content[key]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(422, "bad_request", "An image must be a string: its bytes in base64, or its address.")
    return texts if key in ("url", "urls") else [from_base64(text) for text in texts], listed


def from_base64(text: str) -> bytes:
    """Decode base64, also of a `data:` address."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "bad_base64", "An image is not valid base64.") from error


def _too_large(size: int, params: ServeParams) -> Refusal:
    return Refusal(
        413,
        "body_too_large",
        f"The body has {size:,} bytes or more, the limit is {params.max_body_mb * 10**6:,.0f} (serve.max_body_mb). "
        "Send fewer or smaller images.",
        [(b"connection", b"close")],
    )
