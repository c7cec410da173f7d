"""A picture is used although its metadata is damaged or its end is missing; how much is missing is measured."""

import io
import struct
import tracemalloc
import zlib
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from convoy.core.errors import DataError
from convoy.images import damaged
from convoy.images.decode import decode

PX_WIDE, PX_HIGH = 90, 130


def encoded(picture, format_, **options):
    stream = io.BytesIO()
    picture.save(stream, format=format_, **options)
    return stream.getvalue()


def photo(width=PX_WIDE, height=PX_HIGH):
    """Smooth in parts, without two equal pixels beside each other."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def chunk(kind, body):
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def interlaced_png(picture):
    """A PNG in the seven passes of Adam7, which Pillow does not write."""
    pixels_u8 = np.asarray(picture)
    rows = b"".join(
        b"\0" + row.tobytes()
        for left, across, top, down in damaged.ADAM7
        for row in pixels_u8[top::down, left::across]
    )
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, 2, 0, 0, 1)
    return (
        damaged.PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def tiff_with_its_directory_first(picture):
    """A TIFF of compressed strips of 10 rows, after the directory: as other programs write it."""
    pixels_u8 = np.asarray(picture)
    strips = [zlib.compress(pixels_u8[top : top + 10].tobytes()) for top in range(0, len(pixels_u8), 10)]
    count, data = len(strips), 8 + 2 + 10 * 12 + 4 + 6 + 8 * len(strips)
    lists = 8 + 2 + 10 * 12 + 4
    starts = np.cumsum([data, *map(len, strips[:-1])])
    entries = [
        (256, 3, 1, picture.width), (257, 3, 1, picture.height), (258, 3, 3, lists), (259, 3, 1, 8), (262, 3, 1, 2),
        (273, 4, count, lists + 6), (277, 3, 1, 3), (278, 3, 1, 10), (279, 4, count, lists + 6 + 4 * count), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = b"II*\0\x08\0\0\0" + struct.pack("<H", 10)
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    numbers = struct.pack("<3H", 8, 8, 8) + struct.pack(f"<{2 * count}I", *starts, *map(len, strips))
    return directory + numbers + b"".join(strips)


def exif(*entries, order="<", before=b"Exif\0\0"):
    """EXIF metadata of entries (tag, type, count, four bytes), whatever they are."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    body = b"".join(
        struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in entries
    )
    return before + start + body + bytes(4)


UPRIGHT_6 = (274, 3, 1, struct.pack("<HH", 6, 0))
FILES = {
    "jpeg": lambda picture: encoded(picture, "JPEG", quality=90),
    "jpeg 4:4:4": lambda picture: encoded(picture, "JPEG", subsampling=0),
    "jpeg gray": lambda picture: encoded(picture.convert("L"), "JPEG"),
    "jpeg cmyk": lambda picture: encoded(picture.convert("CMYK"), "JPEG"),
    "jpeg restarts": lambda picture: encoded(picture, "JPEG", restart_marker_rows=1),
    "progressive jpeg": lambda picture: encoded(picture, "JPEG", quality=90, progressive=True),
    "png": lambda picture: encoded(picture, "PNG"),
    "png palette": lambda picture: encoded(picture.quantize(200), "PNG"),
    "png interlaced": interlaced_png,
    "gif": lambda picture: encoded(picture.quantize(200), "GIF"),
    "gif interlaced": lambda picture: encoded(picture.quantize(200), "GIF", interlace=True),
    "gif gray": lambda picture: encoded(picture.convert("L"), "GIF"),
    "webp": lambda picture: encoded(picture, "WEBP"),
    "webp lossless": lambda picture: encoded(picture, "WEBP", lossless=True),
    "webp transparent": lambda picture: encoded(picture.convert("RGBA"), "WEBP"),
    "tiff": lambda picture: encoded(picture, "TIFF"),
    "tiff deflate": tiff_with_its_directory_first,
    "bmp": lambda picture: encoded(picture, "BMP"),
    "ppm": lambda picture: encoded(picture, "PPM"),
    "pgm": lambda picture: encoded(picture.convert("L"), "PPM"),
}
BLOCK = 3 * 16 / PX_HIGH
"""Share of the rows of three blocks, by which the lost share may be overstated: WebP smooths edges, scans are cut in lines."""


@pytest.mark.parametrize("name", FILES)
def test_the_lost_share_of_a_truncated_file_is_measured_wherever_it_is_cut(name):
    content = FILES[name](photo())
    whole = decode(content).image_u8.astype(int)
    lost, differing, refused = [], [], 0
    for cut in [*range(1, 6), *(len(content) * n // 60 for n in range(1, 60))]:
        try:
            decoded = decode(content[:-cut], max_truncated=1)
        except DataError:
            refused += 1
            continue
        lost.append(decoded.lost)
        differing.append((np.abs(decoded.image_u8 - whole).max(axis=2) > 3).mean())
        assert decoded.notes == (("truncated",) if decoded.lost else decoded.notes)
    assert refused <= 11, "only where the start, with the tables, is missing"
    assert all(share >= differ - 0.03 for share, differ in zip(lost, differing, strict=True)), (
        "never understated"
    )
    if not name.startswith("progressive"):  # all its rows lack detail, long before they lack everything
        assert all(share <= differ + BLOCK for share, differ in zip(lost, differing, strict=True))
    assert lost == sorted(lost)
    assert lost[0] <= (10 / PX_HIGH if name == "tiff deflate" else 0.02)
    assert lost[-1] > 0.8


def test_a_progressive_jpeg_without_its_last_scans_lacks_detail_everywhere():
    content = FILES["progressive jpeg"](photo())
    scans = [n for n in range(len(content)) if content.startswith(b"\xff\xda", n)]
    assert decode(content[: scans[-1]], max_truncated=1).lost == 1
    assert 0 < decode(content[: (scans[-1] + len(content)) // 2], max_truncated=1).lost < 1


@pytest.mark.parametrize(
    "ending", [b"", b"\xff", b"\0" * 500, b"\xff\xd9" + b"\0" * 500, b"\xff\xd9SEFT trailer"]
)
def test_a_jpeg_may_lack_its_end_marker_or_have_zeros_in_its_place(ending):
    content = FILES["jpeg"](photo())
    decoded = decode(content[:-2] + ending)
    assert decoded.lost == 0
    assert np.array_equal(decoded.image_u8, decode(content).image_u8)
    assert decode(content[: len(content) * 2 // 3] + b"\0" * 5000, max_truncated=1).lost > 0.2


LARGE = photo(300, 260)
ONE_SCAN = {
    "4:2:0": encoded(LARGE, "JPEG", quality=90),
    "4:4:4": encoded(LARGE, "JPEG", quality=95, subsampling=0),
    "optimised": encoded(LARGE, "JPEG", optimize=True),
    "gray": encoded(LARGE.convert("L"), "JPEG", quality=90),
    "cmyk": encoded(LARGE.convert("CMYK"), "JPEG", quality=80),
    "rgb": encoded(LARGE, "JPEG", keep_rgb=True),
}
LOST_PARTS = {
    "cut out": lambda content, at, size: content[:at] + content[at + size :],
    "zeros": lambda content, at, size: content[:at] + bytes(size) + content[at + size :],
    "erased flash": lambda content, at, size: content[:at] + b"\xff" * size + content[at + size :],
}


@pytest.mark.parametrize("what", LOST_PARTS)
@pytest.mark.parametrize("name", ONE_SCAN)
def test_a_lost_sector_inside_a_jpeg_is_found_wherever_it_lies(name, what):
    content = ONE_SCAN[name]
    scan, lost = content.index(b"\xff\xda") + 2, []
    start = scan + int.from_bytes(content[scan : scan + 2])
    for number in range(16):
        at = start + (len(content) - 2 - damaged.SECTOR - start) * number // 15
        try:
            decoded = decode(LOST_PARTS[what](content, at, damaged.SECTOR), max_truncated=1)
        except DataError:
            assert what == "erased flash", "markers that no decoder accepts"
            continue
        assert decoded.notes == ("truncated",)
        lost.append(decoded.lost)
    assert min(lost) > 0
    assert len(lost) == 16 or what == "erased flash"
    if what == "zeros":  # lost from there on; of what was cut out the place is not known
        assert lost[0] > 0.97
        assert lost == sorted(lost, reverse=True)
    with pytest.raises(
        DataError, match=r"is truncated or damaged: \d+\.\d% of its pixels are missing|cannot be decoded"
    ):
        decode(LOST_PARTS[what](content, start + 1000, 2 * damaged.SECTOR), max_truncated=0.001)


RESTARTS = encoded(LARGE, "JPEG", quality=90, restart_marker_rows=1)
MARKERS = [n for n in range(len(RESTARTS) - 1) if RESTARTS[n] == 255 and 0xD0 <= RESTARTS[n + 1] <= 0xD7]


def test_the_intervals_before_a_missing_restart_marker_are_sound():
    at = MARKERS
    total = len(at) + 1
    assert decode(RESTARTS[: at[3]] + RESTARTS[at[4] :], max_truncated=1).lost == pytest.approx(1 - 3 / total)
    assert decode(RESTARTS[: at[1]] + RESTARTS[at[9] :], max_truncated=1).lost == pytest.approx(1 - 8 / total)
    exchanged = RESTARTS[: at[5]] + RESTARTS[at[6] : at[7]] + RESTARTS[at[5] : at[6]] + RESTARTS[at[7] :]
    assert decode(exchanged, max_truncated=1).lost == pytest.approx(1 - 5 / total)
    zeros = RESTARTS[: at[7] + 2] + bytes(600) + RESTARTS[at[7] + 602 :]
    assert decode(zeros, max_truncated=1).lost == pytest.approx(1 - 8 / total)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_jpeg_that_is_cut_at_a_restart_marker_lacks_all_that_follows(kept):
    for number, at in enumerate(MARKERS, 1):
        lost = decode(RESTARTS[: at + kept], max_truncated=1).lost
        least = 1 - 16 * number / LARGE.height
        assert least - 1e-6 <= lost <= 1.001 - (number - 1) / (len(MARKERS) + 1), (
            "at most an interval more, whose end is not seen"
        )


def test_a_progressive_jpeg_that_lacks_a_restart_marker_or_has_zeros_in_a_scan_lacks_detail_everywhere():
    content = encoded(LARGE, "JPEG", progressive=True, restart_marker_rows=1)
    at = [n for n in range(len(content) - 1) if content[n] == 255 and 0xD0 <= content[n + 1] <= 0xD7]
    assert decode(content[: at[20]] + content[at[21] :], max_truncated=1).lost == 1
    content = encoded(LARGE, "JPEG", quality=98, progressive=True)
    scans = [n for n in range(len(content)) if content.startswith(b"\xff\xda", n)]
    start, end = max(pairwise(scans), key=lambda pair: pair[1] - pair[0])
    middle = (start + end) // 2
    assert decode(content[:middle] + bytes(600) + content[middle + 600 :], max_truncated=1).lost == 1


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
def test_no_encoder_writes_what_counts_as_damage(progressive, optimize):
    """Mid-gray and blank images look most like damaged files: their data are zeros, or their last block is as if it were missing."""
    pictures = [photo(50, 40), Image.linear_gradient("L"), Image.new("RGB", (2000, 300), "#808080"), Image.new("L", (999, 999)),
                Image.effect_noise((64, 48), 50), photo(17, 9).convert("CMYK"), Image.new("CMYK", (40, 40), (127,) * 4)]  # fmt: skip
    options = [{"quality": 1}, {"quality": 75}, {"quality": 100, "subsampling": 0}, {"subsampling": "4:2:2"},
               {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"exif": b"Exif\0\0" + bytes(5000)}]  # fmt: skip
    zeros = 0
    for picture in pictures:
        for more in options:
            content = encoded(picture, "JPEG", progressive=progressive, optimize=optimize, **more)
            zeros += bytes(damaged.SECTOR) in content
            for after in (b"", bytes(5), b"trailer" + bytes(900)):
                decoded = decode(content + after, max_truncated=0)
                assert (decoded.lost, decoded.notes) == (0, ()), (picture, more, after)
    assert zeros > len(pictures) if optimize or progressive else zeros == len(pictures), (
        "blank ones too where codes are optimised"
    )


def test_an_odd_but_whole_jpeg_is_not_damaged():
    content = ONE_SCAN["4:2:0"]
    filled = content[:-2] + b"\xff" * 700 + b"\xff\xd9"
    extra = RESTARTS[:-2] + RESTARTS[MARKERS[0] : MARKERS[0] + 2] + b"\xff\xd9"
    before_restart = RESTARTS[: MARKERS[4]] + b"\xff\xff" + RESTARTS[MARKERS[4] :]
    for odd in (filled, extra, before_restart):
        assert decode(odd, max_truncated=0).lost == 0


def test_an_ordinary_jpeg_is_decoded_once():
    def opened(content):
        raise AssertionError

    for content in (*ONE_SCAN.values(), RESTARTS):
        picture = Image.open(io.BytesIO(content))
        picture.load()
        assert damaged.inner_damage(content, picture, opened) is None


def test_more_than_the_allowed_share_is_refused_with_both_shares():
    content = FILES["bmp"](photo())
    row = 3 * PX_WIDE + 2
    assert decode(content[:-row], max_truncated=0.01).lost == pytest.approx(1 / PX_HIGH)
    with pytest.raises(DataError, match=r"1.5% of its pixels are missing .data.max_truncated allows 1.0%"):
        decode(content[: -2 * row], max_truncated=0.01)
    with pytest.raises(DataError, match=r"0.8% of its pixels"):
        decode(content[:-row], max_truncated=0)


def test_lost_pixels_are_those_that_pillow_leaves(monkeypatch):
    """Programs that read truncated files with Pillow alone get the same pixels."""
    for name in ("jpeg", "progressive jpeg", "png", "gif", "bmp", "ppm", "tiff"):
        content = FILES[name](photo())
        content = content[: -len(content) // 3]
        decoded = decode(content, max_truncated=1)
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
            left = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(decoded.image_u8, left), name


def test_a_damaged_middle_counts_as_lost_from_there_on():
    """Of a single chunk that differs from its checksum nothing is trusted."""
    whole = FILES["png"](photo())
    content = bytearray(whole)
    content[len(content) // 2] ^= 255
    assert decode(bytes(content), max_truncated=1).lost == 1
    at = whole.index(b"IDAT")
    data = whole[at + 4 : at + 4 + int.from_bytes(whole[at - 4 : at])]
    parts = b"".join(chunk(b"IDAT", data[n : n + 500]) for n in range(0, len(data), 500))
    content = bytearray(whole[: at - 4] + parts + chunk(b"IEND", b""))
    assert decode(bytes(content)).lost == 0
    content[len(content) // 2] ^= 255
    assert 0.3 < decode(bytes(content), max_truncated=1).lost < 0.7
    with pytest.raises(DataError, match="% of its pixels are missing"):
        decode(bytes(content))


ODD_EXIF = {
    "negative rational": exif(UPRIGHT_6, (282, 5, 1, struct.pack("<I", 38))) + struct.pack("<ii", -5, -7),
    "short of -5": exif((41986, 8, 1, struct.pack("<hh", -5, 0)), UPRIGHT_6),
    "text where a number belongs": exif((282, 2, 4, b"abc\0"), UPRIGHT_6, (296, 2, 4, b"two\0")),
    "doubled header": exif(UPRIGHT_6, before=b"Exif\0\0Exif\0\0"),
    "orientation as text": exif((274, 2, 2, b"6\0\0\0")),
    "orientation as long": exif((274, 4, 1, struct.pack("<I", 6))),
    "orientation as byte": exif((274, 1, 1, b"\x06\0\0\0")),
    "big endian": exif((274, 3, 1, struct.pack(">HH", 6, 0)), order=">"),
    "a list of orientations": exif((274, 3, 2, struct.pack("<HH", 6, 6))),
    "a sub-directory that is the directory": exif(UPRIGHT_6, (34665, 4, 1, struct.pack("<I", 8))),
    "a value beyond the end": exif(UPRIGHT_6, (37500, 7, 10**9, struct.pack("<I", 10**9))),
    "unknown types": exif((1, 99, 7, b"abcd"), UPRIGHT_6, (2, 0, 0, b"abcd")),
    "no next directory": exif(UPRIGHT_6)[:-4],
}


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", ODD_EXIF)
def test_a_picture_is_used_upright_whatever_else_its_exif_holds(name, format_):
    picture = photo(24, 16)
    options = {"lossless": True} if format_ == "WEBP" else {"quality": 95, "subsampling": 0}
    decoded = decode(encoded(picture, format_, exif=ODD_EXIF[name], **options))
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    assert decoded.image_u8.shape == (24, 16, 3)
    assert np.abs(decoded.image_u8 - expected.astype(int)).max() < 30
    assert (decoded.lost, decoded.notes) == (0, ())


@pytest.mark.parametrize(
    "metadata",
    [
        b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0JUNKJUNKJUNK",
        exif((274, 3, 1, b"\0\0\0\0")), exif((274, 3, 1, b"\x09\0\0\0")), exif((274, 2, 1, b"x\0\0\0")),
        exif()[:-6] + b"\xff\xff",
    ],
)  # fmt: skip
def test_without_a_readable_orientation_a_picture_is_used_as_it_is(metadata):
    for format_ in ("JPEG", "PNG", "WEBP"):
        assert decode(encoded(photo(24, 16), format_, exif=metadata)).image_u8.shape == (16, 24, 3)


def test_an_orientation_may_stand_in_xmp_alone():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    assert decode(encoded(photo(24, 16), "JPEG", xmp=xmp)).image_u8.shape == (24, 16, 3)
    assert decode(encoded(photo(24, 16), "JPEG", xmp=xmp, exif=exif((274, 3, 1, b"\x01\0\0\0")))).image_u8.shape == (
        16, 24, 3,
    )  # fmt: skip


LIMIT = 2**16
ODD_CHUNKS = {
    "text above Pillow's limit": [(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2 * LIMIT))],
    "many texts above Pillow's limit": [(b"tEXt", b"Comment\0" + b"a" * LIMIT)] * 5,
    "international text": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 2 * LIMIT))],
    "profile above Pillow's limit": [(b"iCCP", b"x\0\0" + zlib.compress(bytes(2 * LIMIT)))],
    "profile of another compression": [(b"iCCP", b"x\0\7abc")],
    "damaged physical size": [(b"pHYs", b"\0")],
    "damaged colours": [(b"cHRM", b"\0\0"), (b"gAMA", b""), (b"sRGB", b"")],
    "damaged animation": [(b"acTL", b"\0"), (b"fcTL", b"\0\0")],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_CHUNKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_is_used_whatever_its_other_chunks_hold(name, place, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", LIMIT)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 4 * LIMIT)
    content = encoded(photo(24, 16), "PNG", exif=exif(UPRIGHT_6))
    at = content.index(b"IDAT") - 4 if place == "before" else content.index(b"IEND") - 4
    content = content[:at] + b"".join(chunk(*odd) for odd in ODD_CHUNKS[name]) + content[at:]
    decoded = decode(content)
    assert np.array_equal(decoded.image_u8, np.asarray(photo(24, 16).transpose(Image.Transpose.ROTATE_270)))
    assert decoded.lost == 0


def test_a_png_is_used_although_the_checksum_of_a_text_is_wrong():
    content = encoded(photo(24, 16), "PNG")
    at = content.index(b"IDAT") - 4
    decoded = decode(content[:at] + chunk(b"tEXt", b"a\0b")[:-1] + b"!" + content[at:])
    assert (decoded.lost, decoded.notes) == (0, ("bad_metadata",))
    assert np.array_equal(decoded.image_u8, np.asarray(photo(24, 16)))


def test_a_jpeg_is_used_although_its_list_of_pictures_is_damaged():
    content = encoded(photo(24, 16), "JPEG")
    body = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0xB001, 4, 1, 99) + bytes(4)
    segment = b"\xff\xe2" + (len(body) + 2).to_bytes(2) + body
    decoded = decode(content[:2] + segment + content[2:])
    assert np.array_equal(decoded.image_u8, decode(content).image_u8)


def test_what_cannot_be_decoded_in_part_is_refused():
    for format_ in ("AVIF", "JPEG2000"):
        content = encoded(photo(), format_)
        for cut in (10, len(content) // 2):
            with pytest.raises(DataError, match=r"cannot be decoded|is not an image|is truncated"):
                decode(content[:-cut], max_truncated=1)


def test_the_size_that_a_webp_states_takes_no_memory():
    content = bytearray(FILES["webp"](photo()))
    content[16:20] = b"\xf0\xff\xff\xff"
    tracemalloc.start()
    assert decode(bytes(content), max_truncated=1).lost <= 0.02
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


def test_a_compression_bomb_takes_no_memory():
    header = struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**25), 9)
    bomb = damaged.PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"pHYs", b"\0") + chunk(b"IDAT", rows)
    tracemalloc.start()
    assert decode(bomb).notes == ("bad_metadata",)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def half(width, height):
    return width // 2, height // 2


def test_a_scaled_jpeg_whose_last_pixel_is_mid_gray_is_whole():
    picture = photo(96, 128)
    picture.paste((128, 128, 128), (64, 96, 96, 128))
    scaled = decode(encoded(picture, "JPEG", quality=90), enough=half)
    assert (scaled.image_u8.shape, scaled.lost, scaled.notes) == ((64, 48, 3), 0.0, ())


def test_a_jpeg_that_lacks_a_part_is_not_scaled_so_that_it_gives_the_same_picture():
    content = encoded(photo(960, 640), "JPEG", quality=95)
    at = len(content) * 3 // 4
    content = content[:at] + bytes(2000) + content[at + 2000 :]
    whole, enough = decode(content, max_truncated=1), decode(content, max_truncated=1, enough=half)
    assert whole.lost == enough.lost > 0
    assert np.array_equal(whole.image_u8, enough.image_u8)
