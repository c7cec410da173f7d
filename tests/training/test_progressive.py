"""Smaller images in the first epochs: their sides, their pixels, a resumed training, and networks that do not take them."""

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError
from convoy.models import spec
from convoy.models.spec import Spec
from convoy.training.augment.pixels import shrunk
from convoy.training.fit import fit
from convoy.training.progressive import check, side_px
from squares import write_packed


def sides(params, image_px, **progressive):
    chosen = params(epochs=6, progressive=progressive)
    return [side_px(chosen, image_px, epoch) for epoch in range(6)]


def test_the_side_grows_evenly_to_the_full_one_in_multiples_of_four(params):
    assert sides(params, 32, start=0.5, full=0.5) == [16, 20, 28, 32, 32, 32]
    assert sides(params, 224, start=0.75, full=1.0) == [168, 176, 188, 196, 204, 216]


def test_off_means_the_full_side_even_if_it_is_no_multiple_of_four(params):
    assert sides(params, 30, start=1.0, full=0.5) == [30] * 6


def test_a_side_is_never_above_the_full_one_nor_below_four(params):
    assert sides(params, 30, start=0.95, full=0.5)[-3:] == [30] * 3
    assert sides(params, 8, start=0.25, full=1.0)[0] == 4


def test_shrunk_pixels_are_pillows_bilinear_ones():
    image = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    small = shrunk(torch.from_numpy(image).permute(0, 3, 1, 2), 24).permute(0, 2, 3, 1).numpy()
    for given, result in zip(image, small, strict=True):
        expected = np.asarray(Image.fromarray(given).resize((24, 24), Image.Resampling.BILINEAR))
        assert np.abs(result.astype(int) - expected).max() <= 1


def test_training_sees_the_sides_and_validation_the_full_one(dataset, tiny, params, out, on):
    seen, validated = [], []

    def note(trainer, module, batch, *_):
        seen.append((trainer.current_epoch, batch.pixels_u8.shape[-1]))

    fit(
        dataset,
        tiny,
        params(epochs=3, progressive={"start": 0.5, "full": 0.6}),
        1,
        out,
        callbacks=[
            on("on_train_batch_start", note),
            on("on_validation_batch_start", lambda *given: validated.append(given[2].pixels_u8.shape[-1])),
        ],
    )
    full = dataset.image_px
    assert dict(seen) == {0: full // 2, 1: full, 2: full}
    assert set(validated) == {full}


def test_a_training_killed_in_a_small_epoch_resumes_exactly(dataset, tiny, params, killed):
    chosen = params(epochs=3, progressive={"start": 0.5, "full": 1.0})
    killed(lambda folder, **how: fit(dataset, tiny, chosen, 1, folder, **how), 2)


def test_a_head_made_for_one_size_is_refused_with_its_name(repository, params):
    chosen = params(progressive={"start": 0.75, "full": 0.5})
    with pytest.raises(
        RequestError, match=r"lenet5 on 24 px .* dense1 has weights for 400 values.*global_avg_pool"
    ):
        check(spec.load("lenet5", repository / "networks"), 10, 32, chosen)


def test_images_that_are_too_small_are_refused(repository, params):
    chosen = params(progressive={"start": 0.25, "full": 0.5})
    with pytest.raises(
        RequestError, match=r"airbench on 8 px images .*too small.*start|start.*8 px.*too small"
    ):
        check(spec.load("airbench", repository / "networks"), 10, 32, chosen)


def test_a_network_of_a_library_that_does_not_take_them_is_refused_before_training(tmp_path, params, out):
    images_u8 = np.random.default_rng(1).integers(0, 256, (30, 64, 64, 3), np.uint8)
    write_packed(
        tmp_path,
        images_u8,
        np.arange(30) % 3,
        {"train": (0, 10), "val": (10, 20), "test": (20, 30)},
        list("abc"),
    )
    squeezenet = Spec.model_validate({"name": "squeezenet", "torchvision": "squeezenet1_1"})
    chosen = params(progressive={"start": 0.25, "full": 0.5})
    with pytest.raises(RequestError, match="squeezenet on 16 px images first, which it does not take"):
        fit(Dataset.load(tmp_path), squeezenet, chosen, 1, out)
    assert not out.exists()
