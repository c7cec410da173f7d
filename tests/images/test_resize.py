import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convoy.core.dataset import cropped_side
from convoy.images import resize
from convoy.images.resize import Geometry, graph

HALF = 0.5 + 1e-3
FITS = ("squash", "crop", "letterbox")
SMALL = [(1, 1), (5, 9), (8, 8), (16, 16), (37, 53), (53, 37)]
SIZES = [*SMALL, (200, 300), (600, 700), (1, 40), (40, 1), (1, 1000)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_torch(image_u8: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = torch.from_numpy(image_u8).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def by_pillow(image_u8: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(image_u8).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(int)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_px", [8, 16, 47])
def test_squash_is_the_antialiased_resize_of_torch_and_of_pillow(size, image_px):
    image_u8 = noise(*size)
    packed = Geometry(image_px, "squash")(image_u8).astype(int)
    # Halves may round either way, since the two add up in another order; nothing else may differ.
    assert np.abs(packed - by_torch(image_u8, image_px, image_px)).max() <= HALF
    assert np.abs(packed - by_pillow(image_u8, image_px, image_px)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (21, 30), (16, 16), (5, 9)])
def test_crop_is_the_middle_square_resized(height, width):
    image_u8 = noise(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_u8[top : top + side, left : left + side]
    assert np.abs(Geometry(16, "crop")(image_u8).astype(int) - by_torch(square, 16, 16)).max() <= HALF


@pytest.mark.parametrize(
    ("height", "width", "share", "side"),
    [
        (20, 30, 0.875, 18),
        (30, 21, 0.875, 18),
        (16, 16, 0.9, 14),
        (8, 9, 0.1, 1),
        (256, 300, 0.875, 224),
        (7, 7, 0.5, 4),
    ],
)
def test_a_crop_share_keeps_the_middle_of_the_shorter_side(height, width, share, side):
    image_u8 = noise(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_u8[top : top + side, left : left + side]
    assert np.abs(Geometry(16, "crop", share)(image_u8).astype(int) - by_torch(square, 16, 16)).max() <= HALF


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.floats(0.1, 1))
@settings(max_examples=60, deadline=None)
def test_the_graph_crops_to_the_side_that_training_crops_to(height, width, image_px, share):
    image_u8, side = noise(height, width), cropped_side(min(height, width), share)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_u8[top : top + side, left : left + side]
    whole = Geometry(image_px, "crop")(square)
    assert np.array_equal(Geometry(image_px, "crop", share)(image_u8), whole)


@given(st.integers(8, 40), st.floats(0.1, 1))
@settings(max_examples=60, deadline=None)
def test_a_packed_square_can_be_given_to_the_graph_that_crops(image_px, share):
    squares_u8 = np.stack([noise(image_px, image_px, seed) for seed in range(2)])
    geometry = Geometry(image_px, "crop", share)
    for square_u8, served_u8 in zip(squares_u8, geometry.uncropped(squares_u8), strict=True):
        assert np.array_equal(geometry(served_u8), square_u8)


@pytest.mark.parametrize("fit", FITS)
def test_a_crop_share_of_1_adds_nothing_to_the_graph(fit):
    assert graph(16, fit, 1.0) == graph(16, fit)
    assert not [node for node in graph(16, fit).graph.node if node.op_type == "Mul" and fit == "crop"]


@pytest.mark.parametrize(
    ("height", "width", "inner"), [(20, 40, (8, 16)), (40, 20, (16, 8)), (7, 30, (4, 16)), (3, 5, (10, 16))]
)
def test_letterbox_keeps_the_shape_and_pads_evenly_with_black(height, width, inner):
    image_u8 = np.maximum(noise(height, width), 1)
    packed = Geometry(16, "letterbox")(image_u8).astype(int)
    top, left = (16 - inner[0]) // 2, (16 - inner[1]) // 2
    inside = packed[top : top + inner[0], left : left + inner[1]]
    assert np.abs(inside - by_torch(image_u8, *inner)).max() <= HALF
    assert packed.sum() == inside.sum()


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(FITS), st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_the_square(height, width, fit, image_px):
    packed = Geometry(image_px, fit)(noise(height, width))
    assert (packed.shape, packed.dtype) == ((image_px, image_px, 3), np.uint8)


@given(st.integers(8, 40), st.sampled_from(FITS), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_an_image_of_the_right_size_stays_as_it_is(image_px, fit, seed):
    image_u8 = noise(image_px, image_px, seed)
    assert np.array_equal(Geometry(image_px, fit)(image_u8), image_u8)


@given(st.integers(0, 255), st.integers(1, 50), st.integers(1, 50), st.sampled_from(("squash", "crop")))
@settings(max_examples=30, deadline=None)
def test_a_plain_colour_keeps_its_value(value, height, width, fit):
    plain = np.full((height, width, 3), value, np.uint8)
    assert (Geometry(11, fit)(plain) == value).all()


@pytest.mark.parametrize("fit", FITS)
def test_the_number_of_images_is_free_and_each_is_treated_alone(fit):
    session = onnxruntime.InferenceSession(graph(16, fit).SerializeToString())
    batch = np.stack([noise(21, 34, seed) for seed in range(5)])
    (pixels,) = session.run(["pixels"], {"image": batch})
    assert (pixels.shape, pixels.dtype) == ((5, 3, 16, 16), np.float32)
    assert np.array_equal(pixels, np.rint(pixels))
    for image_u8, single in zip(batch, pixels, strict=True):
        assert np.array_equal(Geometry(16, fit)(image_u8), single.transpose(1, 2, 0))


@pytest.mark.parametrize("fit", FITS)
def test_a_large_image_is_resized_channel_by_channel_to_the_same_pixels(fit, monkeypatch):
    image_u8 = noise(137, 211)
    whole = Geometry(32, fit)(image_u8)
    monkeypatch.setattr(resize, "LARGE_PIXELS", 100)
    used = []
    session = resize._session
    monkeypatch.setattr(resize, "_session", lambda *options: used.append(options) or session(*options))
    assert np.array_equal(Geometry(32, fit)(image_u8), whole)
    assert used == [(32, fit, 1.0, 1)] * 3


def test_an_extreme_panorama_costs_little_memory():
    wide = np.zeros((1, 2_000_000, 3), np.uint8)
    for fit in FITS:
        assert Geometry(32, fit)(wide).shape == (32, 32, 3)


@pytest.mark.parametrize("fit", FITS)
def test_an_image_of_the_packed_size_is_what_the_graph_makes_of_it(fit):
    image_u8 = noise(16, 16)
    session = onnxruntime.InferenceSession(graph(16, fit).SerializeToString())
    (pixels,) = session.run(["pixels"], {"image": image_u8[np.newaxis]})
    assert np.array_equal(pixels[0].transpose(1, 2, 0), image_u8)
    assert np.array_equal(Geometry(16, fit)(image_u8), image_u8)
