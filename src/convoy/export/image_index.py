"""images.parquet beside an exported model: the images of its dataset, by a hash of their pixels.

With it the gate leaves out test images that a model has seen, and a retraining reports what changed
between two deliveries, without either delivery.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from convoy.core.dataset import SPLITS
from convoy.core.errors import DataError

COLUMNS = ("pixels", "label", "split")


@dataclass(frozen=True)
class Images:
    """Map each image to its label and split.

    Attributes:
        table: `convoy.data.split.pixel_hash` of an image to its class name and its split (train, val or test).
    """

    table: Mapping[str, tuple[str, str]]

    @property
    def seen(self) -> frozenset[str]:
        """Return the images that the model has seen: those of train, and those of val, which chose its epoch."""
        return frozenset(pixels for pixels, (_, split) in self.table.items() if split != "test")


def write(manifest: Path, path: Path) -> None:
    """Extract the images that a dataset uses from its manifest."""
    table = pq.read_table(manifest, columns=list(COLUMNS))
    used = table.filter(pc.is_valid(table.column("split")))
    pq.write_table(used.sort_by("pixels"), path, compression="zstd")


def load(path: Path) -> Images:
    """Read an index.

    Raises:
        DataError: the file is damaged or of another kind.
    """
    try:
        content = pq.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Export again: dvc repro export"
        ) from error
    rows = list(zip(*(content[name] for name in COLUMNS), strict=True))
    if any(split not in SPLITS or not label or not pixels for pixels, label, split in rows):
        raise DataError(f"{path} has splits other than {', '.join(SPLITS)}. Export again: dvc repro export")
    return Images({pixels: (label, split) for pixels, label, split in rows})
