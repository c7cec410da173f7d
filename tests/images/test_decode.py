import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.images import decode as decoding
from convoy.images.decode import MAX_PIXELS, decode

RED, WHITE = [255, 0, 0], [255, 255, 255]


def encoded(picture: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=format_, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + body + checksum + b"\0\0\0\x09IDAT"


@pytest.mark.parametrize("format_", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG", "JPEG2000"])
def test_every_supported_format_is_read(format_):
    options = {"lossless": True} if format_ == "WEBP" else {}
    image_u8 = decode(encoded(Image.new("RGB", (5, 3), "red"), format_, **options)).image_u8
    assert (image_u8.shape, image_u8.dtype) == ((3, 5, 3), np.uint8)
    assert np.abs(image_u8.astype(int) - RED).max() <= 2


def test_gray_and_black_and_white_become_three_equal_channels():
    assert decode(encoded(Image.new("L", (2, 2), 77))).image_u8.tolist() == [[[77] * 3] * 2] * 2
    assert decode(encoded(Image.new("1", (2, 2), 1))).image_u8.tolist() == [[WHITE] * 2] * 2


def test_sixteen_bit_gray_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535, 257 * 100 + 128, 257 * 100 + 129]], np.uint16)
    for format_ in ("PNG", "TIFF", "PPM"):
        decoded = decode(encoded(Image.fromarray(values), format_))
        assert decoded.image_u8[0, :, 0].tolist() == [0, 1, 128, 255, 100, 101], format_
    assert decoded.mode.startswith("I")


def test_a_palette_with_transparency_is_laid_over_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putdata([0, 1])
    assert decode(encoded(picture, transparency=1)).image_u8.tolist() == [[RED, WHITE]]


def test_alpha_is_laid_over_white():
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
    decoded = decode(encoded(picture))
    assert decoded.mode == "RGBA"
    assert decoded.image_u8.tolist() == [[RED, WHITE, [127, 127, 127]]]
    gray = Image.new("LA", (1, 1), (0, 0))
    assert decode(encoded(gray)).image_u8.tolist() == [[WHITE]]


def test_cmyk_becomes_rgb():
    decoded = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert decoded.mode == "CMYK"
    assert np.abs(decoded.image_u8.astype(int) - RED).max() <= 3


def test_the_exif_orientation_is_applied():
    picture = Image.new("RGB", (4, 2))
    picture.paste((255, 0, 0), (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    decoded = decode(encoded(picture, exif=exif))
    assert decoded.image_u8.shape == (4, 2, 3)
    assert decoded.image_u8[:2].tolist() == [[RED] * 2] * 2
    assert decoded.image_u8[2:].max() == 0


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content).image_u8.tolist() == [[RED] * 2] * 2


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_an_agreed_white_are_refused(mode):
    with pytest.raises(DataError, match=f"has 32-bit samples .mode {mode}."):
        decode(encoded(Image.new(mode, (2, 2)), "TIFF"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page (HTML)"),
        (b"<html>", "is a web page"),
        (b"hello", "is not an image in a supported format (BMP, GIF, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image in a supported format"),
        (png_header(100_000, 100_000), "is too large"),
        (png_header(MAX_PIXELS + 1, 1), "is too large"),
    ],
)
def test_other_content_is_refused_with_the_reason(content, reason):
    with pytest.raises(DataError) as caught:
        decode(content)
    assert reason in str(caught.value)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_refused(format_):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    content = encoded(noise, format_)
    with pytest.raises(DataError, match=r"cannot be decoded|is not an image"):
        decode(content[: len(content) // 2])


def test_the_number_of_pixels_is_bounded_before_they_are_decoded(monkeypatch):
    content = encoded(Image.new("RGB", (5, 3)))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 15)
    assert decode(content).image_u8.shape == (3, 5, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 14)
    with pytest.raises(DataError, match="is too large: 5 x 3 pixels, the limit is 14"):
        decode(content)


def test_broken_bytes_are_a_data_error_and_never_a_crash():
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    for format_ in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"):
        content = encoded(noise, format_)
        for _ in range(25):
            broken = bytearray(content)
            for index in rng.integers(0, len(broken), 4):
                broken[index] = rng.integers(0, 256)
            with contextlib.suppress(DataError):
                assert decode(bytes(broken)).image_u8.shape[2] == 3
