"""`convoy sweep`: search hyperparameters."""

import sys
from typing import Annotated

import typer


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; progress goes to standard error.")
    ] = False,
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
        print("\nstopped. " + run.RESUME, file=sys.stderr)
        raise typer.Exit(1) from None
