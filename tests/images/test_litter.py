import pytest
from PIL import Image

from convoy.images.formats import FORMATS
from convoy.images.litter import (
    DECODED_SUFFIXES,
    IMAGE_SUFFIXES,
    claims_to_be_image,
    is_litter,
    kind,
    litter,
    small_copies,
)


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        ("system file", ("cat/.DS_Store cat/._1.jpg cat/._ __MACOSX/cat/1.jpg Thumbs.db THUMBS.DB ehthumbs.db cat/desktop.ini cat/Icon\r "
         "cat/Picasa.ini cat/.picasa.ini $RECYCLE.BIN/1.jpg .Spotlight-V100/1.jpg .Trashes/1.jpg .Trash-1000/1.jpg @eaDir/1.jpg "
         "#recycle/1.jpg cat/.AppleDouble/1.jpg lost+found/1.jpg .git/1.jpg .dvc/cache/1.jpg cat/.ipynb_checkpoints/1.jpg "
         "cat/.gitkeep cat/.stfolder cat/~$1.jpg .~lock.a.odt#")),
        ("thumbnail", ("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg .thumbnails/1.jpg .@__thumb/1.jpg cat/@__thumb/1.jpg "
         "cat/SYNOPHOTO_THUMB_XL.jpg")),
        ("hidden file", "cat/.1.jpg .hidden"),
        ("file in a hidden folder", ".old/cat/1.jpg train/.old/cat/1.jpg"),
        ("", "cat/1.jpg .net/1.jpg train/.net/1.jpg icon/1.jpg Thumbs/1.jpg git/1.jpg cat/1 cat/notes.txt cat/1_thumb.jpg"),
    ],
)  # fmt: skip
def test_litter_is_named_by_kind(expected, names):
    assert {name: litter(name) for name in names.split(" ")} == dict.fromkeys(names.split(" "), expected)


def test_a_name_with_spaces_is_litter():
    assert is_litter("System Volume Information/1.jpg")


@pytest.mark.parametrize(
    ("expected", "suffixes"),
    [
        ("sidecar", "json jsonl ndjson xml txt csv tsv tab aae xmp psd XMP supplemental-metadata.json"),
        ("video", "mp4 MOV m4v avi mkv mts 3gp webm"),
        ("audio", "mp3 wav m4a"),
        ("document", "pdf docx md html ipynb url.webloc"),
        ("archive", "zip tar tar.gz tgz taz tar.bz2 tbz tbz2 tb2 tz2 tar.xz txz tlz tar.zst tzst 7z rar"),
        ("compressed file", "gz json.gz"),
        ("raw photo", "cr2 NEF dng arw"),
        ("unfinished download", "crdownload part"),
        ("", "jpg JPEG jfif png heic dcm parquet x"),
    ],
)
def test_files_that_are_no_images_have_a_word_for_their_kind(expected, suffixes):
    names = [f"cat/1.{suffix}" for suffix in suffixes.split()]
    assert {name: kind(name) for name in names} == dict.fromkeys(names, expected)
    assert kind("README") == kind(".txt") == kind("folder.json/1") == ""


SUFFIXES = """jpg jpeg jpe jfif jif png apng gif bmp dib tif tiff webp pbm pgm ppm pnm pfm jp2 j2k j2c jpc jpf jpx avif avifs heic heics
heif heifs hif"""


def test_every_suffix_of_a_decoded_format_claims_to_be_an_image():
    Image.init()
    own = {suffix[1:] for suffix, format_ in Image.registered_extensions().items() if format_ in FORMATS}
    assert own <= DECODED_SUFFIXES < IMAGE_SUFFIXES


def test_names_that_claim_to_be_images():
    assert all(claims_to_be_image(f"a.{suffix}") for suffix in SUFFIXES.split())
    names = ("a.JPG", "a.heic", "a.tif", "a.svg", "a", "jpg", ".jpg", "a.jpg.txt", "a.jpg/b")
    assert list(filter(claims_to_be_image, names)) == ["a.JPG", "a.heic", "a.tif", "a.svg"]


@pytest.mark.parametrize(
    "copy", ["1_thumb.jpg", "1-thumb.PNG", "thumb_1.jpg", "1.thumb.jpg", "1_tn.jpg", "tn_1.jpg", "1-150x150.jpg", "1.jpg_thumb.jpg",
             "1_THUMB.JPG", "1_thumbnail.jpg"]
)  # fmt: skip
def test_a_small_copy_is_a_thumbnail_beside_the_full_image_only(copy):
    assert small_copies(["cat/1.jpg", f"cat/{copy}"]) == {f"cat/{copy}"}
    assert small_copies([f"cat/{copy}", "dog/1.jpg", "cat/1.txt", "cat/11.jpg"]) == set()
