"""What the record of a round holds: timed steps, changes of the data, the figure of relabelled images."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convoy.core import contract
from convoy.core.errors import DataError
from convoy.export.image_index import Images
from convoy.gate import page
from convoy.registry.client import ArtifactMissing, Version
from convoy.retraining import outcome
from convoy.retraining.data_diff import Changes, diff
from convoy.retraining.outcome import RoundRecord
from squares import write_packed

VERSION = Version("convoy", "1", "0" * 64, "run-1", "mlflow-1", 0, {})


def test_steps_are_timed_and_printed_and_a_failed_one_is_recorded(monkeypatch, capsys):
    moments = iter((10.0, 12.5, 20.0, 20.25))
    monkeypatch.setattr(outcome.time, "monotonic", lambda: next(moments))
    record = RoundRecord("2026-11-23T22:10:05Z", push=False)
    assert record.incomplete_step == ""
    with record.step("decide") as step:
        step.note = "the data changed"
    with pytest.raises(KeyboardInterrupt), record.step("repro"):
        raise KeyboardInterrupt
    assert [vars(step) for step in record.steps] == [
        {"name": "decide", "seconds": 2.5, "note": "the data changed"},
        {"name": "repro", "seconds": 0.25, "note": ""},
    ]
    printed = [line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()]
    assert printed == [["decide", "2.5 s  the data changed"], ["repro", "0.2 s  failed"]]
    for result, name in (("failed", "repro"), ("paused", "repro"), ("kept", ""), ("skipped", "")):
        record.outcome = result  # type: ignore[assignment] # one of the outcomes
        assert record.incomplete_step == name


def checkpoint(root: Path, name: str, run_id: str, *, finished: bool) -> Path:
    folder = root / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "step-7.ckpt").touch()
    (folder / "step-7.json").write_text(json.dumps({"run_id": run_id, "finished": finished}))
    return folder / "step-7.ckpt"


def test_a_training_by_age_forgets_the_champion_s_finished_checkpoint_and_no_other(tmp_path, monkeypatch):
    run = SimpleNamespace(data=SimpleNamespace(tags={"convoy.training": "run-0"}))
    monkeypatch.setattr(outcome.store, "find", lambda _: run)
    gone = [checkpoint(tmp_path, name, f"run-{name}", finished=True) for name in "01"]
    kept = [
        checkpoint(tmp_path, "c", "run-1", finished=False),
        checkpoint(tmp_path, "d", "run-9", finished=True),
    ]
    (tmp_path / "checkpoints/d/step-8.json").write_text("{")
    outcome.forget_finished(tmp_path, None)
    assert all(path.exists() for path in (*gone, *kept))
    outcome.forget_finished(tmp_path, VERSION)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def write_images(path: Path, rows: dict[str, tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels, splits = zip(*rows.values(), strict=True)
    paths = [f"{pixels}.png" for pixels in rows]
    pq.write_table(pa.table({"pixels": list(rows), "label": labels, "split": splits, "path": paths}), path)
    return path


@pytest.mark.parametrize(
    ("before", "counts"),
    [
        ({"aa": ("cat", "train"), "cc": ("dog", "test"), "dd": ("cat", "train")}, (3, 1, 1, 0)),
        (None, (None, 0, 0, 0)),
    ],
    ids=["known", "unknown"],
)
def test_data_are_compared_with_the_champion_s(tmp_path, monkeypatch, before, counts):
    requested = []

    class Artifacts:
        def download_file(self, name: str, folder: Path) -> Path:
            requested.append(name)
            if before is None:
                raise ArtifactMissing(f"{name} is not in the store")
            return Path(shutil.copy(write_images(tmp_path / "before.parquet", before), folder / name))

    monkeypatch.setattr(outcome.Registry, "open", classmethod(lambda _: None))
    opened = classmethod(lambda _, __, version: requested.append(str(version)) or Artifacts())
    monkeypatch.setattr(outcome.ModelArtifacts, "of", opened)
    now = {"aa": ("cat", "train"), "bb": ("dog", "train"), "cc": ("dog", "test")}
    for name in (f"build/deploy/{contract.IMAGES}", "build/dataset/manifest.parquet"):
        write_images(tmp_path / name, now)
    record = RoundRecord(started="", push=False)
    outcome.compare_data(record, VERSION, tmp_path, tmp_path / "out")
    assert requested == ["convoy/1", contract.IMAGES]
    changes = record.changes
    assert changes
    assert (changes.before, changes.added, changes.gone, changes.relabelled) == counts
    if before:
        assert changes.added_examples[0].path == "bb.png"


# Figure of relabelled images

SPLITS = {"train": [0, 30], "val": [30, 36], "test": [36, 40]}


def split_of(row: int) -> str:
    return next(split for split, (start, stop) in SPLITS.items() if start <= row < stop)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Pack 40 images, each of a gray of its own, with the hash `nn`."""
    folder = tmp_path / "dataset"
    grays = np.arange(40, dtype=np.uint8)[:, None, None, None]
    write_packed(folder, np.broadcast_to(grays, (40, 8, 8, 3)), np.zeros(40), SPLITS, ["ape", "bee"])
    columns = {
        "pixels": [f"{row:02}" for row in range(40)] + [""],
        "split": [split_of(row) for row in range(40)] + [None],
        "row": [*range(40), -1],
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return folder


def relabelled(poisoned: Collection[int]) -> Changes:
    """Compare data in which some images were an ape before and are a bee now."""
    label = {f"{row:02}": ("bee" if row in poisoned else "ape", split_of(row)) for row in range(40)}
    return diff(Images({pixels: ("ape", split) for pixels, (_, split) in label.items()}), Images(label))


def test_relabelled_images_are_drawn_with_both_labels_from_the_packed_dataset(dataset, tmp_path, monkeypatch):
    drawn: list[page.Group] = []
    monkeypatch.setattr(page, "image_grid", drawn.extend)
    outcome.draw_relabelled(relabelled({3, 31, 38}), dataset, tmp_path / "out")
    (group,) = drawn
    assert (group.title, group.total) == ("Same image, another label", 3)
    assert [int(cell.image_u8[0, 0, 0]) for cell in group.cells if cell.image_u8 is not None] == [3, 31, 38]
    assert group.cells[1].caption.splitlines() == ["was ape", "now bee", "in val"]


def test_a_figure_is_written_and_without_relabelled_images_an_earlier_one_is_removed(dataset, tmp_path):
    (path,) = outcome.draw_relabelled(relabelled(range(40)), dataset, tmp_path / "out")
    assert path == tmp_path / "out/relabelled.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert outcome.draw_relabelled(relabelled(()), tmp_path / "nowhere", tmp_path / "out") == ()
    assert not path.exists()


def test_without_a_packed_dataset_the_remedy_is_named(tmp_path):
    with pytest.raises(DataError, match=r"dvc repro prepare"):
        outcome.draw_relabelled(relabelled({3}), tmp_path / "nowhere", tmp_path / "out")
