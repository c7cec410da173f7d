"""`convoy predict`, `serve`, `verify` and `demo`: classify files, answer images over HTTP, check the answers of a model or a server, show a model in a browser."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from convoy.core.console import info
from convoy.core.contract import VERIFIED


def predict(
    paths: Annotated[
        list[Path], typer.Argument(help="Images, folders and archives; the latter are searched for images.")
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="`champion`, the number of a version, or a verified file.",
            show_default=f"build/deploy/{VERIFIED}",
        ),
    ] = "",
    format_: Annotated[
        Literal["table", "json", "csv", "parquet"],
        typer.Option("--format", help="A line, a JSON object or a row per file; parquet needs --out."),
    ] = "table",
    top: Annotated[
        int,
        typer.Option(
            min=0,
            help="Most probable classes per file.",
            show_default="1 in a table, else all",
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write this file instead of standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Classify images in onnxruntime, on all cores: one line per file with class and probability.

    A file that cannot be read is reported and does not stop the rest; the exit code is then 1. Archives are zip, tar and
    compressed tars, which are not unpacked.

    Example: convoy predict photos/ --top 3

    Example: convoy predict photos.zip --model champion --format parquet --out predictions.parquet
    """
    from convoy.core.errors import RequestError
    from convoy.export.onnx_model import SECONDS_PER_IMAGE
    from convoy.serving.model import DEFAULT, open_model
    from convoy.serving.predict import predict as answer
    from convoy.serving.predictions import Wanted, write

    if paths[0].suffix == ".onnx":
        rest = shlex.join(map(str, paths[1:])) or "photos/"
        raise RequestError(
            f"{paths[0]} is a model, not an image. Type: convoy predict {rest} --model {shlex.quote(str(paths[0]))}"
        )
    opened = open_model(model or str(DEFAULT), threads=1, seconds_per_image=SECONDS_PER_IMAGE)
    info(f"{opened.name}: {len(opened.model.classes)} classes, sha256 {opened.sha256[:12]}", stderr=True)
    wanted = Wanted("json" if as_json else format_, top, opened.name, opened.model.classes, out)
    raise typer.Exit(write(answer(opened.model, paths), wanted))


def serve(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="`champion`, the number of a version, runs:/ID, or a verified file.",
            show_default="champion, else build/deploy/model.onnx",
        ),
    ] = "",
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65535)] = 8000,
) -> None:
    """Answer images over HTTP: POST /predict takes a JPEG, PNG or WebP and answers with class and probabilities.

    Limits, token and origins are set in the section `serve` of params.yaml. SIGTERM and Ctrl-C stop it once the
    requests in flight are answered.

    Example: convoy serve --model build/deploy/model.onnx
    """
    from convoy.serving.server import serve as run

    run(model, host, port)


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
    class of any image differs, or a gap exceeds the limit. A token for the server is read from the environment variable
    that serve.token_env names, CONVOY_SERVE_TOKEN as shipped.

    Example: convoy verify build/deploy/model.onnx

    Example: convoy verify http://127.0.0.1:8000
    """
    from convoy.serving import golden as golden_images

    raise typer.Exit(golden_images.verify(target, golden, as_json=as_json))


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; new, empty, or an earlier demo.")
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="`champion`, the number of a version, runs:/ID, or a verified file.",
            show_default="champion, else build/deploy/model.onnx",
        ),
    ] = "",
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tgz",
            help="Tarball of onnxruntime-web, as `npm pack` makes it.",
            show_default="fetched with npm",
        ),
    ] = None,
) -> None:
    """Write a static web page that runs a model in the browser: drop, paste, photograph or draw an image.

    The page shows probabilities, the image as the network sees it, and feature maps. It has everything it needs, and
    no image leaves the browser. Any web server can serve the folder.

    Example: convoy demo build/demo

    Example: convoy demo build/demo --model build/deploy/model.onnx --runtime onnxruntime-web-1.30.0.tgz
    """
    from convoy.serving.demo import build

    facts = build(model, folder, runtime)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    info(f"{facts['name']} as a page: {folder} ({size / 1e6:.0f} MB, with {facts['runtime']})")
    info(
        f"Open it: python -m http.server 8080 --bind 127.0.0.1 --directory {folder}, then http://127.0.0.1:8080"
    )
