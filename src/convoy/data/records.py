"""What becomes of each delivered file: read, decoded, shrunk, on every core."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import Split
from convoy.core.errors import DataError
from convoy.data.split import LEFT_OUT, OK, pixel_hash
from convoy.images.decode import decode
from convoy.images.layout import Layout

IGNORED = "ignored: "
"""Begins the verdict on a file that is no image and lies where no image is expected."""

BATCH_FILES = 256
BATCH_BYTES = 2**21
"""Files handed to a thread at once, until either is reached: thousands of icons in one go, since
handing over costs as much as decoding one, but photographs nearly one by one."""

Square = npt.NDArray[np.uint8]
Shrink = Callable[[npt.NDArray[np.uint8]], Square]
"""Brings a (H, W, 3) uint8 image to what is kept of it; called from several threads."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known about one delivered file.

    Attributes:
        path: inside the folder or archive.
        width: in pixels, upright; 0 for what was not decoded, as height.
        mode: Pillow's name for what the file held; empty for what was not decoded.
        pixels: `pixel_hash`; empty for what was not decoded.
        split: the part delivered in, once `assign` ran the part that uses it; None for neither.
        verdict: `ok`, or the reason why the file is not used.
    """

    path: str
    sha256: str
    width: int
    height: int
    mode: str
    pixels: str
    label: str | None
    split: Split | None
    verdict: str

    @property
    def quarantined(self) -> bool:
        """Tell whether the file should have been an image of a class and could not be used."""
        return self.verdict != OK and not self.verdict.startswith((LEFT_OUT, IGNORED))


def read(
    files: Iterable[tuple[str, bytes]], layout: Layout, shrink: Shrink
) -> Iterator[tuple[Record, Square | None]]:
    """Decode files on every core, in order; None where there is no usable image.

    Pillow and onnxruntime release Python's lock while they compute. Only what `shrink`
    returns is kept, so memory holds one full image per thread.
    """
    threads = os.cpu_count() or 1
    waiting: deque[Future[list[tuple[Record, Square | None]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for batch in _batches(files):
            waiting.append(pool.submit(lambda files: [_read(*file, layout, shrink) for file in files], batch))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _batches(files: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for name, content in files:
        batch.append((name, content))
        size += len(content)
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(name: str, content: bytes, layout: Layout, shrink: Shrink) -> tuple[Record, Square | None]:
    place = layout.place(name)
    record = Record(name, hashlib.sha256(content).hexdigest(), 0, 0, "", "", place.label, place.split, OK)
    try:
        decoded = decode(content)
    except DataError as error:
        reason = str(error)
        return replace(record, split=None, verdict=reason if place.label else f"{IGNORED}{reason}"), None
    record = replace(record, width=decoded.width, height=decoded.height, mode=decoded.mode)
    if place.label is None:
        return replace(record, split=None, verdict="lies in no class folder"), None
    return replace(record, pixels=pixel_hash(decoded.image_u8)), shrink(decoded.image_u8)
