"""Golden images: a few test images as delivered files, with the probabilities that the verified graph answers.

Whoever serves the model in another process, container or language replays them (`convoy verify`). Their names are neutral:
the delivered ones may hold the class or a person's name.
"""

import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core import contract, files
from convoy.images.decode import Decoded

SMALL_BYTES = 2**16
"""Files up to this size are equally good; of larger ones the smallest candidate is taken."""

MOST_BYTES = 4 * 2**20
"""Most bytes of all golden files."""

CANDIDATES = 4
"""Test images of which each golden image is the best one."""

LEAST_GAP = 1e-4
"""Least limit of the probability gap: other processors and languages add up in another order."""

DECIMALS = 7

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "png"}
"""Of files, by Pillow's format; of others it is the format in lower case."""

ARRAY = "PPM"
"""Format in memory of rows of arrays (`convoy.images.array_sets`), which few servers read: written as PNG."""

Rank = tuple[bool, bool, int, int]


class GoldenImages:
    """Choose golden images from the test images while these are verified, and write them.

    The choice depends on labels, sizes and probabilities, not on the order in which images arrive: the classes take turns,
    and for each turn the best of four images is taken. Best is an image whose class is not nearly a tie, of which nothing is
    missing, and that is small.
    """

    def __init__(self, labels: npt.NDArray[np.int64], count: int, max_gap: float) -> None:
        """Plan which images are candidates.

        Args:
            labels: (n,) class numbers of the test images, in an order that says nothing about them.
            count: number of golden images to choose; fewer if there are fewer images, or they are large.
            max_gap: limit of the probability gap when they are replayed.
        """
        self.max_gap = max(max_gap, LEAST_GAP)
        self._turn_of = turns(labels, count)
        self._best: dict[int, tuple[Rank, bytes, str, npt.NDArray[np.float32]]] = {}

    def offer(
        self, row: int, content: bytes, decoded: Decoded, probabilities: npt.NDArray[np.float32]
    ) -> None:
        """Keep a test image if it is the best candidate so far for its turn.

        Args:
            row: of the image among the test images.
            content: delivered bytes.
            decoded: the image.
            probabilities: (K,) of the verified graph.
        """
        turn = self._turn_of.get(row)
        if turn is None:
            return
        second, first = np.sort(probabilities)[-2:]
        is_tie = bool(first - second <= 10 * self.max_gap)
        rank = is_tie, decoded.lost > 0, max(len(content), SMALL_BYTES), row
        if turn not in self._best or rank < self._best[turn][0]:
            content = _png(decoded.image_u8) if decoded.format == ARRAY else content
            self._best[turn] = (rank, content, decoded.format, probabilities)

    def write(self, folder: Path, classes: tuple[str, ...], background: str) -> int:
        """Write the folder anew: the files and golden.json, with the colour behind transparent pixels; return the number of images.

        No folder is written if no image qualifies.
        """
        shutil.rmtree(folder, ignore_errors=True)
        if not self._best:
            return 0
        folder.mkdir(parents=True)
        images: list[Mapping[str, Any]] = []
        left, arrays = MOST_BYTES, 0
        for turn in sorted(self._best):
            _, content, format_, probabilities = self._best[turn]
            if len(content) > left:
                continue
            left -= len(content)
            arrays += format_ == ARRAY
            name = f"{len(images):02}.{SUFFIXES.get(format_, format_.lower())}"
            (folder / name).write_bytes(content)
            images.append(
                {
                    "file": name,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "class": classes[int(probabilities.argmax())],
                    "probabilities": [round(float(value), DECIMALS) for value in probabilities],
                }
            )
        facts: dict[str, Any] = {
            "classes": list(classes),
            "max_probability_gap": self.max_gap,
            "background": background,
        }
        if arrays:
            facts["note"] = "PNG of the pixels: the delivery holds arrays, not files"
        files.write_json(folder / contract.GOLDEN_FACTS, facts | {"images": images})
        return len(images)


def turns(labels: npt.NDArray[np.int64], count: int) -> dict[int, int]:
    """Map rows of test images to the turn for which each is a candidate, 0 to `count` - 1; the classes take turns."""
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        rows_of.setdefault(label, []).append(row)
    chosen: dict[int, int] = {}
    order: list[tuple[int, int]] = []
    shares = dict.fromkeys(rows_of, 0)
    while len(order) < count:
        before = len(order)
        for label, rows in rows_of.items():
            if shares[label] < len(rows) and len(order) < count:
                order.append((label, shares[label]))
                shares[label] += 1
        if len(order) == before:
            break
    for turn, (label, nth) in enumerate(order):
        for row in rows_of[label][nth :: shares[label]][:CANDIDATES]:
            chosen[row] = turn
    return chosen


def _png(image_u8: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, format="PNG")
    return stream.getvalue()
