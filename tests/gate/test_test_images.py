import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

import fixed_models as chosen
from convoy.core.errors import DataError
from convoy.export import onnx_model
from convoy.gate.test_images import THUMBNAIL_PX, TestImages
from convoy.images.decode import Decoded

LABELS = [("ape", "bee")[n % 2] for n in range(30)]


@pytest.fixture
def small(delivered):
    """12 test images of two classes, in a folder; the other 18 are for training."""
    return delivered(LABELS, 12)


def test_the_test_split_is_known_before_an_image_is_read(small):
    today = small.today
    assert today.classes == ("ape", "bee")
    assert len(today.paths) == 12
    assert all(
        path.startswith("test/") and label in path
        for path, label in zip(today.paths, today.labels, strict=True)
    )
    assert today.pixels == tuple(sorted(today.pixels))
    assert today.delivered == 30
    assert len(today.data_hash) == 64


def number(path):
    return int(path.split("/")[-1].removesuffix(".png"))


def everything(today, places):
    return {place: image_u8 for chunk in today.read(places) for place, image_u8 in chunk}


def test_images_come_from_their_files_at_their_places(small):
    today = small.today
    found = everything(today, range(12))
    assert sorted(found) == list(range(12))
    for place, image_u8 in found.items():
        np.testing.assert_array_equal(image_u8, chosen.image_u8(number(today.paths[place])))


def test_images_come_from_an_archive_as_well(small, tmp_path):
    archive = tmp_path / "archive" / "data.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((small.home / "data").rglob("*.png")):
            file.write(path, path.relative_to(small.home / "data"))
    today = TestImages.load(small.home / "dataset", archive)
    found = everything(today, [3, 7])
    assert sorted(found) == [3, 7]
    np.testing.assert_array_equal(found[7], chosen.image_u8(number(today.paths[7])))


def test_of_a_folder_only_the_files_that_are_asked_for_are_read(small):
    today = small.today
    for path in (small.home / "data").rglob("*.png"):
        if path.relative_to(small.home / "data").as_posix() != today.paths[5]:
            path.write_bytes(b"not read")
    assert list(everything(today, [5])) == [5]


def test_nothing_asked_reads_nothing(small, tmp_path):
    assert list(TestImages.load(small.home / "dataset", tmp_path / "gone").read([])) == []


def test_memory_holds_one_chunk_at_a_time(small, monkeypatch):
    monkeypatch.setattr(onnx_model, "CHUNK_BYTES", 3 * 8 * 8 * 3)
    assert [len(chunk) for chunk in small.today.read(range(12))] == [3, 3, 3, 3]


def test_a_file_that_is_gone_is_an_error(small):
    today = small.today
    (small.home / "data" / today.paths[4]).unlink()
    with pytest.raises(
        DataError,
        match=rf"1 of 12 images are no longer delivered .* the first is {today.paths[4]}.*dvc repro",
    ):
        everything(today, range(12))


def test_a_file_that_changed_is_an_error(small):
    today = small.today
    (small.home / "data" / today.paths[4]).write_bytes(chosen.png(77))
    with pytest.raises(
        DataError, match=rf"1 of 12 images have changed .* the first is {today.paths[4]}.*dvc repro"
    ):
        everything(today, range(12))


def test_a_file_that_cannot_be_read_is_an_error(small):
    today = small.today
    path = small.home / "data" / today.paths[4]
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        everything(today, range(12))


def test_data_that_are_gone_say_how_to_fetch_them(small, tmp_path):
    with pytest.raises(DataError, match=r"gone does not exist\. Fetch it with `dvc repro`"):
        everything(TestImages.load(small.home / "dataset", tmp_path / "gone"), [0])


def test_a_dataset_without_a_manifest_is_refused(small):
    (small.home / "dataset" / "manifest.parquet").unlink()
    with pytest.raises(
        DataError, match=r"manifest\.parquet does not exist\. Make it with `dvc repro prepare`"
    ):
        TestImages.load(small.home / "dataset", small.home / "data")


def test_a_manifest_of_an_earlier_version_is_refused(small):
    path = small.home / "dataset" / "manifest.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["pixels"]), path)
    with pytest.raises(DataError, match=r"no column `pixels`: an earlier version.*dvc repro --force prepare"):
        TestImages.load(small.home / "dataset", small.home / "data")


def test_thumbnails_are_small_and_of_the_images_asked_for(small, monkeypatch):
    today = small.today
    found = today.thumbnails([today.paths[2], today.paths[9]])
    assert sorted(found) == sorted([today.paths[2], today.paths[9]])
    np.testing.assert_array_equal(found[today.paths[9]], chosen.image_u8(number(today.paths[9])))
    wide = Decoded(np.zeros((300, 600, 3), np.uint8), "RGB")
    monkeypatch.setattr("convoy.images.delivery.decode", lambda _: wide)
    assert today.thumbnails([today.paths[2]])[today.paths[2]].shape == (THUMBNAIL_PX // 2, THUMBNAIL_PX, 3)
    assert today.thumbnails([]) == {}
