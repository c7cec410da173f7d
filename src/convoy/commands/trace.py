"""`convoy trace`: from anything with an identity to all that belongs to it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from convoy.lineage.chain import Places
    from convoy.lineage.runs import Record


def trace(
    what: Annotated[
        str,
        typer.Argument(
            help="A run's id (Convoy's or MLflow's), runs:/ID, models:/NAME/VERSION, NAME/VERSION, NAME@ALIAS, an alias "
            "such as champion, an ONNX file, a data hash, a commit, branch or tag, or a DVC experiment's name. The "
            "beginning of an id will do."
        ),
    ],
    other: Annotated[
        str, typer.Argument(help="A second one: say what differs between the two.", show_default="none")
    ] = "",
    *,
    restore: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Make DIR a clone in the state in which the run was made: code, params, data and outputs.",
            show_default="look only",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="After --restore, train again there and compare metrics and weights."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the identity chain of WHAT: commit, data, params, run, model, dvc.lock, versions, experiment.

    It goes from oldest to newest, says where each part is, what is missing and how to get it.

    Example: convoy trace champion

    Example: convoy trace build/deploy/model.onnx

    Example: convoy trace champion --restore ../champion --verify
    """
    from convoy.lineage import compare as comparing
    from convoy.lineage import trace as tracing
    from convoy.repo import dvc

    root = Path.cwd()
    dvc.check_repository(root)
    _check_options(other=other, restore=restore, verify=verify, as_json=as_json)
    asked, places = tracing.look(what, root)
    if restore:
        _restore(comparing.only_run(asked), places, restore, verify=verify)
        return
    if other:
        second, _ = tracing.look(other, root)
        found = comparing.compare(comparing.only_run(asked), comparing.only_run(second), places)
        print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(comparing.lines(found)))
        return
    if as_json:
        print(json.dumps(tracing.as_json(asked, places), ensure_ascii=False))
        return
    for line in tracing.lines(asked, places):
        print(line)


def _check_options(*, other: str, restore: Path | None, verify: bool, as_json: bool) -> None:
    """Refuse options that do not go together."""
    from convoy.core.errors import RequestError

    if verify and not restore:
        raise RequestError("--verify trains in a restored clone. Name one: --restore ../restored --verify")
    if restore and other:
        raise RequestError("--restore takes one run; two are compared. Leave one of them out.")
    if restore and as_json:
        raise RequestError("--restore prints no JSON. Leave --json out.")


def _restore(record: "Record", places: "Places", target: Path, *, verify: bool) -> None:
    """Restore a run, and verify it if asked; exit with 1 where the second training differs."""
    from convoy.lineage import restore as restoring
    from convoy.lineage import verify as verifying

    restoring.restore(record, places, target)
    print(
        f"{target} is as run {record.run_id} was; data.dvc is frozen there, and `dvc repro` has nothing to do."
    )
    if not verify:
        return
    found = verifying.verify(target, record)
    for line in verifying.lines(found):
        print(line)
    if not found.equal:
        raise typer.Exit(1)
