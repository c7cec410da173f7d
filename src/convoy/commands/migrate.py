"""`convoy migrate`: copy a tracking store to a server."""

from typing import Annotated

import typer

from convoy.core.errors import without_credentials


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
    as_json: Annotated[bool, typer.Option("--json", help="Print counts and notes as JSON.")] = False,
) -> None:
    """Copy experiments, runs, files, models and the registry to TARGET, then compare counts and sha256.

    The source is only read. What TARGET already has is not sent again: after an interruption, or after
    more runs, run the same command again.

    Example: convoy migrate https://mlflow.example.org
    """
    import json
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from convoy.core import stage
    from convoy.core.errors import MigrationError
    from convoy.tracking.migration.migrate import migrate as copy_store

    source = source or f"sqlite:///{stage.repository()}/mlflow.db"
    # A program that reads the JSON must find nothing else on stdout.
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        report = copy_store(target, source)
    names = {"source": without_credentials(source), "target": without_credentials(target)}
    if as_json:
        print(json.dumps({**names, **asdict(report)}, indent=2))
    else:
        print(f"from {names['source']}\nto   {names['target']}\n")
        print(report.table())
    if report.wrong:
        raise MigrationError(
            f"{names['target']} lacks {len(report.wrong)} of the source's entries:\n  "
            + "\n  ".join(report.wrong[:5])
            + "\nThe source is unchanged; run the same command again once the cause is fixed."
        )
