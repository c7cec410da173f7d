"""Record what a candidate was made of and how the data changed; write verdict.json and report.md into build/retrain/."""

import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from convoy.core import contract, files, params, yaml
from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.core.errors import DataError
from convoy.energy.meter import STAGES
from convoy.export import image_index
from convoy.export.image_index import Images
from convoy.gate import page
from convoy.gate.text import short
from convoy.registry.client import ArtifactMissing, ModelArtifacts, Registry, Version
from convoy.repo.identity import data_md5
from convoy.retraining import data_diff, report
from convoy.retraining.data_diff import Changes
from convoy.retraining.facts import Facts
from convoy.retraining.worktree import DATA, FOLDER
from convoy.tracking import store

OUT = Path("build/retrain")
VERDICT = "verdict.json"
REPORT = "report.md"
CHANGES = ("before", "now", "added", "gone", "relabelled", "moved")
"""Counts of changed images in verdict.json."""
MOST_DRAWN = 18
"""Most relabelled images drawn."""


def scratch(root: Path) -> Path:
    """Return the folder that collects the report's files until the round ends."""
    return root / FOLDER / f"out-{os.getpid()}"


def clear(root: Path) -> None:
    """Remove the folders that killed rounds left."""
    for left in (root / FOLDER).glob("out-*"):
        shutil.rmtree(left, ignore_errors=True)


def describe(facts: Facts, candidate: Version, worktree: Path) -> None:
    """Record what the candidate was made of, and the energy that its stages used."""
    for name in STAGES:
        path = worktree / "build/metrics" / f"{name}.json"
        facts.energy |= files.read_json(path).get("energy", {}) if path.exists() else {}
    facts.identity = replace(
        facts.identity,
        data_md5=data_md5(worktree / DATA),
        data_hash=str(files.read_json(worktree / "build/dataset/dataset.json")["hash"]),
        params_hash=params.digest(yaml.read(worktree / params.PARAMS_FILE)),
        lock_sha256=files.sha256(worktree / "dvc.lock"),
        run_id=candidate.run_id,
        mlflow_run_id=candidate.mlflow_run_id,
        version=str(candidate),
        onnx_sha256=candidate.sha256,
    )


def compare_data(facts: Facts, champion: Version | None, worktree: Path, out: Path) -> None:
    """Compare the images with the champion's, whose list is kept with its model; draw relabelled images into `out`."""
    now = image_index.load(worktree / "build/deploy" / contract.IMAGES)
    before = _images(champion) if champion else None
    rows = pq.read_table(worktree / "build/dataset/manifest.parquet", columns=["path", "pixels"]).to_pydict()
    paths = dict(zip(rows["pixels"], rows["path"], strict=True))
    facts.changes = data_diff.diff(before, now, paths)
    facts.files += draw_relabelled(facts.changes, worktree / "build/dataset", out)


def draw_relabelled(changes: Changes, dataset_folder: Path, out: Path) -> tuple[Path, ...]:
    """Draw images that have another label than before into relabelled.png; no file where no label changed.

    Args:
        changes: of the data.
        dataset_folder: today's packed dataset, from which the images are taken.
        out: folder of the figure; created if it does not exist.

    Raises:
        DataError: there is no packed dataset.
        RequestError: the folder cannot be written.
    """
    examples = changes.relabelled_examples[:MOST_DRAWN]
    images_u8 = _packed([example.pixels for example in examples], dataset_folder)
    cells = []
    for example in examples:
        labels = f"was {short(example.before, 17)}\nnow {short(example.now, 17)}\nin {example.split}"
        cells.append(page.Cell(images_u8.get(example.pixels), labels))
    group = page.Group("Same image, another label", page.BAD, changes.relabelled, cells)
    path = page.save(out / "relabelled.png", page.image_grid([group]))
    return (path,) if path else ()


def _packed(pixels: list[str], dataset_folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Read images from the packed dataset, by the hash of their pixels."""
    if not pixels:
        return {}
    dataset = Dataset.load(dataset_folder)
    columns, wanted = ["pixels", "split", "row"], [("pixels", "in", pixels), ("row", ">=", 0)]
    rows = pq.read_table(dataset_folder / MANIFEST_FILE, columns=columns, filters=wanted).to_pylist()
    images_u8 = {split: dataset.images(split) for split in dataset.splits}
    return {
        row["pixels"]: np.asarray(images_u8[row["split"]][row["row"] - dataset.splits[row["split"]][0]])
        for row in rows
        if row["split"] in images_u8
    }


def _images(version: Version) -> Images | None:
    """Fetch only the list of a version's images; None where there is none or it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return image_index.load(
                ModelArtifacts.of(Registry.open(), version).download_file(contract.IMAGES, Path(folder))
            )
        except (ArtifactMissing, DataError):
            return None


def forget_finished(root: Path, champion: Version | None) -> None:
    """Remove the finished checkpoints of the champion's training, whose results would be reused.

    Those of an interrupted training stay, since a round triggered by age resumes from its own.
    """
    if champion is None:
        return
    run = store.find(champion.run_id)
    trained = {champion.run_id, run.data.tags.get(contract.TRAINING, "") if run else ""}
    for note in (root / "checkpoints").glob("*/*.json"):
        try:
            content = files.read_json(note)
        except (OSError, ValueError):  # one that is being written, or was cut
            continue
        if content.get("finished") and content.get("run_id") in trained:
            note.with_suffix(".ckpt").unlink(missing_ok=True)
            note.unlink(missing_ok=True)


def write(root: Path, facts: Facts) -> Path:
    """Replace build/retrain/ by this round's verdict and report, and add the report to the job's summary.

    Returns:
        The report's path, relative to the repository.
    """
    waiting = scratch(root)
    waiting.mkdir(parents=True, exist_ok=True)
    files.write_json(waiting / VERDICT, _verdict(facts))
    report.write(waiting / REPORT, facts, [path for path in facts.files if path.suffix == ".png"])
    target = root / OUT
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(waiting, target)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(report.body(facts) + "\n")
    return OUT / REPORT


def _verdict(facts: Facts) -> dict[str, Any]:
    """Lay the report's facts out for programs."""
    result = facts.gate_result
    return {
        "verdict": facts.outcome,
        "reason": facts.reason or (result.reasons[0] if result else ""),
        "step": facts.incomplete_step,
        "trigger": facts.trigger,
        "started": facts.started,
        "seconds": facts.seconds,
        "steps": [asdict(step) for step in facts.steps],
        "candidate": facts.identity.version,
        "champion": facts.champion,
        "champion_before": facts.champion_before,
        "branch": facts.identity.branch,
        "identity": asdict(facts.identity),
        "pushed": {delivery.what: delivery.done for delivery in facts.deliveries},
        "data": {name: getattr(facts.changes, name) for name in CHANGES} if facts.changes else None,
        "judgement": result.as_json() if result else None,
    }


def job_page() -> str:
    """Return the address of this CI job's page; empty outside CI."""
    env = os.environ
    if env.get("GITHUB_ACTIONS") and env.get("GITHUB_RUN_ID"):
        return f"{env.get('GITHUB_SERVER_URL')}/{env.get('GITHUB_REPOSITORY')}/actions/runs/{env['GITHUB_RUN_ID']}"
    return env.get("CI_JOB_URL", "")
