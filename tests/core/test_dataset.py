import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convoy.core.dataset import Dataset
from convoy.core.errors import DataError
from convoy.data.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def packed(folder, parts, settings, tmp_path):
    prepare(folder(parts), settings(), tmp_path / "dataset")
    return tmp_path / "dataset"


def test_images_and_labels_are_read_only_slices_of_mapped_files(packed):
    dataset = Dataset.load(packed)
    images_u8, labels = dataset.images("val"), dataset.labels("val")
    assert isinstance(images_u8, np.memmap)
    assert (images_u8.shape, images_u8.dtype) == ((10, 8, 8, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((10,), np.int64)
    assert not images_u8.flags.writeable
    assert np.array_equal(images_u8, np.load(packed / "images" / "val.npy"))


def test_facts_are_those_of_the_file(packed):
    dataset, facts = Dataset.load(packed), json.loads((packed / "dataset.json").read_text())
    assert list(dataset.classes) == facts["classes"] == ["cat", "dog"]
    assert (dataset.image_px, dataset.fit, dataset.hash) == (8, "squash", facts["hash"])
    assert (list(dataset.mean), list(dataset.std)) == (facts["mean"], facts["std"])


@pytest.mark.parametrize("name", ["dataset.json", "images/train.npy", "images/test.npy", "labels.npy"])
def test_a_folder_without_one_of_the_files_is_refused(packed, name):
    (packed / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing.*`dvc repro prepare`"):
        Dataset.load(packed)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", b"{}"),
        ("dataset.json", b"nonsense"),
        ("images/val.npy", b"nonsense"),
        ("labels.npy", b""),
    ],
)
def test_a_folder_with_a_broken_file_is_refused(packed, name, content):
    (packed / name).write_bytes(content)
    with pytest.raises(DataError, match=r"not a packed dataset of this version.*dvc repro --force prepare"):
        Dataset.load(packed)


def test_a_folder_whose_files_disagree_is_refused(packed):
    np.save(packed / "labels.npy", np.zeros(3, np.int64))
    with pytest.raises(
        DataError,
        match=r"describes an array of \(30,\) in labels\.npy, which holds \(3,\)\..*dvc repro --force prepare",
    ):
        Dataset.load(packed)


def test_reading_imports_numpy_and_little_else():
    heavy = ("torch", "onnx", "onnxruntime", "pyarrow", "PIL", "pydantic", "mlflow")
    code = f"import sys, convoy.core.dataset; print([m for m in {heavy} if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
