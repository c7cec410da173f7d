"""Training images as the files that were delivered, in a few shards with an index: `data.store: encoded`.

The JPEG of a photograph takes a fifth to a tenth of the bytes of its pixels, so datasets that do not fit into memory as pixels often
do as files. `prepare` writes them, training reads and decodes them.
"""

import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from convoy.core.dataset import IMAGES, INDEX_FILE
from convoy.core.errors import DataError

SHARD_BYTES = 2**30
"""Largest shard, unless a single file is larger: few files for DVC to hash and copy, each quick to fetch again."""

SHARD, OFFSET, LENGTH, CRC = range(4)
"""Columns of the index: shard of a row's file, its first byte there, its bytes, and their CRC-32."""

RESTORE = "Restore it with `dvc checkout --force build/dataset`, or make it again: dvc repro --force prepare"


def shard_path(dataset: Path, number: int) -> Path:
    """Name a shard of a dataset."""
    return dataset / IMAGES / f"train-{number:05}.bin"


class Writer:
    """Write files of known lengths into shards, in any order; the shards depend on the order of the rows alone."""

    def __init__(self, dataset: Path, lengths: Sequence[int]) -> None:
        """Lay the shards out in the folder `images` of a dataset, for the bytes of each row's file."""
        self._index_path = dataset / IMAGES / INDEX_FILE
        self._index = np.zeros((len(lengths), 4), np.int64)
        shard = offset = 0
        for row, length in enumerate(lengths):
            if offset and offset + length > SHARD_BYTES:
                shard, offset = shard + 1, 0
            self._index[row, :CRC] = shard, offset, length
            offset += length
        self._files = ExitStack()
        self._shards = [
            self._files.enter_context(shard_path(dataset, n).open("wb")) for n in range(shard + 1)
        ]

    def __enter__(self) -> Self:
        return self

    def add(self, row: int, content: bytes) -> None:
        """Write the file of a row."""
        shard, offset, _, _ = self._index[row].tolist()
        self._shards[shard].seek(offset)
        self._shards[shard].write(content)
        self._index[row, CRC] = zlib.crc32(content)

    def __exit__(self, *_: object) -> None:
        """Write the index."""
        self._files.close()
        np.save(self._index_path, self._index)


class Reader:
    """Read files from shards by row; safe in any thread."""

    def __init__(self, dataset: Path) -> None:
        """Open the index of a dataset."""
        self._dataset = dataset
        self._index = np.load(dataset / IMAGES / INDEX_FILE, mmap_mode="r", allow_pickle=False)
        self._shards: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: int) -> bytes:
        """Return the bytes of a row's file.

        Raises:
            DataError: the shard is missing or damaged; naming it.
        """
        shard, offset, length, crc = self._index[row].tolist()
        path = shard_path(self._dataset, shard)
        try:
            if shard not in self._shards:
                opened = os.open(path, os.O_RDONLY)
                if self._shards.setdefault(shard, opened) != opened:  # another thread was faster
                    os.close(opened)
            content = os.pread(self._shards[shard], length, offset)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. {RESTORE}") from error
        if zlib.crc32(content) != crc:
            raise DataError(
                f"{path} is damaged: the {length:,} bytes from {offset:,}, training image {row:,}, have another CRC-32 than "
                f"when they were written. {RESTORE}"
            )
        return content

    def __del__(self) -> None:
        for shard in getattr(self, "_shards", {}).values():
            os.close(shard)
