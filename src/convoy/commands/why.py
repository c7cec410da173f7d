"""`convoy why`: what `dvc repro` would rerun, and which input changed from what to what."""

import json
from pathlib import Path
from typing import Annotated

import typer


def why(
    stage: Annotated[
        str, typer.Argument(help="Speak of this stage alone, such as train.", show_default="every stage")
    ] = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say stage by stage what `dvc repro` would rerun, and why: which input changed from what to what.

    Nothing is run and nothing is written. `perhaps` means: only if an earlier stage's outputs come out
    different, which nobody knows before it has run.

    Example: convoy why

    Example: convoy why train
    """
    from convoy.lineage.why import explain, lines
    from convoy.repo import dvc

    root = Path.cwd()
    dvc.check_repository(root)
    explained = explain(root, stage)
    if as_json:
        print(json.dumps(explained, ensure_ascii=False))
        return
    for line in lines(explained):
        print(line)
