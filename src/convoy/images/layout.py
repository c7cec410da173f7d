"""What delivered paths mean: which folder is a part, which a class, which only wraps."""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from convoy.core.dataset import Split
from convoy.core.errors import DataError

PARTS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names, in lower case, that mean a part of the data."""

EXPECTED = (
    "Expected: one folder per class with its images inside, or train|val|test folders of such class folders."
)

LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__pycache__"})
"""What operating systems leave behind, in lower case; hidden files (`.DS_Store`) are left out as well."""


def is_litter(name: str) -> bool:
    """Tell whether a delivered path is one that nobody meant to deliver."""
    return any(part.startswith(".") or part.lower() in LITTER for part in name.split("/"))


@dataclass(frozen=True)
class Place:
    """Where a file lies: None for what its path does not say."""

    split: Split | None
    label: str | None


@dataclass(frozen=True)
class Layout:
    """Read a path as part and class.

    Attributes:
        root: folder that holds the parts or classes, with a slash at its end; empty at the top.
        parts: folder name to split, for those delivered; empty where class folders are at the root.
    """

    root: str
    parts: Mapping[str, Split]

    @property
    def missing(self) -> tuple[Split, ...]:
        """Name the parts that the delivery lacks."""
        return tuple(split for split in ("val", "test") if split not in self.parts.values())

    def place(self, name: str) -> Place:
        """Tell part and class of a delivered path."""
        if not name.startswith(self.root):
            return Place(None, None)
        folders = name.removeprefix(self.root).split("/")[:-1]
        split: Split | None = None
        if self.parts:
            split = self.parts.get(folders[0]) if folders else None
            if split is None:
                return Place(None, None)
            folders = folders[1:]
        # One character has two spellings in Unicode, and macOS packs the longer one.
        return Place(split, unicodedata.normalize("NFC", folders[0]) if folders else None)


def recognise(names: Iterable[str]) -> Layout:
    """Find the parts or classes among delivered paths, looking through folders that only wrap.

    A folder named as a part is one if it holds folders; `train/` full of images, beside
    `bus/` and `car/`, is a class.

    Raises:
        DataError: two folders mean the same part, or there is a part but nothing to train on.
    """
    below = _tree(names)
    root = ""
    while True:
        folders = below[root]
        parts = {
            name: PARTS[name.lower()]
            for name in sorted(folders)
            if name.lower() in PARTS and below[f"{root}{name}/"]
        }
        if len(folders) == 1:
            (sole,) = folders
            inner = below[f"{root}{sole}/"]
            wraps = any(name.lower() in PARTS and below[f"{root}{sole}/{name}/"] for name in inner)
            if inner and (not parts or wraps):
                root = f"{root}{sole}/"
                continue
        break
    _check_parts(parts, root)
    return Layout(root, parts)


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


def _check_parts(parts: Mapping[str, Split], root: str) -> None:
    by_split: dict[Split, str] = {}
    for name, split in parts.items():
        if split in by_split:
            raise DataError(
                f"{root}{by_split[split]} and {root}{name} both mean the {split} part. Deliver one folder for it."
            )
        by_split[split] = name
    if parts and "train" not in by_split:
        found = ", ".join(f"{root}{name}" for name in parts)
        raise DataError(
            f"The delivery has {found} but no train folder: nothing to learn from. Add one; "
            "or, if that folder only wraps the class folders, rename it."
        )
