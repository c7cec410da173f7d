"""Decode image files: `prepare`, verification, the gate and `predict` all use this decoder.

Transparent pixels are composited over white, the background that transparent images are drawn for.
Of an animation the first frame is used. Colours are converted without ICC profiles.
"""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from convoy.core.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Supported formats. Pillow has more, but some start other programs (EPS), and none is used for labelled images."""

MAX_PIXELS = 89_478_485
"""Largest image, in pixels: Pillow's own limit, a quarter of a GiB as RGB. A file of a few
bytes can declare billions."""

MAX_FILE_BYTES = 6 * MAX_PIXELS + 2**20
"""Largest file that is read, in bytes: the largest image that is decoded, as uncompressed 16-bit RGB with its header."""

HEAD_BYTES = 512
"""Bytes at the start of a file that decide whether it is an image."""

STRIP_PIXELS = 2**20
"""Pixels that are converted at once: the intermediate images of a large one would take five times its own memory."""

BYTES_PER_PIXEL = 24
"""Most memory that decoding and resizing a pixel takes, as RGB, and in the graph as float32 (measured: 19 to 22)."""

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


Content = bytes | DataError
"""A file's bytes; or the reason why they were not read."""


class NotAnImageError(DataError):
    """The content is of another kind, or its first bytes are damaged."""


@dataclass(frozen=True)
class Decoded:
    """Hold one decoded image.

    Attributes:
        image_u8: (H, W, 3) uint8 RGB, upright.
        mode: Pillow's mode of the file, such as `L`, `P`, `CMYK` or `I;16`.
    """

    image_u8: npt.NDArray[np.uint8]
    mode: str


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


def decode(content: Content, held: ExitStack | None = None) -> Decoded:
    """Decode a file's bytes to upright 8-bit RGB.

    Args:
        content: the whole file, or the first bytes of a file that is not an image.
        held: keeps the image's share of `memory()` until it is closed, where several threads decode.

    Raises:
        DataError: the reason only; the caller adds the file's name.
    """
    if isinstance(content, DataError):
        raise content
    if not content:
        raise DataError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            upright, mode, format_ = _load(content, held)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise NotAnImageError(_unsupported(content)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large("too many pixels")) from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise DataError(
            f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    return Decoded(image_u8=_rgb(upright, format_), mode=mode)


def read(path: Path) -> bytes:
    """Read a file that starts as an image does; of any other only the first 512 bytes, which `decode` refuses by their content.

    Raises:
        DataError: the file is larger than any image; the reason only.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not starts_as_image(head):
            return head
        # A pipe has no size: it is read up to the limit.
        status = os.fstat(file.fileno())
        size = status.st_size if stat.S_ISREG(status.st_mode) else MAX_FILE_BYTES
        content = head if size > MAX_FILE_BYTES else head + file.read(max(0, size - len(head)) + 1)
    if max(size, len(content)) > MAX_FILE_BYTES:
        raise DataError(
            f"is too large: more than {MAX_FILE_BYTES:,} bytes; no image that is read has as many"
        )
    return content


def starts_as_image(head: bytes) -> bool:
    """Check whether the first bytes of a file are those of a supported format; the rest may be damaged."""
    Image.init()
    tests = [Image.OPEN[name][1] for name in FORMATS]
    start = head[:16].ljust(16, b"\0")  # as many as Pillow gives them
    return any(accepts(start) for accepts in tests if accepts)


def _load(content: bytes, held: ExitStack | None) -> tuple[Image.Image, str, str | None]:
    """Decode with Pillow: the upright image, the file's mode and format."""
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(_too_large(f"{picture.width} x {picture.height} pixels"))
    if held is not None:
        held.enter_context(memory().reserved(BYTES_PER_PIXEL * picture.width * picture.height))
    mode, format_ = picture.mode, picture.format
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return picture, mode, format_


def _rgb(picture: Image.Image, format_: str | None) -> npt.NDArray[np.uint8]:
    """Convert any mode to (H, W, 3) uint8, strip by strip."""
    width, height = picture.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        return _strip(picture, format_)
    image_u8 = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        image_u8[top : top + rows] = _strip(strip, format_)
    return image_u8


def _strip(picture: Image.Image, format_: str | None) -> npt.NDArray[np.uint8]:
    if picture.mode in SIXTEEN_BIT or (picture.mode == "I" and format_ in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255. 65535 / 257 = 255, so black and white are unchanged.
        gray_u16 = np.asarray(picture).astype(np.uint32)
        gray_u8 = ((gray_u16 + 128) // 257).astype(np.uint8)
        return np.repeat(gray_u8[:, :, np.newaxis], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise DataError(
            f"has 32-bit samples (mode {picture.mode}), which have no agreed black and white; "
            "convert it to 8 or 16 bits"
        )
    if picture.has_transparency_data:
        above = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return np.array(picture.convert("RGB"))


def _too_large(size: str) -> str:
    return f"is too large: {size}, the limit is {MAX_PIXELS:,}"


def _unsupported(content: bytes) -> str:
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page (HTML), not an image; did a download fail?"
    return f"is not an image in a supported format ({', '.join(FORMATS)}), or its start is damaged"
