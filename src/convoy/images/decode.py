"""Decode image files: `prepare`, verification, the gate and `predict` all use this decoder.

Transparent pixels are composited over white, the background that transparent images are drawn for.
Of an animation the first frame is used. Colours are converted without ICC profiles.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from convoy.core.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Supported formats. Pillow has more, but some start other programs (EPS), and none is used for labelled images."""

MAX_PIXELS = 89_478_485
"""Largest image, in pixels: Pillow's own limit, a quarter of a GiB as RGB. A file of a few
bytes can declare billions."""

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Decoded:
    """Hold one decoded image.

    Attributes:
        image_u8: (H, W, 3) uint8 RGB, upright.
        mode: Pillow's mode of the file, such as `L`, `P`, `CMYK` or `I;16`.
    """

    image_u8: npt.NDArray[np.uint8]
    mode: str


def decode(content: bytes) -> Decoded:
    """Decode a file's bytes to upright 8-bit RGB.

    Raises:
        DataError: the reason only; the caller adds the file's name.
    """
    if not content:
        raise DataError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            upright, mode, format_ = _load(content)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(_unsupported(content)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large("too many pixels")) from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise DataError(
            f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    return Decoded(image_u8=_rgb(upright, format_), mode=mode)


def _load(content: bytes) -> tuple[Image.Image, str, str | None]:
    """Decode with Pillow: the upright image, the file's mode and format."""
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(_too_large(f"{picture.width} x {picture.height} pixels"))
    mode, format_ = picture.mode, picture.format
    picture.load()
    return ImageOps.exif_transpose(picture), mode, format_


def _rgb(picture: Image.Image, format_: str | None) -> npt.NDArray[np.uint8]:
    """Convert any mode to (H, W, 3) uint8."""
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
