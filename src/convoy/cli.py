"""The `convoy` command. Each subcommand imports what it needs when it is called."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from convoy import __version__, stage
from convoy.errors import ConvoyError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Labelled images to a CNN classifier that is trained, compared, proven and served. "
    "The pipeline itself runs by `dvc repro`.",
)
data = typer.Typer(
    no_args_is_help=True, help="Point the pipeline at images, or look at them without running it."
)
app.add_typer(data, name="data")


def main() -> None:
    """Run a command; a known error is one message and its exit code."""
    stage.quiet_third_parties()
    try:
        app()
    except ConvoyError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def root(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False
) -> None:
    """Take the options that belong to no subcommand."""
    if version:
        print(__version__)
        raise typer.Exit


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
    from convoy.data.source import use

    for line in use(source, Path.cwd()):
        print(line)


@data.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="Delivered images: folder or archive.")] = Path("data"),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what `prepare` would find in PATH, quarantine and split; write nothing."""
    from convoy import params
    from convoy.data.settings import DataParams
    from convoy.data.source import check

    found = check(path, params.section("data", DataParams))
    lines = found.pop("lines")
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(lines))
    if not found["accepted"]:
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A proven model, such as build/deploy/model.onnx.")],
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders that are walked for images.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
) -> None:
    """Classify images with MODEL in onnxruntime: one line per file, its class and probability.

    A file that cannot be read is reported and does not stop the rest; the exit code is then 1.

    Example: convoy predict build/deploy/model.onnx photos/
    """
    from convoy.deploy.predict import predict as answer
    from convoy.deploy.predict import show

    raise typer.Exit(show(answer(model, paths), as_json=as_json))


@app.command()
def sync() -> None:
    """Complete the tracking store: end dead runs, attach each finished run's final dvc.lock."""
    from convoy.tracking.sync import sync as bring_up_to_date

    completed = bring_up_to_date()
    print(
        f"completed {len(completed)} run(s): {', '.join(completed)}" if completed else "nothing to complete"
    )
