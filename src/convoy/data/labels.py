"""State the class of each image by lists of files, or by a pattern of file names.

`lists.py` reads the lists; here their rows and the delivery's folders become one layout.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError, listed
from convoy.data import names
from convoy.data.folders import UNLABELLED, Folders
from convoy.data.list_formats import short
from convoy.data.lists import Lists
from convoy.data.records import Finding
from convoy.images.delivery import Place

EXAMPLES = 5

UNREAD = frozenset({"mat", "xls", "xlsx", "ods", "h5", "hdf5", "pkl", "pickle", "sqlite", "db"})
"""Endings of files that may hold labels."""

PATTERNS = (
    r"^(?P<label>[A-Za-z]+)\.\d",
    r"^(?P<label>[A-Za-z]+)\d+\.",
    r"^(?P<label>[A-Za-z]+)[_-]\d+\.",
    r"^(?P<label>\w+)_\d+\.",
    r"^(?P<label>\D+?)[ ._-]*\(?\d+\)?\.\w+$",
    r"^(?P<label>.+)[ ._-]\(?\d+\)?\.\w+$",
    r"^\d+[ ._-]*(?P<label>\D+?)\.\w+$",
    r"^(?P<label>[^ ._-]+)[ ._-].+\.",
    r"[ ._-](?P<label>[^ ._-]+)\.\w+$",
)
"""How people write the class into the names of files, the most readable first."""

CAMERA = frozenset(
    names.ordered(
        "img imgs image images dsc dscn dscf dcim pic picture photo p pxl mvimg vid frame scan screenshot file f im"
    )
)
"""First words of the names that cameras and programs give."""


def cover(lists: Lists, images: Sequence[str]) -> bool:
    """Check whether lists name the classes of most images, apart from those that wait for a prediction."""
    labelled = sum(place.label is not None for place in lists.rows.values())
    return labelled > 0 and labelled >= (len(images) - len(lists.unlabelled)) / 2


def by_lists(path: Path, images: Sequence[str], lists: Lists, folders: Folders) -> "Listed":
    """Return the layout in which lists state the classes, and the splits that they name or else `folders`.

    Raises:
        DataError: no list has classes of delivered images, or list and folders state different splits.
    """
    labelled = [name for name, place in lists.rows.items() if place.label]
    if not labelled:
        raise nothing_states_classes(path, images, folders, lists.problems)
    own_splits = any(lists.rows[name].split for name in labelled)
    rows = _with_folders(path, lists, folders)
    if own_splits:
        for name, place in rows.items():
            if place.label and not place.split:
                rows[name] = replace(
                    place, label=None, reason="has no split, unlike other images of the lists"
                )
        labelled = [name for name in labelled if rows[name].label]
    delivered = _splits({rows[name].split for name in labelled})
    if delivered and "train" not in delivered:
        text = f"{path}: {listed(lists.read, 3)} has rows of {', '.join(delivered)}, but none of train."
        raise DataError("\n  ".join([text, *lists.problems[:EXAMPLES]]))
    spelled: defaultdict[Split | None, set[str]] = defaultdict(set)
    for name in labelled:
        spelled[rows[name].split].add(rows[name].label or "")
    used = names.merged([sorted(spelled[split]) for split in (*SPLITS, None)])
    known: dict[Place, Place] = {}
    for name, place in rows.items():
        final = replace(place, label=used[place.label]) if place.label else place
        rows[name] = known.setdefault(final, final)
    bare = frozenset() if own_splits else frozenset({*folders.delivered} - {*delivered})
    notes = (*lists.notes, *unused(lists.rejected), *names.notes_on(used))
    return Listed(rows, folders, delivered, bare, frozenset(lists.unlabelled), tuple(lists.read), notes)


def _with_folders(path: Path, lists: Lists, folders: Folders) -> dict[str, Place]:
    """Add the splits that folders state to the rows of lists.

    Raises:
        DataError: they state different splits.
    """
    rows: dict[str, Place] = {}
    for name, place in lists.rows.items():
        split = folders.place(name).split
        if not place.label and not place.reason:
            if name in lists.unlabelled:
                continue
            place = replace(place, reason=f"has no label in {listed(lists.columns, 2)}")  # noqa: PLW2901 (the same row)
        if split and place.split and split != place.split:
            raise DataError(
                f"{path}: {name} lies in the {split} split's folder, but {listed(lists.read, 2)} states {place.split}. Correct one of "
                "them, or state that the folders are no splits: -S data.layout=classes"
            )
        rows[name] = replace(place, split=place.split or split)
    return rows


def beside(path: Path, images: Sequence[str], lists: Lists, folders: Folders) -> "Folders | Listed":
    """Return the layout of class folders beside which lists lie.

    A list that repeats the folders adds nothing but its groups. One that states splits divides the classes of the folders.
    One that labels images outside the class folders adds them.

    Raises:
        DataError: folders and list state different classes.
    """
    placed = {name: folders.place(name) for name in lists.rows}
    pairs: Counter[tuple[str, str]] = Counter(
        (placed[name].label or "", row.label)
        for name, row in lists.rows.items()
        if placed[name].label and row.label
    )
    if lists.sure and pairs and not _agree(pairs) and cover(lists, images):
        by_folder, by_list = ({pair[side] for pair in pairs} for side in (0, 1))
        raise DataError(
            f"{path}: folders and list state different classes. The folders are {len(by_folder):,} ({_some(by_folder)}), "
            f"{listed(lists.read, 3)} has {len(by_list):,} ({_some(by_list)}). Choose: -S data.label=csv (the list) or "
            "-S data.label=folder"
        )
    classes = folders.classes
    inside = sum(folders.place(name).label is not None for name in images)
    divides = (
        not folders.delivered
        and sum(row.split is not None for name, row in lists.rows.items() if placed[name].label) > inside / 2
    )
    # Lists may write the number of a class, where folders have its name.
    meant = {label: label for label in classes}
    if _agree(pairs):
        meant |= {label: folder for (folder, label), _ in reversed(pairs.most_common())}
    rows: dict[str, Place] = {}
    foreign: dict[str, str] = {}
    for name, row in lists.rows.items():
        base = placed[name]
        if base.label and divides:
            rows[name] = replace(base, split=row.split, group=row.group, reason=row.reason, fault=row.fault)
        elif base.label and row.group:
            rows[name] = replace(base, group=row.group)
        elif base.passed_over and row.label in meant:
            rows[name] = replace(row, label=meant[row.label], split=row.split or _named_split(folders, name))
        elif base.passed_over and row.label:
            foreign[name] = row.label
    notes = (*lists.notes, *folders.notes)
    if foreign:
        text = (
            f"{listed(lists.read, 3)}: {len(foreign):,} images outside the class folders, such as {next(iter(foreign))}, have classes that no "
            f"folder has ({_some({*foreign.values()})}), and are passed over. Write the names of the folders in the list."
        )
        notes += (Finding("list", len(foreign), None, "report", text, tuple(foreign)),)
    if not rows:
        return replace(folders, notes=(*folders.notes, *notes[len(lists.notes) + len(folders.notes) :]))
    delivered = _splits({place.split for place in rows.values()} | {*folders.delivered})
    return Listed(rows, folders, delivered, frozenset(), frozenset(), tuple(lists.read), notes, divides)


@dataclass(frozen=True)
class Listed:
    """Read split, class and group of a file from the rows of lists, else from `folders`.

    Attributes:
        rows: delivered path to its place.
        folders: states what lies outside the rows.
        delivered: the splits that are delivered; empty if all are cut.
        bare: delivered split folders of which no image has a row.
        unlabelled: images named by lists without classes.
        lists: for messages.
        strict: whether an image without a row is unusable, although it lies in a class folder.
    """

    rows: Mapping[str, Place]
    folders: Folders
    delivered: tuple[Split, ...]
    bare: frozenset[Split]
    unlabelled: frozenset[str]
    lists: tuple[str, ...]
    notes: tuple[Finding, ...] = ()
    strict: bool = True
    by_image = False

    def place(self, name: str) -> Place:
        """Return what the lists state about a delivered path."""
        if (row := self.rows.get(name)) is not None:
            return row
        base = self.folders.place(name)
        if base.passed_over or not self.strict or not names.may_be_image(name):
            return base
        if name in self.unlabelled or (base.split in self.bare and base.split):
            return UNLABELLED
        return Place(split=base.split, reason=f"is in no row of {listed(self.lists, 2)}")


@dataclass(frozen=True)
class Named:
    """Read the class of a file from its name, and the split from its folders.

    Attributes:
        pattern: searched in the name of the file.
        rows: splits and groups that lists state.
        used: label as written to the class.
        bare: split folders in which no name matches.
    """

    pattern: re.Pattern[str]
    folders: Folders
    rows: Mapping[str, Place]
    used: Mapping[str, str]
    delivered: tuple[Split, ...]
    bare: frozenset[Split]
    notes: tuple[Finding, ...]
    by_image = False

    def place(self, name: str) -> Place:
        """Return the class that a delivered path's last part names."""
        base = _with_row(self.folders.place(name), self.rows.get(name))
        if base.passed_over or base.reason:
            return base
        match = self.pattern.search(posixpath.basename(name))
        if match and match["label"]:
            if self.rows and self.delivered and not base.split:
                return Place(reason="is in no list of a split")
            return Place(base.split, self.used.get(match["label"], match["label"]), base.group)
        if base.split in self.bare:
            return UNLABELLED
        return Place(base.split, reason="has a name that data.label does not match")


def _with_row(base: Place, row: Place | None) -> Place:
    """Add the split and the group that a list states."""
    if row is None or base.passed_over:
        return base
    split, group = row.split or base.split, row.group or base.group
    return replace(base, split=split, group=group, reason=row.reason, fault=row.fault)


def by_pattern(
    path: Path, images: Sequence[str], pattern: re.Pattern[str], folders: Folders, lists: Lists
) -> Named:
    """Return the layout in which file names state the classes, and folders or lists the splits.

    Raises:
        DataError: the pattern matches no image of the train split.
    """
    found: defaultdict[Split | None, Counter[str]] = defaultdict(Counter)
    unmatched: list[str] = []
    for name in images:
        base = _with_row(folders.place(name), lists.rows.get(name))
        if base.passed_over:
            continue
        match = pattern.search(posixpath.basename(name))
        if match and match["label"]:
            found[base.split][match["label"]] += 1
        elif len(unmatched) < EXAMPLES:
            unmatched.append(posixpath.basename(name))
    delivered = tuple(split for split in SPLITS if split in found)
    if not found or (delivered and "train" not in delivered):
        proposal = propose(
            [posixpath.basename(name) for name in images if folders.place(name).split in ("train", None)]
        )
        instead = f" This one finds {proposal[1]}: {proposal[0]}" if proposal else ""
        raise DataError(
            f"{path}: data.label ({pattern.pattern}) matches no file name{' of the train split' * bool(found)}, such as "
            f"{listed(unmatched, EXAMPLES)}.{instead}"
        )
    used = names.merged([sorted(found[split]) for split in (*SPLITS, None) if split in found])
    bare = frozenset(set(folders.delivered) - set(delivered))
    notes = (*lists.notes, *unused(lists.rejected), *names.notes_on(used))
    return Named(pattern, folders, lists.rows, used, delivered, bare, notes)


def check_refused(path: Path, lists: Lists, layout: "Folders | Listed") -> None:
    """Refuse a delivery in which a split would be passed over, or cut anew, because its list is unusable.

    Raises:
        DataError: with the list and the reason.
    """
    if lists.damaged and lists.read:
        name, why = next(iter(lists.damaged.items()))
        raise DataError(
            f"{path}: {name}, the list of a split, is not usable: {why} Mend it; or remove it, and the split is cut from train."
        )
    refused = {name: why for name, why in lists.refused.items() if not layout.place(name).label}
    if refused:
        name, why = next(iter(refused.items()))
        raise DataError(
            f"{path}: {len(refused):,} images, such as {name}, have no class, since the list that names them is not usable: {why} "
            "To pass these images over as unlabelled, remove the list."
        )


def unused(rejected: Iterable[str]) -> list[Finding]:
    """Point out lists that were meant and are not used."""
    return [Finding("list", 1, None, "report", f"{text} It is not used.") for text in rejected]


def _in_unread_format(delivered: Iterable[str]) -> list[str]:
    return [name for name in delivered if name.rpartition(".")[2].lower() in UNREAD]


def unread_lists(delivered: Iterable[str]) -> list[Finding]:
    """Point out lists of splits in formats that are not read, beside class folders: Stanford Dogs' `test_list.mat`."""
    files = [posixpath.basename(name).lower() for name in _in_unread_format(delivered)]
    found = [name for name in files if names.split_word(name) or "list" in name or "split" in name]
    if not found:
        return []
    text = f"{listed(found, 3)}: if they state splits, they are not used. Save them as a list of the columns path and split, such as splits.csv."
    return [Finding("list", len(found), None, "report", text, tuple(found))]


def unread(delivered: Iterable[str], images: Sequence[str]) -> list[str]:
    """Describe files that may state classes in formats that are not read, and annotations of objects."""
    texts = []
    if found := _in_unread_format(delivered):
        texts.append(
            f"{listed(found, 3)}: files of MATLAB, Excel and the like are not read. Save labels as labels.csv with the columns path and "
            "label (and split); save arrays of images as x_train.npy and y_train.npy."
        )
    stems = {
        name.rpartition("/")[2].rpartition(".")[0]: name
        for name in delivered
        if name.rpartition(".")[2].lower() in ("txt", "xml")
    }
    boxes = [
        own
        for name in (images if stems else ())
        if (own := stems.get(name.rpartition("/")[2].rpartition(".")[0]))
    ]
    if len(boxes) > len(images) / 2:
        texts.append(
            f"{len(boxes):,} images have a file of their name, such as {boxes[0]}, as annotations of objects have (YOLO, Pascal VOC). They are "
            "not read, since this is a classifier of one class per image: crop the objects, or sort the images into class folders."
        )
    return texts


def nothing_states_classes(
    path: Path, images: Sequence[str], folders: Folders, problems: Sequence[str]
) -> DataError:
    """Describe where the images lie, and how their classes can be stated."""
    where = Counter(posixpath.dirname(name) or "the top" for name in images)
    heaps = listed([f"{folder} ({count:,})" for folder, count in where.most_common()], EXAMPLES)
    lines = [
        f"{path}: nothing states the classes of its {len(images):,} images: {heaps} hold images without class folders."
    ]
    lines += [f"  {problem}" for problem in problems[:EXAMPLES]]
    by_split: defaultdict[Split | None, list[str]] = defaultdict(list)
    for name in images:
        by_split[folders.place(name).split].append(posixpath.basename(name))
    labelled = by_split.get("train") or list(chain.from_iterable(by_split.values()))
    if proposal := propose(labelled):
        pattern, classes, example = proposal
        lines.append(
            f"The classes stand in the file names ({example}): {classes}. State it in params.yaml, in the section data: "
            f"`label: '{pattern}'`"
        )
    lines.append(
        "Otherwise sort the images into one folder per class, or add a list labels.csv with the columns path and label (and split, "
        "group), and type: -S data.label=csv"
    )
    return DataError("\n".join(lines))


def propose(files: Sequence[str]) -> tuple[str, str, str] | None:
    """Find a pattern that reads classes from file names: the pattern, its classes with counts, and example names; None without evidence.

    It must match 95 % of the names, and find at least two classes of at least three images on average.
    """
    for text in PATTERNS:
        pattern = re.compile(text)
        found: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for name in files:
            if match := pattern.search(name):
                found[match["label"]] += 1
                examples.setdefault(match["label"], name)
        if not 2 <= len(found) <= found.total() / 3 or found.total() < 0.95 * len(files):
            continue
        if all(label.casefold() in CAMERA for label in found):
            continue
        most = found.most_common()
        counts = listed([f"{short(label)} {count:,}" for label, count in most], EXAMPLES)
        shown = [short(examples[label]) for label, _ in most[:2]]
        return text, f"{len(found):,} classes ({counts})", ", ".join(shown)
    return None


def _named_split(folders: Folders, name: str) -> Split | None:
    """Return the split that a folder in a path is named like, for images that its list alone labels."""
    if not folders.delivered:
        return None
    return next((split for part in name.split("/")[:-1] if (split := names.split_of(part))), None)


def _agree(pairs: Mapping[tuple[str, str], int]) -> bool:
    """Check whether folders and labels name the same classes, each in its own words."""
    by_folder: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (folder, label), count in pairs.items():
        by_folder[folder][label] += count
    main = [labels.most_common(1)[0] for labels in by_folder.values()]
    return len({label for label, _ in main}) == len(main) and sum(n for _, n in main) >= 0.99 * sum(
        pairs.values()
    )


def _some(labels: Iterable[str]) -> str:
    return listed([short(label) for label in sorted(labels, key=names.natural)], EXAMPLES)


def _splits(found: set[Split | None]) -> tuple[Split, ...]:
    return tuple(split for split in SPLITS if split in found)
