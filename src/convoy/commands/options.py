"""What several commands share: the option `--json`, and where messages go with it."""

import sys
from contextlib import AbstractContextManager, redirect_stdout
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; messages go to standard error.")]


def messages(*, as_json: bool) -> AbstractContextManager[object]:
    """Print the block's messages to standard error if standard output is for JSON."""
    return redirect_stdout(sys.stderr if as_json else sys.stdout)
