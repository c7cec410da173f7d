from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convoy.training.data import Batches, DataModule, augment, shuffled


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
    def batch_of(seed=1, epoch=0, step=0, training=True):
        data = DataModule(dataset, params(), seed)
        data.trainer = SimpleNamespace(training=training, current_epoch=epoch)
        plain = next(iter(DataModule(dataset, params(), 1).val_dataloader()))._replace(step=step)
        return data.on_after_batch_transfer(plain, 0).pixels_u8

    plain = batch_of(training=False)
    assert torch.equal(batch_of(), batch_of())
    for other in (plain, batch_of(seed=2), batch_of(epoch=1), batch_of(step=1)):
        assert not torch.equal(batch_of(), other)


def test_validation_batches_come_in_order(dataset, params):
    batches = DataModule(dataset, params(batch_size=5), seed=1).val_dataloader()
    assert np.array_equal(torch.cat([batch.labels for batch in batches]).numpy(), dataset.labels("val"))
    pixels_u8 = torch.cat([batch.pixels_u8 for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels_u8, dataset.images("val"))


def images(count, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    nhwc = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return nhwc.permute(0, 3, 1, 2)


def random(seed=0):
    return np.random.default_rng(seed)


def test_no_name_leaves_the_images_as_they_are():
    batch = images(3)
    assert torch.equal(augment(batch, [], 4, random()), batch)


def test_crop_takes_a_window_of_each_image_in_a_frame_of_its_reflection():
    batch = images(40)
    frames = np.pad(batch.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")

    cropped = augment(batch, ["crop"], 2, random()).numpy()

    corners = set()
    for frame, image in zip(frames, cropped, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(frame[:, top : top + 6, left : left + 6], image)
        ]
        assert len(matches) == 1
        corners.update(matches)
    assert {top for top, _ in corners} == {left for _, left in corners} == {0, 1, 2, 3, 4}
    assert any(top != left for top, left in corners), "rows and columns shift independently"


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    batch = images(200)
    flipped = augment(batch, ["flip"], 0, random())
    mirrored = (flipped == batch.flip(3)).all(dim=(1, 2, 3))
    unchanged = (flipped == batch).all(dim=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 70 < mirrored.sum() < 130


def test_crop_and_flip_together_still_show_every_image_whole_in_size():
    batch = images(5)
    changed = augment(batch, ["crop", "flip"], 3, random())
    assert changed.shape == batch.shape
    assert changed.dtype == torch.uint8
    assert changed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padding", [5, 6, 17, 64])
def test_a_shift_beyond_the_image_stays_within_reflections_of_it(padding):
    batch = images(30)
    changed = augment(batch, ["crop"], padding, random())
    for before, after in zip(batch, changed, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
