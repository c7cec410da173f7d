"""The contact sheet of augmented training images."""

import numpy as np
import pytest
from PIL import Image

from convoy.core import params as core_params
from convoy.core import yaml
from convoy.core.dataset import Dataset
from convoy.explain import augmentation
from convoy.training.settings import TrainParams
from squares import write_packed


@pytest.fixture
def sheet(repository, tmp_path):
    """Draw the sheet of a policy for images of some classes, and return its pixels."""
    shipped = yaml.read(repository / "params.yaml")["train"]

    def draw(text, classes=3, name="sheet.png"):
        labels = np.repeat(np.arange(classes), 4)
        images_u8 = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16, 3), np.uint8)
        splits = {"train": [0, len(labels)], "val": [0, 4], "test": [0, 4]}
        names = [f"$class_{label}" for label in range(classes - 1)] + ["日本猫"]
        write_packed(tmp_path / f"{name}-dataset", images_u8, labels, splits, names)
        read = core_params.check("train", TrainParams, shipped | {"augment": yaml.load(text)})
        path = augmentation.draw(Dataset.load(tmp_path / f"{name}-dataset"), read, 1, tmp_path / name)
        return path, np.asarray(Image.open(path).convert("RGB"))

    return draw


@pytest.mark.filterwarnings("error")
def test_the_sheet_shows_images_beside_their_versions_and_is_equal_for_equal_contents(sheet):
    path, pixels = sheet("strong")
    assert min(pixels.shape[:2]) > 1000
    assert path.read_bytes() == sheet("strong", name="again.png")[0].read_bytes()
    assert path.read_bytes() != sheet("photo", name="other.png")[0].read_bytes()


def test_without_transforms_it_shows_the_images_alone(sheet):
    assert sheet("[]")[1].shape[1] < sheet("[flip]", name="other.png")[1].shape[1]


@pytest.mark.parametrize(
    ("classes", "labels"), [(2, [0, 0, 0, 1, 1, 1]), (6, range(6)), (100, [0, 20, 40, 59, 79, 99])]
)
def test_examples_are_of_as_many_classes_as_possible(classes, labels):
    shuffled = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), 4))
    rows = augmentation._examples(shuffled)
    assert len(set(rows)) == 6
    assert list(shuffled[rows]) == list(labels)


def test_one_image_alone_can_be_drawn():
    assert list(augmentation._examples(np.array([3]))) == [0]
