"""What images.parquet keeps of a dataset, and how it is read again."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convoy.core.errors import DataError
from convoy.export import image_index


@pytest.fixture
def written(tmp_path):
    manifest = {
        "path": ["c.png", "a.png", "b.png", "d.png"],
        "pixels": [name * 64 for name in "cabd"],
        "label": ["cat", "dog", "cat", "cat"],
        "split": ["test", "train", "val", None],
    }
    pq.write_table(pa.table(manifest), tmp_path / "manifest.parquet")
    image_index.write(tmp_path / "manifest.parquet", tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


def test_every_used_image_is_kept_with_label_and_split(written):
    assert image_index.load(written).table == {
        "a" * 64: ("dog", "train"),
        "b" * 64: ("cat", "val"),
        "c" * 64: ("cat", "test"),
    }


def test_validation_images_count_as_seen_and_test_images_do_not(written):
    assert image_index.load(written).seen == {"a" * 64, "b" * 64}


def test_equal_datasets_give_equal_files(written, tmp_path):
    image_index.write(tmp_path / "manifest.parquet", tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == written.read_bytes()


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"x" * 4000])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "images.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.parquet cannot be read .*dvc repro export"):
        image_index.load(tmp_path / "images.parquet")


def test_a_file_with_an_unknown_split_is_refused(tmp_path):
    columns = {"pixels": ["a" * 64], "label": ["cat"], "split": ["holdout"]}
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"splits other than train, val, test"):
        image_index.load(tmp_path / "images.parquet")
