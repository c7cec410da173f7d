"""The arithmetic of `convoy explain convolution`, against torch and against worked cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from convoy.core.errors import RequestError
from convoy.explain.convolution import convolve, max_pool, output_size, relu, work_out
from convoy.explain.filters import PaddingMode

CROSS = np.array([[int(i in (j, 6 - j)) for j in range(7)] for i in range(7)], dtype=float)[:, :, None]


def by_torch(image, filters, padding, mode, stride):
    """Answer (H', W', F), as `convolve`."""
    volume = torch.from_numpy(image).permute(2, 0, 1)[None]
    if padding:
        how = {"zero": "constant", "replicate": "replicate"}[mode]
        volume = functional.pad(volume, [padding] * 4, mode=how)
    weights = torch.from_numpy(filters).permute(0, 3, 1, 2)
    return functional.conv2d(volume, weights, stride=stride)[0].permute(1, 2, 0).numpy()


@settings(max_examples=1000, deadline=None, database=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 4),
    count=st.integers(1, 3),
    padding=st.integers(0, 3),
    mode=st.sampled_from(PaddingMode),
    stride=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_convolution_equals_torchs(size, kernel, channels, count, padding, mode, stride, seed):
    kernel = tuple(min(k, side + 2 * padding) for k, side in zip(kernel, size, strict=True))
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(*size, channels))
    filters = rng.normal(size=(count, *kernel, channels))
    worked = work_out(image, filters, padding, mode, stride)
    expected = by_torch(image, filters, padding, mode, stride)
    np.testing.assert_allclose(worked.activation, expected, rtol=0, atol=1e-12)
    # Whole numbers leave no rounding to forgive.
    image, filters = np.rint(image * 9), np.rint(filters * 9)
    whole = convolve(image, filters, padding, mode, stride)
    assert np.array_equal(whole, by_torch(image, filters, padding, mode, stride))
    rows, columns = (output_size(side, k, padding, stride) for side, k in zip(size, kernel, strict=True))
    assert worked.activation.shape == (rows, columns, count)


@settings(max_examples=100, deadline=None, database=None)
@given(rows=st.integers(2, 9), columns=st.integers(2, 9), seed=st.integers(0, 2**32 - 1))
def test_relu_and_pooling_equal_torchs(rows, columns, seed):
    volume = np.random.default_rng(seed).normal(size=(rows, columns, 3))
    expected = functional.max_pool2d(torch.from_numpy(volume).permute(2, 0, 1).relu(), 2)
    assert np.array_equal(max_pool(relu(volume)), expected.permute(1, 2, 0).numpy())


def test_a_binary_7x7_image_with_a_3x3_filter_gives_5x5_worked_on_paper():
    diagonal = np.eye(3)[None, :, :, None]
    activation = convolve(CROSS, diagonal, 0, PaddingMode.ZERO, 1)
    assert activation[:, :, 0].tolist() == [
        [3, 0, 1, 0, 1],
        [0, 3, 0, 1, 0],
        [1, 0, 3, 0, 1],
        [0, 1, 0, 3, 0],
        [1, 0, 1, 0, 3],
    ]


def test_32x32x3_with_ten_padded_5x5x3_filters_gives_32x32x10():
    rng = np.random.default_rng(0)
    image, filters = rng.normal(size=(32, 32, 3)), rng.normal(size=(10, 5, 5, 3))
    worked = work_out(image, filters, 2, PaddingMode.ZERO, 1)
    assert worked.activation.shape == (32, 32, 10)
    assert worked.pooled.shape == (16, 16, 10)


@settings(max_examples=100, deadline=None, database=None)
@given(row=st.integers(0, 6), column=st.integers(0, 6), seed=st.integers(0, 2**32 - 1))
def test_the_sum_is_largest_where_image_and_filter_agree(row, column, seed):
    rng = np.random.default_rng(seed)
    image, pattern = rng.choice([-1.0, 1.0], size=(9, 9, 1)), rng.choice([-1.0, 1.0], size=(3, 3, 1))
    image[row : row + 3, column : column + 3] = pattern
    activation = convolve(image, pattern[None], 0, PaddingMode.ZERO, 1)[:, :, 0]
    assert activation[row, column] == activation.max() == 9
    for i, j in np.argwhere(activation == 9):
        assert np.array_equal(image[i : i + 3, j : j + 3], pattern)


def test_the_filter_is_not_flipped():
    step = np.array([[0.0, 1.0]])[:, :, None]
    assert convolve(step, np.array([[-1.0, 1.0]])[None, :, :, None], 0, PaddingMode.ZERO, 1) == 1


def test_replicate_repeats_the_border_and_zero_does_not():
    ones, blur = np.ones((3, 3, 1)), np.full((1, 3, 3, 1), 1.0)
    assert (convolve(ones, blur, 1, PaddingMode.REPLICATE, 1) == 9).all()
    assert convolve(ones, blur, 1, PaddingMode.ZERO, 1)[0, 0, 0] == 4


def test_a_window_is_what_the_sum_was_made_of():
    rng = np.random.default_rng(0)
    worked = work_out(rng.normal(size=(6, 8, 2)), rng.normal(size=(3, 2, 3, 2)), 1, PaddingMode.ZERO, 2)
    for row, column, channel in np.ndindex(worked.activation.shape):
        total = (worked.window(row, column) * worked.filters[channel]).sum()
        assert total == pytest.approx(worked.activation[row, column, channel], abs=1e-12)


def test_what_is_too_small_to_pool_pools_to_nothing():
    assert max_pool(np.ones((1, 4, 2))).shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("size", "padding", "stride", "said"),
    [
        (3, 0, 0, r"The stride is 0; a filter moves by 1 or more: --stride 1"),
        (3, -1, 1, r"The padding is -1; .*--padding 0"),
        (8, 0, 1, r"A 8×8 filter does not fit into the 7×7 image with padding 0.*--padding 1"),
        (12, 1, 1, r"A 12×12 filter does not fit into the 7×7 image with padding 1.*--padding 3"),
    ],
)
def test_what_cannot_be_convolved_is_refused_with_what_works(size, padding, stride, said):
    filters = np.ones((1, size, size, 1))
    with pytest.raises(RequestError, match=said) as refused:
        convolve(CROSS, filters, padding, PaddingMode.ZERO, stride)
    if size > 3:  # what the message proposes must work
        proposed = int(str(refused.value).rsplit(" ", 1)[1])
        assert convolve(CROSS, filters, proposed, PaddingMode.ZERO, stride).size
        with pytest.raises(RequestError):
            convolve(CROSS, filters, proposed - 1, PaddingMode.ZERO, stride)
