import contextlib
import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image, ImageOps

from convoy.core.errors import DataError
from convoy.images import decode as decoding
from convoy.images.decode import BYTES_PER_PIXEL, MAX_PIXELS, Memory, decode
from icc import DISPLAY_P3

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


@pytest.mark.parametrize("format_", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG", "JPEG2000", "AVIF"])
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_each_orientation_is_applied_as_pillow_applies_it(orientation, format_):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise).resize((24, 16)), format_, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert np.array_equal(decode(content).image_u8, expected)
    assert expected.shape == ((24, 16, 3) if orientation > 4 else (16, 24, 3))


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content).image_u8.tolist() == [[RED] * 2] * 2


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_several_frames_the_first_is_used(format_):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    decoded = decode(encoded(frames[0], format_, save_all=True, append_images=frames[1:]))
    assert np.abs(decoded.image_u8.astype(int) - RED).max() <= 3
    assert decoded.format == format_


@pytest.mark.parametrize(
    ("background", "colour"), [("white", WHITE), ("black", [0, 0, 0]), ("#00FF7f", [0, 255, 127])]
)
def test_transparent_pixels_get_the_background(background, colour):
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 255), (9, 9, 9, 0), (255, 255, 255, 128)])
    decoded = decode(encoded(picture), background=background)
    assert decoded.image_u8[0, :2].tolist() == [RED, colour]
    assert np.abs(decoded.image_u8[0, 2] - (np.array(colour) + 255) / 2).max() <= 1
    assert decoded.transparent
    assert not decode(encoded(Image.new("RGBA", (1, 1), "red"))).transparent
    assert not decode(encoded(Image.new("RGB", (1, 1), "red")), background=background).transparent
    gray = decode(encoded(Image.new("LA", (1, 1), (0, 0))), background=background)
    assert (gray.image_u8.tolist(), gray.transparent) == ([[colour]], True)


def bmp_with_alpha(alpha):
    """A BMP of 32 bits with a mask for alpha, as programs write it that know none."""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(52)
    pixels = bytes([0, 0, 255, 0]) + bytes([255, 0, 0, alpha])
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + 8, 0, 0, 14 + len(header)) + header + pixels


def test_a_bmp_whose_alpha_is_zero_throughout_is_opaque():
    decoded = decode(bmp_with_alpha(0))
    assert decoded.mode == "RGBA"
    assert decoded.image_u8.tolist() == [[RED, [0, 0, 255]]]
    assert (decoded.transparent, decoded.notes) == (False, ("empty_alpha",))
    decoded = decode(bmp_with_alpha(255))
    assert decoded.image_u8.tolist() == [[WHITE, [0, 0, 255]]]
    assert (decoded.transparent, decoded.notes) == (True, ())


def with_chunk(content, kind, body):
    at = content.index(b"IDAT") - 4
    added = len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
    return content[:at] + added + content[at:]


def test_twelve_of_sixteen_bits_are_scaled_where_the_file_states_them_and_pointed_out_elsewhere():
    values = np.array([[0, 2048, 4095]], np.uint16)
    plain = encoded(Image.fromarray(values))
    decoded = decode(plain)
    assert (decoded.image_u8[0, :, 0].tolist(), decoded.notes) == ([0, 8, 16], ("low_bits",))
    stated = decode(with_chunk(plain, b"sBIT", b"\x0c"))
    assert (stated.image_u8[0, :, 0].tolist(), stated.notes) == ([0, 128, 255], ("scaled_bits",))
    ten = decode(with_chunk(encoded(Image.fromarray(values // 4)), b"sBIT", b"\x0a"))
    assert (ten.image_u8[0, :, 0].tolist(), ten.notes) == ([0, 128, 255], ("scaled_bits",))
    wrong = decode(with_chunk(plain, b"sBIT", b"\x0a"))  # there are larger samples than 10 bits hold
    assert (wrong.image_u8[0, -1, 0], wrong.notes) == (16, ("low_bits",))
    full = decode(with_chunk(encoded(Image.fromarray(values * 16)), b"sBIT", b"\x0c"))  # scaled already
    assert (full.image_u8[0, -1, 0], full.notes) == (255, ())
    tiff = decode(encoded(Image.fromarray(values), "TIFF", tiffinfo={281: 4095}))
    assert (tiff.image_u8[0, :, 0].tolist(), tiff.notes) == ([0, 128, 255], ("scaled_bits",))
    assert decode(encoded(Image.fromarray(values), "TIFF")).notes == ("low_bits",)


def png_of_16_bits(colour, *samples):
    """A PNG of a single pixel with 16-bit samples, which Pillow does not write in colour."""
    body = zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks
    )


def test_colour_of_sixteen_bits_is_read_and_pointed_out_if_it_uses_twelve():
    decoded = decode(png_of_16_bits(2, 65535, 0, 257 * 100))
    assert (decoded.image_u8.tolist(), decoded.notes) == ([[[255, 0, 100]]], ())
    assert decode(png_of_16_bits(2, 4095, 0, 2000)).notes == ("low_bits",)
    assert decode(png_of_16_bits(6, 4095, 0, 2000, 65535)).notes == ("low_bits",)
    assert decode(png_of_16_bits(4, 65535, 0)).image_u8.tolist() == [[WHITE]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_an_agreed_white_are_refused(mode):
    with pytest.raises(DataError, match=rf"has .* samples \(mode {mode}\)"):
        decode(encoded(Image.new(mode, (2, 2)), "TIFF"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page (HTML)"),
        (b"<html>", "is a web page"),
        (b"hello", "is not an image in a supported format (BMP, GIF, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is a PostScript document"),
        (png_header(100_000, 100_000), "is too large"),
        (png_header(MAX_PIXELS + 1, 1), "is too large"),
    ],
)
def test_other_content_is_refused_with_the_reason(content, reason):
    with pytest.raises(DataError) as caught:
        decode(content)
    assert reason in str(caught.value)


def test_the_number_of_pixels_is_bounded_before_they_are_decoded(monkeypatch):
    content = encoded(Image.new("RGB", (5, 3)))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 15)
    assert decode(content).image_u8.shape == (3, 5, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 14)
    with pytest.raises(DataError, match="is too large: 5 x 3 pixels, the limit is 14"):
        decode(content)


def claims(format_, width, height):
    """A small file that states a size: of pixels that it does not have, or has as nothing but zeros."""
    small = bytearray(encoded(Image.new("L" if format_ in ("TIFF", "BMP") else "RGB", (1, 1)), format_))
    if format_ == "GIF":
        small[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
        at = small.index(b",") + 5
        small[at : at + 4] = small[6:10]
    elif format_ == "BMP":
        small[18:26] = struct.pack("<ii", width, height)
    elif format_ == "JPEG":
        at = small.index(b"\xff\xc0") + 5
        small[at : at + 4] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif format_ == "JPEG2000":
        at = small.index(b"ihdr") + 4
        small[at : at + 8] = struct.pack(">II", height, width)
        at = small.index(b"\xff\x51") + 6
        small[at : at + 8] = struct.pack(">II", width, height)
    elif format_ == "TIFF":
        for tag, value in ((256, width), (257, height), (278, height)):
            at = small.index(struct.pack("<HH", tag, 3 if struct.pack("<HH", tag, 3) in small else 4))
            small[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    elif format_ == "PPM":
        small = bytearray(b"P6 %d %d 255\n" % (width, height))
    return bytes(small)


@pytest.mark.parametrize("format_", ["GIF", "BMP", "JPEG", "JPEG2000", "TIFF", "PPM"])
@pytest.mark.parametrize(("width", "height"), [(65_000, 65_000), (4_000, 4_000), (1, 60_000), (60_000, 1)])
def test_a_small_file_that_states_a_large_size_is_refused(format_, width, height):
    """Or decoded, where all its pixels are there in some bytes; never an error of another kind."""
    content = claims(format_, width, height)
    with contextlib.suppress(DataError):
        decoded = decode(content, max_truncated=1)
        assert decoded.image_u8.shape == (height, width, 3)
    if width * height > MAX_PIXELS:
        with pytest.raises(DataError, match=r"is too large: .*pixels, the limit is 89,478,485"):
            decode(content, max_truncated=1)
    elif "JPEG" not in format_:  # whose ends are there, so that its decoders make up what is missing
        with pytest.raises(DataError, match=r"is truncated|cannot be decoded"):
            decode(content)


@pytest.mark.parametrize("shape", [(10**7, 1), (1, 10**7)])
def test_a_strip_of_ten_million_pixels_is_decoded(shape):
    decoded = decode(encoded(Image.new("L", shape, 9)))
    assert decoded.image_u8.shape == (shape[1], shape[0], 3)
    assert decoded.image_u8.min() == decoded.image_u8.max() == 9


def test_broken_bytes_are_a_data_error_and_never_a_crash():
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    for format_ in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM", "AVIF"):
        content = encoded(noise, format_)
        for _ in range(25):
            broken = bytearray(content)
            for index in rng.integers(0, len(broken), 4):
                broken[index] = rng.integers(0, 256)
            with contextlib.suppress(DataError):
                assert decode(bytes(broken)).image_u8.shape[2] == 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_a_large_image_is_converted_strip_by_strip_to_the_same_pixels(mode, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (29, 17, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    options = {"format_": "JPEG"} if mode == "CMYK" else {"transparency": 3} if mode == "P" else {}
    picture = (
        Image.fromarray(noise[:, :, :2].copy().view(np.uint16)[:, :, 0])
        if mode == "I;16"
        else picture.convert("RGB").quantize(16)
        if mode == "P"
        else picture.convert(mode)
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture, exif=exif, **options)
    whole = decode(content).image_u8
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 100)
    assert np.array_equal(decode(content).image_u8, whole)
    assert whole.shape == (17, 29, 3)


PEAK = """
import resource, sys
from convoy.images.decode import decode
from convoy.images.resize import Geometry
side = int(sys.argv[2])
resized = Geometry(side, "squash") if side else lambda image_u8: None
resized(decode(open(sys.argv[3], "rb").read()).image_u8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resized(decode(open(sys.argv[1], "rb").read()).image_u8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak(path, side=0):
    """Bytes that decoding a file takes, and resizing it to a square of `side` pixels, in a process of its own."""
    small = path.with_name("small.png")
    Image.new("RGB", (99, 9)).save(small)
    done = subprocess.run(
        # A process begins with the peak of what started it: here that of a shell, not that of the tests.
        ["/bin/sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", PEAK, str(path), str(side), str(small)],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    return int(done.stdout) * (1024 if sys.platform == "linux" else 1)


def test_a_transparent_image_of_few_bytes_takes_no_more_than_twice_its_pixels(tmp_path):
    picture = Image.new("P", (4000, 4000))
    picture.save(tmp_path / "bomb.png", transparency=0)
    assert (tmp_path / "bomb.png").stat().st_size < 25_000
    assert peak(tmp_path / "bomb.png") < 8 * 4000 * 4000  # 17 bytes a pixel, if converted as a whole


LARGE = {
    "JPEG": {"progressive": True, "subsampling": 0}, "PNG": {"compress_level": 1}, "WEBP": {"method": 0}, "AVIF": {"speed": 10},
    "TIFF": {}, "BMP": {}, "PPM": {}, "GIF": {}, "JPEG2000": {"tile_size": (1024, 1024)},
}  # fmt: skip
QUICK = ("JPEG", "WEBP")


@pytest.mark.parametrize(
    "format_", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LARGE]
)
def test_decoding_and_resizing_twenty_megapixels_takes_no_more_than_300_megabytes(format_, tmp_path):
    """Turned and of another colour space, which takes further copies."""
    options = LARGE[format_] | (
        {} if format_ in ("BMP", "PPM", "GIF", "JPEG2000") else {"icc_profile": DISPLAY_P3}
    )
    if format_ in ("JPEG", "PNG", "WEBP", "AVIF"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large", format_, **options)
    assert 60e6 < peak(tmp_path / "large", 224) < 300e6


@pytest.mark.slow
def test_a_jpeg_2000_without_tiles_takes_as_much_as_is_reserved_for_it(tmp_path):
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large", "JPEG2000")
    assert 300e6 < peak(tmp_path / "large", 224) < BYTES_PER_PIXEL * 20e6


def test_threads_together_decode_no_more_than_the_limit(monkeypatch):
    content = encoded(Image.new("RGB", (10, 10)))
    memory = Memory(2 * BYTES_PER_PIXEL * 100)
    monkeypatch.setattr(decoding, "memory", lambda: memory)
    running, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(2)

    def work():
        nonlocal running, most
        with ExitStack() as held:
            decode(content, held)
            with lock:
                running += 1
                most = max(most, running)
            full.wait(10)
            with lock:
                running -= 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    assert (most, running) == (2, 0)
    assert not any(thread.is_alive() for thread in threads), "each gave its share back"


def test_an_image_above_the_limit_is_decoded_while_no_other_is():
    memory = Memory(10)
    entered, left = threading.Event(), threading.Event()

    def take_all():
        with memory.reserved(1000):
            entered.set()
            left.wait(10)

    threading.Thread(target=take_all, daemon=True).start()
    assert entered.wait(10)
    waiting = threading.Thread(target=lambda: memory.reserved(1).__enter__(), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    left.set()
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_limit_is_a_share_of_the_memory():
    assert 2**20 < decoding.memory().limit < 2**45


def test_a_damaged_image_gives_its_share_of_the_memory_back(monkeypatch):
    memory = Memory(BYTES_PER_PIXEL * 100)
    monkeypatch.setattr(decoding, "memory", lambda: memory)
    pixels = np.random.default_rng(1).integers(
        0, 256, (10, 10, 3), np.uint8
    )  # so that half of the file has a header
    content = encoded(Image.fromarray(pixels))
    refused = []

    def work():
        for _ in range(3):
            with ExitStack() as held, pytest.raises(DataError):
                decode(content[: len(content) // 2], held)
            refused.append(True)

    thread = threading.Thread(target=work, daemon=True)  # what keeps its share makes the next wait for ever
    thread.start()
    thread.join(20)
    assert len(refused) == 3
