"""`convoy explain convolution`: the arithmetic, against torch and worked cases, and the inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from convoy.core.errors import DataError, RequestError
from convoy.explain.convolution import (
    LONGEST_SIDE_PX,
    NAMED,
    GivenFilter,
    GivenImage,
    convolve,
    matrix,
    max_pool,
    output_size,
    read_filters,
    read_image,
    stack,
    work_out,
)

CROSS = np.array([[int(i in (j, 6 - j)) for j in range(7)] for i in range(7)], dtype=float)[:, :, None]


def worked_out(image, weights, *options):
    return work_out(GivenImage(image, "random"), [GivenFilter("random", each) for each in weights], *options)


def by_torch(image, filters, padding, mode, stride):
    """Return (H', W', F), as `convolve` does."""
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
    mode=st.sampled_from(["zero", "replicate"]),
    stride=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_convolution_equals_torchs(size, kernel, channels, count, padding, mode, stride, seed):
    kernel = tuple(min(k, side + 2 * padding) for k, side in zip(kernel, size, strict=True))
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(*size, channels))
    filters = rng.normal(size=(count, *kernel, channels))
    worked = worked_out(image, filters, padding, mode, stride)
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
    assert np.array_equal(max_pool(np.maximum(volume, 0)), expected.permute(1, 2, 0).numpy())


def test_a_binary_7x7_image_with_a_3x3_filter_gives_5x5_worked_on_paper():
    diagonal = np.eye(3)[None, :, :, None]
    activation = convolve(CROSS, diagonal, 0, "zero", 1)
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
    worked = worked_out(image, filters, 2, "zero", 1)
    assert worked.activation.shape == (32, 32, 10)
    assert worked.pooled.shape == (16, 16, 10)


@settings(max_examples=100, deadline=None, database=None)
@given(row=st.integers(0, 6), column=st.integers(0, 6), seed=st.integers(0, 2**32 - 1))
def test_the_sum_is_largest_where_image_and_filter_agree(row, column, seed):
    rng = np.random.default_rng(seed)
    image, pattern = rng.choice([-1.0, 1.0], size=(9, 9, 1)), rng.choice([-1.0, 1.0], size=(3, 3, 1))
    image[row : row + 3, column : column + 3] = pattern
    activation = convolve(image, pattern[None], 0, "zero", 1)[:, :, 0]
    assert activation[row, column] == activation.max() == 9
    for i, j in np.argwhere(activation == 9):
        assert np.array_equal(image[i : i + 3, j : j + 3], pattern)


def test_a_window_is_what_the_sum_was_made_of():
    rng = np.random.default_rng(0)
    worked = worked_out(rng.normal(size=(6, 8, 2)), rng.normal(size=(3, 2, 3, 2)), 1, "zero", 2)
    for row, column, channel in np.ndindex(worked.activation.shape):
        total = (worked.window(row, column) * worked.weights[channel]).sum()
        assert total == pytest.approx(worked.activation[row, column, channel], abs=1e-12)


def test_what_is_too_small_to_pool_pools_to_nothing():
    assert max_pool(np.ones((1, 4, 2))).shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("size", "padding", "stride", "message"),
    [
        (3, 0, 0, r"The stride is 0, .*--stride 1"),
        (3, -1, 1, r"The padding is -1, but must be from 0 to 64.*--padding 1"),
        (3, 100_000, 1, r"The padding is 100000, but must be from 0 to 64"),
        (8, 0, 1, r"A 8×8 filter does not fit into the 7×7 image with padding 0.*--padding 1"),
        (12, 1, 1, r"A 12×12 filter does not fit into the 7×7 image with padding 1.*--padding 3"),
    ],
)
def test_what_cannot_be_convolved_is_refused_with_what_works(size, padding, stride, message):
    filters = np.ones((1, size, size, 1))
    with pytest.raises(RequestError, match=message) as refused:
        convolve(CROSS, filters, padding, "zero", stride)
    if size > 3:  # what the message proposes must work
        proposed = int(str(refused.value).rsplit(" ", 1)[1])
        assert convolve(CROSS, filters, proposed, "zero", stride).size
        with pytest.raises(RequestError):
            convolve(CROSS, filters, proposed - 1, "zero", stride)


def test_rows_end_with_a_semicolon_or_a_new_line():
    expected = [[0, -1, 2.5], [10, 0.25, 0]]
    for text in ("0 -1 2.5; 10 1/4 0", "0 -1 2.5\n10 1/4 0\n", " 0 -1  2.5 ;10 1/4 0;"):
        assert matrix(text, "The image")[:, :, 0].tolist() == expected


def test_channels_are_separated_by_a_bar():
    typed = matrix("1 2; 3 4 | 5 6; 7 8", "The image")
    assert typed.shape == (2, 2, 2)
    assert typed[:, :, 1].tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1; 2 x", r"The image holds `x`, which is not a number from -1,000,000 to 1,000,000"),
        ("0 1; 1/0 2", r"holds `1/0`"),
        ("0,1,0; 1,1,1", r"holds `0,1,0`.*matrix like \"0 1 0; 1 1 1; 0 1 0\""),
        ("0 nan; 1 1", r"holds `nan`"),
        ("0 1; 1 1e9", r"holds `1e9`"),
        ("0 1 0; 1 1; 0 1 0", r"The image is ragged: row 1 has 3 number\(s\), row 2 has 2"),
        (" ; ", r"The image holds no numbers\. Type a matrix like"),
        ("1 2 | ", r"The image holds no numbers"),
        ("1 2; 3 4 | 1 2", r"The image has channels of 1×2 and 2×2, but they must have the same size"),
    ],
)
def test_an_invalid_matrix_is_refused_with_the_word_or_row(text, message):
    with pytest.raises(RequestError, match=message):
        read_image(text)


def test_the_example_is_binary_and_7x7():
    example = read_image(None).values
    assert example.shape == (7, 7, 1)
    assert set(example.ravel()) == {0, 1}


def test_named_filters_are_3x3_and_keep_or_cancel_a_flat_image():
    filters = {name: read_filters([name])[0].weights for name in NAMED}
    assert {weights.shape for weights in filters.values()} == {(3, 3, 1)}
    kept = {name: round(weights.sum(), 9) for name, weights in filters.items()}
    assert {name for name, total in kept.items() if total == 1} == {"sharpen", "blur", "emboss", "identity"}
    assert {name for name, total in kept.items() if total == 0} == {"edge", "vertical", "horizontal"}


def test_an_unknown_filter_is_refused_with_the_nearest_name():
    with pytest.raises(
        RequestError, match=r"There is no filter `sharpn`; did you mean `sharpen`\?.*--filter"
    ):
        read_filters(["sharpn"])


def test_filters_of_different_sizes_are_refused():
    with pytest.raises(RequestError, match=r"The filters measure 1×2 and 3×3, but those of a layer"):
        read_filters(["edge", "1 -1"])


def test_one_plane_of_weights_is_repeated_for_every_channel_and_two_are_refused():
    deep = stack(read_filters(["edge"]), channels=3)
    assert deep.shape == (1, 3, 3, 3)
    assert (deep == deep[..., :1]).all()
    with pytest.raises(RequestError, match=r"The filter typed has 2 planes, but the image 3 channel\(s\)"):
        stack(read_filters(["1 2 | 3 4"]), channels=3)


def test_a_colour_file_keeps_its_bytes_and_a_gray_one_has_one_channel(tmp_path):
    pixels_u8 = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels_u8).save(tmp_path / "colour.png")
    Image.fromarray(pixels_u8[:, :, 0]).save(tmp_path / "gray.png")
    colour, gray = (read_image(str(tmp_path / name)) for name in ("colour.png", "gray.png"))
    assert np.array_equal(colour.values, pixels_u8)
    assert colour.is_rgb
    assert np.array_equal(gray.values, pixels_u8[:, :, :1])
    assert gray.source.endswith("gray, so one channel")


def test_a_large_file_is_shrunk_and_described_so(tmp_path):
    Image.new("RGB", (800, 400), "orange").save(tmp_path / "large.png")
    large = read_image(str(tmp_path / "large.png"))
    assert large.values.shape == (LONGEST_SIDE_PX // 2, LONGEST_SIDE_PX, 3)
    assert large.source.endswith("large.png, shrunk from 400×800")


def test_a_file_that_is_not_an_image_is_a_data_error(tmp_path):
    (tmp_path / "notes.png").write_text("notes")
    with pytest.raises(DataError, match=r"notes\.png "):
        read_image(str(tmp_path / "notes.png"))


def test_an_image_that_is_neither_a_file_nor_a_matrix_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no\.png cannot be read.*No such file.*Type a matrix like"):
        read_image("no.png")
    with pytest.raises(RequestError, match=r"cannot be read as an image file: Is a directory"):
        read_image(str(tmp_path))
    with pytest.raises(RequestError, match=r"cannot be read as an image file: File name too long"):
        read_image("x" * 5000)
