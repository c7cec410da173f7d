"""`convoy ui`: compare the training runs in MLflow."""

from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this host to serve on.")] = 5000,
    *,
    browser: Annotated[
        bool, typer.Option(help="Open a browser, if this is a terminal with a display.")
    ] = True,
) -> None:
    """Show the training runs in MLflow, with accuracy, latency, energy and params as columns.

    Ends dead runs and completes finished ones first, as `convoy sync` does. Serves mlflow.db on this host
    until Ctrl-C and prints the address of the view; if MLFLOW_TRACKING_URI names a server, the address there.

    Example: convoy ui --port 5001
    """
    from convoy.tracking.ui import show

    try:
        show(port, browser=browser)
    except KeyboardInterrupt:
        print("\nThe server is stopped.")
