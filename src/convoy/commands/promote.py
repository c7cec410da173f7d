"""`convoy promote`: judge the candidate, and let it serve if there is cause."""

import json
from pathlib import Path
from typing import Annotated

import typer


def promote(
    *,
    override: Annotated[
        str,
        typer.Option(
            "--override",
            metavar="REASON",
            help="Promote whatever the verdict is; the reason is recorded.",
            show_default="none",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge only; the champion stays whatever comes of it.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for verdict.json, verdict.html and pictures.")] = Path(
        "build/gate"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge `candidate` against `champion` on today's test split, and move the alias `champion` for cause.

    Both are ONNX files in onnxruntime, asked the same images, none of which either has seen in training.
    Limits stand in `gate` of params.yaml. Verdicts are promote, keep and refuse; each ends with exit code 0.

    Example: convoy promote

    Example: convoy promote --override "the old classes are gone on purpose"
    """
    import contextlib
    import sys

    from convoy.core.errors import RequestError
    from convoy.registry import promote as promoting

    if dry_run and override:
        raise RequestError("--dry-run moves nothing, so there is nothing to override. Leave one of them out.")
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # its progress is no JSON
        judged = promoting.judge(out)
        moved = False if dry_run else promoting.carry_out(judged, override)
    if as_json:
        print(json.dumps(judged.judgement.as_json() | {"promoted": moved}, ensure_ascii=False))
        return
    print("\n".join(promoting.lines(judged, moved=moved, dry_run=dry_run)))
