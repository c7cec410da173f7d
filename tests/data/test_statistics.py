import functools
from array import array

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convoy.data.statistics import STATISTICS, columns, measure, measure_all


def measured(image_u8, file_size=1000):
    return dict(zip(STATISTICS, measure(np.asarray(image_u8, np.uint8), file_size).tolist(), strict=True))


@functools.cache
def scene(px: int) -> Image.Image:
    """Draw a picture whose details shrink as those of a photograph do (amplitude 1 / frequency), at any size."""
    height, width = 3 * px // 4, px
    rng = np.random.default_rng(5)
    spectrum = np.fft.rfft2(rng.normal(size=(768, 1024)))
    frequency = np.hypot(np.fft.fftfreq(768)[:, np.newaxis] * 768, np.fft.rfftfreq(1024) * 1024)
    gray = np.fft.irfft2(spectrum / np.maximum(frequency, 1), (768, 1024))
    gray_u8 = np.clip(128 + 50 * gray / gray.std(), 0, 255).astype(np.uint8)
    return Image.fromarray(gray_u8).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def test_a_single_colour_has_its_mean_and_no_contrast_sharpness_or_noise():
    found = measured(np.full((300, 500, 3), (200, 100, 50)))
    assert found["brightness"] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1e-3)
    assert [found[name] for name in ("red", "green", "blue")] == [200, 100, 50]
    assert (found["contrast"], found["sharpness"]) == (0, 0)


def test_brightness_and_contrast_are_those_of_pillow_s_gray():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    gray = np.asarray(image.convert("L"), float)
    found = measured(image)
    assert found["brightness"] == pytest.approx(gray.mean(), abs=0.5)
    assert found["contrast"] == pytest.approx(gray.std(), abs=0.5)


def test_sizes_are_of_the_whole_image_and_its_file():
    found = measured(np.zeros((100, 400, 3)), file_size=8000)
    assert [found[name] for name in ("width", "height", "aspect")] == [400, 100, 4]
    assert (found["file_size"], found["bytes_per_pixel"]) == (8000, pytest.approx(0.2))


@pytest.mark.parametrize("height", [1, 2, 3])
def test_sharpness_is_the_second_difference_over_the_contrast(height):
    row = np.array([0, 100, 0, 100, 100, 0])
    second = np.diff(row, 2)
    expected = np.sqrt(np.mean(second**2.0)) / row.std()
    assert measured(np.tile(row[:, np.newaxis], (height, 1, 3)))["sharpness"] == pytest.approx(
        expected, rel=1e-4
    )
    upright = np.tile(row[:, np.newaxis, np.newaxis], (1, height, 3))
    assert measured(upright)["sharpness"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("px", [32, 96, 500, 3000])
def test_a_scene_is_sharp_at_every_size_and_blurred_if_its_details_are_lost(px):
    picture = scene(px)
    assert measured(picture)["sharpness"] > 0.3
    assert measured(picture.filter(ImageFilter.GaussianBlur(px / 10)))["sharpness"] < 0.12


def test_sharpness_is_that_of_the_scene_not_of_its_light():
    picture = scene(200)
    night = picture.point(lambda level: level // 4)
    assert measured(night)["sharpness"] == pytest.approx(measured(picture)["sharpness"], rel=0.1)


def test_colourfulness_is_zero_for_gray_and_that_of_hasler_and_suesstrunk():
    assert measured(scene(64))["colourfulness"] == 0
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3)).astype(float)
    red_green, yellow_blue = (
        image[..., 0] - image[..., 1],
        (image[..., 0] + image[..., 1]) / 2 - image[..., 2],
    )
    expected = np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(
        red_green.mean(), yellow_blue.mean()
    )
    assert measured(image)["colourfulness"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 2), (3, 3), (5000, 4000)])
def test_every_size_is_measured(size):
    found = measure(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), 10)
    assert np.isfinite(found).all()
    assert found.dtype == np.float32


def test_columns_hold_the_rows_of_all_images():
    rows = [measure(np.full((4, 4, 3), level, np.uint8), level) for level in (10, 20, 30)]
    growing = array("f")
    for row in rows:
        growing.frombytes(row.tobytes())
    found = columns(growing)
    assert tuple(found) == STATISTICS
    assert found["brightness"].tolist() == pytest.approx([10, 20, 30])
    assert found["file_size"].tolist() == [10, 20, 30]
    assert {len(column) for column in columns(array("f")).values()} == {0}


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (28, 28), (32, 32), (97, 40), (1, 50)])
def test_images_measured_together_have_the_figures_of_each_alone(size):
    images_u8 = np.random.default_rng(0).integers(0, 256, (9, *size, 3), dtype=np.uint8)
    images_u8[3:5] = 7
    together = measure_all(images_u8, range(1, 10))
    alone = [measure(image_u8, n) for n, image_u8 in enumerate(images_u8, 1)]
    assert together.tobytes() == np.stack(alone).tobytes()
