"""Tell files by their first bytes: the image formats that are decoded, and others by name, with what to do about them."""

import re
from collections.abc import Callable
from functools import cache
from typing import Literal

from PIL import Image

from convoy.core.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
"""Supported formats. Pillow has more, but some start other programs (EPS), and none is used for labelled images."""

HEAD_BYTES = 512
"""Bytes at the start of a file that decide whether it is an image."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
"""Brands of HEIF files that HEVC codes, as iPhones write them (ISO/IEC 23008-12, annex B)."""

EXPORT = "export it as JPEG or PNG"
REMEDY = {
    "HEIC": "install the extra that decodes it, `pip install 'convoy[heic]'`, or " + EXPORT,
    "Git LFS pointer": "fetch the files: git lfs pull",
    "web page (HTML)": "did a download fail?",
}
"""What to do about files that are not decoded; of other images it is `EXPORT`."""

UNREAD: tuple[tuple[str, bytes], ...] = (
    ("JPEG XL image", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    ("camera RAW image (CR2)", rb"II\*\0.{4}CR"),
    ("camera RAW image (CR3)", rb".{4}ftypcrx "),
    ("camera RAW image (RAF)", rb"FUJIFILMCCD-RAW"),
    ("camera RAW image (ORF)", rb"IIR[OS]|MMOR"),
    ("camera RAW image (RW2)", rb"IIU\0"),
    ("camera RAW image (X3F)", rb"FOVb"),
    ("Photoshop image (PSD)", rb"8BPS"),
    ("GIMP image (XCF)", rb"gimp xcf"),
    ("SVG drawing", rb"\s*(<[?!].*?>\s*)*<svg[\s>]"),
    ("JPEG XR image", rb"II\xbc"),
    ("OpenEXR image", rb"v/1\x01"),
    ("Radiance HDR image", rb"#\?RADIANCE"),
    ("DICOM image", rb".{128}DICM"),
    ("icon (ICO)", rb"\0\0\x01\0[^\0]\0"),
    ("QOI image", rb"qoif"),
)
"""Image formats that are not decoded, and the bytes that they start with."""

OTHER: tuple[tuple[str, bytes], ...] = (
    ("PDF document", rb"\s*%PDF-"),
    ("PostScript document", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("video", rb".{4}ftyp(?!avi[fs]|mif1|msf1|mif2|hei|hev)|RIFF.{4}AVI |\x1aE\xdf\xa3|FLV\x01|\0\0\x01\xba"),
    ("Git LFS pointer", rb"version https://git-lfs"),
    ("web page (HTML)", rb"(?i)\s*(<!doctype html|<html)"),
    ("zip archive", rb"PK\x03\x04"),
    ("XML file", rb"\s*<\?xml"),
    ("JSON file", rb"\s*\{\s*\""),
)
"""Other files that turn up among images."""


Fault = Literal["truncated", "damaged", "unsupported", "not_an_image", "outside_a_class", "two_labels"]
"""Why a file that should be an image of a class cannot be used, counted by kind; its reason names the details.

truncated: too many of its pixels are missing. damaged: empty, or it cannot be decoded. unsupported: an image of a format, a size or
samples that are not decoded. not_an_image: a file of another kind, or its first bytes are damaged. outside_a_class: no folder,
list or pattern gives it a class (or a split). two_labels: two lists, or two files with the same pixels, contradict each other.
"""


class UnusableError(DataError):
    """The file cannot be used as an image."""

    fault: Fault = "damaged"


class TruncatedError(UnusableError):
    """Too many of its pixels are missing."""

    fault = "truncated"


class UnsupportedError(UnusableError):
    """It is an image of a format, a size or samples that are not decoded."""

    fault = "unsupported"


class NotAnImageError(UnusableError):
    """The content is of another kind, or its first bytes are damaged."""

    fault = "not_an_image"


@cache
def supported() -> tuple[str, ...]:
    """Return the formats that this environment decodes: `FORMATS`, and HEIF where `pillow-heif` is installed."""
    try:
        import pillow_heif  # noqa: PLC0415 (an extra that is not always installed)
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


def starts_as_image(head: bytes) -> bool:
    """Check whether the first bytes of a file are those of a supported format; the rest may be damaged."""
    start = head[:16].ljust(16, b"\0")  # as many as Pillow gives them
    for accepts in _tests():  # `any` takes twice as long
        if accepts(start):
            return not _is_heic(head)
    return False


@cache
def _tests() -> list[Callable[[bytes], object]]:
    """List Pillow's tests of the first bytes, the most frequent format first."""
    Image.init()
    tests = (Image.OPEN[name][1] for name in sorted(supported(), key=lambda name: name != "JPEG"))
    return [accepts for accepts in tests if accepts]


def unsupported(content: bytes) -> DataError:
    """Name what a file is that no supported format fits, by its first bytes, and what to do about it."""
    head = content[:HEAD_BYTES]
    if _is_heic(head):
        return UnsupportedError(f"is a HEIC image, which is not decoded; {REMEDY['HEIC']}")
    for name, start in UNREAD:
        if re.match(start, head, re.DOTALL):
            return UnsupportedError(f"is {_article(name)} {name}, which is not decoded; {EXPORT}")
    for name, start in OTHER:
        if re.match(start, head, re.DOTALL):
            remedy = f"; {REMEDY[name]}" if name in REMEDY else ""
            return NotAnImageError(f"is {_article(name)} {name}, not an image{remedy}")
    return NotAnImageError(
        f"is not an image in a supported format ({', '.join(supported())}), or its start is damaged"
    )


def _article(name: str) -> str:
    return "an" if name.startswith(("i", "O", "S", "X")) else "a"


def _is_heic(head: bytes) -> bool:
    """Check for a HEIF file that HEVC codes and that this environment does not decode."""
    if head[4:8] != b"ftyp" or "HEIF" in supported():
        return False
    size = min(int.from_bytes(head[:4]), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    return bool(brands & HEIC_BRANDS) and b"avif" not in brands
