"""Use what is left of a damaged file: pixels before its missing end, and whole images with unusable metadata.

Pillow's own switch, `ImageFile.LOAD_TRUNCATED_IMAGES`, is global to the process, hides damage inside an image as well, and
does not state how much is lost. Here the lost share is always determined, per format:

- JPEG: of one with an end marker, whose decoder fills gaps in silence, `inner_damage` looks for what no encoder writes.
- JPEG and WebP are decoded twice, with different data in place of the missing end. The first pixel that differs is the
  first that is lost. Of a progressive JPEG that lacks whole scans no pixel has all its detail, so all of it is lost.
- PNG: the compressed rows are counted. GIF: its pixels are decoded over two different backgrounds.
- BMP, PPM and TIFF: the rows, or compressed strips, that the file still holds are counted.

AVIF, JPEG 2000 and HEIC cannot be decoded in part.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from convoy.images.profiles import MAX_PROFILE_BYTES

NOISE = np.random.default_rng(0).integers(1, 255, 2**13, np.uint8).tobytes()
"""Data that differs from any image, without the bytes 0 and 255 that JPEG gives a meaning."""

MOST_FILLING = 2**22
"""Most bytes put in place of the missing end of a WebP, whatever size it states."""

COMPARED_ROWS = 256
"""Rows compared at once, to bound the memory."""

JPEG_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
JPEG_DATA_END = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
"""What ends the data of a scan: a marker that is neither an escaped byte nor a restart."""

RESTART = re.compile(rb"\xff([\xd0-\xd7])")
RESTART_INTERVAL = b"\xff\xdd\0\4"
IN_DATA = re.compile(rb"\xff[^\0]")
EIGHT_RESTARTS = b"".join(bytes([0xFF, 0xD0 + n]) for n in range(8))

MID_GRAY = (128, (128, 128, 128), (127, 127, 127, 127), (128, 128, 128, 128))
"""Pixels of a block without data: gray, RGB, and CMYK of both polarities."""

SECTOR = 512
"""Smallest part of a file that a disk or a download loses, in bytes."""

ZEROS, ERASED = bytes(SECTOR), b"\xff" * SECTOR + b"\0"
"""What lies in place of a lost part: zeros; or the state of erased flash memory, which no data of a scan contains."""

ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
"""First column, step of columns, first row and step of rows of each pass of an interlaced PNG (ISO 15948, 8.2)."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel, by colour type."""

Opened = Callable[[bytes], Image.Image]
"""Opens a file's bytes as an image whose pixels are not yet decoded."""


@dataclass(frozen=True)
class Rescued:
    """Hold what is left of a damaged file.

    Attributes:
        picture: decoded; lost pixels are black, or what its decoder puts there.
        lost: share of the pixels that are missing, 0..1; 0 if only metadata is damaged.
    """

    picture: Image.Image
    lost: float


def rescue(content: bytes, opened: Opened) -> Rescued | None:
    """Decode what can be decoded of a file that Pillow refuses; None if nothing can, or it is not known how much is lost.

    Args:
        content: the file.
        opened: opens a file's bytes with Pillow, and checks its size.
    """
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content, opened)
    if content.startswith(PNG_SIGNATURE):
        return _png(content, opened)
    if content.startswith(b"GIF8"):
        return _gif(content, opened)
    if content.startswith(b"RIFF"):
        return _webp(content, opened)
    if content[4:8] == b"ftyp":
        return _avif(content, opened)
    return _raw(content, opened)


def lacks_its_end(content: bytes) -> bytes:
    """Remove the zeros that recovery programs and aborted downloads put in place of the end of a JPEG."""
    if content.startswith(b"\xff\xd8") and content.endswith(b"\0\0\0\0"):
        return content.rstrip(b"\0")
    return content


def _partly_loaded(picture: Image.Image) -> Image.Image:
    """Decode a picture as far as it goes; the pixels after that are 0."""
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError):
        if isinstance(picture, ImageFile.ImageFile):
            picture.tile = []  # nothing more to decode: what there is can be used
    return picture


# --- JPEG ---


@dataclass
class _Scans:
    """Hold what the segments of a JPEG state.

    Attributes:
        essential: the file without segments of metadata.
        ended: whether its end marker was found.
        unit: width and height of the smallest group of blocks, in pixels.
        complete: whether every coefficient of every component is in some scan.
    """

    essential: bytes
    ended: bool
    unit: tuple[int, int]
    complete: bool


def _jpeg(content: bytes, opened: Opened) -> Rescued | None:
    scans = _jpeg_scans(content)
    if scans is None:
        return None
    end = b"\xff\xd9"
    whole = opened(scans.essential + end)
    whole.load()
    if scans.ended:
        # Metadata was damaged, or what looks like it lies inside.
        return inner_damage(scans.essential + end, whole, opened) or Rescued(whole, 0.0)
    if not scans.complete:
        return Rescued(whole, 1.0)
    other = opened(scans.essential + NOISE + end)
    other.load()
    lost = _lost_from(whole, other, scans.unit, blurred=1)
    # Beyond a restart marker that is missing as well, no data is used.
    interrupted = _interrupted(scans.essential + end, whole, opened)
    return Rescued(whole, max(lost, interrupted.lost if interrupted else 0.0))


def _jpeg_scans(content: bytes) -> _Scans | None:
    """Read a JPEG up to its end marker, or to where it is cut; None without a scan.

    Kept are the segments that decoders need: tables, frames, scans, JFIF (APP0), EXIF and XMP (APP1), ICC (APP2), Adobe (APP14).
    """
    essential = bytearray(b"\xff\xd8")
    missing_bits: dict[tuple[int, int], int] = {}  # by component and coefficient
    unit, ended, scanned = (8, 8), False, False
    for marker, body, segment, _ in _jpeg_segments(content):
        if marker == 0xD9:
            ended = True
            break
        icc = marker == 0xE2 and body.startswith(b"ICC_PROFILE\0")
        if marker in (0xE0, 0xE1, 0xEE) or icc or not 0xE0 <= marker <= 0xFE:
            essential += segment
        if marker in (0xC0, 0xC1, 0xC2) and len(body) >= 6 + 3 * body[5]:
            parts = [body[6 + 3 * n : 9 + 3 * n] for n in range(body[5])]
            unit = _unit(body)
            missing_bits |= dict.fromkeys(((part[0], k) for part in parts for k in range(64)), 99)
        if marker == 0xDA and body and len(body) == 4 + 2 * body[0]:
            scanned = True
            first, last, low = body[-3], min(body[-2], 63), body[-1] & 15
            for component in body[1:-3:2]:
                missing_bits |= dict.fromkeys(((component, k) for k in range(first, last + 1)), low)
    if not scanned:
        return None
    return _Scans(bytes(essential), ended, unit, complete=not any(missing_bits.values()))


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Yield the marker, the body, all bytes and the end of each segment, a scan's with its data; none that is cut, but a scan."""
    position = 2
    while found := JPEG_MARKER.search(content, position):
        marker, start = found[1][0], found.end()
        if marker == 0xD9:
            yield marker, b"", b"", start
            return
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without a body
            position = start
            continue
        end = start + max(2, int.from_bytes(content[start : start + 2]))
        if end > len(content):
            return
        position = end
        if marker == 0xDA:
            after = JPEG_DATA_END.search(content, end)
            position = len(content[: after.start() if after else None].rstrip(b"\xff"))
        yield marker, content[start + 2 : end], b"\xff" + found[1] + content[start:position], position


def inner_damage(content: bytes, picture: Image.Image, opened: Opened) -> Rescued | None:
    """Find the signs of missing or overwritten data inside a JPEG that was decoded; None if there are none.

    Found are a lost part in whose place are zeros or ones, restart markers that are missing or out of order, and, unless the JPEG
    is progressive, data that ends before the last pixel: its decoder makes the rest mid-gray. Not found is a part
    that was replaced by other data, or is missing from a progressive JPEG, from one of several scans, or between two restart markers.

    Args:
        content: the file.
        picture: the decoded file.
        opened: as for `rescue`.
    """
    if may_be_interrupted(content) and (found := _interrupted(content, picture, opened)):
        return found
    width, height = picture.size
    if picture.im.getpixel((width - 1, height - 1)) not in MID_GRAY:
        return None
    components = interval = 0
    for marker, body, segment, end in _jpeg_segments(content):
        if marker in (0xC0, 0xC1) and len(body) >= 6 + 3 * body[5]:
            components, unit = body[5], _unit(body)
        elif marker == 0xDD:
            interval = int.from_bytes(body)
        elif marker == 0xDA:
            if not body or body[0] != components:
                return None
            stray = None if interval else RESTART.search(segment, 4 + len(body))
            sound = content[: end - len(segment) + stray.start()] if stray else content[:end]
            other = opened(sound + NOISE + b"\xff\xd9")
            other.load()
            lost = _lost_from(picture, other, unit, blurred=1)
            return Rescued(picture, lost) if lost else None
    return None


def _unit(frame: bytes) -> tuple[int, int]:
    """Return width and height of the smallest group of blocks, in pixels."""
    sampling = frame[7 : 6 + 3 * frame[5] : 3]
    return 8 * max(factors >> 4 for factors in sampling), 8 * max(factors & 15 for factors in sampling)


def may_be_interrupted(content: bytes) -> bool:
    """Check quickly whether there are a lost part anywhere, or restart markers that may be out of order."""
    samples = content[:: SECTOR // 4]
    if b"\0\0\0\0" in samples or b"\xff\xff\xff\xff" in samples:
        return True
    if len(content) < 2**16 and RESTART_INTERVAL not in content:  # of a small file the fastest answer
        return False
    at, interval, frame = 2, 0, b""
    while at + 4 < len(content) and content[at] == 0xFF and (marker := content[at + 1]) != 0xDA:
        end = at + 2 + (content[at + 2] << 8 | content[at + 3])
        if marker == 0xDD:
            interval = int.from_bytes(content[at + 4 : end])
        elif 0xC0 <= marker <= 0xC2:
            frame = content[at + 1 : at + 2] + content[at + 4 : end]
        at = end
    if not interval:
        return False
    if len(frame) < 7 or frame[0] == 0xC2:
        return True
    markers = (_groups(frame[7::3], frame) - 1) // interval
    expected = (EIGHT_RESTARTS * (markers // 8 + 1))[: 2 * markers]
    return not b"".join(IN_DATA.findall(content, at + 2)).startswith(expected)


def _interrupted(content: bytes, picture: Image.Image, opened: Opened) -> Rescued | None:
    """Find the first scan whose data contains a lost part, or has other restart markers than its size requires."""
    first_symbols: dict[int, int] = {}
    interval, frame = 0, b""
    for marker, body, segment, end in _jpeg_segments(content):
        if marker in (0xC0, 0xC1, 0xC2) and len(body) >= 6 + 3 * body[5]:
            frame = bytes([marker]) + body
        elif marker == 0xC4:
            first_symbols |= _first_symbols(body)
        elif marker == 0xDD:
            interval = int.from_bytes(body)
        elif marker == 0xDA and frame and body and len(body) == 4 + 2 * body[0]:
            data = segment[4 + len(body) :]
            # Zeros may be blocks like the one before, unless they mean coefficients of -1.
            tables = body[2:-3:2] if body[-2] else b""
            zeros = any(first_symbols.get(16 + table % 16, 0) % 16 for table in tables)
            lost = [at for at in (data.find(ERASED), data.find(ZEROS) if zeros else -1) if at >= 0]
            if not interval and lost:
                return _jpeg(content[: end - len(data) + min(lost)], opened)
            groups = _groups(body[1:-3:2], frame)
            if interval and groups:
                intervals = -(-groups // interval)
                sound = _sound_intervals(data[: min(lost, default=len(data))], intervals)
                if lost or sound < intervals:
                    return Rescued(picture, 1.0 if frame[0] == 0xC2 else 1.0 - sound * interval / groups)
    return None


def _first_symbols(tables: bytes) -> dict[int, int]:
    """Return the symbol whose code is zeros of each Huffman table of a segment, by 16 times its class plus its number (T.81, B.2.4.2)."""
    found, at = {}, 0
    while at + 17 < len(tables):
        found[tables[at]] = tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return found


def _groups(components: bytes, frame: bytes) -> int:
    """Count the groups of blocks of a scan (MCUs; ITU-T T.81, A.2); 0 if a component is unknown."""
    height, width = struct.unpack_from(">HH", frame, 2)
    sampling = {frame[n]: (frame[n + 1] >> 4, frame[n + 1] & 15) for n in range(7, 7 + 3 * frame[6], 3)}
    if not all(all(sampling.get(component, (0,))) for component in components):
        return 0
    across, down = (8 * max(factors[n] for factors in sampling.values()) for n in (0, 1))
    own = sampling[components[0]] if len(components) == 1 else (1, 1)
    return int(-(-width * own[0] // across) * -(-height * own[1] // down))


def _sound_intervals(data: bytes, intervals: int) -> int:
    """Count the intervals of a scan before the first restart marker that is out of order, or missing."""
    markers = [found[1][0] - 0xD0 for found in RESTART.finditer(data)]
    wrong = next((n for n, number in enumerate(markers[: intervals - 1]) if number != n % 8), len(markers))
    return intervals if wrong >= intervals - 1 else wrong


def _lost_from(whole: Image.Image, other: Image.Image, unit: tuple[int, int], blurred: int) -> float:
    """Return the share of the pixels from the first on that differs, in the order of blocks of `unit` pixels.

    Colour is interpolated between the blocks of a JPEG, so that `blurred` rows and columns before a block may differ.
    """
    (width, height), (across, down) = whole.size, unit
    for top in range(0, height, COMPARED_ROWS):
        box = (0, top, width, min(height, top + COMPARED_ROWS))
        pair = [np.asarray(picture.crop(box)) for picture in (whole, other)]
        differs = pair[0] != pair[1]
        differs = differs.any(axis=2) if differs.ndim == 3 else differs
        if differs.any():
            row = top + int(differs.any(axis=1).argmax())
            row = (row + blurred) // down * down
            # Not its lower half, for the colours of the blocks below.
            box = (0, row, width, min(height, row + down // 2))
            band = [np.asarray(picture.crop(box)) for picture in (whole, other)]
            columns = (band[0] != band[1]).reshape(len(band[0]), width, -1).any(axis=(0, 2))
            column = (int(columns.argmax()) + blurred) // across * across if columns.any() else 0
            before = row * width + min(column, width) * min(down, height - row)
            return max(0.0, 1.0 - before / (width * height))
    return 0.0


# --- PNG ---


def _png(content: bytes, opened: Opened) -> Rescued | None:
    """Keep the chunks that pixels and their meaning need, so that no other can be in the way."""
    kept, data, profile = bytearray(PNG_SIGNATURE), bytearray(), b""
    header, sound = b"", None
    for kind, body, state in png_chunks(content):
        if kind == b"IDAT":
            sound = len(data) if state == "damaged" and sound is None else sound
            data += body
        elif state != "whole":
            continue
        elif kind == b"iCCP":
            profile = _png_profile(body)
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf"):
            header = body if kind == b"IHDR" else header
            kept += _png_chunk(kind, body)
    if len(header) != 13 or not data:
        return None
    picture = opened(bytes(kept + _png_chunk(b"IDAT", bytes(data)) + _png_chunk(b"IEND", b"")))
    if profile:
        picture.info["icc_profile"] = profile
    lost = _png_lost(header, data, sound)
    return Rescued(_partly_loaded(picture), lost)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, Literal["whole", "cut", "damaged"]]]:
    """Yield the kind, the bytes and the state of each chunk; a damaged one differs from its checksum."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + length]
        checksum = content[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            yield kind, body, "cut"
        else:
            yield kind, body, "whole" if checksum == zlib.crc32(kind + body).to_bytes(4) else "damaged"
        position += 12 + length


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def _png_profile(body: bytes) -> bytes:
    """Decompress an ICC profile of up to `MAX_PROFILE_BYTES`; empty if it is larger or damaged."""
    try:
        stream = zlib.decompressobj()
        profile = stream.decompress(body[body.index(b"\0") + 2 :], MAX_PROFILE_BYTES)
    except (zlib.error, ValueError):
        return b""
    return profile if stream.eof else b""


def _png_lost(header: bytes, data: bytes | bytearray, sound: int | None) -> float:
    """Return the share of the pixels whose compressed rows are missing, or follow the first `sound` bytes of damaged data."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * PNG_BANDS.get(colour, 4)
    passes = [
        (len(range(left, width, across)), len(range(top, height, down)))
        for left, across, top, down in (ADAM7 if interlaced else ((0, 1, 0, 1),))
    ]
    sizes = [(columns, rows, 1 + (columns * bits + 7) // 8) for columns, rows in passes if columns and rows]
    needed = sum(rows * row_bytes for _, rows, row_bytes in sizes)
    found, verified = _inflated(data, needed)
    if sound is not None and not verified:
        found, _ = _inflated(data[:sound], needed)
    lost = 0
    for columns, rows, row_bytes in sizes:
        whole = min(rows, found // row_bytes)
        found = found - whole * row_bytes if whole == rows else 0
        lost += (rows - whole) * columns
    return float(lost / (width * height))


def _inflated(data: bytes | bytearray, most: int) -> tuple[int, bool]:
    """Count the bytes, up to `most`, that a zlib stream has before its end or first error; and check its checksum."""
    stream, count, step = zlib.decompressobj(), 0, 2**10
    for start in range(0, len(data), step):
        before = stream.copy()
        try:
            count += _count(stream, data[start : start + step])
        except zlib.error:
            for byte in range(start, min(start + step, len(data))):
                try:
                    count += _count(before, data[byte : byte + 1])
                except zlib.error:
                    break
            return min(count, most), False
        if stream.eof or count > most:
            break
    return min(count, most), stream.eof


def _count(stream: "zlib._Decompress", data: bytes | bytearray) -> int:
    """Count what more data decompresses to, 64 KiB at a time: a bomb takes no memory."""
    count = 0
    while data and not stream.eof:
        count += len(stream.decompress(data, 2**16))
        data = stream.unconsumed_tail
    return count


# --- GIF ---


def _gif(content: bytes, opened: Opened) -> Rescued | None:
    """Decode the first frame twice, over palette entries 0 and 255: pixels that differ were not decoded."""
    at = _gif_image(content)
    if at is None:
        return None
    left, top, width, height = struct.unpack_from("<4H", content, at + 1)
    pair = [
        _partly_loaded(opened(content[:at] + b"\x21\xf9\x04\x01\0\0" + bytes([entry]) + b"\0" + content[at:]))
        for entry in (0, 255)
    ]
    missing = 0
    for y in range(top, top + height, COMPARED_ROWS):
        box = (left, y, left + width, min(top + height, y + COMPARED_ROWS))
        missing += int((np.asarray(pair[0].crop(box)) != np.asarray(pair[1].crop(box))).sum())
    return Rescued(_partly_loaded(opened(content)), missing / max(1, width * height))


def _gif_image(content: bytes) -> int | None:
    """Find the descriptor of the first image; None if the file ends before."""
    if len(content) < 13:
        return None
    position = 13 + (3 * 2 ** ((content[10] & 7) + 1) if content[10] & 0x80 else 0)
    while position + 10 <= len(content):
        if content[position] == 0x2C:
            return position
        if content[position] != 0x21:
            return None
        position += 2
        while position < len(content) and content[position]:
            position += 1 + content[position]
        position += 1
    return None


# --- WebP and AVIF ---


def _webp(content: bytes, opened: Opened) -> Rescued | None:
    """Put zeros and noise in place of the end of the first image."""
    position, size = 12, 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, position)
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            break
        position += 8 + size + size % 2
    else:
        return None
    end = position + 8 + size
    if end <= len(content):  # what lacks is metadata
        picture = opened(b"RIFF" + struct.pack("<I", end + end % 2 - 8) + content[8:end] + bytes(end % 2))
        picture.load()
        return Rescued(picture, 0.0)
    # More than was there: a decoder that finds no end is refused by libwebp.
    filling = min(2 * (end - len(content)), MOST_FILLING) + len(NOISE)
    filling += (len(content) + filling) % 2  # chunks have an even length
    whole, other = (
        opened(
            b"RIFF"
            + struct.pack("<I", len(content) + filling - 8)
            + content[8 : position + 4]
            + struct.pack("<I", len(content) + filling - position - 8)
            + content[position + 8 :]
            + data,
        )
        for data in (bytes(filling), (NOISE * (filling // len(NOISE) + 1))[:filling])
    )
    return Rescued(whole, _lost_from(whole, other, (whole.width, 16), blurred=0))


def _avif(content: bytes, opened: Opened) -> Rescued | None:
    """Empty damaged EXIF metadata: an AVIF file states its orientation itself."""
    found = re.search(rb"(II\*\0|MM\0\*)(.{4})", content, re.DOTALL)
    if not found:
        return None
    order: Literal["little", "big"] = "little" if found[1].startswith(b"II") else "big"
    first = found.start() + min(int.from_bytes(found[2], order), len(content))
    if first + 2 > len(content):
        return None
    picture = opened(content[:first] + b"\0\0" + content[first + 2 :])
    picture.load()
    return Rescued(picture, 0.0)


# --- BMP, PPM and TIFF ---


def _raw(content: bytes, opened: Opened) -> Rescued | None:
    """Count the rows of uncompressed images, or the strips of compressed TIFFs, that lie in the file."""
    picture = opened(content)
    lost = None
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and any(
        tile[0] == "libtiff" for tile in picture.tile
    ):
        lost = _strips_lost(picture, len(content))
    elif isinstance(picture, ImageFile.ImageFile) and all(tile[0] == "raw" for tile in picture.tile):
        lost = _rows_lost(picture, len(content))
    return Rescued(_partly_loaded(picture), lost) if lost else None


def _strips_lost(picture: TiffImagePlugin.TiffImageFile, size: int) -> float | None:
    tags = picture.tag_v2
    offsets, counts = (tags.get(273), tags.get(279)) if 273 in tags else (tags.get(324), tags.get(325))
    if not offsets or not counts or len(offsets) != len(counts):
        return None
    missing = sum(start + count > size for start, count in zip(offsets, counts, strict=True))
    return float(missing / len(offsets))


def _rows_lost(picture: ImageFile.ImageFile, size: int) -> float | None:
    rows = lost = 0
    for _, extents, offset, args in picture.tile:
        if extents is None:
            return None
        left, top, right, bottom = extents
        bits = {"1": 1, "P": 8, "L": 8, "RGB": 24, "RGBA": 32, "CMYK": 32, "I;16": 16, "I;16B": 16}.get(
            picture.mode
        )
        stride = args[1] if isinstance(args, tuple) and len(args) > 1 and isinstance(args[1], int) else 0
        if not stride and bits is None:
            return None
        stride = stride or ((right - left) * (bits or 0) + 7) // 8
        whole = min(bottom - top, max(0, size - offset) // max(1, stride))
        rows += bottom - top
        lost += bottom - top - whole
    return float(lost / rows) if rows else None
