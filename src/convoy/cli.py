"""The `convoy` command. Each subcommand imports what it needs when it is called."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convoy import __version__
from convoy.commands.data import data
from convoy.commands.explain_convolution import convolution
from convoy.commands.explain_features import features
from convoy.commands.explain_position import position
from convoy.commands.migrate import migrate
from convoy.commands.network import network
from convoy.commands.promote import promote
from convoy.commands.register import register
from convoy.commands.rollback import rollback
from convoy.commands.sweep import sweep
from convoy.commands.trace import trace
from convoy.commands.ui import ui
from convoy.commands.weights import weights
from convoy.commands.why import why
from convoy.core import stage
from convoy.core.errors import ConvoyError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Labelled images to a CNN classifier that is trained, compared, proven and served. "
    "The pipeline itself runs by `dvc repro`.",
)
explain = typer.Typer(
    no_args_is_help=True, help="See what a CNN does: a convolution by hand, features, why position matters."
)
explain.command()(convolution)
explain.command()(features)
explain.command()(position)
app.add_typer(data, name="data")
app.add_typer(network, name="network")
app.add_typer(weights, name="weights")
app.add_typer(explain, name="explain")
app.command()(migrate)
app.command()(promote)
app.command()(register)
app.command()(rollback)
app.command()(sweep)
app.command()(ui)
app.command()(trace)
app.command()(why)


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
    from convoy.serving.predict import predict as answer
    from convoy.serving.predict import show

    raise typer.Exit(show(answer(model, paths), as_json=as_json))


@app.command()
def sync(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with what was done.")
    ] = False,
) -> None:
    """Complete the tracking store: deliver what was kept while it did not answer, end dead runs, attach dvc.lock.

    Runs are written to outbox/ first and delivered while the pipeline works, so this is rarely
    needed: after a tracking server was down, or a machine was switched off.

    Example: convoy sync
    """
    import contextlib
    import json
    from dataclasses import asdict

    from convoy.tracking import sync as tracking

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # its progress is no JSON
        synced = tracking.sync()
    if as_json:
        print(json.dumps(asdict(synced), indent=2))
    elif lines := synced.lines():
        print("\n".join(lines))
    elif not synced.failed:
        print("nothing to deliver or complete")
    tracking.require(synced)
