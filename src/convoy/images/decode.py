"""Decode image files: `prepare`, verification, the gate and `predict` all use this decoder.

Colours are converted to sRGB by the file's ICC profile. Transparent pixels are composited over a background. Of an
animation the first frame is used. A good picture is not lost to bad metadata, nor to a few missing bytes at its end.
"""

import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from convoy.core.errors import DataError
from convoy.images.damaged import inner_damage, lacks_its_end, may_be_interrupted, png_chunks, rescue
from convoy.images.formats import (
    HEAD_BYTES,
    TruncatedError,
    UnsupportedError,
    UnusableError,
    starts_as_image,
    supported,
    unsupported,
)
from convoy.images.profiles import BadProfileError, transform

MAX_PIXELS = 89_478_485
"""Largest image, in pixels: Pillow's own limit, a quarter of a GiB as RGB. A file of a few
bytes can declare billions."""

MAX_FILE_BYTES = 6 * MAX_PIXELS + 2**20
"""Largest file that is read, in bytes: the largest image that is decoded, as uncompressed 16-bit RGB with its header."""

STRIP_PIXELS = 2**20
"""Pixels that are converted at once: the intermediate images of a large one would take five times its own memory."""

BYTES_PER_PIXEL = 24
"""Most memory that decoding and resizing a pixel takes (measured: 8 to 14; JPEG 2000, whose decoder has 32 bits per sample, 20)."""

MAX_TRUNCATED = 0.01
"""Largest share of an image that may be missing, where no params are at hand: the shipped `data.max_truncated`."""

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

TWELVE_BITS = 4095
"""Largest sample of a camera or scanner with 12 bits, the most common depth above 8."""

ORIENTATION, NEW_SUBFILE_TYPE, DNG_VERSION = 274, 254, 50706
"""Tags of TIFF and EXIF."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation (JEITA CP-3451, tag 274)."""


class Readable(Protocol):
    """Give bytes; fewer than `size` only at the end."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102 (as every file)


Content = bytes | DataError
"""A file's bytes; or the reason why they were not read."""

Enough = Callable[[int, int], tuple[int, int]]

Note = Literal[
    "truncated", "bad_metadata", "bad_profile", "profile", "low_bits", "scaled_bits", "empty_alpha"
]
"""What was unusual about a file that was decoded.

truncated: pixels are missing, at its end or inside. bad_metadata: it was damaged and is not used. bad_profile: its ICC profile cannot
be used, so its numbers count as sRGB. profile: its colours were converted by its ICC profile. low_bits: of its 16 bits at
most 12 are used, so that it is nearly black. scaled_bits: its 9 to 15 bits were scaled, as the file states. empty_alpha:
its alpha is 0 throughout and was ignored.
"""


class TooLargeError(UnsupportedError):
    """The file is larger than any image that is read."""


@dataclass(frozen=True)
class Decoded:
    """Hold one decoded image.

    Attributes:
        image_u8: (H, W, 3) uint8 RGB, upright.
        mode: Pillow's mode of the file, such as `L`, `P`, `CMYK` or `I;16`.
        format: Pillow's format, such as `JPEG`.
        lost: share of the pixels that the file lacks, 0..1.
        transparent: whether any pixel was not opaque.
        notes: what was unusual.
    """

    image_u8: npt.NDArray[np.uint8]
    mode: str
    format: str = ""
    lost: float = 0.0
    transparent: bool = False
    notes: tuple[Note, ...] = ()


class Memory:
    """Bound the memory of the images that several threads decode at once.

    An image that needs more than the limit is decoded while no other is.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = limit
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and take them until the block ends."""
        size = min(size, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


@cache
def memory() -> Memory:
    """Share a quarter of the memory of this machine, or of the container, among all threads of this process."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = Path("/sys/fs/cgroup/memory.max")  # Linux; `max` without a limit
    if container.is_file() and (text := container.read_text(encoding="ascii").strip()).isdigit():
        limit = min(limit, int(text))
    return Memory(limit // 4)


def decode(
    content: Content,
    held: ExitStack | None = None,
    *,
    background: str = "white",
    max_truncated: float = MAX_TRUNCATED,
    max_pixels: int | None = None,
    enough: Enough | None = None,
) -> Decoded:
    """Decode a file's bytes to upright 8-bit sRGB.

    Args:
        content: the whole file, or the first bytes of a file that is not an image.
        held: keeps the image's share of `memory()` until it is closed, where several threads decode.
        background: colour that transparent pixels are composited over: a name or `#RRGGBB`.
        max_truncated: largest share of the image that the file may lack, 0..1.
        max_pixels: largest image, in pixels; None: `MAX_PIXELS`, which is the most.
        enough: from width and height of the file to a size that is enough. A JPEG that has several times that is decoded at 1/2, 1/4 or
            1/8, for a share of the time, by leaving out frequencies of its DCT.

    Raises:
        DataError: the reason only; the caller adds the file's name.
    """
    if isinstance(content, DataError):
        raise content
    if not content:
        raise UnusableError("is empty (0 bytes)")
    content = lacks_its_end(content)
    try:
        loaded, lost, notes = _loaded(content, _Opener(held, max_pixels or MAX_PIXELS), enough)
        _refuse_lost(lost, max_truncated)
        return _decoded(loaded, content, background, lost, notes)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise unsupported(content) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(_too_large("too many pixels")) from error
    except Exception as error:  # as in `_loaded`
        raise UnusableError(
            f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def read(path: Path) -> bytes:
    """Read a file that starts as an image does; of any other only the first 512 bytes, which `decode` refuses by their content.

    Raises:
        DataError: the file is larger than any image; the reason only.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        # A pipe has no size: it is read up to the limit.
        status = os.fstat(file.fileno())
        return read_stream(file, status.st_size if stat.S_ISREG(status.st_mode) else MAX_FILE_BYTES)


def read_stream(file: Readable, size: int) -> bytes:
    """Read from an open file what `read` does.

    Args:
        file: at its start.
        size: of the whole file, in bytes, as stated where it comes from; no more than a byte beyond is read.

    Raises:
        TooLargeError: the file is larger than any image; the reason only.
    """
    head = file.read(HEAD_BYTES)
    if not starts_as_image(head):
        return head
    content = head if size > MAX_FILE_BYTES else head + file.read(max(0, size - len(head)) + 1)
    if max(size, len(content)) > MAX_FILE_BYTES:
        raise TooLargeError(
            f"is too large: more than {MAX_FILE_BYTES:,} bytes; no image that is read has as many"
        )
    return content


class _Opener:
    """Open a file's bytes with Pillow, check the size, and take the image's share of the memory once."""

    def __init__(self, held: ExitStack | None, max_pixels: int) -> None:
        self._held = held
        self._max_pixels = max_pixels

    def __call__(self, content: bytes) -> Image.Image:
        picture = Image.open(io.BytesIO(content), formats=supported())
        pixels = picture.width * picture.height
        if pixels > self._max_pixels:
            raise TooLargeError(_too_large(f"{picture.width} x {picture.height} pixels", self._max_pixels))
        if self._held is not None:
            self._held.enter_context(memory().reserved(BYTES_PER_PIXEL * pixels))
            self._held = None
        if picture.format == "WEBP":
            return _first_frame(content)
        return picture


class _WebP(WebPImagePlugin.WebPImageFile):
    """Stop where the first frame is decoded and its picture is not yet made."""

    def load_prepare(self) -> None:
        """Let Pillow go no further; `fp` has the pixels."""
        raise EOFError


def _first_frame(content: bytes) -> Image.Image:
    """Decode a WebP: make its picture once its decoder, which has two further copies of the pixels, is gone."""
    file = _WebP(io.BytesIO(content))
    with suppress(EOFError):
        file.load()
    if not isinstance(file.fp, io.BytesIO) or not file.tile:
        raise OSError("the first frame cannot be decoded")
    pixels, mode, size, info = file.fp.getvalue(), file.mode, file.size, file.info
    raw_mode = file.tile[0].args
    del file
    picture = Image.frombytes(mode, size, pixels, "raw", raw_mode)
    picture.info, picture.format = info, "WEBP"
    return picture


def _loaded(
    content: bytes, open_: "_Opener", enough: Enough | None
) -> tuple[list[Image.Image], float, tuple[Note, ...]]:
    """Decode with Pillow, or what can be decoded; return the picture, the lost share of its pixels, and what was unusual.

    The picture is in a list, from which `_decoded` takes it: another reference would keep its memory.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = open_(content)
            size = picture.size
            if enough and not may_be_interrupted(content):  # else what is damaged is found in all pixels
                picture.draft(None, enough(*size))
            picture.load()
        except (DataError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise
        except Exception:  # broken bytes make Pillow's decoders raise almost anything
            rescued = rescue(content, open_)
            if rescued is None:
                raise
            return [rescued.picture], rescued.lost, ("truncated" if rescued.lost else "bad_metadata",)
        is_whole_jpeg = picture.format in ("JPEG", "MPO") and picture.size == size
        if is_whole_jpeg and (rescued := inner_damage(content, picture, open_)):
            return [rescued.picture], rescued.lost, ("truncated",)
    return [picture], 0.0, ()


def _refuse_lost(lost: float, most: float) -> None:
    """Refuse an image that lacks too many of its pixels.

    Raises:
        DataError: naming both shares.
    """
    if lost > most:
        raise TruncatedError(
            f"is truncated or damaged: {lost:.1%} of its pixels are missing (data.max_truncated allows {most:.1%})"
        )


def _decoded(
    loaded: list[Image.Image], content: bytes, background: str, lost: float, notes: tuple[Note, ...]
) -> Decoded:
    """Turn a loaded picture of any mode upright and convert it, strip by strip."""
    picture = loaded.pop()
    mode, format_ = picture.mode, picture.format or ""
    conversion = _Conversion(picture, content, background)
    deep = mode in ("RGB", "RGBA", "LA") and _stated_bits(picture, content)[1] == 16
    if format_ == "TIFF":  # Pillow turns it upright
        _refuse_preview(picture)
    elif (method := TRANSPOSITIONS.get(_orientation(picture))) is not None:  # a flip has the number 0
        picture = picture.transpose(method)
    elif format_ == "AVIF" and picture.width * picture.height > STRIP_PIXELS:
        picture = picture.copy()  # without the decoder, which has further copies of the pixels
    width, height = picture.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        image_u8 = conversion(picture)
    else:
        image_u8 = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, rows):
            strip = picture.crop((0, top, width, min(top + rows, height)))
            image_u8[top : top + rows] = conversion(strip)
    if deep and 0 < image_u8.max() <= TWELVE_BITS // 256:
        conversion.note("low_bits")
    return Decoded(image_u8, mode, format_, lost, conversion.transparent, notes + tuple(conversion.notes))


class _Conversion:
    """Convert strips of a picture to (H, W, 3) uint8 sRGB.

    Attributes:
        transparent: whether any pixel so far was not opaque.
        notes: what was unusual so far.
    """

    def __init__(self, picture: Image.Image, content: bytes, background: str) -> None:
        self.transparent = False
        self.notes: list[Note] = []
        self._background = background
        self._profile: bytes = picture.info.get("icc_profile") or b""
        self._sixteen = picture.mode in SIXTEEN_BIT or (
            picture.mode == "I" and picture.format in ("PNG", "PPM")
        )
        self._white = 65535
        self._opaque = False
        if self._sixteen:
            self._white = self._largest_sample(picture, content)
        elif picture.mode == "RGBA" and picture.format == "BMP":
            # Programs that know no alpha write zeros.
            self._opaque = picture.getchannel("A").getextrema() == (0, 0)
            if self._opaque:
                self.note("empty_alpha")

    def __call__(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """Convert a strip.

        Raises:
            DataError: its samples have no agreed black and white.
        """
        if self._sixteen:
            # Pillow's own conversion clips at 255. 65535 / 257 = 255, so black and white are unchanged.
            gray = np.minimum(np.asarray(picture).astype(np.uint32), self._white)
            gray_u8 = ((gray * 255 + self._white // 2) // self._white).astype(np.uint8)
            if not self._profile:
                return np.repeat(gray_u8[:, :, np.newaxis], 3, axis=2)
            picture = self._to_srgb(Image.fromarray(gray_u8))
        elif picture.mode in ("I", "F"):
            kind = "floating-point" if picture.mode == "F" else "signed or 32-bit"
            raise UnsupportedError(
                f"has {kind} samples (mode {picture.mode}), which have no agreed black and white; "
                "convert it to 8 or 16 bits"
            )
        elif picture.has_transparency_data and not self._opaque:
            above = picture.convert("RGBA")
            if self._profile and picture.mode in ("L", "LA"):  # a gray profile
                colours = self._to_srgb(picture.convert("L")).convert("RGBA")
                colours.putalpha(above.getchannel("A"))
                above = colours
            elif self._profile:
                above = self._to_srgb(above)
            if above.getchannel("A").getextrema() != (255, 255):
                self.transparent = True
                above = Image.alpha_composite(Image.new("RGBA", above.size, self._background), above)
            picture = above
        elif self._profile and picture.mode != "LAB":
            picture = self._to_srgb(picture if picture.mode in ("L", "CMYK") else picture.convert("RGB"))
        return np.array(picture.convert("RGB"))

    def note(self, note: Note) -> None:
        """Add a note once."""
        if note not in self.notes:
            self.notes.append(note)

    def _to_srgb(self, picture: Image.Image) -> Image.Image:
        """Convert a picture of mode L, RGB, RGBA or CMYK by the profile; return it unchanged if there is nothing to convert."""
        try:
            by_profile = transform(self._profile, picture.mode)
        except BadProfileError:
            self.note("bad_profile")
            return picture
        if by_profile is None:
            return picture
        self.note("profile")
        return ImageCms.applyTransform(picture, by_profile) or picture

    def _largest_sample(self, picture: Image.Image, content: bytes) -> int:
        """Return the 16-bit sample that is white: 65535, unless the file states fewer bits and has no larger sample."""
        peak = picture.getextrema()[1]
        bits = _stated_bits(picture, content)[0]
        if 8 < bits < 16 and isinstance(peak, (int, float)) and peak < 2**bits:
            self.note("scaled_bits")
            return int(2**bits - 1)
        if isinstance(peak, (int, float)) and 0 < peak <= TWELVE_BITS:
            self.note("low_bits")
        return 65535


def _stated_bits(picture: Image.Image, content: bytes) -> tuple[int, int]:
    """Return the significant bits that a file states for its samples, and the bits that it stores; 0 where it states none.

    PNG: chunk sBIT (ISO 15948, 11.3.2.4). TIFF: BitsPerSample (tag 258) and MaxSampleValue (281).
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        stored, largest = picture.tag_v2.get(258, (0,)), picture.tag_v2.get(281, (0,))
        stored, largest = (values[0] if isinstance(values, tuple) else values for values in (stored, largest))
        bits = int(largest).bit_length() if largest else stored
        return bits if largest in (0, 2**bits - 1) else stored, stored
    if picture.format == "PNG" and content[24:25] == b"\x10":
        for kind, body, state in png_chunks(content):
            if kind == b"IDAT":
                break
            if kind == b"sBIT" and body and state == "whole":
                return body[0], 16
        return 16, 16
    return 0, 0


def _refuse_preview(picture: Image.Image) -> None:
    """Refuse a camera's RAW file: what a TIFF reader finds in it is a small preview.

    Raises:
        DataError: naming the format.
    """
    tags = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE, 0) == 1:
        raise UnsupportedError(
            "is a camera RAW image, not an image that is decoded; export it as JPEG or PNG"
        )


def _orientation(picture: Image.Image) -> int:
    """Return a picture's orientation, 1 to 8, by its EXIF or else XMP metadata; 1 if neither states it.

    Read here, since Pillow parses all EXIF tags and writes them again, which fails for unusual ones.
    """
    exif = picture.info.get("exif")
    if isinstance(exif, bytes) and (found := exif_orientation(exif)):
        return found
    profile = picture.info.get("Raw profile type exif")  # as ImageMagick writes it into PNGs
    if isinstance(profile, str):
        digits = "".join(profile.split("\n")[3:])
        if re.fullmatch(r"([0-9a-fA-F]{2})+", digits) and (found := exif_orientation(bytes.fromhex(digits))):
            return found
    xmp = picture.info.get("XML:com.adobe.xmp", picture.info.get("xmp"))
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    stated = re.search(rb"tiff:Orientation(?:=\"|>)([1-8])", xmp) if isinstance(xmp, bytes) else None
    return int(stated[1]) if stated else 1


def exif_orientation(exif: bytes) -> int | None:
    """Find the orientation, 1 to 8, in EXIF metadata; None if it is not there, or no such number."""
    while exif.startswith(b"Exif\0\0"):  # doubled by some programs
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (first,) = struct.unpack_from(order + "I", exif, 4)
    if first + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, first)
    for at in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, at)
        if tag == ORIENTATION:
            value = exif[at + 8 : at + 12]
            if kind in (3, 8):
                (number,) = struct.unpack_from(order + "H", value)
            elif kind in (4, 9):
                (number,) = struct.unpack(order + "I", value)
            else:  # a byte, or text
                number = value[0] - ord("0") if kind == 2 else value[0]
            if 1 <= number <= 8:
                return int(number)
    return None


def _too_large(size: str, limit: int = MAX_PIXELS) -> str:
    return f"is too large: {size}, the limit is {limit:,}"
