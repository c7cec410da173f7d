"""`convoy verify`: answers of a model file or a server, compared with those that were measured."""

import os
from pathlib import Path
from typing import Annotated

import typer

TOKEN_ENV = "CONVOY_SERVE_TOKEN"  # noqa: S105 (a name)


def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="URL|FILE",
            help="A server, such as http://127.0.0.1:8000 or http://HOST/v2/models/convoy; or a model file.",
        ),
    ],
    *,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Folder of golden images, which `export` makes.",
            show_default="golden/ beside FILE, or build/deploy/golden",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Replay the golden images against a model file or a server: the answers must be those that were measured.

    Golden images are test images that `export` stores with the model, with the probabilities of the verified graph. A line
    per image shows the expected and the answered class and the largest gap of any probability. The exit code is 1 if the
    class of any image differs, or a gap exceeds the limit. A token for the server is read from CONVOY_SERVE_TOKEN.

    Example: convoy verify build/deploy/model.onnx

    Example: convoy verify http://127.0.0.1:8000
    """
    from convoy.serving import golden as golden_images

    token = os.environ.get(TOKEN_ENV, "")
    raise typer.Exit(golden_images.verify(target, golden, token, as_json=as_json))
