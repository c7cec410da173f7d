"""Recognise deliveries whose members are arrays or rows, and read the plain arrays: the MNIST family, and NumPy's.

An array becomes a PPM or PGM file in memory: a header of 15 bytes, then the pixels as they are. So decoding, hashes, the
manifest and verification need not differ between an image file and a row of an array.

Formats: IDX, http://yann.lecun.com/exdb/mnist; NPY, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import gzip
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from convoy.core.errors import DataError, listed
from convoy.images import cifar, parquet, webdataset
from convoy.images.archive import FREE_BYTES, MAX_EXPANSION, MAX_MEMBERS, Kind
from convoy.images.containers import ArraySet, Part, RawFiles, assemble, has_image, lines, named, netpbm
from convoy.images.decode import Content

LOOKED_AT = 64
"""Files whose names decide the format: no more are listed of an ordinary delivery."""

IDX_NAME = re.compile(
    r"(?P<set>.*?)(?P<part>train|t10k|test|val|valid|validation)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)
NPY_NAMES = (
    re.compile(r"(?P<what>x|y)_(?P<part>train|val|valid|validation|test)\.npy"),
    re.compile(r"(?P<part>train|val|valid|validation|test)_(?P<what>images|labels)\.npy"),
)
TRANSPOSED = "EMNIST stores images with rows and columns exchanged: they are turned upright."
SHOWN = 5
"""Files that a note names."""

CLASS_NAMES = re.compile(r"(classes|class_?names|mapping)\.txt$")


def recognise(path: Path, archive: Kind | None) -> ArraySet | None:
    """Recognise a folder, archive or file that has arrays or rows instead of image files; None for anything else.

    Raises:
        DataError: it is of such a format, but damaged, inconsistent, unlabelled or mixed with image files.
    """
    raw = RawFiles(path, archive)
    first = raw.first(LOOKED_AT)
    readers = (cifar.from_pickles, cifar.from_binary, _idx, _npy, parquet.recognise, webdataset.recognise)
    for reader in readers:
        if found := reader(raw, first):
            if reader is webdataset.recognise:
                return found
            if image := has_image(first):
                raise DataError(
                    f"{path} contains {found.kind} and image files too ({image}). Deliver either of them: move the image "
                    "files out to train on the rest, or keep class folders only."
                )
            unread = [name for name in first if name not in raw.opened]
            notes = [f"Files that are not read: {listed(unread, SHOWN)}"] if unread else []
            return replace(found, notes=(*found.notes, *notes))
    return None


@dataclass(frozen=True)
class _Array:
    """Hold an open array.

    Attributes:
        content: its elements, row by row.
        shape: number of items first.
    """

    content: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _arrays(
    kind: str,
    raw: RawFiles,
    pairs: Mapping[str, str | None],
    open_array: Callable[[IO[bytes]], _Array],
    class_file: str | None = None,
    *,
    is_transposed: bool = False,
) -> ArraySet:
    """Read arrays of images, each with an array of labels.

    Args:
        kind: the format.
        raw: the files.
        pairs: file of images to file of its labels; None where it has none.
        open_array: reads the header of a file.
        class_file: text file of the class names.
        is_transposed: whether the columns of an image are stored first.

    Raises:
        DataError: an array is damaged or of another shape, or the numbers of images and labels differ.
    """
    counts: dict[str, int] = {}
    suffixes: dict[str, str] = {}
    labels: dict[str, list[int]] = {}
    classes: list[str] | None = None
    wanted = {*pairs, *filter(None, pairs.values()), *filter(None, [class_file])}
    for name, file in raw.open(wanted):
        with named(raw, name):
            if name == class_file:
                classes = _mapping(lines(file)) if name.endswith("mapping.txt") else lines(file)
                continue
            array = open_array(file)
            if name in pairs:
                counts[name], shape = _image_shape(array)
                suffixes[name] = ".pgm" if len(shape) == 2 else ".ppm"
            else:
                labels[name] = _labels(array)
    parts = []
    for name, label_file in pairs.items():
        own = labels[label_file] if label_file else None
        if own is not None and len(own) != counts[name]:
            raise DataError(
                f"{raw.path}: {name} holds {counts[name]:,} images, {label_file} {len(own):,} labels. Fetch both again."
            )
        parts.append(Part(name, own, counts[name], suffix=suffixes[name]))

    def images(name: str, file: IO[bytes]) -> Iterator[Content]:
        with named(raw, name):
            array = open_array(file)
            count, shape = _image_shape(array)
            size = int(np.prod(shape))
            for number in range(count):
                pixels = array.content.read(size)
                if len(pixels) < size:
                    raise DataError(
                        f"is truncated: it declares {count:,} images, and ends in image {number:,}"
                    )
                image = np.frombuffer(pixels, np.uint8).reshape(shape)
                yield netpbm(image.T if is_transposed else image)
            if array.content.read(1):
                raise DataError(
                    f"has more than the {count:,} images of {shape[1]} x {shape[0]} that it declares"
                )

    return assemble(kind, raw, parts, classes, raw.stream(images))


def _image_shape(array: _Array) -> tuple[int, tuple[int, ...]]:
    """Return the number of images and the shape of each, (H, W) or (H, W, 3)."""
    count, *size = array.shape
    shape = tuple(size[:2] if size[2:] == [1] else size)
    if array.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape:
        raise DataError(
            f"is an array of {array.dtype} with the shape {array.shape}; images are uint8, (N, H, W) or (N, H, W, 3)"
        )
    return count, shape


def _labels(array: _Array) -> list[int]:
    size = int(np.prod(array.shape, dtype=object))
    if array.dtype.kind not in "iu" or size != array.shape[0]:
        raise DataError(
            f"is an array of {array.dtype} with the shape {array.shape}; labels are whole numbers, (N,)"
        )
    content = array.content.read(size * array.dtype.itemsize + 1)
    if len(content) != size * array.dtype.itemsize:
        raise DataError(f"declares {size:,} labels, and has fewer or more: truncated or damaged")
    return [int(label) for label in np.frombuffer(content, array.dtype)]


def _idx(raw: RawFiles, first: Sequence[str]) -> ArraySet | None:
    """Recognise the files of MNIST and its relatives under their usual names, packed by gzip or not."""
    found: dict[tuple[str, str, str], str] = {}
    # Without .gz and higher up first: downloaded files are often kept packed beside unpacked.
    for name in sorted(first, key=lambda name: (name.endswith(".gz"), name.count("/"), name)):
        if match := IDX_NAME.fullmatch(name.rpartition("/")[2]):
            found.setdefault((match["set"], match["part"], match["what"]), name)
    sets = sorted({key[0] for key in found})
    if len(sets) > 1:
        names = ", ".join(name.strip("-_") or "without a prefix" for name in sets)
        raise DataError(
            f"{raw.path} contains {len(sets)} sets of IDX files ({names}). Copy the files of the set to train on into a folder, "
            "and deliver that."
        )
    pairs = {
        name: found.get((own, part, "labels"))
        for (own, part, what), name in found.items()
        if what == "images"
    }
    if not pairs:
        return None
    texts = [
        name for name in first if CLASS_NAMES.search(name) and name.rpartition("/")[2].startswith(sets[0])
    ]
    # EMNIST's images have their columns first, unlike MNIST's.
    is_transposed = sets[0].lower().startswith("emnist")
    class_file = texts[0] if texts else None
    arrays = _arrays("IDX files", raw, pairs, _open_idx, class_file, is_transposed=is_transposed)
    return replace(arrays, notes=(TRANSPOSED,)) if is_transposed else arrays


def _open_idx(file: IO[bytes]) -> _Array:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    content = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if is_packed else file
    head = content.read(4)
    if len(head) < 4 or head[:3] != b"\0\0\x08" or head[3] not in (1, 3):
        raise DataError(
            f"is no IDX file of images or labels: it starts with {head.hex() or 'nothing'}, not with 00000803 or 00000801"
        )
    dimensions = content.read(4 * head[3])
    if len(dimensions) < 4 * head[3]:
        raise DataError("is truncated in its header")
    shape = tuple(np.frombuffer(dimensions, ">u4").tolist())
    declared = int(np.prod(shape, dtype=object))
    if shape[0] > MAX_MEMBERS or (is_packed and declared > max(FREE_BYTES, MAX_EXPANSION * size)):
        raise DataError(f"declares {shape[0]:,} items, {declared:,} bytes, in {size:,}: a decompression bomb")
    if not is_packed and declared + file.tell() != size:
        raise DataError(
            f"declares {shape[0]:,} items, {declared:,} bytes, and has {size - file.tell():,}: truncated or damaged"
        )
    return _Array(content, shape, np.dtype(np.uint8))


def _mapping(rows: Sequence[str]) -> list[str]:
    """Read EMNIST's mapping: a label, then the code points of the characters that share it."""
    names: dict[int, str] = {}
    try:
        for row in rows:
            label, *codes = (int(word) for word in row.split())
            names[label] = "".join(map(chr, codes))
    except (ValueError, OverflowError) as error:
        raise DataError(f"is no mapping of labels to characters: `{row[:40]}`") from error
    if not names or min(names) < 0 or max(names) > len(names):
        raise DataError("is no mapping of labels to characters: their numbers have gaps")
    return [names.get(label, str(label)) for label in range(max(names) + 1)]


def _npy(raw: RawFiles, first: Sequence[str]) -> ArraySet | None:
    """Recognise arrays that NumPy saved, as Keras and MedMNIST name them in an .npz file: `x_train`, `train_images`."""
    found: dict[tuple[str, bool], str] = {}
    for name in first:
        for pattern in NPY_NAMES:
            if match := pattern.fullmatch(name.rpartition("/")[2]):
                found[match["part"], match["what"] in ("x", "images")] = name
    pairs = {name: found.get((part, False)) for (part, is_images), name in found.items() if is_images}
    return _arrays("NumPy arrays", raw, pairs, _open_npy) if pairs else None


def _open_npy(file: IO[bytes]) -> _Array:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise DataError("is no NPY file, or its header is damaged") from error
    if dtype.hasobject:
        raise DataError("holds Python objects, a pickle that could run any program; only numbers are read")
    if is_fortran and len(shape) > 1:
        raise DataError(
            "is stored by columns; save it again by rows: np.save(path, np.ascontiguousarray(array))"
        )
    declared = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if not shape or file.tell() + declared != size or shape[0] > MAX_MEMBERS:
        raise DataError(
            f"declares the shape {shape}, {declared:,} bytes, and has {size - file.tell():,}: truncated or damaged"
        )
    return _Array(file, shape, dtype)
