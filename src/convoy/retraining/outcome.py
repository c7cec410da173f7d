"""The record of a round of retraining: its outcome and timed steps, what the candidate was made of, how the data changed."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from convoy.core import contract, files, params, pipeline, yaml
from convoy.core.console import info
from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.core.errors import DataError
from convoy.core.escaping import short
from convoy.energy.meter import STAGES
from convoy.export import image_index
from convoy.export.image_index import Images
from convoy.gate import page
from convoy.gate.result import GateResult, Verdict
from convoy.registry.client import ArtifactMissing, ModelArtifacts, Registry, Version
from convoy.retraining import data_diff
from convoy.retraining.data_diff import Changes
from convoy.tracking import store
from convoy.training.stored import train_images

Outcome = Literal["promoted", "kept", "refused", "nothing-new", "skipped", "paused", "failed"]
"""How a round ends. `paused`: stopped by its time budget or a signal, and continued by the next round."""

DECIDED: Mapping[Verdict, Outcome] = {"promote": "promoted", "keep": "kept", "refuse": "refused"}
MOST_DRAWN = 18  # relabelled images in the figure


@dataclass
class Step:
    """Record one step of a round."""

    name: str
    seconds: float = 0.0  # of wall time
    note: str = ""  # its result in a few words


@dataclass(frozen=True)
class Delivery:
    """Record whether something left this machine."""

    what: str  # subject of a line: `data and models`, `branch`, `pull request`
    where: str = ""  # the remote or the address, without credentials (an https:// address becomes a link)
    why: str = ""  # why it was not done, with the command that does it by hand; empty if it was done


@dataclass
class Identity:
    """Hold the ids that lead from the data to the candidate; empty until they exist."""

    commit: str = ""  # git commit whose code and params ran (HEAD of the caller)
    branch: str = ""  # of this round, `retrain/...`; empty where there is no such branch (any more)
    lock_commit: str = ""  # commit on that branch that holds the final dvc.lock; empty where nothing changed
    data_md5: str = ""  # the delivery as DVC names it (`md5` of the out in data.dvc, with `.dir`)
    data_hash: str = ""  # the packed dataset (`hash` of dataset.json, tag `convoy.data_hash`)
    params_hash: str = ""  # tag `convoy.params_hash` of the run
    run_id: str = ""  # Convoy's
    mlflow_run_id: str = ""
    version: str = ""  # the registered version, such as `convoy/7`
    onnx_sha256: str = ""  # of model.onnx
    lock_sha256: str = ""  # of dvc.lock (tag `convoy.lock`)


@dataclass
class RoundRecord:
    """Record a round while it runs; verdict.json and report.md are written from it."""

    started: str  # UTC, ISO 8601, such as `2026-11-23T22:10:05Z`
    push: bool  # whether PUSH=1 was given
    outcome: Outcome = "failed"  # until the round ended otherwise
    reason: str = ""  # one or more lines; empty for an outcome of the gate, which has its own reasons
    seconds: float = 0.0  # of wall time, the whole round
    log: str = ""  # the last lines of the failed step, such as the end of `dvc repro`'s output
    uncommitted: dict[str, tuple[str, str]] = field(
        default_factory=dict
    )  # params by flat key: the committed value, which is trained, and the caller's
    trigger: str = ""  # why this round trained, such as `the data changed upstream`; empty where it did not
    source: str = ""  # of the data, as data.dvc has it; without credentials
    champion: str = ""  # the version that serves now, such as `convoy/7`; empty where there is none
    champion_before: str = ""  # the version that served when the round began
    gate_result: GateResult | None = None  # None before the verdict
    changes: Changes | None = None  # from the champion's images to the candidate's
    energy: dict[str, Any] = field(default_factory=dict)  # sections `energy` of build/metrics/*.json joined
    files: tuple[Path, ...] = ()  # verdict.html and figures
    steps: list[Step] = field(default_factory=list)  # in the order in which they ran, a failed step included
    identity: Identity = field(default_factory=Identity)
    deliveries: list[Delivery] = field(default_factory=list)  # what was to leave this machine, in order
    job: str = ""  # address of the CI job's page that has this report with its figures; empty outside CI
    hints: list[str] = field(default_factory=list)  # Markdown, not escaped; shown before the usual next steps

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and print its line; a step that fails is recorded too."""
        step, began, complete = Step(name), time.monotonic(), False
        self.steps.append(step)
        try:
            yield step
            complete = True
        finally:  # after Ctrl-C too: the report names the step
            step.seconds = round(time.monotonic() - began, 2)
            text = step.note if complete else "failed"
            info(f"[retrain] {name:<16} {step.seconds:7.1f} s  {text}".rstrip())

    @property
    def incomplete_step(self) -> str:
        """Name the step in which the round failed or paused; empty where it ended as it should."""
        return self.steps[-1].name if self.steps and self.outcome in ("failed", "paused") else ""


def describe(record: RoundRecord, candidate: Version, worktree: Path) -> None:
    """Record what the candidate was made of, and the energy that its stages used."""
    for name in STAGES:
        path = worktree / "build/metrics" / f"{name}.json"
        record.energy |= files.read_json(path).get("energy", {}) if path.exists() else {}
    record.identity = replace(
        record.identity,
        data_md5=pipeline.data_import(worktree).md5,
        data_hash=str(files.read_json(worktree / "build/dataset/dataset.json")["hash"]),
        params_hash=params.digest(yaml.read(worktree / params.PARAMS_FILE)),
        lock_sha256=files.sha256(worktree / "dvc.lock"),
        run_id=candidate.run_id,
        mlflow_run_id=candidate.mlflow_run_id,
        version=str(candidate),
        onnx_sha256=candidate.sha256,
    )


def compare_data(record: RoundRecord, champion: Version | None, worktree: Path, out: Path) -> None:
    """Compare the images with the champion's, whose list is kept with its model; draw relabelled images into `out`."""
    now = image_index.load(worktree / "build/deploy" / contract.IMAGES)
    before = _images(champion) if champion else None
    rows = pq.read_table(worktree / "build/dataset/manifest.parquet", columns=["path", "pixels"]).to_pydict()
    paths = dict(zip(rows["pixels"], rows["path"], strict=True))
    record.changes = data_diff.diff(before, now, paths)
    record.files += draw_relabelled(record.changes, worktree / "build/dataset", out)


def draw_relabelled(changes: Changes, dataset_folder: Path, out: Path) -> tuple[Path, ...]:
    """Draw images of the packed dataset that have another label than before into relabelled.png in `out`.

    Returns:
        Its path; empty where no label changed.

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
    images_u8 = {
        split: train_images(dataset) if split == "train" else dataset.images(split)
        for split in dataset.splits
    }
    return {
        row["pixels"]: images_u8[row["split"]][np.array([row["row"] - dataset.splits[row["split"]][0]])][0]
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
        except (OSError, ValueError):  # being written, or cut off
            continue
        if content.get("finished") and content.get("run_id") in trained:
            note.with_suffix(".ckpt").unlink(missing_ok=True)
            note.unlink(missing_ok=True)
