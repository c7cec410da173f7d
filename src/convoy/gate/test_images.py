"""Today's test images, read from the delivered files."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.core.errors import DataError
from convoy.export.onnx_model import chunks
from convoy.images.delivery import open_delivery

THUMBNAIL_PX = 96


@dataclass(frozen=True)
class TestImages:
    """Hold the paths and labels of the test images, and read the images.

    Attributes:
        data: the delivery.
        delivered: number of files that the dataset uses, of all splits.
        background: colour behind transparent pixels, as the dataset was prepared.
        paths: of the n test images, in the order of their pixels' hashes: the first are a fair sample.
        sha256: of their files when they were prepared.
        labels: their class names.
        pixels: their `convoy.data.split.pixel_hash`.
    """

    data: Path
    classes: tuple[str, ...]
    data_hash: str
    delivered: int
    background: str
    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: tuple[str, ...]
    pixels: tuple[str, ...]

    @classmethod
    def load(cls, dataset_folder: Path, data: Path) -> "TestImages":
        """Read a dataset's test split; no image is read yet.

        Raises:
            DataError: the folder is no dataset, or an earlier version wrote it without `pixels`.
        """
        dataset = Dataset.load(dataset_folder)
        path = dataset_folder / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{path} does not exist. Make it with `dvc repro prepare`, or restore it with `dvc checkout`."
            )
        if "pixels" not in pq.read_schema(path).names:
            raise DataError(
                f"{path} has no column `pixels`: an earlier version of Convoy wrote it. "
                "Prepare again: dvc repro --force prepare"
            )
        columns = ["path", "sha256", "label", "pixels", "row"]
        table = pq.read_table(path, columns=columns, filters=[("split", "=", "test")]).sort_by("row")
        delivered = sum(sum(images.values()) for images in dataset.counts.values())
        content = map(tuple, table.select(columns[:4]).to_pydict().values())
        return cls(data, dataset.classes, dataset.hash, delivered, dataset.background, *content)

    def read(
        self, indices: Collection[int], background: str
    ) -> Iterator[list[tuple[int, npt.NDArray[np.uint8]]]]:
        """Read (H, W, 3) images and their indices from the delivered files, a chunk that fits into memory at a time.

        In the delivery's order, since an archive can only be read from its beginning.

        Args:
            indices: of the images.
            background: colour behind transparent pixels, of the model that will see them.

        Raises:
            DataError: a delivered file is gone, or has changed since it was prepared.
        """
        if not indices:
            return
        index_of = {self.paths[index]: index for index in indices}
        sha256 = {path: self.sha256[index] for path, index in index_of.items()}
        images = open_delivery(self.data).images(
            sha256, "gate: read test images", self.delivered, background=background
        )
        yield from chunks(
            ((index_of[path], image_u8) for path, image_u8 in images), lambda item: item[1].nbytes
        )

    def thumbnails(self, paths: Collection[str]) -> dict[str, npt.NDArray[np.uint8]]:
        """Read test images as thumbnails (h, w, 3), whose longer side is at most `THUMBNAIL_PX`."""
        index_of = {path: index for index, path in enumerate(self.paths)}
        thumbnails = {}
        for chunk in self.read([index_of[path] for path in paths], self.background):
            for index, image_u8 in chunk:
                thumbnail = Image.fromarray(image_u8)
                thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
                thumbnails[self.paths[index]] = np.asarray(thumbnail)
        return thumbnails
