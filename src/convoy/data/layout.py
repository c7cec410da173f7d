"""Recognise where a delivery states the split and the class of each image."""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError
from convoy.images.delivery import Place

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names of a split, in lower case."""


class Layout(Protocol):
    """Map delivered paths to places; `recognise` chooses the implementation."""

    @property
    def delivered(self) -> tuple[Split, ...]:
        """List the splits that are delivered; empty if all are cut."""

    def place(self, name: str) -> Place:
        """Return what is stated about a delivered path."""


@dataclass(frozen=True)
class Folders:
    """Read split and class of a file from the folders that it is in.

    Attributes:
        root: folder that holds the splits or classes, with a slash at its end; empty at the top.
        splits: folder name to split, for those delivered; empty if class folders are at the root.
    """

    root: str
    splits: Mapping[str, Split]

    @property
    def delivered(self) -> tuple[Split, ...]:
        """List the splits that are delivered; empty if all are cut."""
        return tuple(split for split in SPLITS if split in self.splits.values())

    def place(self, name: str) -> Place:
        """Read split and class of a delivered path from its folders."""
        if not name.startswith(self.root):
            return Place()
        folders = name.removeprefix(self.root).split("/")[:-1]
        split: Split | None = None
        if self.splits:
            split = self.splits.get(folders.pop(0)) if folders else None
            if split is None:
                return Place()
        # A character may have two spellings in Unicode, and macOS packs the longer one.
        return Place(split, unicodedata.normalize("NFC", folders[0]) if folders else None)


@dataclass(frozen=True)
class Stated:
    """Take split and class of an image from an array set, which states them itself."""

    places: Mapping[str, Place]

    @property
    def delivered(self) -> tuple[Split, ...]:
        """List the splits that are delivered; empty if all are cut."""
        stated = {place.split for place in self.places.values() if place.label is not None}
        return tuple(split for split in SPLITS if split in stated)

    def place(self, name: str) -> Place:
        """Return what is stated about a delivered path."""
        return self.places.get(name, Place())


def recognise(names: Iterable[str]) -> Folders:
    """Find the splits or classes among delivered paths, below folders that only wrap others.

    A folder named like a split is one if it contains folders; `train/` full of images, beside
    `bus/` and `car/`, is a class.

    Raises:
        DataError: two folders are the same split, or there are splits but no train split.
    """
    below = _tree(names)
    root = ""
    while True:
        folders = below[root]
        splits = {
            name: SPLIT_FOLDERS[name.lower()]
            for name in sorted(folders)
            if name.lower() in SPLIT_FOLDERS and below[f"{root}{name}/"]
        }
        if len(folders) == 1:
            (sole,) = folders
            inner = below[f"{root}{sole}/"]
            wraps = any(name.lower() in SPLIT_FOLDERS and below[f"{root}{sole}/{name}/"] for name in inner)
            if inner and (not splits or wraps):
                root = f"{root}{sole}/"
                continue
        break
    _check_splits(splits, root)
    return Folders(root, splits)


def _tree(names: Iterable[str]) -> defaultdict[str, set[str]]:
    """Map every folder, written with a slash at its end, to the names of folders inside it."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for name in names:
        folder = posixpath.dirname(name)
        while folder and folder not in seen:
            seen.add(folder)
            parent, own = posixpath.split(folder)
            below[f"{parent}/" if parent else ""].add(own)
            folder = parent
    return below


def _check_splits(splits: Mapping[str, Split], root: str) -> None:
    folder_of: dict[Split, str] = {}
    for name, split in splits.items():
        if split in folder_of:
            raise DataError(
                f"{root}{folder_of[split]} and {root}{name} are both the {split} split. Merge them into one folder."
            )
        folder_of[split] = name
    if splits and "train" not in folder_of:
        folders = ", ".join(f"{root}{name}" for name in splits)
        raise DataError(
            f"The delivery has {folders} but no train folder. Add one; "
            "or, if that folder only wraps the class folders, rename it."
        )
