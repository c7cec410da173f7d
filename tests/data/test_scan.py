import io
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from convoy.core.dataset import SPLITS
from convoy.core.errors import DataError
from convoy.data import scan
from convoy.data.folders import read_folders
from convoy.data.records import Rows
from convoy.data.statistics import STATISTICS, measure
from convoy.images import decode as decoding
from convoy.images.decode import decode
from deliveries import png_of


def scan_of(data, params, keep=lambda _: None):
    return scan.scan(data, params, shrink=lambda image_u8: image_u8, keep=keep)


def refusal(data, params) -> str:
    with pytest.raises(DataError) as caught:
        scan_of(data, params)
    return str(caught.value)


def float_tiff():
    stream = io.BytesIO()
    Image.new("F", (8, 8)).save(stream, format="TIFF")
    return stream.getvalue()


def unused(result):
    return {record.path: record for record in result.records if record.status != "ok"}


@pytest.mark.parametrize(
    ("path", "start", "status", "reason"),
    [
        ("video.mp4", b"\0\0\0\x18ftypmp42", "passed_over", "video"),
        ("cat/video.mp4", b"\0\0\0\x18ftypmp42", "passed_over", "video"),
        ("cat/scene.bmp", b"BM", "quarantined", "is too large: more than 537,919,486 bytes"),
    ],
)
def test_of_a_large_file_that_is_no_image_only_the_start_is_read(
    folder, pets, settings, path, start, status, reason
):
    data = folder(pets | {path: start})
    os.truncate(data / path, 3 * 2**30)  # sparse: takes no room on the disk
    tracemalloc.start()
    try:
        result = scan_of(data, settings())
        assert tracemalloc.get_traced_memory()[1] < 2**26, "bytes of memory at most"
    finally:
        tracemalloc.stop()
    (record,) = unused(result).values()
    assert (record.path, record.status, record.sha256) == (path, status, "")
    assert record.reason.startswith(reason)


def test_each_delivered_file_has_a_record(folder, pets, settings):
    result = scan_of(folder(pets | {"README.md": b"# Pets"}), settings())
    assert {record.path for record in result.records} == pets.keys() | {"README.md"}
    assert {path: record.status for path, record in unused(result).items()} == {"README.md": "passed_over"}
    assert result.classes == ["cat", "dog"]
    assert result.cut == ("val", "test")


def test_usable_images_are_kept_once_in_the_order_of_the_records(zipped, pets, settings):
    kept = []
    records = scan_of(zipped(pets | {"cat/x.png": b""}), settings(), keep=kept.append).records
    assert len(kept) == len(pets)
    for record in records:
        if record.path == "cat/x.png":
            assert record.kept == -1
        else:
            assert (kept[record.kept] == decode(pets[record.path]).image_u8).all()


def test_each_usable_image_is_measured_by_the_index_of_its_record(folder, pets, settings, png):
    wide = png(7, width=40, height=10)
    result = scan_of(folder(pets | {"cat/broken.png": b"", "cat/wide.png": wide}), settings())
    assert {len(column) for column in result.statistics.values()} == {len(pets) + 1}
    (record,) = (record for record in result.records if record.path == "cat/wide.png")
    found = {name: column[record.kept] for name, column in result.statistics.items()}
    expected = dict(zip(STATISTICS, measure(decode(wide).image_u8, len(wide)), strict=True))
    assert found == expected
    assert (found["width"], found["height"], found["file_size"], record.size) == (
        40,
        10,
        len(wide),
        len(wide),
    )


@pytest.mark.parametrize(
    ("path", "content", "label", "fault", "reason"),
    [
        ("cat/empty.png", b"", "cat", "damaged", "is empty (0 bytes)"),
        ("cat/404.jpg", b"<!DOCTYPE html>", "cat", "not_an_image", "is a web page"),
        ("dog/noending", b"\x89PNG\r\n\x1a\n", "dog", "not_an_image", "is not an image"),
        ("dog/a.jpg", b"8BPS\0\1" + bytes(99), "dog", "unsupported", "is a Photoshop image"),
        ("dog/a.bmp", png_of(1)[:150], "dog", "truncated", "is truncated"),
        ("dog/a.tif", float_tiff(), "dog", "unsupported", "has floating-point samples"),
        ("stray.png", None, None, "outside_a_class", "is not in a class folder"),
    ],
)
def test_an_unusable_file_is_quarantined_with_its_reason_and_the_kind_of_it(
    folder, pets, settings, png, path, content, label, fault, reason
):
    files = pets | {path: png(9) if content is None else content}
    (record,) = unused(scan_of(folder(files), settings())).values()
    assert (record.path, record.status, record.label) == (path, "quarantined", label)
    assert record.fault == fault
    assert record.reason.startswith(reason)


def test_files_of_contradicting_labels_are_counted_as_such(folder, pets, settings):
    two_rows = "".join(f"{path},{path[:3]}\n" for path in pets) + "cat/0.png,dog\n"
    listed = scan_of(folder(pets | {"list.csv": two_rows.encode()}), settings(label="csv"))
    twice = scan_of(folder(pets | {"dog/x.png": pets["cat/1.png"]}, "twice"), settings())
    faults = [{path: record.fault for path, record in unused(result).items()} for result in (listed, twice)]
    assert faults[0] == {"cat/0.png": "two_labels", "list.csv": None}
    assert faults[1] == {"cat/1.png": "two_labels", "dog/x.png": "two_labels"}


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("dog/notes.txt", b"hello", "sidecar"),
        ("dog/settings.xml", b"P5 is how it starts", "sidecar"),
        ("dog/1.MOV", b"\0\0\0\x14ftypqt  ", "video"),
        ("dog/leaflet.pdf", b"%PDF-1.7", "document"),
        ("dog/more.zip", b"PK\x03\x04", "archive"),
        ("dog/noending", b"hello", "other file"),
        ("README", b"", "other file"),
        ("dog/1.CR2", None, "raw photo"),
        ("dog/1.THM", None, "thumbnail"),
    ],
)
def test_a_file_that_does_not_claim_to_be_an_image_is_passed_over_by_kind(
    zipped, pets, settings, png, path, content, kind
):
    files = pets | {path: png(9) if content is None else content}
    (record,) = unused(scan_of(zipped(files), settings(max_quarantined=0.0))).values()
    assert (record.path, record.status, record.reason, record.label) == (path, "passed_over", kind, None)


def test_an_image_with_the_suffix_of_a_text_is_used(folder, pets, settings, png):
    assert unused(scan_of(folder(pets | {"dog/x.txt": png(904)}), settings())) == {}


def test_a_folder_of_sidecars_is_no_class(folder, pets, settings):
    result = scan_of(folder(pets | {"docs/notes.txt": b"hi"}), settings())
    assert result.classes == ["cat", "dog"]
    (found,) = [found for found in result.findings if found.check == "empty_folders"]
    assert (found.action, found.paths) == ("report", ("docs",))
    assert "`docs`" in found.text


def test_upper_case_endings_single_pixels_and_odd_names_are_accepted(folder, pets, settings, png):
    odd = {"cat/IMG 01.PNG": png(901), "dog/ねこ.png": png(902, 1, 1), "dog/noending": png(903)}
    assert unused(scan_of(folder(pets | odd), settings(max_quarantined=0.0))) == {}


def test_too_many_unusable_files_are_refused_with_examples_and_the_limit(folder, pets, settings):
    message = refusal(folder(pets | {f"cat/x{n}.jpg": b"no" for n in range(20)}), settings())
    assert "20 of 100 files are unusable (20.0%; data.max_quarantined allows 10.0%)" in message
    assert "cat/x0.jpg: is not an image" in message
    assert "and 15 more" in message
    assert "or raise data.max_quarantined in params.yaml" in message


def test_a_train_image_delivered_in_test_too_is_left_out_but_not_unusable(folder, parts, settings):
    data = folder(parts | {"train/cat/copy.png": parts["test/cat/0.png"]})
    result = scan_of(data, settings(max_quarantined=0.0))
    (copy,) = unused(result).values()
    assert copy.status == "left_out"
    assert "test/cat/0.png" in copy.reason
    assert result.cut == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.txt": b"x", "b.md": b"x"},
            "contains no images. Found: 2 files, such as a.txt, b.md. Expected: one",
        ),
        ({}, "It is empty."),
        ({"cat/1.png": b"x", "dog/1.png": b"x"}, "contains no usable image"),
        ({"cat/1.png": b"x", "cat/2.png": b"x"}, "has a single class, `cat`"),
    ],
)
def test_a_delivery_without_images_of_two_classes_is_refused(folder, tmp_path, settings, files, message):
    (tmp_path / "data").mkdir()
    folder(files)
    assert message in refusal(tmp_path / "data", settings(max_quarantined=1.0))


def test_a_class_without_a_usable_image_is_named_with_the_reason(folder, settings, png):
    files = {f"cat/{n}.png": png(n) for n in range(30)} | {"dog/1.png": b"broken"}
    message = refusal(folder(files), settings())
    assert "class `dog` has no usable image (dog/1.png: is not an image" in message
    assert "Repair its images, or remove its folder." in message


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_class_absent_from_a_delivered_split_is_named_with_it(folder, parts, settings, split):
    files = {name: content for name, content in parts.items() if not name.startswith(f"{split}/dog")}
    message = refusal(folder(files), settings())
    assert f"The delivered {split} split has no usable image of class `dog`. Add some" in message
    assert ("leave out the whole" in message) == (split != "train")
    assert ("data.rare: train_only" in message) == (split != "train")


@pytest.mark.parametrize(("images", "possible"), [(1, False), (2, True)])
def test_leaving_a_split_out_is_recommended_only_if_it_can_be_cut(folder, parts, settings, images, possible):
    files = {
        name: content
        for name, content in parts.items()
        if "/dog/" not in name
        or name in [f"train/dog/{n}.png" for n in range(images)]
        or name == "test/dog/0.png"
    }
    message = refusal(folder(files), settings())
    assert "The delivered val split has no usable image of class `dog`" in message
    assert ("leave out the whole val split" in message) == possible


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_may_be_absent_from_a_delivered_split_by_data_rare(folder, parts, settings, split):
    files = {name: content for name, content in parts.items() if not name.startswith(f"{split}/dog")}
    result = scan_of(folder(files), settings(rare="train_only"))
    assert result.classes == ["cat", "dog"]
    assert result.counts[split] == {"cat": 5, "dog": 0}
    (finding,) = (found for found in result.findings if found.check == "rare")
    assert (finding.check, finding.action) == ("rare", "report")
    for fact in ("`dog`", f"delivered {split} split", f"averages of {split}"):
        assert fact in finding.text
    assert "no usable image of class `dog`" in refusal(
        folder(
            {name: content for name, content in parts.items() if not name.startswith("train/dog")},
            name="other",
        ),
        settings(rare="train_only"),
    )


@pytest.mark.parametrize(("broken", "of"), [("val/dog", " of class `dog`"), ("val/", "")])
@pytest.mark.parametrize("rare", ["fail", "train_only"])
def test_a_delivered_split_whose_images_are_broken_is_not_cut_again(
    folder, parts, settings, broken, of, rare
):
    files = {name: b"broken" if name.startswith(broken) else content for name, content in parts.items()}
    if of and rare == "train_only":
        assert scan_of(folder(files), settings(max_quarantined=0.5, rare=rare)).counts["val"] == {
            "cat": 5,
            "dog": 0,
        }
        return
    message = refusal(folder(files), settings(max_quarantined=0.5, rare=rare))
    assert f"The delivered val split has no usable image{of}." in message
    assert ("data.rare" in message) == bool(of)


def test_a_class_with_fewer_than_three_images_is_named_with_them_and_the_remedies(
    folder, pets, settings, png
):
    owls = {"owl/1.png": png(5007), "owl/2.png": png(5008), "owl/copy.png": png(5008), "rat/1.png": png(5009)}
    message = refusal(folder(pets | owls), settings())
    for fact in ("train, val and test, which takes 3", "`rat` (1 image)", "`owl` (3 images, counted as 2"):
        assert fact in message
    for remedy in ("Add images", "remove the class", "data.rare: train_only"):
        assert remedy in message


def test_a_class_with_fewer_than_three_images_is_only_trained_by_data_rare(folder, pets, settings, png):
    owls = {"owl/1.png": png(5007), "owl/2.png": png(5008)}
    result = scan_of(folder(pets | owls), settings(rare="train_only"))
    assert result.classes == ["cat", "dog", "owl"]
    assert [result.counts[split]["owl"] for split in SPLITS] == [2, 0, 0]
    (finding,) = (found for found in result.findings if found.check == "rare")
    assert (finding.action, set(finding.paths)) == ("report", set(owls))
    assert "averages of val and test" in finding.text
    assert "`owl` (2 images)" in finding.text


def test_three_images_in_delivered_splits_need_one_in_train_for_each_that_is_cut(folder, parts, settings):
    files = {
        name: content
        for name, content in parts.items()
        if not name.startswith("val") and (not name.startswith("train/dog") or name == "train/dog/0.png")
    }
    assert "train and val, which takes 2: class `dog` (1 image)" in refusal(folder(files), settings())
    result = scan_of(folder(files), settings(rare="train_only"))
    assert [result.counts[split]["dog"] for split in SPLITS] == [1, 0, 5]


@pytest.mark.parametrize("rare", ["fail", "train_only"])
def test_a_split_is_never_empty(folder, settings, png, rare):
    files = {f"{label}/{n}.png": png(10 * k + n) for k, label in enumerate(("cat", "dog")) for n in range(2)}
    message = refusal(folder(files), settings(rare=rare))
    assert "`cat` (2 images), `dog` (2 images)" in message
    assert "train_only" not in message


def test_what_names_reveal_is_refused_before_an_image_is_decoded(folder, parts, settings, monkeypatch):
    monkeypatch.setattr("convoy.data.scan.decode", lambda *_, **__: pytest.fail("an image was decoded"))
    assert "a single class" in refusal(folder({"cat/1.png": b"1"}, name="a"), settings())
    files = {name: content for name, content in parts.items() if not name.startswith("val/dog")}
    assert "The delivered val split has no usable image" in refusal(folder(files, name="b"), settings())


@pytest.mark.parametrize(("files", "size"), [(1, 2**20), (3, 2**20), (1000, 1), (1000, 2**20)])
def test_records_come_in_the_order_of_the_files_however_they_are_batched(pets, monkeypatch, files, size):
    monkeypatch.setattr(scan, "BATCH_FILES", files)
    monkeypatch.setattr(scan, "BATCH_BYTES", size)
    decoded = list(
        scan.read(pets.items(), read_folders(Path("data"), pets), shrink=lambda image_u8: image_u8[:1])
    )
    assert [record.path for record, _ in decoded] == list(pets)
    for (_, kept), content in zip(decoded, pets.values(), strict=True):
        assert np.array_equal(kept.square_u8, decode(content).image_u8[:1])


def test_an_error_while_shrinking_is_raised(pets):
    def broken(_: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(scan.read(pets.items(), read_folders(Path("data"), pets), broken))


def test_files_are_read_only_a_little_ahead(pets, monkeypatch):
    monkeypatch.setattr(scan, "BATCH_FILES", 1)
    monkeypatch.setattr(scan, "usable_cpus", lambda: 2)
    taken = []
    files = ((taken.append(name), item)[1] for name, item in zip(pets, pets.items(), strict=True))
    next(scan.read(files, read_folders(Path("data"), pets), np.copy))
    assert len(taken) <= 2 * 2 + 1


def test_an_image_holds_its_share_of_the_memory_until_it_is_resized(folder, pets, settings, monkeypatch):
    memory = decoding.Memory(decoding.BYTES_PER_PIXEL * 64)  # one of the 8 x 8 images
    monkeypatch.setattr(decoding, "memory", lambda: memory)
    monkeypatch.setattr(scan, "SMALL_PIXELS", 63)
    free = []

    def shrink(image_u8):
        free.append(memory._free)
        return image_u8

    scan.scan(folder(pets), settings(), shrink=shrink, keep=lambda _: None)
    assert free == [0] * len(pets)
    assert memory._free == memory.limit


def test_a_class_in_another_file_format_is_reported_as_a_giveaway(folder, settings):
    def encoded(label: str, format_: str) -> dict[str, bytes]:
        files = {}
        for n in range(60):
            image = np.random.default_rng([n, len(label)]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(content := io.BytesIO(), format=format_)
            files[f"{label}/{n}"] = content.getvalue()
        return files

    result = scan_of(folder(encoded("cat", "BMP") | encoded("hamster", "PPM")), settings())
    (finding,) = (found for found in result.findings if found.check == "giveaway")
    assert "file type (`cat` and 1 more: AUC 1.000, BMP 100% against 0%)" in finding.text
    assert {(record.label, record.format) for record in result.records} == {
        ("cat", "BMP"),
        ("hamster", "PPM"),
    }


def test_a_delivery_of_blank_transparent_images_is_refused_with_the_background(folder, settings):
    files = {}
    for n in range(24):
        alpha = np.random.default_rng(n).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.merge("LA", (Image.new("L", (20, 20), 255), Image.fromarray(alpha))).save(
            content := io.BytesIO(), format="PNG"
        )
        files[f"{'cat' if n % 2 else 'dog'}/{n}.png"] = content.getvalue()
    message = refusal(folder(files), settings())
    # Identical pixels under two classes follow from it, and come after it.
    assert message.index("24 of 24 images") < message.index("24 of 24 files are unusable")
    assert "24 of them have transparent pixels, which are laid over data.background" in message


def scene(seed: int) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((48, 48), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: object) -> bytes:
    image.save(content := io.BytesIO(), **options)
    return content.getvalue()


def test_a_recompressed_copy_of_a_test_image_is_not_trained_on(folder, settings):
    files = {
        f"{split}/{label}/{n}.png": encoded(scene(100 * number + n), format="PNG")
        for number, (split, label) in enumerate((s, c) for s in SPLITS for c in ("cat", "dog"))
        for n in range(8)
    }
    copy = encoded(scene(403).resize((40, 40)), format="JPEG", quality=60)
    result = scan_of(folder(files | {"train/cat/copy.jpg": copy}), settings())
    (left_out,) = unused(result).values()
    assert (left_out.path, left_out.status) == ("train/cat/copy.jpg", "left_out")
    assert "with test/cat/3.png" in left_out.reason
    assert [found.paths for found in result.findings if found.check == "near_duplicates"] == [
        ("train/cat/copy.jpg",)
    ]


def test_drawings_that_are_alike_by_nature_are_all_used_and_their_copies_are_not(folder, settings):
    with zipfile.ZipFile(Path(__file__).parents[2] / "samples/digits/digits.zip") as archive:
        names = [name for name in archive.namelist() if "/1/" in f"/{name}" and name.endswith(".png")][:60]
        ones = [Image.open(io.BytesIO(archive.read(name))).resize((40, 40)) for name in names]
    files = {
        f"{split}/{label}/{n}.png": encoded(image, format="PNG")
        for number, (split, label) in enumerate((s, c) for s in SPLITS for c in ("cat", "one"))
        for n, image in enumerate(
            ones[20 * number // 2 :][:20] if label == "one" else [scene(20 * number + k) for k in range(20)]
        )
    }
    copy = encoded(ones[45], format="JPEG", quality=75)
    result = scan_of(folder(files | {"train/one/copy.jpg": copy}), settings())
    assert list(unused(result)) == ["train/one/copy.jpg"]
    (finding,) = (found for found in result.findings if found.check == "look_alikes")
    assert "`one`: over 20% of the images resemble" in finding.text
    assert "data.group" in finding.text


def test_images_of_extreme_sizes_are_used_and_named(folder, pets, settings, png):
    odd = {
        "cat/dot.png": (1, 1),
        "cat/line.png": (600, 1),
        "dog/column.png": (1, 600),
        "dog/square.png": (3, 3),
    }
    files = {path: png(n, *size) for n, (path, size) in enumerate(odd.items())}
    result = scan_of(folder(pets | files), settings())
    assert unused(result) == {}
    found = {finding.check: set(finding.paths) for finding in result.findings}
    assert found["small"] == odd.keys()
    assert found["aspect"] == {"cat/line.png", "dog/column.png"}
    assert "blank" not in found


def test_images_of_low_bit_depth_or_without_their_end_are_used_and_pointed_out(folder, pets, settings):
    deep_u16 = np.random.default_rng(1).integers(0, 4096, (40, 40)).astype(np.uint16)  # 12 of 16 bits
    jpeg = encoded(scene(8), format="JPEG", quality=90)
    odd = {"cat/deep.png": encoded(Image.fromarray(deep_u16), format="PNG"), "dog/cut.jpg": jpeg[:-12]}
    result = scan_of(folder(pets | odd), settings(max_truncated=0.5))
    assert unused(result) == {}
    found = {finding.check: finding for finding in result.findings}
    assert found["low_bits"].paths == ("cat/deep.png",)
    assert "12 of 16 bits" in found["low_bits"].text
    assert found["truncated"].paths == ("dog/cut.jpg",)
    assert "data.max_truncated" in found["truncated"].text


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({"a/.1.png": b"", "b/.2.png": b""}, ["2 of the kind hidden file", "a/.1.png"]),
        ({"train.h5": b"\x89HDF", "LICENSE": b"MIT"}, ["Found: 2 files", "train.h5"]),
        ({"train_X.bin": b"\x05" * 99, "test_X.bin": b"\x05" * 99}, ["Found: 2 files", "train_X.bin"]),
    ],
)
def test_a_delivery_without_images_is_described_by_what_it_holds(folder, settings, files, facts):
    with pytest.raises(DataError, match="contains no images") as refused:
        scan_of(folder(files), settings())
    assert all(fact in str(refused.value) for fact in facts)


def test_a_check_of_a_delivery_without_a_usable_image_names_the_causes(folder, settings):
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    files = {f"{label}/{n}.jpg": pointer for label in ("cat", "dog") for n in range(4)}
    with pytest.raises(DataError, match="git lfs pull"):
        scan.scan(folder(files), settings(), lambda image_u8: image_u8, lambda _: None, refuse=False)


def test_a_check_that_drops_every_image_is_named(folder, pets, settings):
    checks = settings().checks.model_dump() | {"small": {"limit": 99, "action": "drop", "max_share": 1.0}}
    assert "small" in refusal(folder(pets), settings(checks=checks)).partition("Found")[0]


def test_groups_are_the_remedy_where_they_leave_a_class_too_few(folder, pets, settings):
    message = refusal(folder(pets), settings(group="(?P<group>cat|dog)"))
    assert "state smaller groups (data.group" in message
    assert "near_duplicates.limit" not in message


def test_a_check_shows_the_counts_of_a_delivery_whose_test_split_lacks_a_class(folder, parts, settings):
    files = {path: content for path, content in parts.items() if not path.startswith("test/dog")}
    found = scan.scan(folder(files), settings(), lambda image_u8: image_u8, lambda _: None, refuse=False)
    assert [finding.check for finding in found.findings if finding.action == "fail"] == ["rare"]
    assert "`dog`" in next(finding.text for finding in found.findings if finding.check == "rare")
    assert found.counts["test"] == {"cat": 5, "dog": 0}


def test_what_is_measured_does_not_depend_on_the_images_beside(zipped, settings, png, monkeypatch):
    sizes = ((8, 8), (32, 32), (12, 9))
    files = {
        f"{label}/{n}.png": png(n + 90 * len(label), *sizes[n % 3])
        for label in ("cat", "a dog")
        for n in range(90)
    }
    data, found = zipped(files), []
    for stack in (1, 7, scan.STACK):
        monkeypatch.setattr(scan, "STACK", stack)
        kept: list[np.ndarray] = []
        result = scan_of(data, settings(), kept.append)
        statistics = {name: values.tobytes() for name, values in result.statistics.items()}
        found.append((result.records, statistics, [square_u8.tobytes() for square_u8 in kept]))
    assert found[0] == found[1] == found[2]


def test_rows_are_read_from_the_file_as_from_an_array(tmp_path):
    expected = np.random.default_rng(0).integers(0, 256, (3000, 4, 3), np.uint8)
    with (tmp_path / "rows").open("w+b") as file:
        file.write(expected.tobytes())
        rows = Rows(file, (4, 3))
        assert (len(rows), rows.shape) == (3000, (3000, 4, 3))
        for chosen in (7, slice(10, 20), slice(0), np.array([2999, 0, 5, 5, 6, 7]), np.array([0])):
            assert np.array_equal(rows[chosen], expected[chosen])


def test_rows_that_were_read_do_not_stay_in_memory(tmp_path):
    process = psutil.Process()
    with (tmp_path / "rows").open("w+b") as file:
        file.write(bytes(2**27))
        rows = Rows(file, (2**16,))
        before = process.memory_info().rss
        for n in range(len(rows)):
            assert not rows[n].any()
        assert process.memory_info().rss - before < 2**25


def test_a_class_takes_the_same_work_however_many_there_are(tmp_path, settings, png):
    """Calls are counted, not time."""

    def calls(classes: int) -> int:
        data, count = tmp_path / str(classes), 0
        for n in range(classes):
            (data / f"class{n}").mkdir(parents=True)
            (data / f"class{n}/image.png").write_bytes(png(n))

        def note(_frame: object, event: str, _argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            message = refusal(data, settings())
        finally:
            sys.setprofile(None)
        assert "`class0`" in message
        return count

    calls(5)  # imports, and what is computed once
    few, more, most = map(calls, (100, 300, 700))
    assert (most - more) / 400 < 1.1 * (more - few) / 200
    assert (most - more) / 400 < 800
