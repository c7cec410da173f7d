"""What every request passes: its id, its token, the limit of bytes in memory, errors as JSON, a line in the log, and metrics."""

import asyncio
import hmac
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from convoy.serving.answers import Refusal
from convoy.serving.logs import Log
from convoy.serving.metrics import Metrics

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no token: health checks cannot carry one, and the page has no secrets."""

SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
"""Request ids that are taken over from the header X-Request-ID."""

BODY_S = 60.0
"""Longest time in which a body arrives, in seconds."""

SWEEP_S = 1.0

BODIES = 16
"""Bodies of the largest size that may be in memory at once; further requests are answered with 429."""

PREDICT = "/predict"

METHOD = ("method_not_allowed", "The path has no such method. /openapi.json lists the methods.")

SLOW = Refusal(408, "slow_body", f"The body did not arrive within {BODY_S:g} s.", [(b"connection", b"close")])

FAILED = Refusal(500, "internal_error", "The service failed; its log has the cause.")

JSON = (b"content-type", b"application/json")


class Exchange:
    """A request and its answer.

    Attributes:
        headers: of the request, by their names in lower case.
        request_id: from the header X-Request-ID, or made.
        began: start, of `time.perf_counter`.
        status: of the answer; 0 before it is sent.
        code: of an error.
        images: that were answered.
        task: that waits for a part of the body.
    """

    __slots__ = (
        "_front",
        "_receive",
        "_send",
        "began",
        "code",
        "headers",
        "images",
        "request_id",
        "scope",
        "size",
        "status",
        "task",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, front: "Front") -> None:
        self.scope, self._receive, self._send, self._front = scope, receive, send, front
        self.began = time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id")
        self.request_id = (
            given.decode() if given and SANE_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        )
        self.status = self.size = self.images = 0
        self.code = ""
        self.task: asyncio.Task[Any] | None = None
        scope["convoy.headers"], scope["convoy.request_id"], scope["convoy.exchange"] = (
            self.headers,
            self.request_id,
            self,
        )

    async def receive(self) -> Message:
        """Receive a part of the body, and count its bytes.

        Raises:
            Refusal: it does not arrive in time, or the bodies in memory have too many bytes.
        """
        self.task = asyncio.current_task()
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if self.task is None:  # `Front.sweep` cancelled it
                raise SLOW from None
            raise
        self.task = None
        size = len(message.get("body", b""))
        self.size += size
        self._front.held += size
        if self._front.held > self._front.most_held:
            raise Refusal(
                429,
                "too_many_bytes",
                "The requests that are being answered have too many bytes in all. Send the request again after a second.",
                [(b"retry-after", b"1"), (b"connection", b"close")],
            )
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the framework's answer, with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def respond(
        self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (JSON,)
    ) -> None:
        """Send a whole answer."""
        self.status = status
        length = (b"content-length", b"%d" % len(body))
        start = [*headers, length, (b"x-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.status:
            await self.respond(refusal.status, self.error_body(refusal), (JSON, *refusal.headers))

    def error_body(self, refusal: Refusal) -> bytes:
        """Format an error as the protocol of the path does, and keep its code for the log."""
        self.code = refusal.code
        return refusal.body_v2() if self.scope["path"].startswith("/v2") else refusal.body(self.request_id)

    @property
    def route(self) -> str:
        """Path of the route, without parameters in it; `other` if there is none."""
        return getattr(self.scope.get("route"), "path", "other")


class Front:
    """Pass requests on to the application, and `POST /predict` to its handler directly: routing takes as long as a small model.

    Attributes:
        held: bytes of bodies in memory.
        most_held: most of them.
        open: requests that are being answered.
    """

    def __init__(
        self,
        app: App,
        predict: Callable[[Exchange], Awaitable[None]],
        *,
        token: str,
        is_open: Callable[[str], bool],
        most_held: int,
        metrics: Metrics,
        log: Log | None,
    ) -> None:
        self.app, self.predict, self.metrics, self.log = app, predict, metrics, log
        self.token, self.is_open = token.encode(), is_open
        self.held, self.most_held = 0, most_held
        self.open: set[Exchange] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves out the body; load balancers check health so
            scope = {**scope, "method": "GET"}
        exchange = Exchange(scope, receive, send, self)
        self.open.add(exchange)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep)
        path = scope["path"]
        try:
            if self.token and not self.is_open(path):
                self._check_token(exchange.headers)
            if path == PREDICT and scope["method"] == "POST":
                await self.predict(exchange)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            await exchange.refuse(FAILED)
        finally:
            self.open.discard(exchange)
            self.held -= exchange.size
            self._note(exchange, path if path == PREDICT else exchange.route)

    def sweep(self) -> None:
        """End requests whose bodies arrive too slowly; a timer per request would cost more."""
        late = time.perf_counter() - BODY_S
        for exchange in self.open:
            if exchange.task and exchange.began < late:
                task, exchange.task = exchange.task, None
                task.cancel()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep) if self.open else None

    def _note(self, exchange: Exchange, route: str) -> None:
        seconds = time.perf_counter() - exchange.began
        self.metrics.request(route, exchange.status, seconds)
        if exchange.code:
            self.metrics.refused(exchange.code)
        if self.log:
            entry: dict[str, Any] = {
                "level": "info" if exchange.status < 500 else "error",
                "event": "request",
                "request_id": exchange.request_id,
                "method": exchange.scope["method"],
                "path": exchange.scope["path"][:200],
                "status": exchange.status,
                "ms": round(seconds * 1000, 2),
                "bytes": exchange.size,
            }
            if exchange.images:
                entry["images"] = exchange.images
            if exchange.code:
                entry["code"] = exchange.code
            self.log(entry)

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token):
            raise Refusal(
                401,
                "unauthorized",
                "The request needs the header `Authorization: Bearer TOKEN` with the token of this service.",
                [(b"www-authenticate", b"Bearer")],
            )
