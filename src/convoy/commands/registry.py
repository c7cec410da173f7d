"""`convoy register`, `promote` and `rollback`: what is registered, and which version serves."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from convoy.commands.options import AsJson, messages
from convoy.core.console import info, print_json


def register(
    run: Annotated[
        str,
        typer.Argument(
            help="A run, by anything that `convoy trace` resolves: its id, an ONNX file, the name of a DVC experiment.",
            show_default="the model in build/deploy",
        ),
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Register a verified model as a version, and point the alias `candidate` to it.

    The version is the verified file, byte for byte, with classes, accuracy, run, commit and data as tags and the
    model card as description. A file that is already registered is not registered again. The alias `champion`, the
    version that serves, does not move: `convoy promote` compares the candidate with it.

    Example: convoy register

    Example: convoy register 20261123-124501-9f3c1a
    """
    from convoy.registry.register import register as run_register

    with messages(as_json=as_json):
        version = run_register(run)
    if as_json:
        print_json(asdict(version))
    else:
        info("Next: convoy promote")


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
        bool, typer.Option("--dry-run", help="Judge only; the champion does not change.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for verdict.json, verdict.html and pictures.")] = Path(
        "build/gate"
    ),
    as_json: AsJson = False,
) -> None:
    """Compare `candidate` with `champion` on today's test split, and promote it if it is significantly better.

    Both ONNX files classify the same images, none of which either has seen in training. Limits are set in the
    section `gate` of params.yaml. The verdict is promote, keep or refuse; the exit code of each is 0.

    Example: convoy promote

    Example: convoy promote --override "the old classes are gone on purpose"
    """
    from convoy.core.errors import RequestError
    from convoy.registry import promote as promotion

    if dry_run and override:
        raise RequestError("--dry-run moves nothing, so there is nothing to override. Use one of them.")
    with messages(as_json=as_json):
        judged = promotion.judge(out)
        moved = False if dry_run else promotion.carry_out(judged, override)
    if as_json:
        print_json(judged.judgement.as_json() | {"promoted": moved})
    else:
        info("\n".join(promotion.lines(judged, moved=moved, dry_run=dry_run)))


def rollback(
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="VERSION", help="Number of the version to go to.", show_default="the previous champion"
        ),
    ] = "",
    reason: Annotated[str, typer.Option(help="Why, for the promotion log.")] = "",
    as_json: AsJson = False,
) -> None:
    """Point the alias `champion` back to the previous champion, without a comparison.

    A second rollback goes back one more. The promotion log, an experiment of its own in the tracking store, records
    who moved the alias, when, from where to where, and why.

    Example: convoy rollback --reason "confuses 3 and 8 since Tuesday"

    Example: convoy rollback --to 4
    """
    from convoy.registry.alias import rollback as run_rollback

    with messages(as_json=as_json):
        moved = run_rollback(reason, to)
    if as_json:
        print_json(asdict(moved))
        return
    info(f"champion is {moved.to} (before: {moved.before})")
    if moved.before:
        info(f"To undo: convoy rollback --to {moved.before.number}")
