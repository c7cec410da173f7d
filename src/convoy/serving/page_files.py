"""The files of the page, which the service serves and `convoy demo` copies."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import PurePath

from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.routing import Route

HTML = "index.html"
FOLDER = "/page/"
"""Path of the other files in the service. They need no token: they hold no secrets, and the page has a field for it."""

SERVICE = ("base.css", "page.css", "app.js", "inputs.js", "service.js")
DEMO = ("base.css", "page.css", "app.js", "inputs.js", "demo.js", "worker.js", "decode.js")
BASE = "base.css"
"""Colours and text that every page and report of Convoy shares; the file is that of `convoy.pages`."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the service's page; that in the file also lets the demo run WebAssembly."""


def read(names: Sequence[str]) -> Mapping[str, bytes]:
    """Read files of the page by name."""
    page, shared = resources.files("convoy.serving") / "page", resources.files("convoy.pages")
    return {name: (shared / "page.css.j2" if name == BASE else page / name).read_bytes() for name in names}


def add_routes(app: FastAPI) -> None:
    """Add the page to the service: `/`, and its files below `/page/`."""
    for name, content in read((HTML, *SERVICE)).items():
        path = "/" if name == HTML else f"{FOLDER}{name}"
        app.router.routes.append(Route(path, _responder(name, content), include_in_schema=False))


def _responder(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that answers with a file; with 304 to a browser that has it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {
        "etag": tag,
        "cache-control": "no-cache",  # asked for again each time, since a newer Convoy may serve at this address
        "content-security-policy": POLICY,
        "permissions-policy": "camera=(self)",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    async def respond(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=MEDIA_TYPES[PurePath(name).suffix])

    return respond
