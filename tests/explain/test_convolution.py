"""`convoy explain convolution`: the arithmetic, against torch and worked cases; the inputs; the text; the picture."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from convoy.core.errors import DataError, RequestError
from convoy.explain.convolution import (
    FEW_SUMS,
    LONGEST_SIDE_PX,
    NAMED,
    GivenFilter,
    GivenImage,
    convolve,
    draw,
    lesson,
    matrix,
    number,
    read_filters,
    read_image,
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


@settings(max_examples=300, deadline=None, database=None)
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
    if min(expected.shape[:2]) > 1:
        pooled = functional.max_pool2d(torch.from_numpy(worked.activation).permute(2, 0, 1).relu(), 2)
        assert np.array_equal(worked.pooled, pooled.permute(1, 2, 0).numpy())
    # Whole numbers leave no rounding to forgive.
    image, filters = np.rint(image * 9), np.rint(filters * 9)
    whole = convolve(image, filters, padding, mode, stride)
    assert np.array_equal(whole, by_torch(image, filters, padding, mode, stride))


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


def test_rows_end_with_a_semicolon_or_a_new_line_and_channels_with_a_bar():
    expected = [[0, -1, 2.5], [10, 0.25, 0]]
    for text in ("0 -1 2.5; 10 1/4 0", "0 -1 2.5\n10 1/4 0\n", " 0 -1  2.5 ;10 1/4 0;"):
        assert matrix(text, "The image")[:, :, 0].tolist() == expected
    channels = np.moveaxis(matrix("1 2; 3 4 | 5 6; 7 8", "The image"), 2, 0)
    assert channels.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


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


def test_named_filters_are_3x3_and_keep_or_cancel_a_flat_image():
    filters = {name: read_filters([name])[0].weights for name in NAMED}
    assert {weights.shape for weights in filters.values()} == {(3, 3, 1)}
    kept = {name: round(weights.sum(), 9) for name, weights in filters.items()}
    assert {name for name, total in kept.items() if total == 1} == {"sharpen", "blur", "emboss", "identity"}
    assert {name for name, total in kept.items() if total == 0} == {"edge", "vertical", "horizontal"}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["sharpn"], r"There is no filter `sharpn`; did you mean `sharpen`\?.*--filter"),
        (["edge", "1 -1"], "The filters measure 1×2 and 3×3, but those of a layer"),
    ],
)
def test_unknown_filters_and_different_sizes_are_refused(filters, message):
    with pytest.raises(RequestError, match=message):
        read_filters(filters)


def test_one_plane_of_weights_is_repeated_for_every_channel_and_two_are_refused():
    image = GivenImage(np.ones((4, 4, 3)), "ones")
    deep = work_out(image, read_filters(["edge"]), 0, "zero", 1).weights
    assert deep.shape == (1, 3, 3, 3)
    assert (deep == read_filters(["edge"])[0].weights).all()
    with pytest.raises(RequestError, match=r"The filter typed has 2 planes, but the image 3 channel\(s\)"):
        work_out(image, read_filters(["1 2 | 3 4"]), 0, "zero", 1)


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


@pytest.mark.parametrize(
    ("name", "cause"),
    [("no.png", "No such file"), (".", "Is a directory"), ("x" * 5000, "File name too long")],
)
def test_an_image_that_is_neither_a_file_nor_a_matrix_is_refused(name, cause):
    with pytest.raises(RequestError, match=rf"cannot be read as an image file: {cause}.*Type a matrix like"):
        read_image(name)


def explained(image=None, filters=("vertical",), padding=0, mode="zero", stride=1, every_sum=False):
    worked = work_out(read_image(image), read_filters(filters), padding, mode, stride)
    return "\n".join(lesson(worked, every_sum=every_sum)), worked


def drawn(out, image=None, filters=("vertical",), padding=0):
    draw(work_out(read_image(image), read_filters(filters), padding, "replicate", 1), out)
    return out


def sums(text):
    """Read (products, total) of each printed sum back."""
    factor = r"\(?(-?[\d.]+)\)?"
    printed = []
    for line in re.findall(r"^  row .*", text, re.MULTILINE):
        left, total = line.partition(":")[2].split(" = ")
        pairs = re.findall(rf"{factor}·{factor}", left)
        printed.append(([(float(x), float(w)) for x, w in pairs], float(total)))
    return printed


@pytest.mark.parametrize("stride", [1, 2])
def test_every_printed_sum_adds_up_and_is_in_the_activation(stride):
    image, filters = "1 -2 3; 4 0.5 6; 7 8 9 | 1 0 0; 0 2 0; 0 0 3", ("1 2; -3 4 | 0 1; 1 0", "1 1; 1 1")
    text, worked = explained(image, filters, padding=1, stride=stride)
    assert re.findall(r"^  filter .*", text, re.MULTILINE) == ["  filter 1, typed 1:", "  filter 2, typed 2:"]
    printed = sums(text)
    assert [total for _, total in printed] == np.moveaxis(worked.activation, 2, 0).ravel().tolist()
    for products, total in printed:
        assert len(products) == 8
        assert sum(x * w for x, w in products) == total


def test_the_size_is_derived_with_the_numbers_put_in():
    text, _ = explained("1 2 3 4 5 6 7; 1 2 3 4 5 6 7; 1 2 3 4 5 6 7; 1 2 3 4 5 6 7", padding=1, stride=2)
    assert "floor((size + 2·padding - kernel) / stride) + 1" in text
    assert "height: floor((4 + 2·1 - 3) / 2) + 1 = 2" in text
    assert "width:  floor((7 + 2·1 - 3) / 2) + 1 = 4" in text
    assert "Activation volume 2×4×1" in text


def test_many_sums_and_long_ones_are_cut_unless_all_are_requested():
    large = "; ".join(" ".join(str((3 * i + 5 * j) % 7) for j in range(12)) for i in range(12))
    text, worked = explained(large)
    assert len(sums(text)) == FEW_SUMS + 1
    assert f"… and {100 - FEW_SUMS} more sums; the largest is" in text
    assert sums(text)[-1][1] == worked.activation.max()
    long = "1 2 3 4 5 6; " * 6, ("1 1 1 1 1 1; " * 6,)
    assert "+ … 27 more = 126" in explained(*long)[0]
    for inputs in ((large,), long):
        assert "--all prints every product of every sum." in explained(*inputs)[0]
        complete, worked = explained(*inputs, every_sum=True)
        assert len(sums(complete)) == worked.activation.size
        assert "--all" not in complete
        assert "more =" not in complete


@pytest.mark.parametrize("columns", [16, 17])
def test_matrices_that_would_fill_the_screen_are_not_printed(columns):
    text, _ = explained("; ".join([" ".join(["7"] * columns)] * 3), ["1"])
    assert (" ".join(["7"] * columns) in text) == (columns == 16)


def test_each_of_two_maps_is_printed_under_its_number():
    text, _ = explained(filters=("vertical", "horizontal"))
    assert [text.count(f"  map {number}:") for number in (1, 2, 3)] == [3, 3, 0]  # sums, ReLU, pooling
    assert "map 1:" not in explained()[0]


def test_the_padding_is_named_and_drawn():
    text, _ = explained("7", ("identity",), padding=1)
    assert "with 1 row(s) and column(s) of zeros on every side: 3×3×1" in text
    assert "    0 0 0\n    0 7 0\n    0 0 0" in text
    text, _ = explained("7", ("identity",), padding=1, mode="replicate")
    assert "copies of its border" in text
    assert "    7 7 7\n    7 7 7" in text


def test_relu_and_pooling_are_shown_with_what_they_did():
    text, _ = explained()
    assert "ReLU, max(0, x): 10 of 25 sums are negative and become 0; the volume stays 5×5×1" in text
    assert "  filter " not in text
    assert "2×2×1; row 5 and column 5 fill no square and are dropped" in text
    assert "    3 0\n    3 0\n" in text


def test_an_activation_too_small_to_pool_is_named_so():
    text, _ = explained("1 2; 3 4", ("1 1; 1 1",))
    assert "2×2 max pooling needs 2 rows and 2 columns, and 1×1 is too small." in text


def test_the_largest_sum_is_located():
    text, _ = explained()
    assert "The largest sum is 3, at row 2, column 2 and 2 more time(s)" in text
    assert "where image and filter agree" in text.replace("\n", " ")
    text, _ = explained("0 0 0; 0 0 0; 0 0 0")
    assert "Every sum is 0: all windows agree" in text


def test_cross_correlation_is_named_with_what_the_turned_filter_would_give():
    text, _ = explained()
    assert "cross-correlation" in text
    assert "the turned filter would give -3 instead of 3 at row 2, column 2." in text
    text, _ = explained(filters=("blur",))
    assert "Here the turned filter gives the same activation." in text


def test_numbers_are_short():
    written = [number(x) for x in (0.0, -0.0, 3.0, -0.00001, 1 / 3, 0.0625, 12345.6789, 1e12)]
    assert written == ["0", "0", "3", "0", "0.3333", "0.0625", "12345.6789", "1e+12"]


def words(svg):
    """List the texts of an SVG; matplotlib draws letters as paths and keeps the text in comments."""
    return [line.strip()[5:-4] for line in svg.read_text().splitlines() if line.strip().startswith("<!-- ")]


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.filterwarnings("error")
def test_small_numbers_are_in_their_cells(tmp_path):
    texts = words(drawn(tmp_path / "new" / "small.svg"))
    for title in (
        "image 7×7×1",
        "filter vertical, 3×3×1",
        "activation 5×5",
        "ReLU 5×5",
        "2×2 max pooling 2×2",
    ):
        assert any(title in line for line in texts)
    assert sum(line.strip() == "3" for line in texts) == 3 + 3 + 2  # activation, ReLU, pooling


@pytest.mark.filterwarnings("error")
def test_a_photo_is_drawn_without_numbers(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    out = drawn(tmp_path / "photo.svg", str(tmp_path / "photo.png"), ("edge", "blur"), padding=1)
    texts = words(out)
    assert len(texts) < 40
    assert any("image 90×120×3, padded by 1" in line for line in texts)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("image", "filters"),
    [
        ("1 -2; 3 4 | 5 6; 7 8", ["1 1; 0 1 | 2 0; 0 2"]),
        ("0 0 0; 0 0 0; 0 0 0", ["edge"]),
        ("5", ["2"]),
        ("1 2 3; 4 5 6; 7 8 9", ["1", "2", "3", "4", "5"]),
    ],
    ids=["channels", "zeros", "one pixel", "more filters than rows"],
)
def test_unusual_inputs_are_drawn(tmp_path, image, filters):
    picture = pixels(drawn(tmp_path / "odd.png", image, filters))
    assert picture[0, 0].tolist() == [255] * 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_filters_beyond_the_rows_are_counted(tmp_path):
    texts = words(drawn(tmp_path / "five.svg", filters=["edge"] * 5))
    assert any("(the first 4 of 5 filters)" in line for line in texts)
    assert sum("after ReLU" in line for line in texts) == 4


def test_zeros_are_white_not_the_colour_of_the_most_negative(tmp_path):
    filter_panel = np.array_split(pixels(drawn(tmp_path / "zeros.png", filters=["0 0; 0 0"])), 5, axis=1)[1]
    assert np.median(filter_panel) > 240


def test_the_window_of_the_largest_sum_is_framed_in_image_and_activation(tmp_path):
    difference = np.abs(pixels(drawn(tmp_path / "framed.png")) - np.array([0xD9, 0x48, 0x0F])).sum(axis=2)
    framed = (difference < 30).any(axis=0)
    fifths = [part.any() for part in np.array_split(framed, 5)]
    assert fifths == [True, False, True, False, False]
