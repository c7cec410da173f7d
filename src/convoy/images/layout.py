"""Detect which delivered folders are splits, which are classes and which only wrap others."""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from convoy.core.dataset import Split
from convoy.core.errors import DataError

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

EXPECTED = (
    "Expected: one folder per class with its images inside, or train|val|test folders of such class folders."
)

LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__pycache__"})
"""Names that operating systems leave behind, in lower case; hidden files (`.DS_Store`) are skipped as well."""


def is_litter(name: str) -> bool:
    """Check whether a path is one that an operating system left behind."""
    return any(part.startswith(".") or part.lower() in LITTER for part in name.split("/"))


@dataclass(frozen=True)
class Layout:
    """Map delivered paths to split and class.

    Attributes:
        root: folder that holds the splits or classes, with a slash at its end; empty at the top.
        splits: folder name to split, for those delivered; empty if class folders are at the root.
    """

    root: str
    splits: Mapping[str, Split]

    @property
    def missing(self) -> tuple[Split, ...]:
        """List the splits that the delivery lacks."""
        return tuple(split for split in ("val", "test") if split not in self.splits.values())

    def split_and_label(self, name: str) -> tuple[Split | None, str | None]:
        """Read split and class of a delivered path; None for what it does not have."""
        if not name.startswith(self.root):
            return None, None
        folders = name.removeprefix(self.root).split("/")[:-1]
        split: Split | None = None
        if self.splits:
            split = self.splits.get(folders.pop(0)) if folders else None
            if split is None:
                return None, None
        # A character may have two spellings in Unicode, and macOS packs the longer one.
        return split, unicodedata.normalize("NFC", folders[0]) if folders else None


def recognise(names: Iterable[str]) -> Layout:
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
    return Layout(root, splits)


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
