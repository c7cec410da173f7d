"""The data's changes in a picture: images that carry another label than before."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.gate import grid
from convoy.gate.grid import Cell, Group
from convoy.gate.looks import Look, twice
from convoy.gate.names import short
from convoy.retraining.data_diff import Changes

MOST = 18
"""Most images drawn."""


def draw(changes: Changes, dataset_folder: Path, out: Path) -> tuple[Path, ...]:
    """Draw relabelled.png, and the same for dark pages; neither where no label changed.

    Args:
        changes: what was found.
        dataset_folder: today's packed dataset, from which the images are taken.
        out: folder of the pictures; made where there is none.

    Raises:
        DataError: there is no packed dataset.
        RequestError: the folder cannot be written.
    """
    images_u8 = _packed([one.pixels for one in changes.relabelled_examples[:MOST]], dataset_folder)

    def figure(look: Look) -> Figure | None:
        cells = [
            Cell(
                images_u8.get(one.pixels),
                (
                    (f"was {short(one.before, 17)}", look.good),
                    (f"now {short(one.now, 17)}", look.bad),
                    (f"in {one.split}", look.soft),
                ),
            )
            for one in changes.relabelled_examples[:MOST]
        ]
        title = "Same image, another label"
        return grid.draw([Group(title, look.bad, changes.relabelled, cells)] if cells else [], look)

    return twice(out, "relabelled", figure)


def _packed(wanted: list[str], dataset_folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Take images from the packed dataset, by the hash of their pixels."""
    if not wanted:
        return {}
    dataset = Dataset.load(dataset_folder)
    images_u8 = {split: (start, dataset.images(split)) for split, (start, _) in dataset.splits.items()}
    rows = pq.read_table(
        dataset_folder / MANIFEST_FILE, columns=["pixels", "split", "row"], filters=[("pixels", "in", wanted)]
    ).to_pylist()
    found = {}
    for row in rows:
        if row["split"] in images_u8 and row["row"] >= 0:
            start, images = images_u8[row["split"]]
            found[row["pixels"]] = np.asarray(images[row["row"] - start])
    return found
