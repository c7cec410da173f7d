"""The routes of the HTTP service: `POST /predict`, health, and what is known of the model."""

import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from convoy import __version__
from convoy.core import contract
from convoy.core.cpus import usable_cpus
from convoy.serving import answers, occlusion, page_files, received
from convoy.serving.answers import Refusal
from convoy.serving.batches import Answerer, Observer, Outcome
from convoy.serving.model import ServedModel
from convoy.serving.settings import ServeParams

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no token: health checks cannot carry one, and the page has no secrets."""

SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")
"""Request ids that are taken over from the header X-Request-ID."""

JSON = (b"content-type", b"application/json")


def create_app(
    served: ServedModel,
    params: ServeParams,
    *,
    token: str = "",
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """Make the application; it holds the model as `app.state.served`, which may be replaced at any time.

    `app.state.problem` is shown by /readyz while it is not empty: the service is degraded, but answers.

    Args:
        served: the model.
        params: the section `serve`.
        token: that requests must carry as `Authorization: Bearer TOKEN`; empty: none.
        observers: are called after each batch, off the event loop.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.answerer.start()
        yield
        app.state.answerer.close()

    app = FastAPI(
        title="Convoy",
        version=__version__,
        docs_url=None,  # its page loads scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.served = served
    app.state.problem = ""
    app.state.params = params
    app.state.answerer = Answerer(
        served=lambda: app.state.served,
        workers=params.threads or usable_cpus(),
        max_queue=params.max_queue,
        timeout_s=params.timeout_s,
        max_pixels=params.max_pixels,
        observers=observers,
    )
    app.router.routes.insert(
        0, Route("/predict", _Predict(app.state.answerer, params), methods=["POST"], include_in_schema=False)
    )
    _add_routes(app)
    occlusion.add_routes(app)
    page_files.add_routes(app)
    app.add_middleware(_Front, token=token)
    app.add_exception_handler(HTTPException, _http_error)
    return app


class _Front:
    """Give each request an id, check its token, and answer refusals."""

    def __init__(self, app: App, token: str) -> None:
        self.app = app
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        scope["convoy.headers"], scope["convoy.request_id"] = headers, request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if self.token and scope["path"] not in OPEN and not scope["path"].startswith(page_files.FOLDER):
                self._check_token(headers)
            await self.app(scope, receive, send_with_id)
        except Refusal as refusal:
            if started:
                raise
            await _respond(send_with_id, refusal.status, refusal.body(request_id), refusal.headers)

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token):
            raise Refusal(
                401,
                "unauthorized",
                "The request needs the header `Authorization: Bearer TOKEN` with the token of this service.",
                [(b"www-authenticate", b"Bearer")],
            )


class _Predict:
    """Answer `POST /predict`; an ASGI application, since FastAPI's own handling takes as long as a small model."""

    def __init__(self, answerer: Answerer, params: ServeParams) -> None:
        self.answerer = answerer
        self.params = params

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers, request_id = scope["convoy.headers"], scope["convoy.request_id"]
        top_k = self._top_k(scope["query_string"])
        body = await received.read_body(headers, receive, self.params)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        contents, listed = await received.contents(content_type, body, self.params)
        outcomes = await self.answerer.answer(contents)
        first = outcomes[0]
        if listed:
            answer: dict[str, Any] = {"predictions": [self._one(outcome, top_k) for outcome in outcomes]}
        elif first.refusal:
            raise first.refusal
        else:
            answer = self._one(first, top_k)
        answer |= answers.origin(first.served)
        answer["ms"] = {
            "decode": round(sum(outcome.decode_ms for outcome in outcomes), 3),
            "inference": round(max(outcome.inference_ms for outcome in outcomes), 3),
            "total": round((time.perf_counter() - began) * 1000, 3),
        }
        answer["request_id"] = request_id
        await _respond(send, 200, answers.dumps(answer))

    def _one(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        if outcome.probabilities is None:
            refusal = outcome.refusal
            return {"error": {"code": refusal.code, "reason": refusal.reason}} if refusal else {}
        classes = outcome.served.model.classes
        return answers.prediction(outcome.probabilities, classes, top_k, self.params.min_confidence)

    def _top_k(self, query: bytes) -> int:
        if not query:
            return self.params.top_k
        stated = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top_k")
        if stated is None:
            return self.params.top_k
        text = stated[-1]
        if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
            raise Refusal(422, "bad_parameter", "top_k must be a whole number from 1.")
        return int(text)


def _add_routes(app: FastAPI) -> None:
    """Add the routes that are seldom called."""

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        problem = app.state.problem
        answer = {"status": "degraded" if problem else "ready", "model": app.state.served.name}
        return _json(answer | ({"problem": problem} if problem else {}))

    @app.get("/model")
    async def model() -> Response:
        return _json(describe(app.state.served))


def describe(served: ServedModel) -> dict[str, Any]:
    """Describe a model: where it comes from, its classes, its input, its verification and its card."""
    properties = served.model.properties
    card, verification = served.folder / contract.MODEL_CARD, served.folder / contract.VERIFICATION
    recorded = _verification(verification.read_text(encoding="utf-8")) if verification.is_file() else None
    return {
        **answers.origin(served),
        "sha256": served.sha256,
        "classes": list(served.model.classes),
        "input": {
            "image_px": int(properties[contract.IMAGE_PX]),
            "fit": properties[contract.FIT],
            "background": served.model.background,
            "pixels": properties.get(contract.INPUT, ""),
        },
        "metadata": {key: text for key, text in properties.items() if key != contract.CLASSES},
        "verification": recorded,
        "card": card.read_text(encoding="utf-8") if card.is_file() else None,
    }


def _verification(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:  # cut or edited by hand
        return None
    return content if isinstance(content, dict) else None


def _request_id(headers: dict[bytes, bytes]) -> str:
    """Take over a sane X-Request-ID, or make one."""
    given = headers.get(b"x-request-id")
    return given.decode() if given and SANE_ID.match(given) else secrets.token_hex(8)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer the errors of the framework, such as 404 and 405, as all others."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code, reason = {
        404: ("not_found", "There is nothing at this path. /openapi.json lists the paths."),
        405: ("method_not_allowed", "The path has no such method. /openapi.json lists the methods."),
    }.get(status, ("http_error", "The request cannot be answered."))
    refusal = Refusal(status, code, reason)
    headers = getattr(error, "headers", None)
    return Response(
        refusal.body(request.scope["convoy.request_id"]), status, headers, media_type="application/json"
    )


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(answers.dumps(content), status, media_type="application/json")


async def _respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    start = [JSON, (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
