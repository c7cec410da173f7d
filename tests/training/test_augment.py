import numpy as np
import pytest
import torch

from convoy.training.augment import augment


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

    seen = set()
    for frame, image in zip(frames, cropped, strict=True):
        windows = {
            (top, left): frame[:, top : top + 6, left : left + 6] for top in range(5) for left in range(5)
        }
        places = [place for place, window in windows.items() if np.array_equal(window, image)]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _ in seen} == {left for _, left in seen} == {0, 1, 2, 3, 4}


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    batch = images(200)

    flipped = augment(batch, ["flip"], 0, random())

    mirrored = (flipped == batch.flip(3)).all(dim=(1, 2, 3))
    kept = (flipped == batch).all(dim=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 70 < mirrored.sum() < 130


def test_crop_and_flip_together_still_show_every_image_whole_in_size():
    batch = images(5)

    changed = augment(batch, ["crop", "flip"], 3, random())

    assert changed.shape == batch.shape
    assert changed.dtype == torch.uint8
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_equal_random_states_change_the_images_alike():
    batch = images(20)

    assert torch.equal(
        augment(batch, ["crop", "flip"], 2, random(7)), augment(batch, ["crop", "flip"], 2, random(7))
    )
    assert not torch.equal(
        augment(batch, ["crop", "flip"], 2, random(7)), augment(batch, ["crop", "flip"], 2, random(8))
    )


@pytest.mark.parametrize("padding", [5, 6, 17, 64])
def test_a_shift_beyond_the_image_stays_within_reflections_of_it(padding):
    batch = images(30)

    changed = augment(batch, ["crop"], padding, random())

    for before, after in zip(batch, changed, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
