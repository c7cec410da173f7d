import io
import sys
import types

import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.images import formats
from convoy.images.decode import decode
from convoy.images.formats import FORMATS, HEAD_BYTES, NotAnImageError, starts_as_image


def encoded(format_):
    stream = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(stream, format=format_)
    return stream.getvalue()


def heif(*brands):
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(box) + 4).to_bytes(4) + box + bytes(50)


HEIC = heif(b"heic", b"mif1", b"heic")


@pytest.mark.parametrize("format_", FORMATS)
def test_the_first_bytes_of_every_supported_format_are_recognised(format_):
    content = encoded(format_)
    assert starts_as_image(content[:HEAD_BYTES])
    assert not any(map(starts_as_image, (b"", b"P", b"B", b"hello", b"\0" * 512, b"%PDF-1.7", b"PK\x03\x04")))


@pytest.mark.parametrize("content", [HEIC, heif(b"mif1", b"mif1", b"heic"), heif(b"msf1", b"hevc", b"msf1")])
def test_heic_is_named_with_the_command_that_installs_its_decoder(content, monkeypatch):
    monkeypatch.setattr(formats, "supported", lambda: FORMATS)
    assert not starts_as_image(content)
    with pytest.raises(DataError, match=r"HEIC image.*pip install 'convoy\[heic\]'") as caught:
        decode(content)
    assert not isinstance(caught.value, NotAnImageError)


def test_heic_is_decoded_where_its_decoder_is_installed(monkeypatch):
    """A stand-in registers the format as the library does."""
    called = []
    library = types.ModuleType("pillow_heif")
    library.register_heif_opener = lambda **options: called.append(options)
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    found = formats.supported.__wrapped__()
    assert (found, called) == ((*FORMATS, "HEIF"), [{"thumbnails": False}])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert formats.supported.__wrapped__() == FORMATS


IMAGES = {
    "JPEG XL": [b"\xff\x0a\xfa\x7f", b"\0\0\0\x0cJXL \r\n\x87\n\0\0"],
    "RAW": [
        b"II*\0\x10\0\0\0CR\2\0", b"\0\0\0\x18ftypcrx \0\0", b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0", b"IIU\0\x08", b"FOVb\0",
    ],
    "PSD": [b"8BPS\0\1"],
    "XCF": [b"gimp xcf v011\0"],
    "SVG": [b"<svg xmlns='a'>", b"<?xml version='1.0'?>\n<!-- Generator -->\n<!DOCTYPE svg PUBLIC>\n<svg>", b"\n <svg\n>"],
    "OpenEXR": [b"v/1\x01\2\0\0\0"],
    "HDR": [b"#?RADIANCE\n"],
    "DICOM": [bytes(128) + b"DICM"],
    "ICO": [b"\0\0\1\0\1\0\x20\x20"],
}  # fmt: skip
OTHERS = {
    "PDF": [b"%PDF-1.7", b"\n%PDF-1.4"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0"],
    "video": [b"\0\0\0\x18ftypmp42", b"\0\0\0\x14ftypqt  ", b"RIFF\0\0\0\0AVI LIST", b"\x1aE\xdf\xa3\x01"],
    "git lfs pull": [b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"],
    "HTML": [b"<html>", b"\n<!DOCTYPE HTML><title>404"],
    "zip": [b"PK\x03\x04"],
    "XML": [b"<?xml version='1.0'?><Error><Code>AccessDenied"],
    "JSON": [b'{"error": 404}'],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in IMAGES for content in IMAGES[name]]
)
def test_other_image_formats_are_named_with_a_remedy(name, content):
    assert not starts_as_image(content) or content.startswith(b"II*\0")
    with pytest.raises(DataError, match=rf"^is an? .*{name}.*export it as JPEG or PNG") as caught:
        decode(content)
    assert not isinstance(caught.value, NotAnImageError)


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in OTHERS for content in OTHERS[name]]
)
def test_other_files_are_named_and_are_no_images(name, content):
    assert not starts_as_image(content)
    with pytest.raises(NotAnImageError, match=name):
        decode(content)


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_a_raw_file_that_is_a_tiff_with_a_preview_is_not_mistaken_for_it(tags):
    stream = io.BytesIO()
    Image.new("RGB", (16, 12)).save(stream, "TIFF", tiffinfo=tags)
    with pytest.raises(DataError, match="RAW"):
        decode(stream.getvalue())
