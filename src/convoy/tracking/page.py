"""MLflow's own server application with a start page that opens on the training runs."""

import json
import os
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from convoy.core import stage
from convoy.tracking import view

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

SEED = """
(() => {
  const kept = %(remembered)s;
  for (const [key, value] of Object.entries(kept)) {
    const own = JSON.parse(localStorage.getItem(key) ?? "null");
    if (own === null || JSON.stringify(own.selectedColumns) === %(default)s)
      localStorage.setItem(key, JSON.stringify(own === null ? value : { ...own, ...value }));
  }
  if (["", "#", "#/"].includes(location.hash)) history.replaceState(null, "", %(start)s);
})();
"""
"""Runs before MLflow's script: fills in what this browser has not chosen, and opens the runs unless told where."""


def application(uri: str, experiment_id: str) -> Application:
    """Make the application that `mlflow server` would run on a store, with Convoy's start page before it.

    In this process: `mlflow server` imports MLflow twice, in a command and in its workers, before it answers.
    """
    import uvicorn  # noqa: F401, PLC0415 (its presence makes MLflow refuse requests for other hosts' names)
    from mlflow.server import REL_STATIC_DIR, constants  # noqa: PLC0415 (two seconds, for this command only)

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = uri
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = (stage.repository() / "mlartifacts").as_uri()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight more processes, for GenAI jobs
    with warnings.catch_warnings(action="ignore"):  # of MLflow's own imports
        from mlflow.server.fastapi_app import app  # noqa: PLC0415 (reads these variables)

    index = Path(constants.__file__).parent / REL_STATIC_DIR / "index.html"
    html = seeded(index.read_text(encoding="utf-8"), experiment_id).encode()

    async def pages(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            await app(scope, receive, send)
            return
        # A browser may have kept MLflow's own page from this address: it asks anew each time.
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": html})

    return pages


def seeded(index: str, experiment_id: str) -> str:
    """Put the script that fills the browser's storage into MLflow's page, before its own."""
    words = {
        "remembered": view.remembered(experiment_id),
        "default": json.dumps(view.MLFLOWS_COLUMNS, separators=(",", ":")),
        "start": view.runs(experiment_id).removeprefix("/"),
    }
    # In a script, `</` could end it.
    script = SEED % {key: json.dumps(word).replace("</", "<\\/") for key, word in words.items()}
    return index.replace("<head>", f"<head><script>{script}</script>", 1)
