from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convoy.core import files
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError
from convoy.images.resize import Geometry
from convoy.training.data import Batches, DataModule, check_augment, served_train_images, shuffled
from squares import PX, write_squares

STORED = 12


def identified(count):
    """Make images whose every pixel is their own row number, with labels that are its square."""
    rows = np.arange(count)
    images_u8 = np.broadcast_to(rows[:, None, None, None], (count, 4, 4, 3)).astype(np.uint8)
    return images_u8, rows**2


def in_order(count, batch_size):
    return Batches(*identified(count), batch_size, lambda: np.arange(count))


def test_an_epoch_shows_every_image_once_with_its_label():
    batches = Batches(*identified(50), 8, lambda: shuffled(50, seed=1, epoch=0))
    rows = torch.cat([batch.pixels_u8[:, 0, 0, 0] for batch in batches]).tolist()
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert sorted(rows) == list(range(50))
    assert labels == [row**2 for row in rows]
    assert rows != sorted(rows)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (3, [3]), (8, [8]), (9, [5, 4]), (16, [8, 8]), (17, [6, 6, 5]), (33, [7, 7, 7, 6, 6])],
)
def test_batches_differ_in_size_by_one_at_most(count, sizes):
    batches = in_order(count, 8)
    assert [len(batch.labels) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_batches_are_whole_tensors_in_channels_last_memory_numbered_from_zero():
    first, second = in_order(8, 4)
    assert first.pixels_u8.shape == (4, 3, 4, 4)
    assert first.pixels_u8.dtype == torch.uint8
    assert first.pixels_u8.is_contiguous(memory_format=torch.channels_last)
    assert (first.step, second.step) == (0, 1)


def test_the_order_depends_on_seed_and_epoch_alone():
    order = shuffled(30, seed=1, epoch=2)
    assert np.array_equal(order, shuffled(30, seed=1, epoch=2))
    for other in (shuffled(30, seed=1, epoch=3), shuffled(30, seed=2, epoch=2)):
        assert not np.array_equal(order, other)


def test_training_batches_are_augmented_as_seed_epoch_and_step_say(dataset, params):
    data = DataModule(dataset, params(), seed=1)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), current_epoch=3)
    plain = list(data.train_batches())
    served = list(data.train_dataloader())
    assert len(data.train_dataloader()) == len(served) == len(plain) == 3
    for batch, cut in zip(served, plain, strict=True):
        assert torch.equal(batch.pixels_u8, data.augmenter.apply(cut, 3).pixels_u8)
        assert not torch.equal(batch.pixels_u8, cut.pixels_u8)


def test_validation_batches_come_in_order(dataset, params):
    batches = DataModule(dataset, params(batch_size=5), seed=1).val_dataloader()
    assert np.array_equal(torch.cat([batch.labels for batch in batches]).numpy(), dataset.labels("val"))
    pixels_u8 = torch.cat([batch.pixels_u8 for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels_u8, dataset.images("val"))


@pytest.fixture
def larger(tmp_path):
    """A dataset whose training images are stored at 12 px and served at 8, of the middle 9."""
    write_squares(tmp_path)
    facts = files.read_json(tmp_path / "dataset.json") | {
        "fit": "crop",
        "crop_share": 0.75,
        "store_px": STORED,
    }
    files.write_json(tmp_path / "dataset.json", facts)
    noise = np.random.default_rng(0).integers(0, 256, (48, STORED, STORED, 3), dtype=np.uint8)
    np.save(tmp_path / "images" / "train.npy", noise)
    return Dataset.load(tmp_path)


def training_batch(dataset, params):
    data = DataModule(dataset, params, 1)
    stored = next(iter(data.train_batches()))
    return stored, data.augmenter.apply(stored, 0)


def test_without_resized_crop_training_shows_the_middle_of_larger_images_as_serving_does(larger, params):
    stored, shown = training_batch(larger, params(augment=[]))
    assert shown.pixels_u8.shape[1:] == (3, PX, PX)
    serve = Geometry(PX, "crop", 0.75)
    for image_u8, shown_u8 in zip(stored.pixels_u8, shown.pixels_u8, strict=True):
        served_u8 = serve(image_u8.permute(1, 2, 0).numpy())
        assert np.abs(served_u8.astype(int) - shown_u8.permute(1, 2, 0).numpy()).max() <= 1  # rounding


def test_resized_crop_cuts_from_the_stored_images(larger, params):
    whole = params(augment=[{"resized_crop": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}}])
    stored, shown = training_batch(larger, whole)
    assert shown.pixels_u8.shape[1:] == (3, PX, PX)
    squash = Geometry(PX, "squash")
    for image_u8, shown_u8 in zip(stored.pixels_u8, shown.pixels_u8, strict=True):
        resized_u8 = squash(image_u8.permute(1, 2, 0).numpy())
        assert np.abs(resized_u8.astype(int) - shown_u8.permute(1, 2, 0).numpy()).max() <= 1


def test_what_is_computed_of_training_images_sees_them_as_they_are_served(larger, dataset):
    served, rows = served_train_images(larger), np.array([3, 0, 40])
    assert served.shape == (len(served), PX, PX, 3) == (48, PX, PX, 3)
    expected = [Geometry(PX, "crop", 0.75)(image_u8) for image_u8 in larger.images("train")[rows]]
    assert np.abs(served[rows].astype(int) - np.stack(expected)).max() <= 1
    assert np.array_equal(served_train_images(dataset)[rows], dataset.images("train")[rows])


def test_a_crop_that_the_stored_images_allow_is_accepted(larger, dataset, params):
    crops = params(augment=[{"resized_crop": {"scale": [0.15, 1.0]}}])
    check_augment(larger, crops)
    with pytest.raises(RequestError, match="8 × 8 stored pixels"):
        check_augment(dataset, crops)
