"""What a convolution can be asked for: typed matrices, named filters, image files."""

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError, RequestError
from convoy.explain.convolution_input import (
    LONGEST_SIDE_PX,
    check_padding,
    matrix,
    read_filters,
    read_image,
    stack,
)
from convoy.explain.filters import NAMED


def test_rows_end_with_a_semicolon_or_a_new_line():
    expected = [[0, -1, 2.5], [10, 0.25, 0]]
    for text in ("0 -1 2.5; 10 1/4 0", "0 -1 2.5\n10 1/4 0\n", " 0 -1  2.5 ;10 1/4 0;"):
        assert matrix(text, "The image")[:, :, 0].tolist() == expected


def test_channels_are_divided_by_a_bar():
    typed = matrix("1 2; 3 4 | 5 6; 7 8", "The image")
    assert typed.shape == (2, 2, 2)
    assert typed[:, :, 1].tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 1; 2 x", r"The image holds `x`, which is no number from -1,000,000 to 1,000,000"),
        ("0 1; 1/0 2", r"holds `1/0`"),
        ("0,1,0; 1,1,1", r"holds `0,1,0`.*typed like \"0 1 0; 1 1 1; 0 1 0\""),
        ("0 nan; 1 1", r"holds `nan`"),
        ("0 1; 1 1e9", r"holds `1e9`"),
        ("0 1 0; 1 1; 0 1 0", r"The image is ragged: row 1 has 3 number\(s\), row 2 has 2"),
        (" ; ", r"The image holds no numbers\. A matrix is typed like"),
        ("1 2 | ", r"The image holds no numbers"),
        ("1 2; 3 4 | 1 2", r"The image has channels of 1×2 and 2×2; they must be of one size"),
    ],
)
def test_garbage_is_refused_by_its_place(text, said):
    with pytest.raises(RequestError, match=said):
        read_image(text)


def test_the_example_is_binary_and_7x7():
    example = read_image(None).values
    assert example.shape == (7, 7, 1)
    assert set(example.ravel()) == {0, 1}


@pytest.mark.parametrize("name", NAMED)
def test_every_named_filter_is_3x3(name):
    (named,) = read_filters([name])
    assert named.weights.shape == (3, 3, 1)


def test_named_filters_keep_or_cancel_a_flat_image():
    kept = {name: round(read_filters([name])[0].weights.sum(), 9) for name in NAMED}
    assert {name for name, total in kept.items() if total == 1} == {"sharpen", "blur", "emboss", "identity"}
    assert {name for name, total in kept.items() if total == 0} == {"edge", "vertical", "horizontal"}


def test_an_unknown_filter_is_refused_with_the_nearest_name():
    with pytest.raises(
        RequestError, match=r"There is no filter `sharpn`; did you mean `sharpen`\?.*--filter"
    ):
        read_filters(["sharpn"])


def test_filters_of_different_sizes_are_refused():
    with pytest.raises(RequestError, match=r"The filters measure 1×2 and 3×3; those of one layer"):
        read_filters(["edge", "1 -1"])


def test_one_plane_of_weights_serves_every_channel():
    deep = stack(read_filters(["edge"]), channels=3)
    assert deep.shape == (1, 3, 3, 3)
    assert (deep == deep[..., :1]).all()


def test_a_filter_of_the_wrong_depth_is_refused():
    with pytest.raises(RequestError, match=r"The filter typed has 2 planes and the image 3 channel\(s\)"):
        stack(read_filters(["1 2 | 3 4"]), channels=3)


def test_a_padding_that_would_fill_the_memory_is_refused():
    with pytest.raises(RequestError, match=r"The padding is 100000; at most 64.*--padding 1"):
        check_padding(100_000)


def test_a_colour_file_keeps_its_bytes_and_a_gray_one_has_one_channel(tmp_path):
    pixels_u8 = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels_u8).save(tmp_path / "colour.png")
    Image.fromarray(pixels_u8[:, :, 0]).save(tmp_path / "gray.png")
    colour, gray = (read_image(str(tmp_path / name)) for name in ("colour.png", "gray.png"))
    assert np.array_equal(colour.values, pixels_u8)
    assert colour.is_rgb
    assert np.array_equal(gray.values, pixels_u8[:, :, :1])
    assert gray.source.endswith("gray, so one channel")


def test_a_large_file_is_shrunk_and_says_so(tmp_path):
    Image.new("RGB", (800, 400), "orange").save(tmp_path / "large.png")
    large = read_image(str(tmp_path / "large.png"))
    assert large.values.shape == (LONGEST_SIDE_PX // 2, LONGEST_SIDE_PX, 3)
    assert large.source.endswith("large.png, shrunk from 400×800")


def test_a_file_that_is_no_image_is_a_failure_not_a_wrong_request(tmp_path):
    (tmp_path / "notes.png").write_text("notes")
    with pytest.raises(DataError, match=r"notes\.png is no image of a format that is read"):
        read_image(str(tmp_path / "notes.png"))


def test_what_is_neither_a_file_nor_a_matrix_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no\.png cannot be read.*No such file.*A matrix is typed like"):
        read_image("no.png")
    with pytest.raises(RequestError, match=r"cannot be read as an image file: Is a directory"):
        read_image(str(tmp_path))
    with pytest.raises(RequestError, match=r"cannot be read as an image file: File name too long"):
        read_image("x" * 5000)
