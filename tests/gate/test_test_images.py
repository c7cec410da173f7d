import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fixed_models
from convoy.core import files
from convoy.core.errors import DataError
from convoy.export import onnx_model
from convoy.gate import judge
from convoy.gate import test_images as splits
from convoy.gate.test_images import THUMBNAIL_PX
from convoy.images.decode import Decoded

LABELS = [("ape", "bee")[n % 2] for n in range(30)]


@pytest.fixture
def project(delivered):
    """12 test images of two classes, in a folder; the other 18 are for training."""
    return delivered(LABELS, 12)


def test_the_test_split_is_listed_before_an_image_is_read(project):
    test_images = project.test_images
    assert test_images.classes == ("ape", "bee")
    assert len(test_images.paths) == 12
    assert all(
        path.startswith("test/") and label in path
        for path, label in zip(test_images.paths, test_images.labels, strict=True)
    )
    assert test_images.pixels == tuple(sorted(test_images.pixels))
    assert test_images.delivered == 30
    assert len(test_images.data_hash) == 64


def number(path):
    return int(path.split("/")[-1].removesuffix(".png"))


def read_all(test_images, indices):
    return {index: image_u8 for chunk in test_images.read(indices, "white") for index, image_u8 in chunk}


def test_images_come_from_their_files_at_their_index(project):
    test_images = project.test_images
    images = read_all(test_images, range(12))
    assert sorted(images) == list(range(12))
    for index, image_u8 in images.items():
        np.testing.assert_array_equal(image_u8, fixed_models.image_u8(number(test_images.paths[index])))


def test_no_indices_read_nothing(project, tmp_path):
    assert list(splits.TestImages.load(project.home / "dataset", tmp_path / "gone").read([], "white")) == []


def test_memory_holds_one_chunk_at_a_time(project, monkeypatch):
    monkeypatch.setattr(onnx_model, "CHUNK_BYTES", 3 * 8 * 8 * 3)
    assert [len(chunk) for chunk in project.test_images.read(range(12), "white")] == [3, 3, 3, 3]


def test_a_changed_file_and_missing_data_are_errors(project, tmp_path):
    name = project.test_images.paths[4]
    (project.home / "data" / name).write_bytes(fixed_models.png(77))
    with pytest.raises(DataError, match=rf"1 of 12 images have changed .* the first is {name}.*dvc repro"):
        read_all(project.test_images, range(12))
    with pytest.raises(DataError, match=r"gone does not exist\. Fetch it with `dvc repro`"):
        read_all(splits.TestImages.load(project.home / "dataset", tmp_path / "gone"), [0])


def test_a_dataset_without_a_manifest_is_refused(project):
    (project.home / "dataset" / "manifest.parquet").unlink()
    with pytest.raises(DataError, match=r"manifest\.parquet does not exist\. Make it with `dvc repro"):
        splits.TestImages.load(project.home / "dataset", project.home / "data")


def test_a_manifest_of_an_earlier_version_is_refused(project):
    path = project.home / "dataset" / "manifest.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["pixels"]), path)
    with pytest.raises(DataError, match=r"no column `pixels`: an earlier version.*dvc repro --force prepare"):
        splits.TestImages.load(project.home / "dataset", project.home / "data")


def test_thumbnails_are_small_and_of_the_requested_images(project, monkeypatch):
    test_images = project.test_images
    first, second = test_images.paths[2], test_images.paths[9]
    images = test_images.thumbnails([first, second])
    assert set(images) == {first, second}
    np.testing.assert_array_equal(images[second], fixed_models.image_u8(number(second)))
    wide = Decoded(np.zeros((300, 600, 3), np.uint8), "RGB")
    monkeypatch.setattr("convoy.images.delivery.decode", lambda *_, **__: wide)
    assert test_images.thumbnails([first])[first].shape == (THUMBNAIL_PX // 2, THUMBNAIL_PX, 3)
    assert test_images.thumbnails([]) == {}


def test_images_are_read_over_the_background_of_the_model_that_sees_them(project):
    test_images = project.test_images
    path = project.home / "data" / test_images.paths[0]
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(path)
    changed = dataclasses.replace(
        test_images, sha256=(files.sha256(path), *test_images.sha256[1:]), background="black"
    )
    for background, level in (("white", 255), ("#000000", 0)):
        [[(_, image_u8)]] = changed.read([0], background)
        assert (image_u8 == level).all()
    assert (changed.thumbnails([changed.paths[0]])[changed.paths[0]] == 0).all()


def test_each_model_sees_its_own_background(project):
    class Run:
        def __init__(self, background):
            self.background, self.failure, self.seen = background, "", []

        def predict(self, numbers, paths, images_u8):
            self.seen += numbers

    asked = []

    class Images:
        paths = project.test_images.paths

        def read(self, indices, background):
            asked.append(background)
            return project.test_images.read(indices, background)

    runs = [Run("white"), Run("black")]
    sample = judge._predict(runs, Images(), range(12))
    assert (asked, len(sample)) == (["white", "black"], 12)
    assert [sorted(run.seen) for run in runs] == [list(range(12))] * 2
    asked.clear()
    judge._predict([Run("white"), Run("white")], Images(), range(12))
    assert asked == ["white"], "models that agree share a pass"
