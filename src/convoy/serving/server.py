"""Run the HTTP service with uvicorn until it is stopped; requests in flight are answered first."""

import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from convoy.core.console import info
from convoy.core.cpus import usable_cpus
from convoy.core.errors import RequestError
from convoy.export import signing
from convoy.serving.logs import JsonLines
from convoy.serving.model import CHAMPION, ServedModel, default_source, open_model
from convoy.serving.protocol import LimitedProtocol
from convoy.serving.service import create_app
from convoy.serving.settings import serve_params
from convoy.serving.telemetry import traced
from convoy.serving.watch import Follower, State

BACKLOG = 2048
"""Connections that wait to be accepted."""

STOP_S = 30
"""Longest wait for requests in flight when the service is stopped, in seconds."""


def serve(source: str, host: str, port: int) -> None:
    """Serve a model on `host` and `port` until SIGTERM or Ctrl-C.

    Raises:
        RequestError: the port is taken, params.yaml is not valid, or the model does not exist.
        VerificationError: the model is not the one that was verified.
        RegistryError: the registry does not answer.
    """
    params = serve_params()
    listener = _bind(host, port)
    opened = partial(
        open_model,
        providers=params.providers,
        threads=params.threads or usable_cpus(),
        shared=True,
        public_key=signing.public_key(params.public_key, "serve.public_key"),
    )
    served = opened(source or default_source())
    log = JsonLines()
    token = os.environ.get(params.token_env, "")
    app = create_app(served, params, token=token, log=log)
    follower = (
        _follower(app.state, partial(opened, CHAMPION), params.watch_s)
        if served.version and params.watch_s and source in ("", CHAMPION)
        else None
    )
    outer, send_traces = traced(app)
    config = uvicorn.Config(
        outer,
        http=LimitedProtocol,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_S,
        backlog=BACKLOG,
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    listener.listen(BACKLOG)  # whoever reads the address may connect
    log.start()
    if follower:
        follower.start()
    server = uvicorn.Server(config)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        """End a server that is about to start; one that has ended gets the signal that stopped it once more, by uvicorn."""
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    info(
        f"{served.name} ({len(served.model.classes)} classes, sha256 {served.sha256[:12]}) at {address}",
        stderr=True,
    )
    if not token and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        info(f"{params.token_env} is not set: whoever reaches this address may use the service.", stderr=True)
    try:
        server.run(sockets=[listener])
    finally:
        if follower:
            follower.stop()
        send_traces()
        log.stop()


def _follower(state: State, open_champion: Callable[[], ServedModel], every_s: float) -> Follower:
    """Follow the alias champion, for a service that was started with it."""
    from convoy.registry.client import Registry  # noqa: PLC0415 (imports mlflow, which a file does not need)

    def look_up() -> tuple[str, str]:
        champion = Registry.open().alias(CHAMPION)
        if champion is None:
            raise RequestError(
                "the registry has no champion any more. Make one: convoy promote, or convoy rollback"
            )
        return champion.number, champion.sha256

    return Follower(state, look_up, open_champion, every_s)


def _bind(host: str, port: int) -> socket.socket:
    """Take the port; nothing is accepted before the model is open.

    Raises:
        RequestError: the port is taken, or the address is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RequestError(
            f"{host} is no address of this machine: {error.strerror}. Such as: --host 127.0.0.1"
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise RequestError(
                f"port {port} of {host} is taken by another program. Choose another: convoy serve --port {port + 1}"
            ) from error
        raise RequestError(
            f"{host}:{port} cannot be used: {error.strerror}. Such as: --host 127.0.0.1 --port 8000"
        ) from error
    return listener
