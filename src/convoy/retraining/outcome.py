"""Gather what a round found, and write its verdict and report into build/retrain/."""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from convoy.core import contract, files, params, yaml
from convoy.core.errors import DataError
from convoy.energy.total import STAGES
from convoy.export import image_index
from convoy.export.image_index import Images
from convoy.gate.result import GateResult
from convoy.registry.artifacts import Gone, ModelArtifacts
from convoy.registry.client import Registry, Version
from convoy.retraining import data_diff as data_changes
from convoy.retraining import pictures, report
from convoy.retraining.data_diff import Changes
from convoy.retraining.facts import Delivery, Facts, Identity, Outcome
from convoy.retraining.steps import Steps
from convoy.retraining.worktree import DATA, FOLDER
from convoy.tracking import snapshot, store

OUT = Path("build/retrain")
VERDICT = "verdict.json"
REPORT = "report.md"


@dataclass
class Found:
    """Hold what a round knows so far; attributes are those of `Facts`.

    Attributes:
        base: commit of the caller.
        lock_commit: that of the final dvc.lock; empty where nothing changed.
        branch: that holds the round's commits; empty where there is none (any more).
        candidate: the version that was judged.
        files: of the judgement.
        pictures: of the data.
        made_of: identity of the candidate.
    """

    started: str
    push: bool
    base: str = ""
    lock_commit: str = ""
    branch: str = ""
    source: str = ""
    trigger: str = ""
    log: str = ""
    candidate: Version | None = None
    champion: Version | None = None
    champion_before: Version | None = None
    judgement: GateResult | None = None
    changes: Changes | None = None
    files: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()
    energy: dict[str, Any] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def scratch(root: Path) -> Path:
    """Name the folder in which files of the report wait for the round's end."""
    return root / FOLDER / f"out-{os.getpid()}"


def clear(root: Path) -> None:
    """Remove what killed rounds left of their reports."""
    for left in (root / FOLDER).glob("out-*"):
        shutil.rmtree(left, ignore_errors=True)


def describe(found: Found, place: Path) -> None:
    """Take from the worktree what the candidate was made of, and what that used."""
    version = found.candidate
    for name in STAGES:
        path = place / "build/metrics" / f"{name}.json"
        found.energy |= files.read_json(path).get("energy", {}) if path.exists() else {}
    found.made_of = {
        "data_md5": snapshot.data_md5(place / DATA),
        "data_hash": str(files.read_json(place / "build/dataset/dataset.json")["hash"]),
        "params_hash": params.digest(yaml.read(place / params.PARAMS_FILE)),
        "lock_sha256": files.sha256(place / "dvc.lock"),
        "run_id": version.run_id if version else "",
        "mlflow_run_id": version.mlflow_run_id if version else "",
        "version": str(version or ""),
        "onnx_sha256": version.sha256 if version else "",
    }


def compare_data(found: Found, place: Path, out: Path) -> None:
    """Compare today's images with those of the champion, which are kept with its model; draw what was relabelled."""
    now = image_index.load(place / "build/deploy" / contract.IMAGES)
    before = _images(found.champion_before) if found.champion_before else None
    rows = pq.read_table(place / "build/dataset/manifest.parquet", columns=["path", "pixels"]).to_pydict()
    paths = dict(zip(rows["pixels"], rows["path"], strict=True))
    found.changes = data_changes.changes(before, now, paths)
    found.pictures = pictures.draw(found.changes, place / "build/dataset", out)


def _images(version: Version) -> Images | None:
    """Fetch the list of a version's images alone; None where it has none that can be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return image_index.load(
                ModelArtifacts.of(Registry.open(), version).bring(contract.IMAGES, Path(folder))
            )
        except (Gone, DataError):
            return None


def forget_finished(root: Path, champion: Version | None) -> None:
    """Drop the finished checkpoints of the champion's training: its results would be taken from them.

    Those of a training that was broken off stay, since a round that trains by age goes on from its own.
    """
    if champion is None:
        return
    run = store.find(champion.run_id)
    trained = {champion.run_id, run.data.tags.get("convoy.training", "") if run else ""}
    for note in (root / "checkpoints").glob("*/*.json"):
        try:
            content = files.read_json(note)
        except (OSError, ValueError):  # one that is being written, or was cut
            continue
        if content.get("finished") and content.get("run_id") in trained:
            note.with_suffix(".ckpt").unlink(missing_ok=True)
            note.unlink(missing_ok=True)


def facts(found: Found, steps: Steps, verdict: Outcome, reason: str, began: float) -> Facts:
    """Put everything together for the report."""
    return Facts(
        verdict=verdict,
        reason=reason,
        started=found.started,
        seconds=round(time.monotonic() - began, 2),
        step=steps.last if verdict == "failed" else "",
        log=found.log,
        trigger=found.trigger,
        source=found.source,
        champion=str(found.champion or ""),
        champion_before=str(found.champion_before or ""),
        judgement=found.judgement,
        changes=found.changes,
        energy=found.energy,
        steps=tuple(steps.done),
        identity=Identity(
            commit=found.base, branch=found.branch, lock_commit=found.lock_commit, **found.made_of
        ),
        push=found.push,
        deliveries=tuple(found.deliveries),
        job=_job(),
        hints=tuple(found.hints),
    )


def write(root: Path, found: Found, told: Facts) -> Path:
    """Replace build/retrain/ by this round's verdict and report, and add the report to the job's summary.

    Returns:
        The report's path, relative to the repository.
    """
    waiting = scratch(root)
    waiting.mkdir(parents=True, exist_ok=True)
    files.write_json(waiting / VERDICT, _verdict(found, told))
    drawn = [path for path in (*found.files, *found.pictures) if path.suffix == ".png"]
    report.write(waiting / REPORT, told, drawn)
    target = root / OUT
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(waiting, target)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(report.body(told) + "\n")
    return OUT / REPORT


def _verdict(found: Found, told: Facts) -> dict[str, Any]:
    """Say for programs what the report says for people."""
    judgement = told.judgement
    return {
        "verdict": told.verdict,
        "reason": told.reason or (judgement.reasons[0] if judgement else ""),
        "step": told.step,
        "trigger": told.trigger,
        "started": told.started,
        "seconds": told.seconds,
        "steps": [{"name": one.name, "seconds": one.seconds, "note": one.note} for one in told.steps],
        "candidate": str(found.candidate or ""),
        "champion": told.champion,
        "champion_before": told.champion_before,
        "branch": told.identity.branch,
        "identity": vars(told.identity),
        "pushed": {one.what: one.done for one in told.deliveries},
        "data": _counts(told.changes),
        "judgement": judgement.as_json() if judgement else None,
    }


def _counts(found: Changes | None) -> dict[str, int | None] | None:
    """Count what became of the images; None where that was not looked at."""
    if found is None:
        return None
    return {name: getattr(found, name) for name in ("before", "now", "added", "gone", "relabelled", "moved")}


def _job() -> str:
    """Name the page of the CI job that this runs in; empty elsewhere."""
    env = os.environ
    if env.get("GITHUB_ACTIONS") and env.get("GITHUB_RUN_ID"):
        return f"{env.get('GITHUB_SERVER_URL')}/{env.get('GITHUB_REPOSITORY')}/actions/runs/{env['GITHUB_RUN_ID']}"
    return env.get("CI_JOB_URL", "")
