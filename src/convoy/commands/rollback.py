"""`convoy rollback`: give `champion` back to the version before."""

from typing import Annotated

import typer


def rollback(
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="VERSION", help="Number of a version to go to.", show_default="the champion before"
        ),
    ] = "",
    reason: Annotated[str, typer.Option(help="Why, for the promotion log.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: the move.")] = False,
) -> None:
    """Let the alias `champion` point to the version that had it before, without judging again.

    Typed twice, it goes back two champions. The promotion log, an experiment of its own in the tracking
    store, keeps who moved the alias when, from where to where and why.

    Example: convoy rollback --reason "confuses 3 and 8 since Tuesday"

    Example: convoy rollback --to 4
    """
    import contextlib
    import json
    import sys
    from dataclasses import asdict

    from convoy.registry.rollback import rollback as go_back

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # its news are no JSON
        moved = go_back(reason, to)
    if as_json:
        print(json.dumps(asdict(moved), ensure_ascii=False))
        return
    print(f"champion is {moved.to} (before: {moved.before})")
    if moved.before:
        print(f"To take it back: convoy rollback --to {moved.before.number}")
