"""Trace a run: its commit, data, params, model, dvc.lock, registered versions and experiment, and what is missing."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from convoy.core import contract, files
from convoy.core.console import table
from convoy.core.errors import RequestError, listed, without_credentials
from convoy.lineage.runs import Match, Record, Records, StoreError, open_records, resolve
from convoy.repo import dvc, git
from convoy.repo.dvc import Cache
from convoy.tracking import journal
from convoy.tracking.settings import uri

DIFF = "pipeline/workspace.diff"
"""Artifact with the changes that were not committed."""

DECLARATIVE = ("params.yaml", "data.dvc", "dvc.lock", "networks/*.yaml", "weights/*.dvc")
"""Files that nothing executes: a run's own are restored although they differ from the commit."""

WORKSPACE_MODEL = Path("build/deploy/model.onnx")
UNFINISHED = ("FAILED", "KILLED", "RUNNING", "SCHEDULED")
LISTED = 20  # runs of a commit or hash that are listed; the rest are counted
SEARCHED = 20  # latest commits of dvc.lock that are compared with a run's
NAMED = 4  # branches, tags and experiments that are named; the rest are counted
ABBREVIATED = 12
COMPLETE_S = 30.0  # longest wait for the delivery of a run before it is shown

MARKED = {
    "run": "convoy run",
    "version": "registered",
    "alias": "registered",
    "ONNX": "model.onnx",
    "commit": "git commit",
}
"""Kind of a match to the name of its link, where they differ."""


@dataclass(frozen=True)
class Link:
    """Describe one link of a run's provenance."""

    name: str  # such as `git commit`
    value: str  # its full id; empty if the run has none
    notes: tuple[str, ...] = ()  # its location and state
    missing: str = ""  # what is missing, and how to get it


@dataclass(frozen=True)
class Sources:
    """Name the sources in which links are looked up."""

    root: Path  # the repository
    records: Records
    cache: Cache  # of DVC
    onnx: tuple[Path, str] | None = None  # a file that was named, with its sha256
    store_error: str = ""  # why the store does not answer; empty if it does


def look(text: str, root: Path) -> tuple[Match, Sources]:
    """Resolve a text in this repository and its tracking store, which a single run is completed in before.

    If the store does not answer, runs that wait in the outbox are found.

    Raises:
        RequestError: it matches nothing.
        StoreError: the tracking store does not answer, and the outbox has no match.
    """
    match, sources = _look(text, root)
    if not sources.store_error and len(match.records) == 1 and _is_incomplete(match.records[0]):
        from convoy.tracking.sync import sync  # noqa: PLC0415 (with the uploader's modules, only where needed)

        synced = sync(COMPLETE_S)
        if synced.delivered or synced.completed or synced.ended:
            match, sources = _look(text, root)
    return match, sources


def _is_incomplete(record: Record) -> bool:
    """Check for what `convoy sync` adds to a run of this store: what waits in the outbox, the final dvc.lock."""
    if record.waiting:
        has_ended = record.status != "RUNNING" or not journal.state(record.waiting).is_alive(
            record.waiting / journal.FILE
        )
        return record.destination == uri() and has_ended
    return record.status == "FINISHED" and not record.tag(contract.LOCK)


def _look(text: str, root: Path) -> tuple[Match, Sources]:
    records = open_records(uri(), root)
    cache = dvc.Cache.of(root)
    store_error = ""
    try:
        match = resolve(text, records, root, cache)
    except StoreError as error:
        records = replace(records, client=None)
        try:
            match = resolve(text, records, root, cache)
        except RequestError:
            raise error from None
        if not match.records:
            raise
        store_error = str(error)
    return match, Sources(
        root, records, cache, (match.onnx, match.sha256) if match.onnx else None, store_error
    )


def chain(record: Record, sources: Sources) -> list[Link]:
    """Follow a run from its inputs to its results."""
    artifacts = sources.records.artifacts(record, "pipeline") if record.name else set()
    return [
        _commit(record, sources, artifacts),
        _data(record, sources),
        _params(record, artifacts),
        _run(record),
        _mlflow(record, sources),
        _onnx(record, sources),
        _lock(record, sources, artifacts),
        Link("registered", ", ".join(record.versions)),  # not missing: most runs are never registered
        _experiment(record, sources),
    ]


def _commit(record: Record, sources: Sources, artifacts: set[str]) -> Link:
    number = record.tag(contract.GIT_COMMIT)
    if not number:
        return Link("git commit", "", missing=f"the run has no commit: {unknown_commit(record)}")
    if reason := git.no_commit(sources.root):
        return Link("git commit", number, missing=f"commit {number[:10]} cannot be looked up: {reason}")
    notes = []
    dirty = record.tag(contract.GIT_DIRTY) == "true"
    lost_diff = dirty and DIFF not in artifacts
    if dirty:
        notes.append(f"uncommitted changes: {'not stored' if lost_diff else f'stored with the run, {DIFF}'}")
    if names := record.tag(contract.NEW_FILES):
        notes.append(f"files that git did not track, not stored: {names}")
    if not git.query(sources.root, "cat-file", "-t", number):
        missing = (
            f"commit {number[:10]} is not in this repository; type: git fetch --all --tags. After an amend or rebase, "
            "only a clone that had it still has it"
        )
        return Link("git commit", number, tuple(notes), missing)
    holders, missing = git.holders(sources.root, number), ""
    if not holders:
        missing = (
            f"no branch, tag or experiment contains commit {number[:10]}, so git will remove it; "
            f"type: git branch keep-{number[:7]} {number[:10]}"
        )
    elif lost_diff:
        missing = "the uncommitted changes of the run: commit before a run that matters"
    location = f"in {listed(holders, NAMED)}" if holders else ""
    subject = git.query(sources.root, "log", "-1", "--format=%s", number)
    return Link("git commit", number, tuple(filter(None, [f'"{subject}"', location, *notes])), missing)


def unknown_commit(record: Record) -> str:
    """Return why a run has no commit."""
    return record.tag(contract.GIT_UNKNOWN) or "it was made outside a git repository"


def _data(record: Record, sources: Sources) -> Link:
    packed, md5 = record.tag(contract.DATA_HASH), record.tag(contract.DATA_MD5)
    if not packed:
        return Link("data", "", missing="the run has no data hash")
    if not md5:
        return Link("data", packed, ("as packed by prepare; the delivery is not recorded",))
    return Link("data", packed, *_locate_data(md5, sources))


def _locate_data(md5: str, sources: Sources) -> tuple[tuple[str, ...], str]:
    """Locate delivered data: notes, and what is missing."""
    delivered = f"delivered as {md5}"
    lacks = sources.cache.lacks(md5)
    members = len(sources.cache.members(md5))
    if not lacks:
        count = f" ({members:,} file{'s' if members > 1 else ''})" if members else ""
        return (delivered, f"in DVC's cache{count}"), ""
    part = f"{len(lacks):,} of its {members + 1:,} objects" if members else "they"
    return (delivered,), (
        f"data {md5[:10]}: {part} are not in DVC's cache; type: dvc fetch (if a remote has them), "
        "or copy the cache of the machine that made the run"
    )


def _params(record: Record, artifacts: set[str]) -> Link:
    value = record.tag(contract.PARAMS_HASH)
    if not value:
        return Link("params", "", missing="the run has no params hash")
    stored = "pipeline/params.yaml" in artifacts
    return Link("params", value, ("stored with the run, pipeline/params.yaml",) if stored else ())


def _run(record: Record) -> Link:
    if not record.run_id:
        return Link("convoy run", "", missing="the run was not made by Convoy")
    training = record.tag(contract.TRAINING)
    is_reused = training not in ("", record.run_id)
    return Link("convoy run", record.run_id, (f"reuses the training of run {training}",) if is_reused else ())


def _mlflow(record: Record, sources: Sources) -> Link:
    notes = (record.name, record.status, f"started {_time(record.started_ms)}") if record.name else ()
    if not record.waiting:
        store = without_credentials(sources.records.uri)
        missing = f"{store} does not have this run; set MLFLOW_TRACKING_URI to the store that has it"
        return Link("MLflow run", record.mlflow_run_id, notes, "" if record.mlflow_run_id else missing)
    part = "part of it waits" if record.mlflow_run_id else "it waits"
    location = f"{part} in {record.waiting.parent.name}/{record.waiting.name}"
    if record.status == "RUNNING":
        return Link("MLflow run", record.mlflow_run_id, (*notes, location))
    missing = f"{location} for the upload to {without_credentials(record.destination)}; type: convoy sync"
    return Link("MLflow run", record.mlflow_run_id, notes, missing)


def _onnx(record: Record, sources: Sources) -> Link:
    verified = record.tag(contract.ONNX_SHA256)
    if sources.onnx and verified and sources.onnx[1] != verified:
        missing = (
            f"{sources.onnx[0]} was changed since the run: it has sha256 {sources.onnx[1]}. The verified model is among "
            "the run's artifacts"
        )
        return Link("model.onnx", verified, missing=missing)
    value = verified or (sources.onnx[1] if sources.onnx else "")
    if not value:
        return Link("model.onnx", "", missing="no verified model: `export` did not finish in this run")
    notes = [str(sources.onnx[0])] if sources.onnx else []
    here = sources.root / WORKSPACE_MODEL
    is_other = here.exists() and not (sources.onnx and here.samefile(sources.onnx[0]))
    if is_other and files.sha256(here) == value:
        notes.append(f"same as {WORKSPACE_MODEL}")
    return Link("model.onnx", value, tuple(notes))


def _lock(record: Record, sources: Sources, artifacts: set[str]) -> Link:
    value = record.tag(contract.LOCK)
    if not value:
        reason = (
            f": the run is {record.status}"
            if record.status in UNFINISHED
            else "; type: convoy sync (attaches it from the workspace or the experiment)"
        )
        return Link("dvc.lock", "", missing=f"no final dvc.lock{reason}")
    notes = ["stored with the run, pipeline/dvc.lock"] if "pipeline/dvc.lock" in artifacts else []
    here = sources.root / "dvc.lock"
    if here.exists() and files.sha256(here) == value:
        notes.append("same as in the workspace")
    if commit := _commit_of_lock(sources.root, value):
        notes.append(f"committed in {commit}")
    return Link("dvc.lock", value, tuple(notes))


def _commit_of_lock(root: Path, sha256: str) -> str:
    """Find the latest commit with a `dvc.lock` of this content."""
    log = git.query(root, "log", "--branches", "--tags", f"-{SEARCHED}", "--format=%h", "--", "dvc.lock")
    contents = git.contents(root, [f"{commit}:./dvc.lock" for commit in log.split()])
    hashes = {name.partition(":")[0]: hashlib.sha256(text).hexdigest() for name, text in contents.items()}
    return next((commit for commit, value in hashes.items() if value == sha256), "")


def _experiment(record: Record, sources: Sources) -> Link:
    name = record.tag(contract.DVC_EXPERIMENT)
    if not name:
        return Link("experiment", "")
    if number := git.experiments(sources.root).get(name):
        return Link("experiment", name, (f"commit {number[:10]}; to apply it here: dvc exp apply {name}",))
    return Link(
        "experiment", name, missing=f"experiment {name} is no longer in git; the run has its params and files"
    )


def beside(root: Path) -> str:
    """Name a folder for a restored run, relative to the pipeline: outside the git repository that contains it."""
    return os.path.relpath(git.top(root).resolve().parent / "restored", root.resolve())


def is_code(name: str) -> bool:
    """Check whether a file of a run may be executed, so that restoring it needs trust."""
    return not any(map(PurePosixPath(name).match, DECLARATIVE))


def restore_command(record: Record, sources: Sources, target: str) -> str:
    """Return the command that restores a run, with the option that the run's uncommitted code requires."""
    command = f"convoy trace {record.run_id} --restore {target}"
    if DIFF not in sources.records.artifacts(record, "pipeline"):
        return command
    with tempfile.TemporaryDirectory() as scratch:
        diff = sources.records.download(record, DIFF, Path(scratch))
        changed = git.query(git.top(sources.root), "apply", "--numstat", "-z", str(diff)).split("\0")
    has_code = any(is_code(entry.split("\t")[2]) for entry in changed if entry)
    return f"{command} --trust-run-code" if has_code else command


def _time(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def as_json(match: Match, sources: Sources) -> dict[str, Any]:
    """Render for `--json`: every run with its whole chain."""
    return {
        "asked": match.text,
        "kind": match.kind,
        "subject": match.subject,
        "runs": [
            {
                "run_id": record.run_id,
                "mlflow_run_id": record.mlflow_run_id,
                "name": record.name,
                "status": record.status,
                "chain": [
                    {**vars(link), "notes": list(link.notes), "missing": link.missing or None}
                    for link in chain(record, sources)
                ],
            }
            for record in match.records[:LISTED]
        ],
        "store_error": sources.store_error or None,
        "runs_left_out": max(0, len(match.records) - LISTED),
    }


def lines(match: Match, sources: Sources) -> Iterator[str]:
    """Render for people."""
    if sources.store_error:
        yield f"Only runs that wait in the outbox are shown: {sources.store_error}"
        yield ""
    if len(match.records) == 1:
        yield from _chain_lines(match, sources)
        return
    if match.records:
        yield from _list_lines(match)
        return
    yield f"{match.kind} {match.subject}: no runs"
    if match.kind == "data":
        notes, missing = _locate_data(match.subject, sources)
        yield from (f"  {note}" for note in (*notes, missing) if note)
    if match.kind == "commit":
        holders = git.holders(sources.root, match.subject)
        subject = git.query(sources.root, "log", "-1", "--format=%s", match.subject)
        yield f'  "{subject}"' + (f", in {listed(holders, NAMED)}" if holders else "")
        yield "  A run records the commit that is checked out when it starts: dvc repro"


def _chain_lines(match: Match, sources: Sources) -> Iterator[str]:
    """Render the chain from oldest to newest; `→` marks the link that was named."""
    [record] = match.records
    links = chain(record, sources)
    is_mlflow_id = match.subject == record.mlflow_run_id
    marked = "MLflow run" if is_mlflow_id else MARKED.get(match.kind, match.kind)
    rows = []
    for link in links:
        rows.append((f"{'→' if link.name == marked else ' '} {link.name}", link.value or "none"))
        rows += [("", note) for note in link.notes]
    yield table(("", ""), rows)
    yield ""
    if missing := [link.missing for link in links if link.missing]:
        yield "Missing:"
        yield from (f"  {text}" for text in missing)
        return
    yield "Nothing is missing."
    if record.tag(contract.LOCK):
        command = restore_command(record, sources, beside(sources.root))
        yield f"To restore it: {command}"
        if command.endswith("--trust-run-code"):
            yield f"The option is for its uncommitted code ({DIFF}), which restore shows, and refuses without it."


def _list_lines(match: Match) -> Iterator[str]:
    """List runs, newest first, each with the values in which it differs from the others."""
    yield f"{match.kind} {match.subject}: {len(match.records)} runs, newest first"
    shown = match.records[:LISTED]
    rows = [
        (run.id, run.status, _time(run.started_ms), run.name, ", ".join(run.versions), differing)
        for run, differing in zip(shown, _differing(shown), strict=True)
    ]
    yield table(("",) * 6, rows, indent=2)
    if len(match.records) > LISTED:
        yield f"  and {len(match.records) - LISTED} older"
    if len({record.tag(contract.DATA_HASH) for record in shown} - {""}) > 1:
        yield "Their data differ: metrics of runs on different data are not comparable."
    yield f"Show one: convoy trace {shown[0].run_id}   Compare two: convoy trace {shown[1].run_id} {shown[0].run_id}"


def _differing(records: tuple[Record, ...]) -> Iterator[str]:
    """List the values of each run that are not equal in all of them."""
    tags = {"commit": contract.GIT_COMMIT, "data": contract.DATA_HASH, "experiment": contract.DVC_EXPERIMENT}
    values = [
        record.params | {name: record.tag(tag)[:ABBREVIATED] for name, tag in tags.items()}
        for record in records
    ]
    names = list(dict.fromkeys(name for own in values for name in own))
    varying = [name for name in names if len({own.get(name) for own in values}) > 1]
    for own in values:
        yield ", ".join(f"{name} {own[name]}" for name in varying if own.get(name))
