"""Convert colours to sRGB by an image's ICC profile, with LittleCMS.

A profile states which colours an image's numbers mean: the same red is (255, 0, 0) in a phone's Display P3 and outside
of sRGB. Most profiles are sRGB's own, and change nothing.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 2**22
"""Largest profile that is used, in bytes: those of printers have up to 3 MB."""

KEPT_PROFILES = 16
"""Transforms that are kept: a dataset's images come from few devices."""

SAME = 2
"""Largest change, of 255, by a profile that counts as sRGB's own: versions of sRGB differ by rounding."""


class BadProfileError(ValueError):
    """A profile is damaged, too large, or for images of another mode."""


def transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of images of a mode (`L`, `RGB`, `RGBA`, `CMYK`) to sRGB; None if it changes nothing.

    Raises:
        BadProfileError: the profile cannot be used for such images.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        raise BadProfileError("the profile is too large")
    found = _transform(profile, mode)
    if isinstance(found, BadProfileError):
        raise found
    return found


@lru_cache(maxsize=KEPT_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | BadProfileError | None:
    """Build the conversion; what went wrong is kept as well."""
    output = "RGBA" if mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        conversion = ImageCms.buildTransform(source, _srgb(), mode, output)
        colours = _colours(mode)
        converted = ImageCms.applyTransform(colours, conversion)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return BadProfileError(str(error))
    if converted is None:
        return BadProfileError("the profile converts nothing")
    if mode != "CMYK":
        before, after = (np.asarray(picture.convert("RGB"), np.int16) for picture in (colours, converted))
        if np.abs(before - after).max() <= SAME:
            return None
    return conversion


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _colours(mode: str) -> Image.Image:
    """Return an image of evenly spread colours, to apply a conversion to: 256 grays, or 9 levels of each channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[np.newaxis])
    if mode not in ("RGB", "RGBA"):
        return Image.new(mode, (1, 1))
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(rgb).convert(mode)
