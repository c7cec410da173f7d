"""The subcommands of `convoy`, one file per group, and what several of them share."""

import sys
from contextlib import AbstractContextManager, redirect_stdout
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; messages go to standard error.")]


def messages(*, as_json: bool) -> AbstractContextManager[object]:
    """Print the block's messages to standard error if standard output is for JSON."""
    return redirect_stdout(sys.stderr if as_json else sys.stdout)
