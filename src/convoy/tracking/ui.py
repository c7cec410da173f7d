"""Show the training runs in MLflow: keep a shared view in the store, then serve it here or name its server.

MLflow keeps a shared view of its runs table in a tag of the experiment, `mlflow.sharedViewState.<key>`;
`?viewStateShareKey=<key>` in the address, or the menu *Views*, opens it on any MLflow server.
"""

import json
import os
import re
import shlex
import socket
import sys
import warnings
import webbrowser
from contextlib import closing, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.core import stage
from convoy.core.console import info
from convoy.core.errors import NetworkError, RequestError, without_credentials
from convoy.tracking import settings, store
from convoy.tracking.sync import sync
from convoy.tracking.ui_access import App, Message, OwnerOnly, Receive, Send

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HOST = "127.0.0.1"
DELIVER_S = 5.0  # longest delay of the page for runs that are not in the store yet, in seconds
STOP_S = 3  # longest delay of the server's end for open requests, in seconds
VIEW = "Convoy"
KEY = "convoy"
TAG = f"mlflow.sharedViewState.{KEY}"

RUN_NAME = "attributes.`Run Name`"

COLUMNS_PX = {
    "metrics.`test/accuracy`": 103,
    "metrics.`deploy/accuracy`": 116,
    "metrics.`best/val_loss`": 100,
    "metrics.`deploy/latency_ms_p50`": 95,
    "metrics.`energy/kwh`": 88,
    "metrics.`train/seconds`": 110,
    "params.`network.name`": 102,
    "params.`train.lr`": 65,
    "params.`train.epochs`": 92,
    "tags.`convoy.data`": 115,
    "tags.`convoy.dvc_experiment`": 170,
}
"""Columns in order, by MLflow's names, with their widths in pixels, so that a window of 1660 px shows those up to the data.
MLflow leaves out those that no run has, and keeps tags behind params and metrics."""

CURVES = ("val/loss", "val/accuracy", "train/loss")
BARS = ("test/accuracy", "deploy/latency_ms_p50", "train/seconds")
"""Charts that come first: a line by epoch, and a bar per run. MLflow leaves out those that no run has."""

SECTIONS = ("What matters first", "Model metrics", "System metrics")
"""Of charts: Convoy's, and two that MLflow expects; it adds a section per prefix of all other metrics."""

CHARTED = 10  # runs that MLflow's charts show by default: the newest
COLOUR = "mlflow.runColor"
COLOURS = (
    *("#1f77b4", "#e8743b", "#2e8b57", "#c23b5a", "#7b61c4"),
    *("#8c6d46", "#d6539b", "#6b7785", "#a8a032", "#23a6b8"),
)
"""A distinct colour on white for each run of a chart; MLflow's own depend on the run's id and may coincide."""


def show(port: int, *, browser: bool) -> None:
    """Show the training runs: on `port` of this host until Ctrl-C, or on the server of `MLFLOW_TRACKING_URI`.

    Raises:
        RequestError: the port is taken, or another MLflow version wrote the store.
        StoreFileError: the file of the store cannot be used.
        NetworkError: the store or the server does not answer.
    """
    uri = settings.uri()
    remote = uri.startswith(("http://", "https://"))
    if not remote:
        _refuse_taken(port)
    page = _prepare_store(uri)
    if not remote:
        _serve(uri, port, page, browser=browser)
        return
    address = uri.rstrip("/") + page
    info(f"The runs are on the tracking server {without_credentials(uri)}:\n{without_credentials(address)}")
    _open(address, wanted=browser)


def _prepare_store(uri: str) -> str:
    """Bring the store up to date and keep the view in it; return the part of the address that opens the view."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second; a taken port is refused before)

    client = store.open_to_write(uri)
    try:
        experiment_id = store.experiment(client, settings.experiment()).experiment_id
        synced = sync(DELIVER_S)
        for line in (*synced.lines(), *synced.failed.values()):
            info(line)
        share_view(client, experiment_id)
    except MlflowException as error:
        raise NetworkError(store.failure(error, uri)) from error
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"


def share_view(client: "MlflowClient", experiment_id: str) -> None:
    """Keep the view as *Convoy* in the experiment's menu *Views*, and give the newest runs distinct colours."""
    view = {"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": json.dumps(view_state())}
    if client.get_experiment(experiment_id).tags.get(TAG) != json.dumps(view):
        client.set_experiment_tag(experiment_id, TAG, json.dumps(view))
    newest = client.search_runs([experiment_id], max_results=CHARTED, order_by=["attributes.start_time DESC"])
    used = {run.data.tags.get(COLOUR) for run in newest}
    free = [colour for colour in COLOURS if colour not in used]
    for run in reversed(newest):
        if COLOUR not in run.data.tags and free:
            client.set_tag(run.info.run_id, COLOUR, free.pop(0))


def view_state() -> dict[str, Any]:
    """Describe the runs table and charts as MLflow keeps them: columns, order and widths, newest run first."""
    return {
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": f"{KEY} {name}", "name": name, "display": True, "isReordered": True, "deleted": False}
            for name in SECTIONS
        ],
        "compareRunCharts": [
            *(_chart(name, "LINE") | CURVE_AXES for name in CURVES),
            *(_chart(name, "BAR") for name in BARS),
        ],
        "selectedColumns": list(COLUMNS_PX),
        "columnOrder": [RUN_NAME, "runDateAndNestInfo", *COLUMNS_PX, "duration"],
        "columnWidths": {RUN_NAME: 215, "runDateAndNestInfo": 135, **COLUMNS_PX},
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


CURVE_AXES = {
    "xAxisKey": "step",
    "yAxisKey": "metric",
    "scaleType": "linear",
    "xAxisScaleType": "linear",
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


def _chart(metric: str, kind: str) -> dict[str, Any]:
    return {
        "uuid": f"{KEY} {metric}",
        "type": kind,
        "metricKey": metric,
        "metricSectionId": f"{KEY} {SECTIONS[0]}",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": CHARTED,
    }


def _serve(uri: str, port: int, page: str, *, browser: bool) -> None:
    """Serve MLflow's application on a store until Ctrl-C or SIGTERM, and print the address once it answers.

    In this process: `mlflow server` imports MLflow twice, in a command and in its workers, before it answers.
    """
    import uvicorn  # noqa: PLC0415 (with MLflow's application two seconds, for this command only)
    from mlflow.server import constants  # noqa: PLC0415

    repository = stage.repository()

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = uri
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = (repository / "mlartifacts").as_uri()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight more processes, for GenAI jobs
    with warnings.catch_warnings(action="ignore"):  # of MLflow's own imports
        from mlflow.server.fastapi_app import app  # noqa: PLC0415 (reads these variables)

    roots = (repository / "mlartifacts", repository / "mlruns")
    owner_only = OwnerOnly(_accuracy_first(app), store.connect(uri), roots, port)
    address = f"http://{HOST}:{port}/?token={owner_only.token}{page.removeprefix('/')}"
    link = repository / "build/ui.html"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            info(f"The runs are at {address} (Ctrl-C ends the server)")
            _open(address, wanted=browser, link=link)

    config = uvicorn.Config(owner_only, HOST, port, log_level="warning", timeout_graceful_shutdown=STOP_S)
    try:
        Server(config).run()
    finally:
        link.unlink(missing_ok=True)


def _accuracy_first(app: App) -> App:
    """Give the metrics of a run with those of the first columns before the others: the page Compare opens on the first."""
    order = {name: place for place, name in enumerate(re.findall(r"metrics.`(.*?)`", " ".join(COLUMNS_PX)))}

    def ordered(body: bytes) -> bytes:
        answer = json.loads(body)
        for run in answer.get("runs", [answer["run"]] if "run" in answer else []):
            run["data"].get("metrics", []).sort(key=lambda metric: order.get(metric["key"], len(order)))
        return json.dumps(answer).encode()

    async def ordering(scope: Message, receive: Receive, send: Send) -> None:
        if not str(scope.get("path", "")).endswith(("/mlflow/runs/get", "/mlflow/runs/search")):
            await app(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await app(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in messages)
        start = messages[0]
        if start["status"] == HTTPStatus.OK:
            body = ordered(body)
        rest = [header for header in start["headers"] if header[0].lower() != b"content-length"]
        await send({**start, "headers": [*rest, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    return ordering


def _open(address: str, *, wanted: bool, link: Path | None = None) -> None:
    """Open a browser where it would be seen: from a terminal, and with a display where the system needs one.

    `link` becomes a page for its owner alone that leads to the address: the arguments of a browser's process, which
    every user of the machine can list, then hold no token.
    """
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (wanted and sys.stdout.isatty() and (sys.platform == "darwin" or display)):
        return
    if link:
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        with open(
            link, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)
        ) as page:
            page.write(f'<!doctype html><title>MLflow</title><script>location.replace("{address}")</script>')
        address = link.as_uri()
    webbrowser.open(address)


def _refuse_taken(port: int) -> None:
    """Refuse a port that something listens on, naming that and a free one."""
    if _is_free(port):
        return
    free = next(filter(_is_free, [*range(port + 1, 65536), *range(1024, port)]))
    raise RequestError(
        f"port {port} is taken{_listener(port)}; port {free} is free. "
        f"Type: make ui PORT={free} (or: convoy ui --port {free})"
    )


def _listener(port: int) -> str:
    """Name the process that listens on a port, as far as the system lists it."""
    import psutil  # noqa: PLC0415 (for this fault only)

    with suppress(psutil.Error, OSError):  # macOS lists them for root only
        for found in psutil.net_connections("tcp"):
            if found.laddr and found.laddr.port == port and found.status == psutil.CONN_LISTEN and found.pid:
                words = shlex.join(psutil.Process(found.pid).cmdline())
                return f" by process {found.pid} (`{words:.100}`)"
    return ", perhaps by a process of another user"


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        probe.bind((HOST, port))
        return True
    return False
