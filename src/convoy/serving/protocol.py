"""HTTP connections with limits that uvicorn lacks: the size of a request's head, and the time until it is complete."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 64 * 2**10
"""Most bytes of a request's head: its line and headers. Browsers and proxies send a few thousand."""

HEAD_S = 20.0
"""Time until the head of a request is complete, counted from the connection or from the head's first bytes, in seconds."""


class LimitedProtocol(HttpToolsProtocol):
    """Close connections whose request has a head that does not end."""

    _head_bytes = 0
    _in_head = False
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Expect a request."""
        super().connection_made(cast("asyncio.Transport", _Joined(transport, self.loop)))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and count those of a head that goes on; where it began, the body of another request may precede it."""
        went_on = self._in_head
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data) if went_on else 0
        if self._head_bytes > MOST_HEAD:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._late is None:
            self._expect_head()

    def on_message_begin(self) -> None:
        """Note the first bytes of a request."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(HEAD_S, self._refuse, b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()


class _Joined:
    """A transport that sends everything written in one iteration of the event loop at once: uvicorn writes head and body separately.

    Each write is a system call (20 µs), and wakes the client.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send at the end of this iteration."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is written, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (the rest of a transport)
        return getattr(self._transport, name)
