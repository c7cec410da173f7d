"""The packed dataset: `prepare` writes it, all later stages read it.

Depends on numpy only, so that opening it imports nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from convoy.core.contract import DEFAULT_BACKGROUND
from convoy.core.errors import DataError
from convoy.core.files import read_json

Fit = Literal["squash", "crop", "letterbox"]
Split = Literal["train", "val", "test"]
Store = Literal["pixels", "encoded"]

SPLITS: tuple[Split, ...] = get_args(Split)
IMAGES = "images"
"""Folder with an array for each split: `train.npy`, `val.npy`, `test.npy`; for `store: encoded` an index of shards in place of the first."""
INDEX_FILE = "train-index.npy"
LABELS_FILE = "labels.npy"
FACTS_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
REPORT_FILE = "report.html"


def cropped_side(side: int, crop_share: float) -> int:
    """Compute the side, in pixels, of the centre square that `data.crop_share` keeps of a square."""
    return max(1, round(side * crop_share))  # the double and the rounding of the exported graph


@dataclass(frozen=True)
class Dataset:
    """Images and labels by split, mapped from files.

    Attributes:
        classes: names, sorted; a label is an index into them.
        image_px: side of the square that the network sees, in pixels.
        store_px: side of the images of train, at least `image_px`; those of val and test have `image_px`.
        crop_share: share of the centre square's side that `fit: crop` keeps, > 0 to 1.
        store: whether images of train are stored as pixels, or as the delivered files (`convoy.core.shards`).
        background: colour behind transparent pixels.
        mean: of the train split per channel (RGB), 0..1.
        std: of the train split per channel (RGB), 0..1.
        hash: sha256 of the content: pixels, labels, splits, classes, size and fit; the same
            for a folder and a zip of it.
        splits: rows `[start, stop)` of each split in labels and manifest.
        counts: images per split and class.
    """

    folder: Path
    classes: tuple[str, ...]
    image_px: int
    store_px: int
    fit: Fit
    crop_share: float
    store: Store
    background: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    hash: str
    splits: Mapping[Split, tuple[int, int]]
    counts: Mapping[Split, Mapping[str, int]]

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Open a folder that `prepare` wrote; no image is read yet.

        Raises:
            DataError: the folder is missing, incomplete, or not a dataset.
        """
        _refuse_missing(folder, FACTS_FILE, LABELS_FILE)
        try:
            facts: dict[str, Any] = read_json(folder / FACTS_FILE)
            mean_r, mean_g, mean_b = facts["mean"]
            std_r, std_g, std_b = facts["std"]
            dataset = cls(
                folder=folder,
                classes=tuple(facts["classes"]),
                image_px=facts["image_px"],
                store_px=facts.get("store_px", facts["image_px"]),  # absent where the two are equal
                fit=facts["fit"],
                crop_share=facts.get("crop_share", 1.0),  # not in those of earlier versions
                store=facts.get("store", "pixels"),  # absent where it is
                background=facts.get("background", DEFAULT_BACKGROUND),  # likewise
                mean=(mean_r, mean_g, mean_b),
                std=(std_r, std_g, std_b),
                hash=facts["hash"],
                splits={split: (facts["splits"][split][0], facts["splits"][split][1]) for split in SPLITS},
                counts={split: facts["counts"][split] for split in SPLITS},
            )
            names = [LABELS_FILE, *map(dataset._images_file, SPLITS)]
            _refuse_missing(folder, *names)
            shapes = {name: dataset._mapped(name).shape for name in names}
        except (ValueError, KeyError, IndexError, TypeError, EOFError) as error:
            raise DataError(
                f"{folder} is not a packed dataset of this version ({type(error).__name__}: {error}). "
                "Recreate it with `dvc repro --force prepare`."
            ) from error
        expected: dict[str, tuple[int, ...]] = {
            LABELS_FILE: (max(stop for _, stop in dataset.splits.values()),)
        }
        for split, (start, stop) in dataset.splits.items():
            px = dataset.store_px if split == "train" else dataset.image_px
            expected[dataset._images_file(split)] = (stop - start, px, px, 3)
        if dataset.store == "encoded":
            expected[dataset._images_file("train")] = (dataset.splits["train"][1], 4)
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise DataError(
                    f"{folder} is inconsistent: {FACTS_FILE} describes an array of {shape} in {name}, which holds {shapes[name]}. "
                    "Recreate it with `dvc repro --force prepare`."
                )
        return dataset

    @property
    def measured(self) -> Split:
        """Return the split that results are measured on: test, or val where there are no test images."""
        start, stop = self.splits["test"]
        return "test" if stop > start else "val"

    def images(self, split: Split) -> npt.NDArray[np.uint8]:
        """Map the images of a split: (n, P, P, 3) uint8 RGB, read-only; P is `image_px`, of train `store_px`.

        Those of train are here only if they are stored as pixels: `convoy.training.stored.train_images` opens either.
        """
        images_u8: npt.NDArray[np.uint8] = self._mapped(f"{IMAGES}/{split}.npy")
        return images_u8

    def labels(self, split: Split) -> npt.NDArray[np.int64]:
        """Map the labels of a split: (n,) int64 indices into `classes`, read-only."""
        start, stop = self.splits[split]
        labels: npt.NDArray[np.int64] = self._mapped(LABELS_FILE)[start:stop]
        return labels

    def _mapped(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        return array

    def _images_file(self, split: Split) -> str:
        return f"{IMAGES}/{INDEX_FILE if split == 'train' and self.store == 'encoded' else f'{split}.npy'}"


def _refuse_missing(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} is not a packed dataset: {name} is missing. "
                "Create it with `dvc repro prepare`, or restore it with `dvc checkout`."
            )
