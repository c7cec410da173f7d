"""Deliveries as people have them, made small: what `convoy data check` shows of each, and what it refuses."""

import io
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.deliveries import ONE_COLOUR, data_params, png_of

from convoy.commands.data import check
from convoy.core.errors import DataError
from convoy.data import scan
from convoy.images.resize import Geometry

NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


def shots(folder: str, count: int = 20, name: str = "{}.png") -> dict[str, bytes]:
    """Make different images under the names of a folder."""
    paths = [f"{folder}/{name.format(n)}" for n in range(count)]
    return {path: png_of(zlib.crc32(path.encode())) for path in paths}


def folders(*names: str, count: int = 20, name: str = "{}.png") -> dict[str, bytes]:
    return {path: content for own in names for path, content in shots(own, count, name).items()}


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.open(io.BytesIO(png_of(seed, *size))).convert(mode)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format_, **options)
    return content.getvalue()


def exif(*entries: tuple[int, int, int, object], extra: bytes = b"") -> bytes:
    """Write EXIF by hand: tag, type, count and value, or None for what `extra` holds."""
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        out += struct.pack("<HHI", tag, kind, count)
        out += (
            value
            if isinstance(value, bytes)
            else struct.pack("<I", 14 + 12 * len(entries) if value is None else value)
        )
    return b"Exif\0\0" + out + bytes(4) + extra


UPRIGHT = (0x0112, 3, 1, 6)
ODD_EXIF = (
    exif(UPRIGHT, (0x011A, 10, 1, None), extra=struct.pack("<ii", -1, 0)),
    exif(UPRIGHT, (0x0100, 8, 1, struct.pack("<i", -5))),
    exif(UPRIGHT, (0x0101, 2, 4, b"abc\0")),
    b"Exif\0\0" + exif(UPRIGHT),
)


def phone_photos() -> dict[str, bytes]:
    files = {}
    for n in range(16):
        tags = exif((0x0112, 3, 1, n % 8 + 1))
        image = picture(n)
        content = (
            encoded(image, "MPO", save_all=True, append_images=[image.resize((12, 8))], exif=tags)
            if n % 7 == 1
            else encoded(image, "JPEG", exif=tags, progressive=n % 3 == 0)
        )
        ending = (".JPG", ".jpeg.jpg", ".jfif", "", ".png", ".JPEG")[n % 6]
        files[f"{('cat', 'dog')[n % 2]}/IMG_{n:04d}{ending}"] = content
    return files


def bit_depths() -> dict[str, bytes]:
    deep = (np.asarray(picture(1, "L"), np.uint16) + 1) * 16 - 1
    odd = {
        "cat/1bit.png": encoded(picture(2, "L").convert("1"), "PNG"),
        "cat/16bit.png": encoded(Image.fromarray(np.asarray(picture(3, "L"), np.uint16) * 257), "PNG"),
        "cat/12of16.png": encoded(Image.fromarray(deep), "PNG"),
        "cat/alpha.png": encoded(picture(4, "LA"), "PNG"),
        "dog/palette.png": encoded(picture(5).quantize(64), "PNG"),
        "dog/cmyk.jpg": encoded(picture(6, "CMYK"), "JPEG"),
        "dog/16bit.tif": encoded(Image.fromarray(np.asarray(picture(7, "L"), np.uint16) * 257), "TIFF"),
        "dog/float.tif": encoded(Image.fromarray(np.asarray(picture(8, "L"), np.float32) / 255), "TIFF"),
    }
    return odd | folders("cat", "dog")


def icons() -> dict[str, bytes]:
    files = {}
    for n in range(24):
        alpha = Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16 + n), dtype=np.uint8))
        white = Image.new("L", alpha.size, 255)
        files[f"{('cat', 'dog')[n % 2]}/{n}.png"] = encoded(Image.merge("LA", (white, alpha)), "PNG")
    return files


def broken() -> dict[str, bytes]:
    whole = encoded(picture(1, size=(64, 48)), "JPEG")
    odd = {
        "empty.jpg": b"",
        "half.jpg": whole[: len(whole) // 2],
        "page.jpg": b"<!DOCTYPE html><html>Not found",
    }
    return (
        folders("cat", "dog")
        | {f"cat/{name}": content for name, content in odd.items()}
        | {"dog/no_end.jpg": whole[:-2]}
    )


def formats() -> dict[str, bytes]:
    files = {}
    for n, (name, options) in enumerate(
        (
            ("GIF", True),
            ("WEBP", True),
            ("BMP", False),
            ("JPEG2000", False),
            ("PPM", False),
            ("TIFF", True),
            ("PNG", True),
            ("WEBP", False),
        )
        * 2
    ):
        image, more = picture(n), {"save_all": True, "append_images": [picture(100 + n)]} if options else {}
        files[f"{('cat', 'dog')[n % 2]}/{n}.{name.lower().replace('jpeg2000', 'jp2')}"] = encoded(
            image, name, **more
        )
    return files


def one_hot(both: str = "") -> dict[str, bytes]:
    files = {}
    for part in ("train", "valid", "test"):
        images = shots(part, 12)
        rows = [
            f"{path.rpartition('/')[2]}, {n % 2}, {1 - n % 2 if path != both else 1}"
            for n, path in enumerate(images)
        ]
        files |= images | {f"{part}/_classes.csv": "\n".join(["filename, circle, square", *rows]).encode()}
    return files


def takeout() -> dict[str, bytes]:
    files = {}
    for album in ("Cats of 2024", "Dogs of 2024"):
        photos = shots(f"Takeout/Google Photos/{album}", name="IMG_{:04d}.JPG")
        files |= photos | {f"{path}.supplemental-metadata.json": b"{}" for path in photos}
        files |= {
            f"Takeout/Google Photos/{album}/IMG_{n:04d}.MOV": b"\0\0\0\x14ftypqt  " + bytes(99)
            for n in range(5)
        }
    return files


def thumbnails() -> dict[str, bytes]:
    files = folders("cat", "dog", name="DSC_{}.JPG")
    return files | {
        f"{path.replace('/', '/@eaDir/')}/SYNOPHOTO_THUMB_M.jpg": content for path, content in files.items()
    }


def system_litter() -> dict[str, bytes]:
    names = (
        ".DS_Store",
        "._0.png",
        "Thumbs.db",
        "desktop.ini",
        ".ipynb_checkpoints/0-checkpoint.png",
        "Icon\r",
        "Picasa.ini",
    )
    litter = {f"{label}/{name}": b"x" for label in ("cat", "dog") for name in names}
    return folders("cat", "dog") | litter | {"__MACOSX/cat/._x.jpg": b"x"}


def placeholder() -> dict[str, bytes]:
    same = png_of(0)
    return folders("a", "b", "c") | {f"{label}/flickr_{n}.png": same for label in "abc" for n in range(4)}


def many_classes() -> dict[str, bytes]:
    return {
        path: png_of(n)
        for n, path in enumerate(
            f"{part}/n{label:05d}/{m}.png"
            for label in range(120)
            for part, count in (("train", 3), ("val", 1), ("test", 1))
            for m in range(count)
        )
    }


ODD_NAMES = ("日本猫", "🐶 dog", 'quoted "x", comma', "a|b <b>$1$ & co", "NaN", "-flag", "1e3", "x" * 120)
Facts = tuple[str, ...]
SHAPES = ("circle", "square", "triangle")

ACCEPTED: Mapping[str, tuple[dict[str, bytes], Mapping[str, object], Mapping[str, int], Facts]] = {
    # what is delivered, params, images per class and delivered split, facts of the table
    "class folders": (folders(*SHAPES), {}, dict.fromkeys(SHAPES, 20), ("train (cut)", "val (cut)", "test (cut)")),
    "training_set and test_set, each inside itself": (
        folders("training_set/training_set/cats", "training_set/training_set/dogs") | folders("test_set/test_set/cats", "test_set/test_set/dogs", count=6) | {"training_set/training_set/cats/_DS_Store": b"\0\0\0\1Bud1"},
        {}, {"cats test": 6, "dogs test": 6, "cats": 26, "dogs": 26}, ("train (delivered)", "val (cut)", "test (delivered)"),
    ),
    "Train, Test and Validation, each inside itself": (
        {path: c for part in ("Train", "Test", "Validation") for path, c in folders(*(f"{part}/{part}/{label}" for label in ("Healthy", "Rust"))).items()},
        {}, {"Healthy train": 20, "Rust val": 20, "Rust test": 20}, ("val (delivered)",),
    ),
    "one-hot lists in each split": (one_hot(), {}, {"circle train": 6, "square val": 6, "square test": 6}, ("Classes are read from test/_classes.csv", "2 classes")),
    "Roboflow's folders and read-me files": (
        folders("train/cat", "train/dog") | folders("valid/cat", "valid/dog", "test/cat", "test/dog", count=6) | {"README.dataset.txt": b"# pets", "README.roboflow.txt": b"exported"},
        {}, {"cat train": 20, "dog val": 6, "dog test": 6}, ("sidecar 2 README.dataset.txt", "0 quarantined"),
    ),
    "a competition's unlabelled test pictures": (
        folders("train/cat", "train/dog") | shots("test", 9, "{:05d}.png") | {"sample_submission.csv": b"id,label\n"},
        {}, {"cat": 20, "dog": 20}, ("unlabelled image 9 test/00000.png", "test (cut)", "0 quarantined"),
    ),
    "splits inside classes": (
        folders("cat/train", "dog/train") | folders("cat/test", "dog/test", count=6), {}, {"cat test": 6, "dog test": 6, "cat": 26}, ("train (delivered)", "val (cut)", "test (delivered)"),
    ),
    "a class named train": (folders("bus", "car", "train"), {}, {"bus": 20, "train": 20}, ("named like a split: `train`",)),
    "a class absent from a delivered split, trained only": (
        folders(*(f"{part}/{label}" for part in ("train", "valid", "test") for label in SHAPES)) | shots("train/cross", 8),
        {"rare": "train_only"}, {"cross train": 8, "cross val": 0}, ("delivered val split has no usable image of class `cross`", "left out of averages", "nothing is measured of it"),
    ),
    "an empty class folder": (folders("circle", "square") | {"triangle/": b""}, {}, {"circle": 20}, ("without images, so not classes: `triangle`",)),
    "a class that begins with a dot": (folders(".net", "java"), {}, {".net": 20, "java": 20}, ("begin with a dot, so programs hide them: `.net`",)),
    "odd names of classes": (folders(*ODD_NAMES, count=12), {}, dict.fromkeys(ODD_NAMES, 12), ("may stand for a missing label: `NaN`", "more than 100 characters")),
    "numbers as classes": (folders(*map(str, range(12)), count=9), {}, {"0": 9, "11": 9}, ("12 classes",)),
    "few pictures of each class": (folders(*(f"class_{n:02d}" for n in range(20)), count=12), {}, {"class_00": 12}, ("20 classes", "fewer than 20 images")),
    "many classes": (many_classes(), {}, {"n00000 train": 3, "n00119 test": 1}, ("120 classes",)),
    "an imbalance": (shots("ok", 240) | shots("defect", 4), {}, {"ok": 240, "defect": 4}, ("compare the recall of each class", "fewer than 20 images (4)")),
    "sidecars and films of a phone": (takeout(), {}, {"Cats of 2024": 20, "Dogs of 2024": 20}, ("sidecar 40", "video 10", "0 quarantined")),
    "thumbnails of a NAS": (thumbnails(), {}, {"cat": 20, "dog": 20}, ("0 quarantined",)),
    "litter of systems": (system_litter(), {}, {"cat": 20, "dog": 20}, ("0 quarantined",)),
    "phone photos": (phone_photos(), {"checks": ONE_COLOUR}, {"cat": 8, "dog": 8}, ("0 quarantined",)),
    "photos with odd EXIF": (
        folders("cat", "dog") | {f"cat/P{n}.JPG": encoded(picture(n), "JPEG", exif=tags) for n, tags in enumerate(ODD_EXIF)}, {}, {"cat": 24}, ("0 quarantined",),
    ),
    "bit depths": (bit_depths(), {"max_quarantined": 0.1}, {"cat": 24, "dog": 23}, ("dog/float.tif", "cat/12of16.png", "12 of 16 bits")),
    "white icons over another background": (icons(), {"background": "black"}, {"cat": 12, "dog": 12}, ("0 quarantined",)),
    "broken files within the limit": (broken(), {"max_quarantined": 0.1}, {"cat": 20, "dog": 21}, ("cat/empty.jpg", "cat/half.jpg", "cat/page.jpg: is a web page (HTML)")),
    "many formats, animated too": (formats(), {}, {"cat": 8, "dog": 8}, ("0 quarantined",)),
    "names of 250 bytes": (folders("cat", "dog", name="{:0246d}.png"), {}, {"cat": 20}, ("0 quarantined",)),
    "a class in two Unicode forms": (folders(f"train/{NFC}", "train/Bar") | folders(f"test/{NFD}", "test/Bar", count=6), {}, {NFC: 26, f"{NFC} test": 6}, ("2 classes", "several Unicode forms")),
}  # fmt: skip

REFUSED: Mapping[str, tuple[dict[str, bytes], Mapping[str, object], Facts]] = {
    "classes in the names of files": (
        shots("train", 30, "cat.{}.jpg") | shots("train", 30, "dog.{}.jpg") | shots("test1", 20, "{}.jpg") | {"sampleSubmission.csv": b"id,label\n1,0\n"},
        {}, ("train (60), test1 (20) hold images without class folders", "cat.0.jpg, dog.0.jpg", r"`label: '^(?P<label>[A-Za-z]+)\.\d'`"),
    ),
    "lists of several labels per image": (one_hot(both="train/1.png"), {}, ("train/_classes.csv has several labels per image (1.png: circle, square)", "one class per image")),
    "a list of several labels per image in the test split": (
        one_hot(both="test/1.png"), {}, ("12 images, such as test/0.png, have no class", "test/_classes.csv has several labels per image (1.png: circle, square)", "remove the list"),
    ),
    "a class absent from a delivered split": (
        folders(*(f"{part}/{label}" for part in ("train", "valid", "test") for label in SHAPES)) | shots("train/cross", 8),
        {}, ("val split has no usable image of class `cross`", "data.rare: train_only"),
    ),
    "a single picture of a class": (folders("cat", "dog") | shots("rare", 1), {}, ("`rare` (1 image)", "Add images", "remove the class", "data.rare: train_only")),
    "one placeholder in all classes": (placeholder(), {}, ("12 of 72 files are unusable", "a/flickr_0.png", "with another label (a, b)")),
    "white icons": (icons(), {}, ("24 of them have transparent pixels, which are laid over data.background",)),
    "broken files": (broken(), {}, ("3 of 44 files are unusable", "cat/empty.jpg: is empty", "cat/page.jpg: is a web page (HTML)", "data.max_quarantined")),
    "HEIC without the extra": (
        folders("cat", "dog") | {f"cat/{n}.HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHBheic" + bytes(99) for n in range(5)}, {}, ("HEIC",),
    ),
}  # fmt: skip


def shown(data: Path, **changes: object) -> tuple[Mapping[str, object], str]:
    """Check a delivery: its facts and the printed lines, without line breaks."""
    facts, lines = check(data, data_params(**{"max_quarantined": 0.01} | changes))
    return facts, " ".join("\n".join(lines).split())


def written(folder: Callable[[Mapping[str, bytes]], Path], files: Mapping[str, bytes]) -> Path:
    data = folder({path: content for path, content in files.items() if not path.endswith("/")})
    for path in files:
        if path.endswith("/"):
            (data / path).mkdir()
    return data


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_delivery_is_read_right(folder, name):
    files, changes, images, expected = ACCEPTED[name]
    facts, text = shown(written(folder, files), **changes)
    assert facts["accepted"], text
    for key, count in images.items():
        label, _, split = key.rpartition(" ")
        if not label or split not in facts["counts"]:
            label, split = key, ""
        assert sum(counts[label] for own, counts in facts["counts"].items() if split in ("", own)) == count, (
            key
        )
    assert [fact for fact in expected if fact not in text] == [], text
    # Whatever is cut, each class is in each split that has any of it.
    for split in facts["cut"]:
        assert all(facts["counts"][split].values()), split


@pytest.mark.parametrize("name", REFUSED)
def test_a_delivery_is_refused_with_what_to_do(folder, name):
    files, changes, expected = REFUSED[name]
    try:
        facts, text = shown(written(folder, files), **changes)
    except DataError as error:
        facts, text = {"accepted": False}, " ".join(str(error).split())
    assert not facts["accepted"]
    assert [fact for fact in expected if fact not in text] == [], text


def test_numbers_are_shown_in_their_order(folder):
    _, text = shown(folder(folders(*map(str, range(12)), count=9)))
    table = text[text.index("All") : text.index("12 classes", text.index("All"))]
    assert [int(word) for word in table.split()[1::5]] == list(range(12))


def test_avif_is_read(folder):
    files = folders("cat", "dog") | {
        f"cat/web_{n}.avif": encoded(picture(n, size=(48, 48)), "AVIF") for n in range(3)
    }
    facts, text = shown(folder(files))
    assert facts["accepted"], text
    assert sum(counts["cat"] for counts in facts["counts"].values()) == 23


def test_a_large_file_beside_the_classes_is_passed_over(folder):
    data = folder(folders("cat", "dog") | {"holiday-raw.mp4": b"\0\0\0\x18ftypmp42"})
    os.truncate(data / "holiday-raw.mp4", 1_500_000_000)  # sparse: takes no room on the disk
    facts, text = shown(data)
    assert facts["accepted"]
    assert "video 1 holiday-raw.mp4" in text


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_extreme_sizes_are_used_however_they_become_squares(folder, fit):
    sizes = ((1, 1), (1, 4000), (4000, 1), (3, 3), (2, 900))
    odd = {
        f"{label}/odd_{n}.png": png_of(n + 9 * (label == "dog"), *size)
        for label in ("cat", "dog")
        for n, size in enumerate(sizes)
    }
    data, squares = folder(folders("cat", "dog") | odd), []
    params = data_params(fit=fit, image_px=8)
    result = scan.scan(data, params, Geometry(8, fit), squares.append)
    assert {record.path for record in result.records if record.status != "ok"} == set()
    assert {square.shape for square in squares} == {(8, 8, 3)}


def test_a_linked_class_folder_is_refused_by_name(folder):
    data = folder(folders("data/circle", "data/square", "elsewhere/triangle"), "made") / "data"
    (data / "triangle").symlink_to("../elsewhere/triangle", target_is_directory=True)
    with pytest.raises(
        DataError, match=r"triangle is a link to a folder \(\.\./elsewhere/triangle\).*cp -RL"
    ):
        shown(data)


def test_a_name_that_is_no_utf8_is_refused_by_name(folder):
    data = folder(folders("cat", "dog"))
    Path(os.fsdecode(os.fsencode(data / "cat") + b"/caf\xe9.jpg")).write_bytes(png_of(1))
    with pytest.raises(DataError, match=r"caf.{1,4}\.jpg"):
        shown(data)


def test_a_tar_with_hard_links_is_refused_with_the_option_that_packs_files(tarred):
    link = tarfile.TarInfo("photos/cat/copy.png")
    link.type, link.linkname = tarfile.LNKTYPE, "photos/cat/0.png"
    with pytest.raises(DataError, match=r"photos/cat/copy\.png.*--hard-dereference"):
        shown(
            tarred(
                {f"photos/{path}": content for path, content in folders("cat", "dog").items()}, extra=(link,)
            )
        )


def test_an_archive_for_each_class(tmp_path):
    (tmp_path / "data").mkdir()
    for label in ("circle", "square"):
        with zipfile.ZipFile(tmp_path / "data" / f"{label}.zip", "w") as archive:
            for path, content in shots(label).items():
                archive.writestr(path.partition("/")[2], content)
    facts, text = shown(tmp_path / "data")
    assert facts["accepted"], text
    assert facts["classes"] == ["circle", "square"]


def test_a_zip_with_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path, content in folders("photos/cat", "photos/dog").items():
            info = zipfile.ZipInfo("x")
            info.filename = path.replace("/", "\\")
            archive.writestr(info, content)
    facts, _ = shown(tmp_path / "data.zip")
    assert facts["accepted"]
    assert facts["classes"] == ["cat", "dog"]


def test_a_read_only_folder_under_an_odd_path(folder):
    data = folder(
        folders("cat", "dog", name="a file's name [{}] 100%.png"), "my photos (2024) #1 [final] 100%/ñandú 🐦"
    )
    for path in [data / "cat", data / "dog", data]:
        path.chmod(0o555)
    try:
        assert [shown(data)[0]["accepted"] for _ in range(2)] == [True, True]
    finally:
        for path in [data, data / "cat", data / "dog"]:
            path.chmod(0o755)
