"""Open the MLflow UI: complete the store, then serve it on this host, or name the server that has it."""

import os
import socket
import sys
import webbrowser
from contextlib import closing

from convoy.core.console import info
from convoy.core.errors import NetworkError, RequestError, without_credentials
from convoy.tracking import page, schema, settings, view

HOST = "127.0.0.1"
DELIVER_S = 5.0
"""Longest time that runs which are not in the store yet may hold up the page, in seconds."""

STOP_S = 3
"""Longest time that open requests may hold up the end of the server, in seconds."""


def show(port: int, *, browser: bool) -> None:
    """Show the training runs in MLflow: on this host until Ctrl-C, or where the tracking server is.

    Args:
        port: of this host; not used where `MLFLOW_TRACKING_URI` names a server.
        browser: whether to open one, if this is a terminal with a display.

    Raises:
        RequestError: the port is taken, or another MLflow wrote the store.
        NetworkError: the store or the server does not answer.
    """
    uri = settings.uri()
    remote = uri.startswith(("http://", "https://"))
    if not remote:
        schema.check(uri)
        _refuse_taken(port)
    experiment_id, path = _prepared()
    if remote:
        address = uri.rstrip("/") + path
        info(f"{without_credentials(uri)} keeps the runs; it shows them at\n{without_credentials(address)}")
        _open(address, wanted=browser)
        return
    _serve(page.application(uri, experiment_id), port, browser=browser)


def _prepared() -> tuple[str, str]:
    """Complete the store and keep the view in it; give the experiment and the address' part that opens it."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second; a taken port is told before)

    from convoy.tracking import store  # noqa: PLC0415 (MLflow takes a second)
    from convoy.tracking.sync import sync  # noqa: PLC0415 (MLflow takes a second)

    try:
        client = store.connect()
        experiment_id = store.experiment(client, settings.experiment()).experiment_id
        synced = sync(DELIVER_S)
        for line in (*synced.lines(), *synced.failed.values()):
            info(line)
        view.keep(client, experiment_id)
    except MlflowException as error:
        uri = settings.uri()
        raise NetworkError(
            f"{without_credentials(uri)} cannot be used; it answered {store.explain(error)}\n"
            "Start the tracking server, or let MLFLOW_TRACKING_URI name one that runs "
            "(without it, runs are kept in mlflow.db)."
        ) from error
    return experiment_id, view.path(experiment_id)


def _serve(application: page.Application, port: int, *, browser: bool) -> None:
    """Serve until Ctrl-C or SIGTERM, and say where once it answers."""
    import uvicorn  # noqa: PLC0415 (a third of a second)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            address = f"http://{HOST}:{port}"
            info(f"The runs are at {address} (Ctrl-C ends the server)")
            _open(address, wanted=browser)

    config = uvicorn.Config(application, HOST, port, log_level="warning", timeout_graceful_shutdown=STOP_S)
    Server(config).run()


def _open(address: str, *, wanted: bool) -> None:
    """Open a browser where it would be seen: from a terminal, and with a display where the system needs one."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if wanted and sys.stdout.isatty() and (sys.platform == "darwin" or display):
        webbrowser.open(address)


def _refuse_taken(port: int) -> None:
    """Refuse a port that something listens on, naming one that is free."""
    if _is_free(port):
        return
    free = next(other for other in [*range(port + 1, 65536), *range(1024, port)] if _is_free(other))
    raise RequestError(
        f"port {port} is taken, perhaps by another `make ui`, or not for you to use; port {free} is free. "
        f"Type: make ui PORT={free} (or: convoy ui --port {free})"
    )


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
