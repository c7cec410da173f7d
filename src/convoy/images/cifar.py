"""Read CIFAR-10 and CIFAR-100 as they are published: Python pickles, or binary files with a label before each image.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.core.errors import DataError
from convoy.images import pickles
from convoy.images.containers import ArraySet, Part, RawFiles, assemble, lines, named, netpbm
from convoy.images.decode import MAX_FILE_BYTES, Content

PX = 32
IMAGE_BYTES = 3 * PX * PX


def from_pickles(raw: RawFiles, first: Sequence[str]) -> ArraySet | None:
    """Recognise the pickles; None for anything else."""
    names = {name.rpartition("/")[2]: name for name in first}
    batches = [name for base, name in names.items() if re.fullmatch(r"data_batch_\d+|test_batch", base)]
    if not batches and {"train", "meta"} <= names.keys():
        batches = [names[base] for base in ("train", "test") if base in names]
    if not batches:
        return None
    meta = next((names[base] for base in ("batches.meta", "meta") if base in names), None)
    parts: list[Part] = []
    classes: list[str] | None = None
    for name, file in raw.open({*batches, *filter(None, [meta])}):
        with named(raw, name):
            entries = pickles.load(_whole(file))
            if name == meta:
                classes = _class_names(entries)
            else:
                parts.append(Part(name, *_labels(entries), suffix=".ppm", split=_split(name)))

    def images(name: str, file: IO[bytes]) -> Iterator[Content]:
        with named(raw, name):
            yield from map(_planar, _pixels(pickles.load(_whole(file))))

    return assemble("CIFAR (pickles)", raw, parts, classes, raw.stream(images))


def _pixels(entries: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    pixels = entries.get("data")
    if not isinstance(pixels, np.ndarray):
        raise DataError(f"has no array `data`; it has {', '.join(sorted(entries)[:8]) or 'nothing'}")
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != IMAGE_BYTES:
        raise DataError(
            f"holds an array of {pixels.dtype} with the shape {pixels.shape}; CIFAR's are uint8 (N, {IMAGE_BYTES})"
        )
    return cast("npt.NDArray[np.uint8]", pixels)


def _labels(entries: Mapping[str, Any]) -> tuple[list[int] | None, int]:
    count = len(_pixels(entries))
    labels = next((entries[key] for key in ("labels", "fine_labels") if key in entries), None)
    if labels is None:
        return None, count
    if isinstance(labels, np.ndarray):
        labels = labels.ravel().tolist()
    if type(labels) is not list or any(type(label) is not int for label in labels):
        raise DataError("has labels that are no list of whole numbers")
    if len(labels) != count:
        raise DataError(f"holds {count:,} images and {len(labels):,} labels")
    return labels, count


def _class_names(entries: Mapping[str, Any]) -> list[str]:
    names = next((entries[key] for key in ("label_names", "fine_label_names") if key in entries), None)
    if type(names) is not list or not all(isinstance(name, str | bytes) for name in names):
        raise DataError("has no list `label_names` or `fine_label_names`")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]


def from_binary(raw: RawFiles, first: Sequence[str]) -> ArraySet | None:
    """Recognise the binary files; None for anything else."""
    names = {name.rpartition("/")[2]: name for name in first}
    batches = [
        name for base, name in names.items() if re.fullmatch(r"data_batch_\d+\.bin|test_batch\.bin", base)
    ]
    head, texts = 1, "batches.meta.txt"
    if not batches and {"train.bin", "fine_label_names.txt"} <= names.keys():
        batches = [names[base] for base in ("train.bin", "test.bin") if base in names]
        head, texts = 2, "fine_label_names.txt"  # the coarse label comes first
    if not batches:
        return None
    record = head + IMAGE_BYTES
    parts: list[Part] = []
    classes: list[str] | None = None
    for name, file in raw.open({*batches, *filter(None, [names.get(texts)])}):
        with named(raw, name):
            if name == names.get(texts):
                classes = lines(file)
                continue
            labels = []
            while rows := file.read(record * 1024):
                if len(rows) % record:
                    raise DataError(
                        f"is truncated, or no CIFAR: its size is no multiple of {record:,} bytes (a label and an image)"
                    )
                labels += list(rows[head - 1 :: record])
            parts.append(Part(name, labels, len(labels), suffix=".ppm", split=_split(name)))

    def images(_: str, file: IO[bytes]) -> Iterator[Content]:
        while len(row := file.read(record)) == record:
            yield _planar(np.frombuffer(row, np.uint8, offset=head))

    return assemble("CIFAR (binary)", raw, parts, classes, raw.stream(images))


def _split(name: str) -> Split:
    return "test" if name.rpartition("/")[2].startswith("test") else "train"


def _planar(row: npt.NDArray[np.uint8]) -> bytes:
    """Convert CIFAR's planes of red, green and blue to a PPM file."""
    return netpbm(row.reshape(3, PX, PX).transpose(1, 2, 0))


def _whole(file: IO[bytes]) -> bytes:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise DataError(f"has more than {MAX_FILE_BYTES:,} bytes")
    file.seek(0)
    return file.read(size)
