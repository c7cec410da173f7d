"""Read images and labels from Parquet files as Hugging Face's `datasets` and similar tools write them.

Columns: `image`, bytes or struct{bytes, path}; `label`, whole numbers with their names in the schema's `huggingface`
metadata (ClassLabel), or text. Splits stand in the names of files or folders: `train-00000-of-00002.parquet`.
https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from convoy.core.errors import DataError, listed
from convoy.images.archive import FREE_BYTES, MAX_EXPANSION, MAX_MEMBERS
from convoy.images.containers import WORDS, ArraySet, Part, RawFiles, assemble, has_image
from convoy.images.decode import MAX_FILE_BYTES, Content, TooLargeError
from convoy.images.litter import suffix_of
from convoy.images.parquet_metadata import MetadataReader

MAGIC = b"PAR1"
SUFFIXES = ("parquet", "parq", "pq")
LFS_POINTER = b"version https://git-lfs"
LABELS = (
    "label",
    "fine_label",
    "labels",
    "class",
    "class_label",
    "target",
    "cls",
    "category",
    "class_name",
    "y",
)
"""Names of the label's column, the first that exists."""

LABEL_ROWS = 65_536
FREE_ROWS = 10_000
"""Rows that a file of any size may declare."""

MAX_METADATA_BYTES = 64 * 2**20
"""Longest schema and row-group metadata that are parsed, in bytes."""

PAGE_HEADER_BYTES = (2**12, 2**24)
"""Bytes that are read for the header of a page, which may contain its smallest and largest value."""

SLACK_BYTES = 100
"""Bytes that Parquet's Java writer before 1.2.9 left out of the size of a column (PARQUET-816)."""

BATCH_BYTES = 8 * 2**20
BATCH_ROWS = 64
"""Rows read at once: fewer where the images are large."""


@dataclass(frozen=True)
class _Columns:
    image: str
    in_struct: bool
    label: str | None
    classes: tuple[str, ...] | None
    listed: tuple[str, ...]  # all, to compare files
    others: tuple[str, ...] = ()  # further columns that may be labels


def recognise(raw: RawFiles, first: Sequence[str]) -> ArraySet | None:
    """Recognise one Parquet file, or a folder or archive of them; None if there are none with images.

    Raises:
        DataError: a file is damaged, or has no column of images or labels; columns or folders differ.
    """
    if raw.path.is_file() and raw.archive is None:
        with raw.path.open("rb") as start:
            if start.read(4) != MAGIC:
                return None
        names = list(first)
    elif not any(suffix_of(name) in SUFFIXES for name in first):
        return None
    else:
        names = sorted(name for name in raw.names() if suffix_of(name) in SUFFIXES)
    _check_folders(raw, names)
    parts: list[Part] = []
    columns: _Columns | None = None
    with MetadataReader() as metadata:
        for name, file in raw.open(names):
            with _reported(raw, name):
                parquet = _opened(file, metadata)
                if has_image(first) and not _image_columns(parquet.schema_arrow):
                    return None  # a table about image files beside it
                own = _columns(parquet.schema_arrow)
                columns = columns or own
                if own != columns:
                    raise _difference(own, columns, names[0])
                _check_pages(parquet, file, own)
                labels = _labels(parquet, own)
                parts.append(Part(name, labels, parquet.metadata.num_rows))
    if columns is None:
        return None
    found = columns

    def images(name: str, file: IO[bytes]) -> Iterator[Content]:
        with _reported(raw, name):
            yield from _images(_opened(file), found)

    arrays = assemble("Parquet", raw, parts, found.classes, raw.stream(images))
    if not found.others:
        return arrays
    unread = listed([f"`{name}`" for name in found.others], 4)
    return replace(arrays, notes=(f"Classes are read from the column `{found.label}`; not used: {unread}",))


def _difference(own: _Columns, first: _Columns, name: str) -> DataError:
    """Describe how the columns of a file differ from those of the first; the reason only."""
    if own.listed == first.listed and own.classes != first.classes:
        ours, theirs = (listed(columns.classes or ("none",), 8) for columns in (own, first))
        return DataError(f"has other class names ({ours}) than {name} ({theirs})")
    return DataError(f"has the columns {listed(own.listed, 8)}, {name} has {listed(first.listed, 8)}")


@contextmanager
def _reported(raw: RawFiles, name: str) -> Iterator[None]:
    """Put the delivery and the file before a reason."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{raw.path}: {name} {error}.") from error
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{raw.path}: {name} is damaged, or no Parquet file ({reason}). Fetch it again."
        ) from error


def _opened(file: IO[bytes], metadata: MetadataReader | None = None) -> pq.ParquetFile:
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    file.seek(0)
    if file.read(len(LFS_POINTER)) == LFS_POINTER:
        raise DataError("is a Git LFS pointer instead of the file. Type `git lfs pull` where it was cloned")
    if tail[4:] != MAGIC or length > min(MAX_METADATA_BYTES, size - 8):
        raise DataError("is truncated, or no Parquet file: it does not end as such a file does")
    if metadata:
        file.seek(size - 8 - length)
        metadata.check(file.read(length + 8))
    file.seek(0)
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
    rows = parquet.metadata.num_rows
    if rows > min(MAX_MEMBERS, max(FREE_ROWS, size)):  # no image takes less than a byte
        raise DataError(f"declares {rows:,} rows in {size:,} bytes: damaged, or a decompression bomb")
    return parquet


def _columns(schema: pa.Schema) -> _Columns:
    """Choose the columns of images and labels.

    Raises:
        DataError: none or several columns hold images, or the label is a list; the reason only.
    """
    features = _features(schema)
    names = tuple(schema.names)
    images = _image_columns(schema)
    preferred = [name for name in images if name in ("image", "img")]
    images = preferred if len(preferred) == 1 else images
    if len(images) != 1:
        raise DataError(
            f"has {len(images)} columns of images ({listed(images, 4) or 'none'}) among {listed(names, 8)}; one is needed, of "
            "bytes or of struct{bytes, path}"
        )
    kind = schema.field(images[0]).type
    in_struct = pa.types.is_struct(kind)
    if not _is_bytes(kind.field("bytes").type if in_struct and kind.get_field_index("bytes") >= 0 else kind):
        raise DataError(f"has images of type {str(kind)[:80]}; bytes or struct{{bytes, path}} are read")
    labels = [name for name in LABELS if name in names]
    labels += [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if not labels:
        return _Columns(images[0], in_struct, None, None, names)
    label_type = schema.field(labels[0]).type
    if pa.types.is_dictionary(label_type):
        label_type = label_type.value_type
    if pa.types.is_nested(label_type):
        raise DataError(
            f"has several labels for an image (column {labels[0]}: {str(label_type)[:60]}); a class is one label"
        )
    if not (pa.types.is_integer(label_type) or _is_text(label_type)):
        raise DataError(
            f"has labels of type {label_type} (column {labels[0]}); whole numbers or text are read"
        )
    given = features.get(labels[0], {}).get("names")
    classes = tuple(map(str, given)) if isinstance(given, list) and given else None
    labels += [name for name in names if name.endswith("_label")]
    others = tuple(dict.fromkeys(name for name in labels if name != labels[0]))
    return _Columns(images[0], in_struct, labels[0], classes, names, others)


def _image_columns(schema: pa.Schema) -> list[str]:
    features = _features(schema)
    return [
        field.name
        for field in schema
        if features.get(field.name, {}).get("_type") == "Image"
        or _is_bytes(field.type)
        or (pa.types.is_struct(field.type) and "bytes" in [inner.name for inner in field.type])
    ]


def _features(schema: pa.Schema) -> dict[str, dict[str, object]]:
    """Read the description of the columns that `datasets` adds; empty without it."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature
            for name, feature in found.items()
            if isinstance(feature, dict) and name in schema.names
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _labels(parquet: pq.ParquetFile, columns: _Columns) -> list[int | str] | None:
    """Read the column of labels; None if it states none: all are -1 or missing, as in a hidden test split."""
    if columns.label is None:
        return None
    labels: list[int | str] = []
    missing = 0
    first_missing = 0
    shared: dict[str, str] = {}
    for batch in parquet.iter_batches(batch_size=LABEL_ROWS, columns=[columns.label]):
        for value in batch.column(0).to_pylist():
            if value is None or value == -1:
                first_missing = first_missing if missing else len(labels)
                missing += 1
                labels.append(-1)
            else:
                labels.append(shared.setdefault(value, value) if isinstance(value, str) else value)
        if len(labels) > parquet.metadata.num_rows:
            raise DataError(f"has more rows than the {parquet.metadata.num_rows:,} that it declares")
    if missing and missing == len(labels):
        return None
    if missing:
        raise DataError(
            f"states no label for {missing:,} of {len(labels):,} rows (the first is row {first_missing:,}). Remove these rows"
        )
    if len(labels) != parquet.metadata.num_rows:
        raise DataError(f"declares {parquet.metadata.num_rows:,} rows and has {len(labels):,} labels")
    return labels


def _check_pages(parquet: pq.ParquetFile, file: IO[bytes], columns: _Columns) -> None:
    """Refuse pages that state more bytes than their column has: pyarrow allocates what they state.

    Raises:
        DataError: naming the column; the reason only.
    """
    for group in range(parquet.metadata.num_row_groups):
        row_group = parquet.metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            is_read = chunk.path_in_schema.split(".")[0] in (columns.image, columns.label)
            if (
                not is_read or not chunk.num_values
            ):  # of no values pyarrow reads no page, and writes the offset 0
                continue
            packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
            if unpacked > max(FREE_BYTES, MAX_EXPANSION * packed):
                raise DataError(
                    f"declares {unpacked:,} bytes of `{chunk.path_in_schema}` in {packed:,}: a decompression bomb"
                )
            starts = [chunk.data_page_offset]
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                starts.append(chunk.dictionary_page_offset)
            position, end = min(starts), min(starts) + packed
            while position < end:
                header, page_unpacked, page_packed = _page_header(file, position)
                position += header + page_packed
                largest = max(unpacked, FREE_BYTES)
                if not 0 <= page_unpacked <= largest or page_packed < 0 or position > end + SLACK_BYTES:
                    raise DataError(
                        f"has a page of `{chunk.path_in_schema}` that is larger than the column: damaged, or a decompression bomb"
                    )


def _page_header(file: IO[bytes], start: int) -> tuple[int, int, int]:
    """Return the length of a page's header, and the unpacked and packed size that it states, in bytes.

    Format: https://github.com/apache/parquet-format, struct PageHeader, in Thrift's compact protocol.
    """
    for size in PAGE_HEADER_BYTES:
        file.seek(start)
        fields: dict[int, int] = {}
        with suppress(IndexError):  # the header goes on behind what was read
            end = _skip_struct(file.read(size), 0, fields)
            return end, fields.get(2, -1), fields.get(3, -1)
    raise DataError("has a page without an end of its header: damaged")


def _skip_struct(content: bytes, at: int, fields: dict[int, int], depth: int = 0) -> int:
    """Return where a struct ends; fill in its whole numbers by field."""
    number = 0
    while kind := content[at] & 15:
        delta, at = content[at] >> 4, at + 1
        if not delta:
            number, at = _whole_number(content, at)
        number += delta
        if kind in (4, 5, 6):  # i16, i32, i64
            fields[number], at = _whole_number(content, at)
        else:
            at = _skip(content, at, kind, depth)
    return at + 1


def _skip(content: bytes, at: int, kind: int, depth: int) -> int:
    """Return where a value of any other type ends; of the collections a page's header has none."""
    if kind in (1, 2):  # true, false
        return at
    if kind == 3:  # a byte
        return at + 1
    if kind == 7:  # a double
        return at + 8
    if kind == 8:  # bytes, behind their number
        length, at = _whole_number(content, at, signed=False)
        return at + length
    if kind == 12 and depth < 3:
        return _skip_struct(content, at, {}, depth + 1)
    raise DataError("has a damaged page header")


def _whole_number(content: bytes, at: int, *, signed: bool = True) -> tuple[int, int]:
    """Read a whole number of up to 64 bits, seven at a time; return it and where it ends."""
    value = shift = 0
    while shift < 64:
        value |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 128:
            return ((value >> 1) ^ -(value & 1) if signed else value), at
    raise DataError("has a damaged page header")


def _images(parquet: pq.ParquetFile, columns: _Columns) -> Iterator[Content]:
    """Stream the column of images, a few rows at a time."""
    largest = 1
    for group in range(parquet.metadata.num_row_groups):
        row_group = parquet.metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if chunk.path_in_schema.split(".")[0] == columns.image:
                largest = max(largest, chunk.total_uncompressed_size // max(1, chunk.num_values))
    leaf = f"{columns.image}.bytes" if columns.in_struct else columns.image
    row = 0
    for batch in parquet.iter_batches(
        batch_size=max(1, min(BATCH_ROWS, BATCH_BYTES // largest)), columns=[leaf], use_threads=False
    ):
        column = batch.column(0).field("bytes") if columns.in_struct else batch.column(0)
        for value in column:
            content = value.as_py()
            if content is None:
                raise DataError(
                    f"has no bytes in row {row:,}, only a path or nothing. Write it with the images embedded"
                )
            yield (
                content
                if len(content) <= MAX_FILE_BYTES
                else TooLargeError(f"is too large: more than {MAX_FILE_BYTES:,} bytes")
            )
            row += 1


def _check_folders(raw: RawFiles, names: Sequence[str]) -> None:
    """Refuse several configurations of a dataset, which hold the same images; folders of splits are none."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    if len(folders) > 1 and not all(folder.rpartition("/")[2].lower() in WORDS for folder in folders):
        raise DataError(
            f"{raw.path} contains Parquet files in {len(folders)} folders ({listed([folder or '.' for folder in folders], 5)}), "
            "most likely configurations of a dataset, which hold the same images. Deliver the folder to train on."
        )
