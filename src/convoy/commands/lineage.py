"""`convoy trace`: the provenance of a run or model. `convoy why`: what `dvc repro` would run, and why."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.commands.options import AsJson
from convoy.core.console import info, print_json


def trace(
    what: Annotated[
        str,
        typer.Argument(
            help="A run id (Convoy's or MLflow's), runs:/ID, models:/NAME/VERSION, NAME/VERSION, NAME@ALIAS, an alias "
            "such as champion, an ONNX file, a data hash, a commit, branch or tag, or the name of a DVC experiment. "
            "The beginning of an id is enough."
        ),
    ],
    other: Annotated[
        str, typer.Argument(help="A second run: list the differences between the two.", show_default="none")
    ] = "",
    *,
    restore: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Clone the repository into DIR in the state of the run: code, params, data and outputs.",
            show_default="look only",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="After --restore, train again there and compare metrics and weights."),
    ] = False,
    trust_run_code: Annotated[
        bool,
        typer.Option(
            "--trust-run-code",
            help="With --restore: take the run's uncommitted code, which comes from the tracking store, too.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the provenance of WHAT: commit, data, params, run, model, dvc.lock, versions, experiment.

    Lists the links from oldest to newest, with the location of each, and the command that gets what is missing.

    Example: convoy trace champion

    Example: convoy trace build/deploy/model.onnx

    Example: convoy trace champion --restore ../champion --verify
    """
    from convoy.core.errors import RequestError
    from convoy.lineage import compare as comparison
    from convoy.lineage import trace as tracing
    from convoy.repo import dvc

    root = Path.cwd()
    dvc.check_repository(root)
    if (verify or trust_run_code) and not restore:
        option = "--verify" if verify else "--trust-run-code"
        raise RequestError(
            f"{option} needs --restore: it concerns the restored clone. Add --restore ../restored"
        )
    if restore and other:
        raise RequestError("--restore takes one run. Leave out --restore or the second run.")
    if restore and as_json:
        raise RequestError("--restore prints no JSON. Leave out --json.")
    match, sources = tracing.look(what, root)
    if restore:
        from convoy.lineage import restore as restoring

        record = comparison.only_run(match)
        pipeline = restoring.restore(record, sources, restore, trust_run_code=trust_run_code)
        info(
            f"{pipeline} has the state of run {record.run_id}; data.dvc is frozen there, and `dvc repro` has nothing to do."
        )
        if verify:
            report = restoring.verify(pipeline, record)
            info("\n".join(restoring.lines(report)))
            if not report.equal:
                raise typer.Exit(1)
    elif other:
        second, _ = tracing.look(other, root)
        compared = comparison.compare(comparison.only_run(match), comparison.only_run(second), sources)
        if as_json:
            print_json(compared)
        else:
            info("\n".join(comparison.lines(compared)))
    elif as_json:
        print_json(tracing.as_json(match, sources))
    else:
        info("\n".join(tracing.lines(match, sources)))


def why(
    stage: Annotated[
        str, typer.Argument(help="Explain this stage only, such as train.", show_default="every stage")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Explain stage by stage what `dvc repro` would run, and which input changed from what to what.

    Nothing is run or written. Later stages `may run`: that depends on outputs that do not exist yet. Where a stage
    `runs`, DVC takes its outputs from the run cache instead if it ran with the same inputs before.

    Example: convoy why

    Example: convoy why train
    """
    from convoy.lineage import why as explaining
    from convoy.repo import dvc, git

    root = Path.cwd()
    dvc.check_repository(root)
    if reason := git.no_commit(root):
        info(f"Edited files are not listed: {reason}", stderr=True)
    explained = explaining.explain(root, stage)
    if as_json:
        print_json(explained)
    else:
        info("\n".join(explaining.lines(explained)))
