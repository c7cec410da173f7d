"""What a round leaves in build/retrain/, and what it takes from others for it."""

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

from convoy.core import contract, files
from convoy.core.errors import DataError
from convoy.export.image_index import Images
from convoy.gate import page
from convoy.registry.client import ArtifactMissing, Version
from convoy.retraining import outcome
from convoy.retraining.data_diff import Changes, diff
from convoy.retraining.facts import Facts

VERSION = Version("convoy", "1", "0" * 64, "run-1", "mlflow-1", 0, {})


def checkpoint(root: Path, name: str, run_id: str, *, finished: bool) -> Path:
    folder = root / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "step-7.ckpt").touch()
    (folder / "step-7.json").write_text(json.dumps({"run_id": run_id, "finished": finished}))
    return folder / "step-7.ckpt"


def test_a_training_by_age_forgets_the_champion_s_finished_checkpoint_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(data=SimpleNamespace(tags={"convoy.training": "run-0"}))
    monkeypatch.setattr(outcome.store, "find", lambda _: run)
    gone = [
        checkpoint(tmp_path, "a", "run-1", finished=True),
        checkpoint(tmp_path, "b", "run-0", finished=True),
    ]
    kept = [
        checkpoint(tmp_path, "c", "run-1", finished=False),
        checkpoint(tmp_path, "d", "run-9", finished=True),
    ]
    (tmp_path / "checkpoints/d/step-8.json").write_text("{")
    outcome.forget_finished(tmp_path, VERSION)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def images(path: Path, rows: dict[str, tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels, splits = zip(*rows.values(), strict=True)
    table = pa.table({"pixels": list(rows), "label": list(labels), "split": list(splits)})
    pq.write_table(table.append_column("path", pa.array([f"{one}.png" for one in rows])), path)
    return path


class Store:
    """Stand for the files of a version in the registry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: Path | None) -> None:
        self.requested: list[str] = []
        self.held = held
        monkeypatch.setattr(outcome.Registry, "open", classmethod(lambda _: None))
        monkeypatch.setattr(
            outcome.ModelArtifacts, "of", classmethod(lambda _, __, version: self.of(version))
        )

    def of(self, version: Version) -> "Store":
        self.requested.append(str(version))
        return self

    def download_file(self, name: str, folder: Path) -> Path:
        self.requested.append(name)
        if self.held is None:
            raise ArtifactMissing(f"{name} is not in the store")
        return Path(shutil.copy(self.held, folder / name))


def test_data_are_compared_with_the_champion_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"aa": ("cat", "train"), "bb": ("dog", "train"), "cc": ("dog", "test")}
    images(tmp_path / "build/deploy" / contract.IMAGES, now)
    images(tmp_path / "build/dataset/manifest.parquet", now)
    before = images(
        tmp_path / "before.parquet", {"aa": ("cat", "train"), "cc": ("dog", "test"), "dd": ("cat", "train")}
    )
    store = Store(monkeypatch, before)
    facts = Facts(started="", push=False)
    outcome.compare_data(facts, VERSION, tmp_path, tmp_path / "out")
    assert store.requested == ["convoy/1", contract.IMAGES]
    assert facts.changes
    assert (facts.changes.added, facts.changes.gone, facts.changes.relabelled) == (1, 1, 0)
    assert facts.changes.added_examples[0].path == "bb.png"


def test_a_champion_whose_images_are_not_known_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "build/deploy" / contract.IMAGES, {"aa": ("cat", "train")})
    images(tmp_path / "build/dataset/manifest.parquet", {"aa": ("cat", "train")})
    Store(monkeypatch, None)
    facts = Facts(started="", push=False)
    outcome.compare_data(facts, VERSION, tmp_path, tmp_path / "out")
    assert facts.changes
    assert facts.changes.before is None


def test_the_page_of_the_job_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "CI_JOB_URL"):
        monkeypatch.delenv(name, raising=False)
    assert outcome.job_page() == ""
    monkeypatch.setenv("CI_JOB_URL", "https://gitlab.example/job/7")
    assert outcome.job_page() == "https://gitlab.example/job/7"
    for name, text in {
        "GITHUB_ACTIONS": "true",
        "GITHUB_RUN_ID": "7",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "a/b",
    }.items():
        monkeypatch.setenv(name, text)
    assert outcome.job_page() == "https://github.com/a/b/actions/runs/7"


# Figure of relabelled images

SPLITS = {"train": [0, 30], "val": [30, 36], "test": [36, 40]}


def split_of(row: int) -> str:
    return next(split for split, (start, stop) in SPLITS.items() if start <= row < stop)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Pack 40 images, each of a gray of its own, with the hash `nn`."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    grays = np.arange(40, dtype=np.uint8)[:, None, None, None]
    np.save(folder / "images.npy", np.broadcast_to(grays, (40, 8, 8, 3)))
    np.save(folder / "labels.npy", np.zeros(40, np.int64))
    facts = {"classes": ["ape", "bee"], "image_px": 8, "fit": "squash", "mean": [0] * 3, "std": [1] * 3}
    facts |= {"hash": "h", "splits": SPLITS, "counts": {split: {} for split in SPLITS}}
    files.write_json(folder / "dataset.json", facts)
    rows = [*range(40), -1]
    columns = {
        "pixels": [f"{row:02}" for row in range(40)] + [""],
        "split": [split_of(row) for row in range(40)] + [None],
        "row": rows,
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return folder


def relabelled(poisoned: Collection[int]) -> Changes:
    """Compare data in which some images were an ape before and are a bee now."""
    label = {f"{row:02}": ("bee" if row in poisoned else "ape", split_of(row)) for row in range(40)}
    return diff(Images({pixels: ("ape", split) for pixels, (_, split) in label.items()}), Images(label))


def test_relabelled_images_are_drawn_with_both_labels_from_the_packed_dataset(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[page.Group] = []
    monkeypatch.setattr(page, "image_grid", drawn.extend)
    outcome.draw_relabelled(relabelled({3, 31, 38}), dataset, tmp_path / "out")
    (group,) = drawn
    assert (group.title, group.total) == ("Same image, another label", 3)
    assert [int(cell.image_u8[0, 0, 0]) for cell in group.cells if cell.image_u8 is not None] == [3, 31, 38]
    assert group.cells[1].caption.splitlines() == ["was ape", "now bee", "in val"]


def test_equal_changes_give_an_equal_figure_and_none_removes_an_earlier_one(
    dataset: Path, tmp_path: Path
) -> None:
    one, two = (
        outcome.draw_relabelled(relabelled(range(40)), dataset, tmp_path / name) for name in ("one", "two")
    )
    assert [path.name for path in one] == ["relabelled.png"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    with Image.open(one[0]) as image:
        assert image.format == "PNG"
    assert outcome.draw_relabelled(relabelled(()), tmp_path / "nowhere", tmp_path / "one") == ()
    assert not list((tmp_path / "one").iterdir())


def test_without_a_packed_dataset_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dvc repro prepare"):
        outcome.draw_relabelled(relabelled({3}), tmp_path / "nowhere", tmp_path / "out")
