"""Recognise where a delivery states the split and the class of each image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError, listed
from convoy.data import labels, names
from convoy.data.folders import ANNOTATION, Folders, read_folders, splits_only
from convoy.data.lists import Lists, read_lists
from convoy.data.records import Finding
from convoy.data.settings import Arrangement, ColumnParams
from convoy.images import litter
from convoy.images.delivery import EXPECTED, Delivery, Place
from convoy.images.formats import starts_as_image

FIRST_FILES = 100
"""Files without the name of an image that are looked at before a delivery is taken to have none."""


class Layout(Protocol):
    """Map delivered paths to places; `recognise` chooses the implementation."""

    @property
    def delivered(self) -> tuple[Split, ...]:
        """List the splits that are delivered; empty if all are cut."""

    @property
    def notes(self) -> tuple[Finding, ...]:
        """List what deserves a look: odd names of classes, rows of a list that name no file."""

    @property
    def by_image(self) -> bool:
        """Check whether the delivery states its images one by one, whatever their bytes."""

    def place(self, name: str) -> Place:
        """Return what is stated about a delivered path."""


@dataclass(frozen=True)
class Stated:
    """Hold places that the delivery itself states for each file, as containers of arrays do."""

    places: Mapping[str, Place]
    notes: tuple[Finding, ...] = ()
    by_image = True

    @property
    def delivered(self) -> tuple[Split, ...]:
        """List the splits that are delivered; empty if all are cut."""
        found = {place.split for place in self.places.values() if place.label is not None}
        return tuple(split for split in SPLITS if split in found)

    def place(self, name: str) -> Place:
        """Return what is stated about a delivered path."""
        return self.places.get(name, Place())


@dataclass(frozen=True)
class Grouped:
    """Add the group that a pattern finds in the path."""

    layout: Layout
    pattern: re.Pattern[str]
    notes: tuple[Finding, ...] = ()

    @property
    def delivered(self) -> tuple[Split, ...]:
        """List the splits that are delivered; empty if all are cut."""
        return self.layout.delivered

    @property
    def by_image(self) -> bool:
        """Check whether the delivery states its images one by one."""
        return self.layout.by_image

    def place(self, name: str) -> Place:
        """Return what is stated about a delivered path, with its group."""
        place = self.layout.place(name)
        match = self.pattern.search(name)
        return replace(place, group=match["group"] or place.group) if match else place


def recognise(
    delivery: Delivery,
    arrangement: Arrangement = "auto",
    label: str = "auto",
    group: str = "none",
    columns: ColumnParams | None = None,
) -> Layout:
    """Find where a delivery states splits and classes: in its folders, lists of files, file names or its own containers.

    Args:
        delivery: an opened delivery; its lists of files are read, no image is.
        arrangement: what its folders are; `auto` decides by content.
        label: `folder`, `csv` (any list of files), a pattern of file names with the group `label`, or `auto`: folders if
            they are classes, else a list.
        group: a pattern of paths with the group `group`, or `none`.
        columns: what the columns of lists are.

    Raises:
        DataError: nothing states the classes, or two readings are possible; names both, and the param that settles it.
    """
    if label == "auto" and columns and columns.label != "auto":
        label = "csv"
    layout = _recognise(delivery, arrangement, label, columns)
    return layout if group == "none" else _grouped(delivery, layout, re.compile(group))


def _grouped(delivery: Delivery, layout: Layout, pattern: re.Pattern[str]) -> Grouped:
    """Add the groups of a pattern.

    Raises:
        DataError: no image has a group, so that nothing would be kept together.
    """
    found = Grouped(layout, pattern)
    images = [name for name in delivery.names() if layout.place(name).label and names.may_be_image(name)]
    alone = [name for name in images if not found.place(name).group]
    text = f"data.group ({pattern.pattern}) matches"
    if images and len(alone) == len(images):
        raise DataError(
            f"{delivery.path}: {text} none of {len(images):,} paths, such as {listed(alone, 3)}. Correct it, or leave every image for "
            "itself: -S data.group=none"
        )
    unmatched = f"{text} not the paths of {len(alone):,} of {len(images):,} images, so each of these forms its own group: {listed(alone, 3)}"
    notes = [Finding("group_pattern", len(alone), None, "report", unmatched, tuple(alone))] if alone else []
    return replace(found, notes=(*layout.notes, *notes))


def _recognise(
    delivery: Delivery, arrangement: Arrangement, label: str, columns: ColumnParams | None
) -> Layout:
    if delivery.places is not None:
        params = [
            f"data.{key} ({value})"
            for key, value in (("layout", arrangement), ("label", label))
            if value != "auto"
        ]
        if not params:
            return Stated(delivery.places)
        text = (
            f"{' and '.join(params)} {'are' if len(params) > 1 else 'is'} not used: files of the format {delivery.kind} state splits "
            "and classes themselves"
        )
        return Stated(delivery.places, (Finding("list", len(params), None, "report", text),))
    delivered = delivery.names()
    images = [name for name in delivered if names.may_be_image(name)]
    if not images or not _looks_like_images(delivery, images):
        hints = "".join(f" {text}" for text in labels.unread(delivered, images))
        raise DataError(f"{delivery.path} contains no images. {delivery.holds()}{hints} {EXPECTED}")
    if label == "folder":
        stated_by_folders = read_folders(delivery.path, images, arrangement)
        if not stated_by_folders.classes:
            raise labels.nothing_states_classes(delivery.path, images, stated_by_folders, [])
        return stated_by_folders
    base = splits_only(delivery.path, images, arrangement)
    pictures = images
    if ANNOTATION in base.places.values():
        pictures = [name for name in images if base.place(name) != ANNOTATION]
    by_list = label in ("auto", "csv")
    lists = read_lists(delivery, delivered, pictures, columns, labels=by_list)
    lists.problems += labels.unread(delivered, pictures)
    if not by_list:
        return labels.by_pattern(delivery.path, pictures, re.compile(label), base, lists)
    if label == "auto" and (found := _class_folders(delivery.path, images, arrangement, lists)):
        layout = labels.beside(delivery.path, pictures, lists, found) if lists.rows else found
        labels.check_refused(delivery.path, lists, layout)
        notes = (*layout.notes, *labels.unused(lists.rejected), *labels.unread_lists(delivered))
        return replace(layout, notes=notes)
    stated = labels.by_lists(delivery.path, pictures, lists, base)
    labels.check_refused(delivery.path, lists, stated)
    delivery.notes.append(f"Classes are read from {listed(lists.columns, 3)}")
    return stated


def _looks_like_images(delivery: Delivery, images: Sequence[str]) -> bool:
    """Check whether a file is named like an image, or one of the first starts as such."""
    if any(map(litter.claims_to_be_image, images)):
        return True
    known = frozenset(images)
    contents = (content for name, content in delivery.files() if name in known)
    return any(
        isinstance(content, DataError) or starts_as_image(content)
        for content in islice(contents, FIRST_FILES)
    )


def _class_folders(
    path: Path, images: Sequence[str], arrangement: Arrangement, lists: Lists
) -> Folders | None:
    """Read classes from folders; None if there are none, or only lists can state them."""
    listed_all = labels.cover(lists, images)
    try:
        found = read_folders(path, images, arrangement)
    except DataError:
        if arrangement == "auto" and listed_all:
            return None
        raise
    if len(found.classes) == 1:
        if listed_all:
            return None
        if lists.problems or lists.rows or labels.propose([name.rpartition("/")[2] for name in images]):
            raise labels.nothing_states_classes(path, images, found, lists.problems)
    return found if found.classes else None
