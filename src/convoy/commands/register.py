"""`convoy register`: make a proven model a version of the registered model."""

from typing import Annotated

import typer


def register(
    run: Annotated[
        str,
        typer.Argument(
            help="A run, by anything that `convoy trace` takes for one: its id, an ONNX file, a DVC experiment's name.",
            show_default="the model in build/deploy",
        ),
    ] = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: the version.")] = False,
) -> None:
    """Register a proven model as a version, and let the alias `candidate` point to it.

    The version is the proven file, byte for byte, with classes, accuracy, its run, commit and data as
    tags and the model card as description. A file that is registered already is not registered again.
    What serves, the alias `champion`, stays as it is: `convoy promote` judges the candidate against it.

    Example: convoy register

    Example: convoy register 20261123-124501-9f3c1a
    """
    import contextlib
    import json
    import sys
    from dataclasses import asdict

    from convoy.registry.register import register as make

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # its news are no JSON
        version = make(run)
    if as_json:
        print(json.dumps(asdict(version), ensure_ascii=False))
        return
    print("To judge it against the champion, type: convoy promote")
