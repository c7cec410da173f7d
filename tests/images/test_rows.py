"""Deliveries whose members are rows or samples with the image files themselves: Parquet and WebDataset."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import array_sets_made as made
from convoy.core.errors import DataError
from convoy.data import scan
from convoy.data.prepare import prepare
from convoy.images import parquet
from convoy.images.delivery import Place, open_delivery

NAMES = made.NAMES
IMAGES = [made.png(image_u8) for image_u8 in made.pictures(30, 8, seed=9)]
LABELS = [n % 3 for n in range(30)]


def delivered(path):
    """Content, split and label of each image, in the order of the delivery."""
    delivery = open_delivery(path)
    files = list(delivery.files())
    assert {name for name, _ in files} == set(delivery.names()) == set(delivery.places)
    return [(content, delivery.places[name].split, delivery.places[name].label) for name, content in files]


SUFFIXES = ["parquet", "parq", "pq", "PARQ", "snappy.pq"]


def rows(split, start, stop, names=NAMES):
    return [(IMAGES[n], split, names[LABELS[n]]) for n in range(start, stop)]


def hugging_face(**options):
    return {
        "README.md": b"# cats",
        "data/train-00000-of-00002.parquet": made.parquet(IMAGES[:12], LABELS[:12], **options),
        "data/train-00001-of-00002.parquet": made.parquet(IMAGES[12:24], LABELS[12:24], **options),
        "data/test-00000-of-00001.parquet": made.parquet(IMAGES[24:], LABELS[24:], **options),
    }


@pytest.mark.parametrize("container", ["folder", "zipped", "tarred"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_folder_of_parquet_files_has_splits_classes_and_the_files_themselves(container, as_bytes, request):
    data = request.getfixturevalue(container)(hugging_face(as_bytes=as_bytes))
    found = sorted(delivered(data))
    assert found == sorted(rows("train", 0, 24) + rows("test", 24, 30))
    assert open_delivery(data).places["train/cat%2Fdog/train-00001-of-00002-00007"] == Place(
        "train", "cat/dog"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parquet_files_in_a_folder_may_have_any_of_their_suffixes(suffix, folder):
    files = {
        f"train-0.{suffix}": made.parquet(IMAGES[:24], LABELS[:24]),
        f"test-0.{suffix}": made.parquet(IMAGES[24:], LABELS[24:]),
    }
    assert sorted(delivered(folder(files))) == sorted(rows("train", 0, 24) + rows("test", 24, 30))


def test_one_parquet_file_without_a_suffix_is_recognised_by_content(tmp_path):
    (tmp_path / "data").write_bytes(made.parquet(IMAGES, LABELS))
    assert delivered(tmp_path / "data") == rows(None, 0, 30)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([f"class {n}" for n in LABELS], None, ["class 0", "class 1", "class 2"]),
        (
            pa.array([f"class {n}" for n in LABELS]).dictionary_encode(),
            None,
            ["class 0", "class 1", "class 2"],
        ),
        (LABELS, None, ["0", "1", "2"]),
    ],
)
def test_labels_may_be_text_or_numbers_without_names(labels, names, expected, folder):
    data = folder({"train.parquet": made.parquet(IMAGES, labels, names)})
    assert delivered(data) == rows("train", 0, 30, expected)


def test_column_names_of_cifar_on_the_hub_are_read(folder):
    table = {
        "img": [{"bytes": content, "path": None} for content in IMAGES],
        "fine_label": LABELS,
        "coarse_label": [0] * 30,
    }
    stream = io.BytesIO()
    pq.write_table(pa.table(table), stream)
    assert delivered(folder({"train.parquet": stream.getvalue()})) == rows("train", 0, 30, "012")


def test_a_hidden_test_split_is_passed_over_and_cut_from_train(folder, settings, tmp_path):
    files = hugging_face() | {"data/test-00000-of-00001.parquet": made.parquet(IMAGES[24:], [-1] * 6)}
    metrics = prepare(folder(files), settings(splits={"val": 0.3, "test": 0.3}), tmp_path / "dataset")
    manifest = pq.read_table(tmp_path / "dataset" / "manifest.parquet").to_pylist()
    assert [row["verdict"] for row in manifest].count("passed over: unlabelled image") == 6
    assert metrics["data"]["test"] > 0


def test_rows_are_streamed_in_bounded_memory(folder):
    images = [bytes([n % 251]) * 2**20 for n in range(64)]
    data = folder(
        {
            "train.parquet": made.parquet(
                images,
                [n % 2 for n in range(64)],
                compression="none",
                use_dictionary=False,
                write_batch_size=4,
            )
        }
    )
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    largest = 0
    for number, (_, content) in enumerate(open_delivery(data).files()):
        assert content == images[number]
        largest = max(largest, pa.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest + peak < 40 * 2**20


def _table(**columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


STRUCTS = [{"bytes": content, "path": "x.png"} for content in IMAGES]
WRONG = {
    "truncated": (lambda: made.parquet(IMAGES, LABELS)[:-20], "truncated, or no Parquet file"),
    "damaged footer": (lambda: made.parquet(IMAGES, LABELS)[:-60] + bytes(52) + made.parquet(IMAGES, LABELS)[-8:], "damaged"),
    "huge footer": (lambda: b"PAR1" + b"\xff\xff\xff\x7fPAR1", "truncated, or no Parquet file"),
    "no images": (lambda: _table(text=["a"] * 30, label=LABELS), "0 columns of images .none. among text, label"),
    "two images": (lambda: _table(left=STRUCTS, right=STRUCTS, label=LABELS), "2 columns of images .left, right."),
    "a list of images": (lambda: _table(image=[[content] for content in IMAGES], label=LABELS), "0 columns of images"),
    "a struct of a list": (lambda: _table(image=[{"bytes": [1]}] * 30, label=LABELS), "images of type struct"),
    "no labels": (lambda: _table(image=STRUCTS), "states no labels"),
    "several labels": (lambda: _table(image=STRUCTS, label=[[0, 1]] * 30), "several labels for an image .column label"),
    "float labels": (lambda: _table(image=STRUCTS, label=[0.5] * 30), "labels of type double"),
    "missing labels": (lambda: made.parquet(IMAGES, [*LABELS[:-2], None, -1]), "no label for 2 of 30 rows .* row 28"),
    "no such name": (lambda: made.parquet(IMAGES, [*LABELS[:-1], 3]), "image 29 of train.parquet .* label 3, .* 3 class names"),
    "empty name": (lambda: made.parquet(IMAGES, ["a", "", *["b"] * 28], None), "image 1 of train.parquet .*class name is empty"),
    "only paths": (lambda: _table(image=[*STRUCTS[:29], {"bytes": None, "path": "x.png"}], label=LABELS), "no bytes in row 29, only a path"),
    "deep metadata": (
        lambda: _with_metadata(b"[" * 100_000),
        "image 0 of train.parquet .* label -5",
    ),
}  # fmt: skip


def _with_metadata(content):
    stream = io.BytesIO()
    table = pa.table({"image": STRUCTS, "label": [-5] * 30})
    pq.write_table(table.replace_schema_metadata({"huggingface": content}), stream)
    return stream.getvalue()


@pytest.mark.parametrize("case", WRONG)
def test_an_odd_or_damaged_parquet_file_is_refused_with_its_facts(case, folder):
    make, reason = WRONG[case]
    with pytest.raises(DataError, match=reason):
        delivered(folder({"train.parquet": make()}))


def varint(number):
    """A whole number as Thrift's compact protocol writes it, in 5 bytes."""
    doubled = number << 1
    return bytes([*(doubled >> shift & 127 | 128 for shift in (0, 7, 14, 21)), doubled >> 28])


def test_metadata_at_which_pyarrow_ends_the_process_are_refused(folder):
    """A column that its schema calls required has a histogram for missing values: one byte of the schema is damaged."""
    content = made.parquet(IMAGES, LABELS)
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    optional, required = b"\x25\x02", b"\x25\x00"  # field 3 of SchemaElement in Thrift's compact protocol
    schema = content[start:].replace(optional, required, 3)
    assert schema != content[start:]
    data = folder({"train.parquet": content[:start] + schema})
    with pytest.raises(DataError, match=r"train\.parquet has metadata that contradict each other: damaged"):
        open_delivery(data)
    assert len(delivered(folder({"train.parquet": content}))) == len(IMAGES)


@pytest.mark.parametrize("field", [1, 2], ids=["unpacked", "packed"])
@pytest.mark.parametrize("column", ["image.bytes", "label"])
def test_a_page_that_states_gigabytes_is_refused_before_they_are_allocated(field, column, folder):
    content = made.parquet(IMAGES[:6], LABELS[:6], use_dictionary=False)
    group = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    chunk = next(group.column(n) for n in range(3) if group.column(n).path_in_schema == column)
    at = chunk.data_page_offset
    numbers = content[at : at + 30].split(b"\x15")
    assert numbers[:2] == [b"", b"\0"], "the kind of the page, then its sizes"
    numbers[1 + field] = varint(2**30)
    stated = b"\x15".join(numbers[:4]) + b"\x15"
    # In place of other bytes: nothing else moves.
    data = folder({"train.parquet": content[:at] + stated + content[at + len(stated) :]})
    with pytest.raises(
        DataError, match=rf"train.parquet has a page of `{column}` that is larger than the column"
    ):
        delivered(data)


def test_row_groups_without_rows_are_no_damage(tmp_path):
    table = pa.table({"image": IMAGES[:6], "label": [str(label) for label in LABELS[:6]]})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 3), table.slice(0, 0), table.slice(3)):
            writer.write_table(part)
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == 4
    assert [content for _, content in open_delivery(tmp_path / "x.parquet").files()] == IMAGES[:6]


def test_a_column_that_unpacks_to_a_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr(parquet, "FREE_BYTES", 2**20)
    bomb = made.parquet([bytes(2**20)] * 30, LABELS, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match=r"31,4\d\d,\d\d\d bytes of `image.bytes` in .* decompression bomb"):
        delivered(folder({"train.parquet": bomb}))


def test_more_rows_than_bytes_are_refused(folder, monkeypatch):
    monkeypatch.setattr(parquet, "FREE_ROWS", 1000)
    many = made.parquet([IMAGES[0]] * 20_000, [1] * 20_000, as_bytes=True)
    assert len(many) < 20_000
    with pytest.raises(DataError, match=r"train.parquet declares 20,000 rows in [\d,]+ bytes: .* bomb"):
        delivered(folder({"train.parquet": many}))


def test_an_image_larger_than_any_is_named_and_the_others_are_read(folder, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 1000)
    found = delivered(folder({"train.parquet": made.parquet([IMAGES[0], bytes(1001)], [0, 1])}))
    assert found[0][0] == IMAGES[0]
    assert "more than 1,000 bytes" in str(found[1][0])


def test_files_that_do_not_belong_together_are_refused(folder):
    files = hugging_face() | {
        "data/test-00000-of-00001.parquet": made.parquet(IMAGES[24:], LABELS[24:], ["x", "y", "z"])
    }
    with pytest.raises(DataError, match=r"has other class names \(.*\) than "):
        open_delivery(folder(files, "names"))
    files = {
        f"{folder_}/train-00000-of-00001.parquet": made.parquet(IMAGES, LABELS)
        for folder_ in ("large", "small")
    }
    with pytest.raises(DataError, match=r"2 folders \(large, small\), .*configurations"):
        open_delivery(folder(files, "configurations"))
    files = {name: made.parquet(IMAGES, LABELS) for name in ("test.parquet", "other.parquet")}
    with pytest.raises(
        DataError, match=r"test.parquet states the split test, that of other.parquet states none"
    ):
        open_delivery(folder(files, "split"))


def test_a_table_beside_image_files_is_no_array_set(folder, pets):
    table = _table(file_name=list(pets), label=["x"] * len(pets))
    delivery = open_delivery(folder(pets | {"metadata.parquet": table}))
    assert delivery.places is None
    assert set(pets) <= set(delivery.names())


def test_a_git_lfs_pointer_and_a_linked_folder_are_named(folder, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 74717914\n"
    with pytest.raises(DataError, match=r"train.parquet is a Git LFS pointer .*git lfs pull"):
        open_delivery(folder({"train.parquet": pointer}, "pointer"))
    data = folder({"train-00000-of-00001.parquet": made.parquet(IMAGES, LABELS)}, "linked")
    (data / "test").symlink_to(tmp_path / "pointer")
    with pytest.raises(DataError, match=r"linked/test is a link to a folder"):
        open_delivery(data)


def test_folders_named_after_splits_are_splits(folder):
    files = {
        f"{split}/0000.parquet": made.parquet(IMAGES[:6], LABELS[:6])
        for split in ("train", "validation", "test")
    }
    assert {split for _, split, _ in delivered(folder(files))} == {"train", "val", "test"}


def samples(start, stop, label=lambda n: {"cls": str(LABELS[n]).encode()}):
    return {f"{n:06}": {"png": IMAGES[n], **label(n)} for n in range(start, stop)}


LABEL_FILES = {
    "cls": lambda n: {"cls": f"{LABELS[n]}\n".encode()},
    "cls first": lambda n: {"cls": str(LABELS[n]).encode(), "png": IMAGES[n], "json": b"{}"},
    "json": lambda n: {"json": json.dumps({"label": LABELS[n], "url": "x"}).encode()},
    "json class": lambda n: {"json": json.dumps({"class": str(LABELS[n])}).encode()},
}


@pytest.mark.parametrize("kind", LABEL_FILES)
def test_a_webdataset_tar_is_read(kind, tmp_path):
    (tmp_path / "data").write_bytes(made.webdataset(samples(0, 30, LABEL_FILES[kind])))
    assert delivered(tmp_path / "data") == rows(None, 0, 30, "012")
    assert open_delivery(tmp_path / "data").kind == "WebDataset"


def test_shards_in_a_folder_have_splits_and_class_names(folder):
    files = {
        "train/0.tar": made.webdataset(samples(0, 12)),
        "train/1.tar": made.webdataset(samples(12, 24)),
        "test/0.tar": made.webdataset(samples(24, 30)),
        "classnames.txt": "\n".join(NAMES).encode(),
    }
    assert sorted(delivered(folder(files, "folders"))) == sorted(rows("train", 0, 24) + rows("test", 24, 30))
    files = {"pets-train-000000.tar": files["train/0.tar"], "pets-train-000001.tar": files["train/1.tar"]}
    data = folder(files, "names")
    assert sorted(delivered(data)) == sorted(rows("train", 0, 24, "012"))
    assert "train/1/pets-train-000001-000013.png" in open_delivery(data).places


SHARDS = {
    "tar.gz": gzip,
    "tgz": gzip,
    "tar.bz2": bz2,
    "tbz": bz2,
    "tbz2": bz2,
    "tar.xz": lzma,
    "txz": lzma,
    "TXZ": lzma,
}


@pytest.mark.parametrize("suffix", SHARDS)
def test_compressed_shards_are_read(suffix, folder):
    files = {
        f"train-{n}.{suffix}": SHARDS[suffix].compress(made.webdataset(samples(10 * n, 10 * n + 10)))
        for n in range(3)
    }
    assert sorted(delivered(folder(files))) == sorted(rows("train", 0, 30, "012"))


@pytest.mark.parametrize("kind", ["jpe", "jfif", "tif", "tiff", "pbm", "heic", "hif", "jp2", "JPEG"])
def test_a_sample_has_its_image_whatever_the_suffix(kind, tmp_path):
    """The content decides how it is decoded."""
    (tmp_path / "data").write_bytes(
        made.webdataset({f"{n}": {kind: IMAGES[n], "cls": b"0"} for n in range(3)})
    )
    assert [content for content, *_ in delivered(tmp_path / "data")] == IMAGES[:3]


def test_text_labels_are_class_names(folder):
    data = folder(
        {"train-0.tar": made.webdataset(samples(0, 30, lambda n: {"cls": NAMES[LABELS[n]].encode()}))}
    )
    assert delivered(data) == rows("train", 0, 30)


def test_samples_without_a_label_or_with_two_images_are_refused_by_key(folder):
    some = samples(0, 30)
    del some["000007"]["cls"]
    with pytest.raises(DataError, match=r"1 of 30 samples have no label, the first is `000007.png`"):
        open_delivery(folder({"train-0.tar": made.webdataset(some)}, "unlabelled"))
    some = samples(0, 30) | {"000030": {"png": IMAGES[0], "jpg": IMAGES[1], "cls": b"1"}}
    with pytest.raises(DataError, match=r"sample `000030` has 2 images \(png, jpg\)"):
        open_delivery(folder({"train-0.tar": made.webdataset(some)}, "two"))
    twice = made.webdataset(samples(0, 3) | {"x": {"png": IMAGES[0], "cls": b"0"}})
    twice = twice[: -(len(twice) % 10240) or None]
    with pytest.raises(
        DataError, match=r"image 1 of train-0.tar has the label 1, .* index of the 1 class names"
    ):
        open_delivery(folder({"train-0.tar": twice, "classnames.txt": b"only"}, "names"))


def test_class_folders_with_sidecars_in_a_tar_are_no_webdataset(tarred, pets):
    sidecars = {
        name.replace(".png", ".json"): b'{"title": "x", "shapes": [{"label": "cat"}]}' for name in pets
    }
    delivery = open_delivery(tarred(pets | sidecars, ""))
    assert delivery.places is None
    assert set(pets) <= set(delivery.names())


def test_a_shard_that_is_truncated_is_refused(folder):
    content = made.webdataset(samples(0, 30))
    with pytest.raises(DataError, match=r"train-0.tar is truncated or damaged"):
        open_delivery(folder({"train-0.tar": content[: len(content) // 2 + 100]}))


def test_a_row_whose_bytes_are_no_image_is_quarantined(folder, settings):
    images = [b"", b"junk", *IMAGES[2:]]
    found = scan.scan(
        folder({"train.parquet": made.parquet(images, LABELS)}),
        settings(),
        lambda image_u8: image_u8,
        lambda _: None,
    )
    assert [record.path[-5:] for record in found.records if record.status == "quarantined"] == [
        "00000",
        "00001",
    ]


def test_the_column_of_the_classes_is_stated_where_others_may_be_labels(folder):
    table = pa.table({"image": IMAGES, "fine_label": LABELS, "coarse_label": [0] * 30})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    delivery = open_delivery(folder({"train.parquet": stream.getvalue()}))
    delivery.names()
    assert delivery.notes == ["Classes are read from the column `fine_label`; not used: `coarse_label`"]
