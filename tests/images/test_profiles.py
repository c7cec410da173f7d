"""Colours are converted to sRGB by ICC profiles, made here with the primaries and curves of the usual ones."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from convoy.images import profiles
from convoy.images.decode import decode
from convoy.images.profiles import BadProfileError, transform
from icc import ADOBE_RGB, CMYK, DISPLAY_P3, GRAY, P3, icc

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
GREEN = (60, 180, 75)


def encoded(picture, format_="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, format=format_, **options)
    return stream.getvalue()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("profile", [DISPLAY_P3, ADOBE_RGB])
def test_a_wide_gamut_becomes_srgb_in_every_format(profile, format_):
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format_, {"quality": 100})
    decoded = decode(encoded(Image.new("RGB", (16, 16), GREEN), format_, icc_profile=profile, **options))
    assert decoded.notes == ("profile",)
    red, green, blue = decoded.image_u8[8, 8].astype(int)
    assert red < GREEN[0] - 15, "green of a wide gamut is more saturated"
    assert green >= GREEN[1] - 5
    assert abs(blue - GREEN[2]) < 40


def test_white_and_gray_stay_in_place():
    for level in (0, 255):
        decoded = decode(encoded(Image.new("RGB", (2, 2), (level,) * 3), icc_profile=DISPLAY_P3))
        assert np.abs(decoded.image_u8.astype(int) - level).max() <= 1


def test_transparency_is_kept_and_the_background_is_not_converted():
    picture = Image.new("RGBA", (2, 1))
    picture.putdata([(*GREEN, 255), (*GREEN, 0)])
    decoded = decode(encoded(picture, icc_profile=DISPLAY_P3), background="#3CB44B")
    opaque = decode(encoded(Image.new("RGB", (1, 1), GREEN), icc_profile=DISPLAY_P3))
    assert decoded.image_u8[0].tolist() == [opaque.image_u8[0, 0].tolist(), list(GREEN)]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_is_converted_by_a_gray_profile(mode):
    picture = (
        Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))
        if mode == "I;16"
        else Image.new(mode, (2, 2), 128 if mode == "L" else (128, 255))
    )
    decoded = decode(encoded(picture, icc_profile=GRAY))
    assert decoded.notes == ("profile",)
    assert 180 <= decoded.image_u8.min() == decoded.image_u8.max() <= 196, (
        "half of the light is level 188 in sRGB"
    )


@pytest.mark.parametrize("format_", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_the_table_of_its_profile(format_):
    ink = Image.new("CMYK", (16, 16), (0, 255, 0, 0))
    decoded = decode(encoded(ink, format_, icc_profile=CMYK))
    assert decoded.notes == ("profile",)
    expected = ImageCms.applyTransform(
        ink, ImageCms.buildTransform(io.BytesIO(CMYK), ImageCms.createProfile("sRGB"), "CMYK", "RGB")
    )
    assert np.abs(decoded.image_u8.astype(int) - np.asarray(expected)).max() <= 4
    assert np.abs(decoded.image_u8.astype(int) - decode(encoded(ink, format_)).image_u8).max() > 40


def test_a_palette_is_converted():
    picture = Image.new("RGB", (2, 2), GREEN).quantize(2)
    plain = decode(encoded(Image.new("RGB", (2, 2), GREEN), icc_profile=ADOBE_RGB))
    assert np.array_equal(decode(encoded(picture, icc_profile=ADOBE_RGB)).image_u8, plain.image_u8)


def test_the_profile_of_srgb_changes_nothing():
    for mode in ("RGB", "RGBA"):
        decoded = decode(encoded(Image.new(mode, (2, 2), GREEN), icc_profile=SRGB))
        assert (decoded.image_u8[0, 0].tolist(), decoded.notes) == (list(GREEN), ())
    assert transform(SRGB, "RGB") is None


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"junk"), ("RGB", DISPLAY_P3[:200]), ("RGB", GRAY), ("L", DISPLAY_P3), ("CMYK", DISPLAY_P3), ("RGB", LAB), ("RGB", CMYK), ("L", CMYK), ("LA", CMYK),
        ("CMYK", GRAY), ("CMYK", CMYK[:300]), ("CMYK", CMYK + bytes(profiles.MAX_PROFILE_BYTES)),
        ("RGBA", GRAY), ("LA", DISPLAY_P3), ("RGB", DISPLAY_P3[:128]), ("RGB", bytes(5000)),
    ],
)  # fmt: skip
def test_a_damaged_or_mismatching_profile_is_not_used(mode, profile):
    picture = Image.new("RGB", (16, 16), GREEN).convert(mode)
    options = {"format_": "TIFF"} if mode == "CMYK" else {}
    decoded = decode(encoded(picture, icc_profile=profile, **options))
    assert decoded.notes == ("bad_profile",)
    assert np.array_equal(decoded.image_u8, decode(encoded(picture, **options)).image_u8)


def test_the_size_of_profiles_and_their_number_in_memory_are_bounded():
    with pytest.raises(BadProfileError, match="too large"):
        transform(DISPLAY_P3 + bytes(profiles.MAX_PROFILE_BYTES), "RGB")
    for seed in range(profiles.KEPT_PROFILES + 5):
        with pytest.raises(BadProfileError):
            transform(bytes([seed] * 200), "RGB")
    assert profiles._transform.cache_info().currsize <= profiles.KEPT_PROFILES


def test_a_profile_in_a_jpeg_of_many_segments_is_used():
    padded = icc(b"RGB ", 2.2, P3) + bytes(150_000)
    padded = struct.pack(">I", len(padded)) + padded[4:]
    decoded = decode(encoded(Image.new("RGB", (8, 8), GREEN), "JPEG", icc_profile=padded, quality=100))
    assert decoded.notes == ("profile",)
