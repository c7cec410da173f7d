"""The routes of the HTTP service: `POST /predict`, health, and what is known of the model."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from convoy import __version__
from convoy.core import contract, files
from convoy.core.cpus import usable_cpus
from convoy.serving import answers, occlusion, open_inference, openapi, page_files, received
from convoy.serving.answers import Refusal
from convoy.serving.batches import Answerer, Observer, Outcome
from convoy.serving.drift import DriftMetrics, DriftWindow
from convoy.serving.logs import Log
from convoy.serving.metrics import CONTENT_TYPE, Metrics
from convoy.serving.middleware import (
    BODIES,
    FAILED,
    METHOD,
    OPEN,
    PREDICT,
    App,
    Exchange,
    Front,
    Receive,
    Scope,
    Send,
)
from convoy.serving.model import ServedModel
from convoy.serving.settings import ServeParams
from convoy.serving.uncertain import UncertainImages


def create_app(
    served: ServedModel,
    params: ServeParams,
    *,
    token: str = "",
    observers: Sequence[Observer] = (),
    log: Log | None = None,
) -> FastAPI:
    """Make the application; it holds the model as `app.state.served`, which may be replaced at any time.

    `app.state.problem` is shown by /readyz while it is not empty: the service is degraded, but answers.

    Args:
        served: the model.
        params: the section `serve`.
        token: that requests must carry as `Authorization: Bearer TOKEN`; empty: none.
        observers: are called after each batch, off the event loop.
        log: takes an entry per request.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.answerer.start()
        yield
        app.state.answerer.close()

    app = Service(
        title="Convoy",
        version=__version__,
        docs_url=None,  # their pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.served = served
    app.state.problem = ""
    app.state.params = params
    answerer = Answerer(
        served=lambda: app.state.served,
        workers=params.threads or usable_cpus(),
        max_queue=params.max_queue,
        timeout_s=params.timeout_s,
        max_pixels=params.max_pixels,
    )
    metrics = Metrics(lambda: app.state.served, lambda: answerer.waiting, lambda: app.state.problem)
    drift = DriftWindow()
    metrics.registry.register(DriftMetrics(drift))
    answerer.observers = (metrics.batch, drift, *_keeper(params), *observers)
    app.state.answerer, app.state.metrics, app.state.drift = answerer, metrics, drift

    def front(inner: App) -> App:
        outer = Front(
            inner,
            _Predict(answerer, params, metrics),
            token=token,
            is_open=lambda path: path in OPEN or path.startswith(page_files.FOLDER),
            most_held=int(BODIES * params.max_body_mb * 10**6),
            metrics=metrics,
            log=log,
        )
        return _with_cors(outer, params.cors) if params.cors else outer

    app.front, app.needs_token = front, bool(token)
    app.add_route(PREDICT, _method_not_allowed, include_in_schema=False)
    _add_routes(app)
    open_inference.add_routes(app)
    occlusion.add_routes(app)
    page_files.add_routes(app)
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _http_error)
    return app


def _keeper(params: ServeParams) -> list[Observer]:
    """Keep uncertain images where the params name a folder."""
    if params.keep_uncertain == "none":
        return []
    folder = files.expanded(params.keep_uncertain)
    return [UncertainImages(folder, params.min_confidence, params.keep_max)]


def _with_cors(app: App, origins: list[str]) -> App:
    """Let pages of other origins call the service; their preflight requests carry no token, so this comes first."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-ID"],
    )


class Service(FastAPI):
    """FastAPI with `Front` before its own middleware."""

    front: Callable[[App], App]
    needs_token: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what FastAPI does before its middleware (telemetry of its own) takes as long as the rest."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> App:
        """Put `Front` outermost."""
        return self.front(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """Describe the service."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.document(self, needs_token=self.needs_token)
        return self.openapi_schema


class _Predict:
    """Answer `POST /predict`."""

    def __init__(self, answerer: Answerer, params: ServeParams, metrics: Metrics) -> None:
        self.answerer, self.params, self.metrics = answerer, params, metrics

    async def __call__(self, exchange: Exchange) -> None:
        query = exchange.scope["query_string"]
        top_k = _top_k(query, self.params.top_k) if query else self.params.top_k
        body = await received.read_body(exchange.headers, exchange.receive, self.params)
        content_type = exchange.headers.get(b"content-type", b"").decode("latin-1")
        contents, listed = await received.contents(content_type, body, self.params)
        exchange.images = len(contents)
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
            "decode": round(sum([outcome.decode_ms for outcome in outcomes]), 3),
            "inference": round(max([outcome.inference_ms for outcome in outcomes]), 3),
            "total": round((time.perf_counter() - exchange.began) * 1000, 3),
        }
        answer["request_id"] = exchange.request_id
        await exchange.respond(200, answers.dumps(answer))

    def _one(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        """Describe an image of a request."""
        if refusal := outcome.refusal:
            self.metrics.refused(refusal.code)
            return {"error": {"code": refusal.code, "reason": refusal.reason}}
        classes = outcome.served.model.classes
        answer = answers.prediction(
            outcome.probabilities,
            outcome.order,
            classes,
            top_k=top_k,
            min_confidence=self.params.min_confidence,
        )
        if answer["abstained"]:
            self.metrics.abstained()
        return answer


def _top_k(query: bytes, default: int) -> int:
    """Read `top_k` of a query.

    Raises:
        Refusal: it is no whole number from 1.
    """
    stated = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top_k")
    if stated is None:
        return default
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
        answer = {"status": "degraded" if problem else "ready", "model": app.state.served.public_name}
        return _json(answer | ({"problem": problem} if problem else {}))

    # Not async: FastAPI runs these in threads, since the first comparison takes a second.
    @app.get("/metrics")
    def metrics() -> Response:
        app.state.drift.refresh(app.state.served)
        return Response(app.state.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/drift")
    def drift() -> Response:
        return _json(app.state.drift.compare(app.state.served))

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
        "providers": list(served.model.providers),
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


async def _method_not_allowed(_request: Request) -> Response:
    """Answer other methods than POST, which `Front` takes."""
    raise HTTPException(405, headers={"allow": "POST"})


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer the errors of the framework, such as 404 and 405, as all others."""
    status = error.status_code if isinstance(error, HTTPException) else 422
    code, reason = {
        404: ("not_found", "There is nothing at this path. /openapi.json lists the paths."),
        405: METHOD,
        422: (
            "bad_request",
            "The request lacks a value, or has one of another type. /openapi.json describes it.",
        ),
    }.get(status, ("http_error", "The request cannot be answered."))
    headers = [
        (name.encode(), text.encode()) for name, text in (getattr(error, "headers", None) or {}).items()
    ]
    return await _refusal(request, Refusal(status, code, reason, headers))


async def _failed(request: Request, _error: Exception) -> Response:
    """Answer an error of the service, which `Front` logs."""
    return await _refusal(request, FAILED)


async def _refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal by a route."""
    if not isinstance(error, Refusal):  # FastAPI declares handlers for any exception
        raise error
    exchange: Exchange = request.scope["convoy.exchange"]
    headers = {name.decode(): text.decode() for name, text in error.headers}
    return Response(exchange.error_body(error), error.status, headers, media_type="application/json")


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(answers.dumps(content), status, media_type="application/json")
