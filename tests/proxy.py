"""An HTTP proxy on this machine that makes a server slow, unreachable, or mortal."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Self
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade", "server", "date"}
"""Headers that speak of one connection, or that are written anew."""


class Proxy:
    """Pass calls on to a server; the address of the proxy stays the same while it refuses."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.delay_s = 0.0  # before each call is passed on
        self.calls: list[str] = []  # that were passed on, such as `POST /api/2.0/mlflow/runs/create`
        self._left: int | None
        self._at: str
        self._forbidden = ("", 0)
        self._open: set[_Call] = set()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._address = ("127.0.0.1", 0)
        self.accept()
        self.uri = f"http://127.0.0.1:{self._address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def accept(self) -> None:
        """Listen, again or for the first time; a death that was arranged and has not come is off."""
        self._left, self._at = None, ""
        if self._server is not None:
            return
        handler = type("Handler", (_Call,), {"proxy": self})
        self._server = _Listening(self._address, handler)
        self._address = ("127.0.0.1", int(self._server.server_address[1]))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def refuse(self) -> None:
        """Cut every connection and refuse new ones, as a server does whose process is gone."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            connected = list(self._open)
        for call in connected:
            call.cut()

    def die_after(self, calls: int) -> None:
        """Let so many calls through; then do one more without answering it, and refuse from there on.

        The worst moment to die: the server has done what the client will ask for again.
        """
        self._left = calls

    def die_at(self, path: str) -> None:
        """Do the next call whose path has these words without answering it, and refuse from there on."""
        self._at = path

    def forbid(self, path: str, status: int = 403) -> None:
        """Answer calls whose path has these words with a refusal, as MLflow's own accounts do, without doing them."""
        self._forbidden = (path, status)

    @contextmanager
    def _counted(self, call: "_Call") -> Iterator[bool]:
        """Count a call that is passed on; tell whether it may be answered."""
        with self._lock:
            self.calls.append(f"{call.command} {call.path}")
            answered = self._left != 0 and not (self._at and self._at in call.path)
            if self._left is not None:
                self._left -= 1
        yield answered
        if not answered:
            self._left, self._at = None, ""
            self.refuse()


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that were cut: that is what this proxy is for."""


class _Call(BaseHTTPRequestHandler):
    """Pass the calls of one connection on."""

    protocol_version = "HTTP/1.1"
    proxy: ClassVar[Proxy]

    def setup(self) -> None:
        super().setup()
        with self.proxy._lock:
            self.proxy._open.add(self)

    def finish(self) -> None:
        with self.proxy._lock:
            self.proxy._open.discard(self)
        with suppress(OSError):
            super().finish()

    def cut(self) -> None:
        """End the connection from another thread, whatever it is in the middle of."""
        with suppress(OSError):
            self.connection.shutdown(2)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self) -> None:
        body = self._body()
        time.sleep(self.proxy.delay_s)
        if self.proxy._server is None:  # it died while this call was waiting
            self.close_connection = True
            return
        path, status = self.proxy._forbidden
        if path and path in self.path:
            self._answer(status, [], b"Permission denied")
            return
        with self.proxy._counted(self) as answered:
            upstream = http.client.HTTPConnection(self.proxy.upstream.netloc, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
        if not answered:
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass_on  # noqa: N815 (http.server's names)

    def log_message(self, *_: object) -> None:
        """Keep the output of tests free of access logs."""
