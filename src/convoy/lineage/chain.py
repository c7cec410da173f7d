"""Put together the identity of one run, from its commit to its registered versions, and what is missing of it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from convoy.core import files
from convoy.core.errors import without_credentials
from convoy.lineage.runs import COMMIT, Record, Records
from convoy.repo import git
from convoy.repo.dvc_cache import Cache

DIFF = "pipeline/workspace.diff"
SEARCHED = 20
HELD = 4
"""Branches, tags and experiments that are named; the rest are counted."""

WORKSPACE_MODEL = Path("build/deploy/model.onnx")


@dataclass(frozen=True)
class Link:
    """State one part of a run's identity.

    Attributes:
        name: such as `git commit`.
        value: its full id; empty where the run has none.
        notes: where it is and what is to be known of it.
        missing: what is not there, and how to get it.
    """

    name: str
    value: str
    notes: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Places:
    """Name what a chain is looked up in.

    Attributes:
        root: the repository.
        records: the runs of the tracking store and the outbox.
        cache: DVC's.
        onnx: a file that was asked for, with its sha256.
        silent: why the store cannot be asked; empty where it can.
    """

    root: Path
    records: Records
    cache: Cache
    onnx: tuple[Path, str] | None = None
    silent: str = ""


def chain(record: Record, places: Places) -> list[Link]:
    """Follow a run from what it was made of to what came of it."""
    artifacts = places.records.listed(record, "pipeline") if record.name else set()
    return [
        _commit(record, places, artifacts),
        _data(record, places),
        _params(record, artifacts),
        _run(record),
        _mlflow(record, places),
        _onnx(record, places),
        _lock(record, places, artifacts),
        _versions(record),
        _experiment(record, places),
    ]


def _commit(record: Record, places: Places, artifacts: set[str]) -> Link:
    number = record.tag(COMMIT)
    if not number:
        return Link("git commit", "", missing="the run names no commit: it was made outside a git repository")
    notes = []
    dirty = record.tag("convoy.git_dirty") == "true"
    lost_diff = dirty and DIFF not in artifacts
    if dirty:
        kept = "what differed was not kept" if lost_diff else f"what differed is kept with the run: {DIFF}"
        notes.append(f"files differed from it: {kept}")
    if not git.ask(places.root, "cat-file", "-t", number):
        remedy = "type: git fetch --all --tags. If it was amended or rebased away, nobody but a clone that had it has it"
        return Link(
            "git commit", number, tuple(notes), f"commit {number[:10]} is not in this repository; {remedy}"
        )
    subject = git.ask(places.root, "log", "-1", "--format=%s", number)
    held = git.holders(places.root, number)
    where = f"in {_some(held)}" if held else ""
    missing = (
        ""
        if held
        else (
            f"no branch, tag or experiment holds commit {number[:10]}, so git will remove it; "
            f"type: git branch keep-{number[:7]} {number[:10]}"
        )
    )
    if lost_diff:
        missing = missing or "the changes that the run was made with: commit before a run that matters"
    return Link("git commit", number, tuple(filter(None, [f'"{subject}"', where, *notes])), missing)


def _data(record: Record, places: Places) -> Link:
    packed, md5 = record.tag("convoy.data_hash"), record.tag("convoy.data_md5")
    if not packed:
        return Link("data", "", missing="the run names no data")
    if not md5:
        return Link("data", packed, ("as packed by prepare; what was delivered is not named",))
    return Link("data", packed, *data_place(md5, places))


def data_place(md5: str, places: Places) -> tuple[tuple[str, ...], str]:
    """Say where delivered data are: notes, and what is missing."""
    notes = [f"delivered as {md5}"]
    lacks = places.cache.lacks(md5)
    members = len(places.cache.members(md5))
    if not lacks:
        notes.append(f"in DVC's cache{_files(members)}")
        return tuple(notes), ""
    part = f"{len(lacks):,} of its {members + 1:,} objects" if members else "they"
    return tuple(notes), (
        f"data {md5[:10]}: {part} are not in DVC's cache; type: dvc fetch (where a remote has them), "
        "or copy the cache of the machine that made the run"
    )


def _params(record: Record, artifacts: set[str]) -> Link:
    value = record.tag("convoy.params_hash")
    if not value:
        return Link("params", "", missing="the run names no params")
    kept = "pipeline/params.yaml" in artifacts
    return Link("params", value, ("kept with the run: pipeline/params.yaml",) if kept else ())


def _run(record: Record) -> Link:
    training = record.tag("convoy.training")
    notes = (f"reuses the training of run {training}",) if training not in ("", record.run_id) else ()
    if not record.run_id:
        return Link("convoy run", "", missing="Convoy did not make this run")
    return Link("convoy run", record.run_id, notes)


def _mlflow(record: Record, places: Places) -> Link:
    facts = [record.name, record.status, f"started {moment(record.started_ms)}"] if record.name else []
    if not record.waiting:
        lacking = f"{without_credentials(places.records.uri)} does not have this run; let MLFLOW_TRACKING_URI name the store that has it"
        return Link("MLflow run", record.mlflow_run_id, tuple(facts), "" if record.mlflow_run_id else lacking)
    part = "part of it waits" if record.mlflow_run_id else "it waits"
    where = f"{part} in {record.waiting.parent.name}/{record.waiting.name}"
    if record.status == "RUNNING":  # it is being written
        return Link("MLflow run", record.mlflow_run_id, (*facts, where))
    remedy = f"{where} to be delivered to {without_credentials(record.destination)}; type: convoy sync"
    return Link("MLflow run", record.mlflow_run_id, tuple(facts), remedy)


def _onnx(record: Record, places: Places) -> Link:
    proven = record.tag("convoy.onnx_sha256")
    notes = []
    if places.onnx and proven and places.onnx[1] != proven:
        return Link(
            "model.onnx",
            proven,
            missing=f"{places.onnx[0]} has other bytes (sha256 {places.onnx[1]}) than the model that the run proved: "
            "it was changed since. Take the proven one from the run's artifacts",
        )
    value = proven or (places.onnx[1] if places.onnx else "")
    if not value:
        return Link("model.onnx", "", missing="no proven model: `export` has not ended in this run")
    if places.onnx:
        notes.append(str(places.onnx[0]))
    here = places.root / WORKSPACE_MODEL
    if here.exists() and not (places.onnx and here.samefile(places.onnx[0])) and files.sha256(here) == value:
        notes.append(f"{WORKSPACE_MODEL} is this file")
    return Link("model.onnx", value, tuple(notes))


def _lock(record: Record, places: Places, artifacts: set[str]) -> Link:
    value = record.tag("convoy.lock")
    if not value:
        return Link("dvc.lock", "", missing=_no_lock(record))
    notes = ["kept with the run: pipeline/dvc.lock"] if "pipeline/dvc.lock" in artifacts else []
    here = places.root / "dvc.lock"
    if here.exists() and files.sha256(here) == value:
        notes.append("the workspace's is the same")
    if commit := _committed(places.root, value):
        notes.append(f"committed in {commit}")
    return Link("dvc.lock", value, tuple(notes))


def _no_lock(record: Record) -> str:
    if record.status in ("FAILED", "KILLED", "RUNNING", "SCHEDULED"):
        return f"no final dvc.lock: the run is {record.status}"
    return "no final dvc.lock; type: convoy sync (it is attached once DVC has ended, from the workspace or the experiment)"


def _committed(root: Path, sha256: str) -> str:
    """Name the latest commit with a `dvc.lock` of this content."""
    commits = git.ask(
        root, "log", "--branches", "--tags", f"-{SEARCHED}", "--format=%h", "--", "dvc.lock"
    ).split()
    held = git.contents(root, (f"{commit}:dvc.lock" for commit in commits))
    for commit in commits:
        if hashlib.sha256(held.get(f"{commit}:dvc.lock", b"")).hexdigest() == sha256:
            return commit
    return ""


def _versions(record: Record) -> Link:
    # No remedy: most runs are never registered, and need not be.
    return Link("registered", ", ".join(map(str, record.versions)))


def _experiment(record: Record, places: Places) -> Link:
    name = record.tag("convoy.dvc_experiment")
    if not name:
        return Link("experiment", "")
    if name in (known := git.experiments(places.root)):
        return Link(
            "experiment", name, (f"commit {known[name][:10]}; to have it here: dvc exp apply {name}",)
        )
    return Link(
        "experiment", name, missing=f"experiment {name} is no longer in git; the run has its params and files"
    )


def missing(links: list[Link]) -> Iterator[str]:
    """List what a chain lacks."""
    return (link.missing for link in links if link.missing)


def moment(milliseconds: int) -> str:
    """Write a time for people."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - HELD} more" if len(names) > HELD else ""
    return ", ".join(names[:HELD]) + more


def _files(count: int) -> str:
    return f" ({count:,} file{'s' if count > 1 else ''})" if count else ""
