"""`convoy sweep`, `sync`, `ui` and `migrate`: make runs, deliver them to MLflow, show them, and move them to another store."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from convoy.commands.options import AsJson, messages
from convoy.core.console import info, print_json


def sweep(
    *,
    trials: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=10_000,
            help="Trials in all, including those of earlier calls; 0 only shows the results.",
            show_default="sweep.trials of params.yaml",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes at once; they share the cores.")
    ] = 1,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply", help="Write the best trial's values into params.yaml and change nothing else in it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search `sweep.space` of params.yaml for better values; each trial trains on build/dataset.

    Optuna's TPE sampler chooses values, trials worse than the median are stopped early, and validation images
    alone decide. Run it again to continue a sweep that was stopped.

    Example: convoy sweep --trials 30 --workers 2

    Example: convoy sweep --trials 0 --apply
    """
    from convoy.sweep import run

    try:
        run.sweep(trials, workers, into_params=apply, as_json=as_json)
    except KeyboardInterrupt:
        info("\nstopped. " + run.RESUME, stderr=True)
        raise typer.Exit(1) from None


def sync(
    *,
    moved: Annotated[
        bool,
        typer.Option(
            "--moved",
            help="Before, replace the paths in mlflow.db of a repository that was moved or copied; the file is copied first.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Complete the tracking store: upload pending runs, close those whose process died, attach dvc.lock.

    Runs are written to outbox/ first and uploaded while the pipeline works, so this is needed only
    after a tracking server was unreachable or the machine was switched off.

    Example: convoy sync

    Example: convoy sync --moved
    """
    from convoy.repo import dvc
    from convoy.tracking import settings, store_file
    from convoy.tracking import sync as tracking

    dvc.check_repository(Path.cwd())
    with messages(as_json=as_json):
        for line in store_file.relocate(settings.uri()) if moved else ():
            info(line)
        synced = tracking.sync()
    if as_json:
        print_json(asdict(synced))
    elif lines := synced.lines():
        info("\n".join(lines))
    elif not synced.failed:
        info("nothing to upload or complete")
    if synced.failed:
        raise tracking.SyncError("\n".join(synced.failed.values()))


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
    from convoy.repo import dvc
    from convoy.tracking.ui import show

    dvc.check_repository(Path.cwd())
    try:
        show(port, browser=browser)
    except KeyboardInterrupt:
        info("\nThe server is stopped.")


def migrate(
    target: Annotated[
        str,
        typer.Argument(
            help="An MLflow server, such as https://mlflow.example.org, or sqlite:////PATH/mlflow.db."
        ),
    ],
    *,
    source: Annotated[
        str,
        typer.Option("--from", help="The store to read.", show_default="mlflow.db of this repository"),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Copy experiments, runs, files, models and the registry to TARGET, then compare counts and sha256.

    The source is only read. What TARGET already has is not sent again: after an interruption, or after
    more runs, run the same command again.

    Example: convoy migrate https://mlflow.example.org
    """
    from convoy.core import stage
    from convoy.core.errors import MigrationError, without_credentials
    from convoy.tracking.migration import migrate as copy_store

    source = source or f"sqlite:///{stage.repository()}/mlflow.db"
    with messages(as_json=as_json):
        report = copy_store(target, source)
    names = {"source": without_credentials(source), "target": without_credentials(target)}
    if as_json:
        print_json({**names, **asdict(report)})
    else:
        info(f"from {names['source']}\nto   {names['target']}\n")
        info(report.table())
    if report.wrong:
        raise MigrationError(
            f"{names['target']} lacks {len(report.wrong)} of the source's entries:\n  "
            + "\n  ".join(report.wrong[:5])
            + "\nThe source is unchanged; run the same command again once the cause is fixed."
        )
