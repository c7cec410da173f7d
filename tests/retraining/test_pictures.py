import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convoy.core import files
from convoy.core.errors import DataError
from convoy.export.image_index import Images
from convoy.gate import grid
from convoy.retraining import pictures
from convoy.retraining.data_diff import changes

SPLITS = {"train": [0, 30], "val": [30, 36], "test": [36, 40]}


def split_of(row):
    return next(split for split, (start, stop) in SPLITS.items() if start <= row < stop)


@pytest.fixture
def dataset(tmp_path):
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


def of(poisoned):
    """Compare data in which some images were an ape before and are a bee now."""
    label = {f"{row:02}": ("bee" if row in poisoned else "ape", split_of(row)) for row in range(40)}
    return changes(Images({pixels: ("ape", split) for pixels, (_, split) in label.items()}), Images(label))


def test_images_that_carry_another_label_are_drawn_with_both_from_the_packed_dataset(
    dataset, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(grid, "draw", lambda groups, look: seen.append((groups, look)))
    pictures.draw(of({3, 31, 38}), dataset, tmp_path / "out")
    (((group,), look), _) = seen
    assert (group.title, group.total) == ("Same image, another label", 3)
    assert [int(cell.image_u8[0, 0, 0]) for cell in group.cells] == [3, 31, 38]
    assert [text for text, _ in group.cells[1].lines] == ["was ape", "now bee", "in val"]
    assert [color for _, color in group.cells[1].lines] == [look.good, look.bad, look.soft]


def test_the_picture_is_drawn_for_light_and_dark_pages_and_equal_for_equal_changes(dataset, tmp_path):
    one, two = (pictures.draw(of(range(40)), dataset, tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in one] == ["relabelled.png", "relabelled-dark.png"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    with Image.open(one[0]) as image:
        assert image.format == "PNG"


def test_where_no_label_changed_nothing_is_read_or_drawn_and_an_earlier_picture_removed(dataset, tmp_path):
    pictures.draw(of({3}), dataset, tmp_path / "out")
    assert pictures.draw(of(()), tmp_path / "nowhere", tmp_path / "out") == ()
    assert not list((tmp_path / "out").iterdir())


def test_without_a_packed_dataset_the_reason_is_said(tmp_path):
    with pytest.raises(DataError, match=r"is no packed dataset: it has no .*dvc repro prepare"):
        pictures.draw(of({3}), tmp_path / "nowhere", tmp_path / "out")
