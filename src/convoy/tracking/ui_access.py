"""Restrict the local MLflow server to the user who started it, and to the artifacts of this repository.

MLflow has no login, and a request may name the folder that it reads artifacts from. Every user of a machine
reaches 127.0.0.1, and so does every page in a browser of that machine.
"""

import asyncio
import hmac
import itertools
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
"""Names of this machine, where a tunnel may end at another port; another name in a request means that a page made its own name lead here."""

LOGIN = (
    "This server answers only the user who started it.\n"
    "Open the address that `make ui` or `convoy ui` printed; its token changes with each start.\n"
    "Programs send the token: export MLFLOW_TRACKING_TOKEN=…\n"
)

# The landing page replaces the address, token included, by one that keeps the part after `#`. A redirect would not
# get the cookie where the address was opened from another page or program, since SameSite=Strict.
LANDING = '<!doctype html><title>MLflow</title><script>location.replace("/" + location.hash)</script>'

PROTECTION = (
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

CREATES = {"/experiments/create": "artifact_location", "/model-versions/create": "source"}
"""Requests that may name a location of artifacts, and the field that does."""

REFERENCES = ("models", "runs", "mlflow-artifacts")
"""Schemes of sources that MLflow looks up in its store, whose locations are in here."""

OFF = re.compile(r"/(upload-artifact|get-trace-artifact|mlflow-artifacts|artifacts/presigned-)\b")
"""Requests that Convoy has no use for, and that write files or read where a tag leads."""

READS = re.compile(r"artifact|/graphql$|/traces\b")


class OwnerOnly:
    """An ASGI application that passes on requests of the owner, for locations in `roots`, to another."""

    def __init__(self, app: App, client: "MlflowClient", roots: tuple[Path, ...], port: int) -> None:
        """Protect `app`, whose store `client` reads; a token is made, which no other start has."""
        self.app = app
        self.client = client
        self.roots = tuple(root.resolve() for root in roots)
        self.token = secrets.token_urlsafe(32)
        self.cookie = f"convoy-ui-{port}"  # cookies of one machine are shared by its ports

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, path = headers.get("host", ""), scope["path"]
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["type"] != "http":  # MLflow's pages open no web socket
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := _foreign(host, headers.get("origin")):
            await _answer(send, 403, refusal)
        elif path == "/" and self._is_token(query.get("token", [""])[0]):
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 200, LANDING, (b"set-cookie", cookie.encode()), kind="html")
        elif not self._is_owner(headers):
            await _answer(send, 403, LOGIN)
        elif OFF.search(path):
            await _answer(send, 403, f"{path} is off in this server, which shows training runs.\n")
        elif path.endswith(tuple(CREATES)) or READS.search(path):
            body = await _body(receive)
            if refusal := await asyncio.to_thread(self._outside, path, query, body):
                await _answer(send, 403, refusal)
            else:
                await self.app(scope, _again(body, receive), _protected(send))
        else:
            await self.app(scope, receive, _protected(send))

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())

    def _is_owner(self, headers: dict[str, str]) -> bool:
        """Check the cookie of a browser, or the header that MLflow's clients send for MLFLOW_TRACKING_TOKEN."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(token):
            return True
        cookies = (cookie.strip().partition("=") for cookie in headers.get("cookie", "").split(";"))
        return any(name == self.cookie and self._is_token(value) for name, _, value in cookies)

    def _outside(self, path: str, query: dict[str, list[str]], body: bytes) -> str:
        """Return why a request is refused; empty if all locations that it names are in the roots."""
        fields = _fields(body)
        text = json.dumps([query, fields], ensure_ascii=False)
        if "mlflow.artifactLocation" in text or (path.endswith("/graphql") and "ListArtifacts" in text):
            return "locations of artifacts cannot be set or listed this way.\n"
        created = next((field for end, field in CREATES.items() if path.endswith(end)), "")
        named = [(location, "") for location in _named(query, fields, created)]
        for location, part in named if created else self._read(path, query, fields):
            if not self._is_inside(location, part, creates=created):
                return (
                    f"{location} is outside {' and '.join(map(str, self.roots))}, the folders that this server reads.\n"
                    "For artifacts elsewhere, use a tracking server: docs/tracking.md, A server for a team.\n"
                )
        return ""

    def _read(
        self, path: str, query: dict[str, list[str]], fields: dict[str, Any]
    ) -> Iterator[tuple[str, str]]:
        """Yield the locations that a request reads, each with the path below it: those of a run, model or version."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second, and the server has it)

        found = []
        try:
            if "/model-versions/" in path:
                names, versions = _named(query, fields, "name"), _named(query, fields, "version")
                each = itertools.product(names, versions)
                found += [self.client.get_model_version_download_uri(*version) for version in each]
            elif model := re.search(r"/logged-models/([^/]+)/artifacts", path):
                found.append(self.client.get_logged_model(model[1]).artifact_location)
            elif "artifact" in path:
                runs = _named(query, fields, "run_id", "run_uuid")
                found += [self.client.get_run(run).info.artifact_uri for run in runs]
        except MlflowException:  # not found: MLflow's own answer names it
            return
        below = _named(query, fields, "path", "artifact_file_path", "artifact_directory_path")
        yield from itertools.product(found, below or [""])

    def _is_inside(self, location: str, part: str, *, creates: str) -> bool:
        """Check a location that is read, or that a request `creates`; a bucket that runs are in is no file of this machine."""
        from mlflow.utils.file_utils import local_file_uri_to_path  # noqa: PLC0415 (as MLflow reads it)

        scheme = urlsplit(location).scheme
        if scheme not in {"", "file"}:
            return not creates or (creates == "source" and scheme in REFERENCES)
        path = Path(local_file_uri_to_path(location), part).resolve()  # type: ignore[no-untyped-call] # no types
        return any(path.is_relative_to(root) for root in self.roots)


def _foreign(host: str, origin: str | None) -> str:
    """Return why a request comes from a page elsewhere; empty if it does not."""
    if not HOSTS.fullmatch(host):
        return f"the address names {host!r:.100}, which is not this machine; use 127.0.0.1.\n"
    if origin not in {None, f"http://{host}"}:
        return f"the request comes from a page of {origin!r:.100}.\n"
    return ""


def _fields(body: bytes) -> dict[str, Any]:
    """Read the fields of a request as MLflow does, also where the JSON is the text of a JSON string."""
    fields: Any = body
    try:
        while isinstance(fields, str | bytes) and fields:
            fields = json.loads(fields)
    except ValueError:  # MLflow refuses it
        return {}
    return fields if isinstance(fields, dict) else {}


def _named(query: dict[str, list[str]], fields: dict[str, Any], *names: str) -> list[str]:
    """Collect the values of fields, which a request may spell in two ways: `run_id` or `runId`."""
    both = [*names, *(re.sub(r"_(\w)", lambda found: found[1].upper(), name) for name in names)]
    return [str(value) for name in both for value in [*query.get(name, []), fields.get(name)] if value]


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Give an application a body that was read already, then what follows."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


def _protected(send: Send) -> Send:
    """Add the headers that keep pages of others from showing this one in a frame."""

    async def send_protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            known = {name.lower() for name, _ in headers}
            message["headers"] = headers + [header for header in PROTECTION if header[0] not in known]
        await send(message)

    return send_protected


async def _answer(
    send: Send, status: int, text: str, *headers: tuple[bytes, bytes], kind: str = "plain"
) -> None:
    body = text.encode()
    about = (
        (b"content-type", f"text/{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    )
    await _protected(send)({"type": "http.response.start", "status": status, "headers": [*about, *headers]})
    await send({"type": "http.response.body", "body": body})
