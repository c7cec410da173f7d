"""`convoy data`: point the pipeline at images, or look at them without running it."""

import json
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(
    no_args_is_help=True, help="Point the pipeline at images, or look at them without running it."
)


@data.command("use")
def data_use(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, zip, tar, http(s)://…, s3://…, gs://…: whatever `dvc import-url` takes."
        ),
    ],
) -> None:
    """Make SOURCE the images that the pipeline fetches: writes data.dvc.

    Example: convoy data use ~/flowers.zip
    """
    from convoy.commands.source import use

    for line in use(source, Path.cwd()):
        print(line)


@data.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="Delivered images: folder or archive.")] = Path("data"),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what `prepare` would find in PATH, quarantine and split; write nothing."""
    from convoy.commands.source import check
    from convoy.core import params
    from convoy.data.settings import DataParams

    found = check(path, params.section("data", DataParams))
    lines = found.pop("lines")
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(lines))
    if not found["accepted"]:
        raise typer.Exit(1)
