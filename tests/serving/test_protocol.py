"""Connections whose request does not arrive, against uvicorn in this process."""

import asyncio
from contextlib import suppress

import pytest
import uvicorn

from convoy.serving import protocol

ANSWER = [
    {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]},
    {"type": "http.response.body", "body": b"ok"},
]


async def app(scope, receive, send):
    if scope["type"] == "http":
        for message in ANSWER:
            await send(message)


def talk(*parts, wait_s=0.0):
    """Send parts, with a pause before each but the first, and return what is answered until the connection ends."""

    async def run():
        config = uvicorn.Config(
            app, port=0, http=protocol.LimitedProtocol, ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for number, part in enumerate(parts):
                if number:
                    await asyncio.sleep(wait_s)
                writer.write(part)
            answer = b""
            with suppress(ConnectionError):  # the server closes it while bytes are under way
                while part := await asyncio.wait_for(reader.read(65536), 20):
                    answer += part
            return answer
        finally:
            writer.close()
            await server.shutdown()

    return asyncio.run(run())


CLOSE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_usual_requests_share_a_connection():
    assert talk(KEEP + KEEP[:10], KEEP[10:] + CLOSE).count(b"HTTP/1.1 200") == 3


def test_a_long_head_is_answered_and_a_longer_one_refused():
    def long(size):
        return b"GET / HTTP/1.1\r\nConnection: close\r\nX: " + b"a" * size + b"\r\n\r\n"

    assert talk(long(60_000)).startswith(b"HTTP/1.1 200")
    many = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000
    for endless in (long(900_000)[:800_000], many):
        answer = talk(endless)  # ends at once, not after HEAD_S
        assert not answer or answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost:", KEEP + b"GET /"])
def test_a_head_that_does_not_arrive_ends_its_connection(monkeypatch, start):
    monkeypatch.setattr(protocol, "HEAD_S", 0.05)
    assert talk(start).count(b"HTTP/1.1 408") == 1


def test_a_slow_answer_and_an_idle_connection_are_not_a_late_head(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_S", 0.05)
    assert talk(KEEP, CLOSE, wait_s=0.15).count(b"HTTP/1.1 200") == 2


def test_head_and_body_of_an_answer_are_sent_at_once(monkeypatch):
    sent, send = [], protocol._Joined._send
    monkeypatch.setattr(
        protocol._Joined, "_send", lambda self: (sent.append(b"".join(self._parts)), send(self))
    )
    talk(KEEP, CLOSE, wait_s=0.05)
    assert [part.count(b"ok") for part in sent if part] == [1, 1]
    assert all(part.startswith(b"HTTP/1.1 200") for part in sent if part)
