"""Read lists of files (CSV, TSV, JSON Lines, COCO, plain text) that state classes, splits and groups.

Lists are untrusted: each is read up to a size, row by row, and what is wrong with its rows is counted and named.
"""

import csv
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError, listed
from convoy.data import names
from convoy.data.list_columns import SPLIT_CODES, SPLIT_FLAGS, SPLIT_LISTS, Columns, find_columns
from convoy.data.list_formats import MAX_JSON_BYTES, Rows, numbered_lists, numbered_rows, rows_of, short
from convoy.data.list_paths import Index
from convoy.data.records import Finding
from convoy.data.settings import ColumnParams
from convoy.images.delivery import LISTS, Delivery, Place

MAX_LISTS = 64
"""Lists of a delivery that are read, those nearest to its top first."""

MAX_LIST_BYTES = 2**28
"""Largest list, in bytes: two million rows of long paths."""

MAX_COLUMNS = 2_000
"""Most columns of a list: one per class, and some."""

MAX_LABEL = 255
"""Longest label, in characters: that of a folder's name."""

SAMPLE_ROWS = 200
"""Rows that decide what the columns of a list are."""

EXAMPLES = 5

MOST_CONTRADICTIONS = 0.05
"""Largest share of images that lists may contradict each other about; such images are quarantined by name."""

BOXES = re.compile(r"(?:[^\s\d]\S*(?: \d+){4} ?)+")
DIGITS = tuple("0123456789")
ONE_CLASS = (
    "and this is a classifier of one class per image. Choose one label per image, or deliver class folders."
)

MISSING = "name files that are not delivered"
JOINED = "have a label whose words are labels themselves, as if an image had several"
AMBIGUOUS = "fit several delivered files, and are not used"

TRUE, FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


@dataclass
class Faults:
    """Count what is wrong with the rows of a list, with a few examples each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, fault: str, example: str, count: int = 1) -> None:
        """Count a fault; the first examples are kept."""
        self.counts[fault] += count
        if len(self.examples[fault]) < EXAMPLES:
            self.examples[fault].append(short(example))

    def findings(self, name: str) -> list[Finding]:
        """Return one finding per fault."""
        return [
            Finding(
                "list",
                count,
                None,
                "report",
                f"{name}: rows that {fault}: {count:,}, such as {listed(self.examples[fault], EXAMPLES)}",
            )
            for fault, count in self.counts.items()
        ]


@dataclass
class Lists:
    """Hold what the lists of a delivery state about its images.

    Attributes:
        rows: delivered path to what is stated; without a label but with a reason where a row is unusable.
        read: the lists with classes or splits.
        columns: where the lists state classes, for people.
        unlabelled: images that only lists without classes name, such as those of Kaggle's test.csv.
        notes: what is wrong with the rows.
        problems: why lists that may have been meant are not used.
        rejected: of these, those whose columns are named so that they state classes.
        refused: images that rejected lists name, with the reason.
        damaged: lists named after a split that cannot be read, with the reason.
        sure: whether the columns of the classes are named so, not only the sole other column.
    """

    rows: dict[str, Place] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    unlabelled: set[str] = field(default_factory=set)
    notes: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    sure: bool = False

    def set_aside(self, reason: str) -> None:
        """Keep why a list that was meant is not used."""
        self.problems.append(reason)
        self.rejected.append(reason)

    def refuse(self, table: "_Table", reason: str) -> None:
        """Keep why a list that was meant is not used, with the images that it names."""
        self.set_aside(reason)
        with suppress(DataError):  # those before the damage
            for name in table.images():
                self.refused[name] = reason


def read_lists(
    delivery: Delivery,
    delivered: Sequence[str],
    images: Sequence[str],
    params: ColumnParams | None = None,
    *,
    labels: bool = True,
) -> Lists:
    """Read the lists of a delivery that name its images; others are left alone.

    Args:
        delivery: the delivery.
        delivered: its paths.
        images: those that may be images of classes.
        params: columns that are stated.
        labels: whether classes are read too, beside splits and groups.

    Raises:
        DataError: no list has a column that is stated.
    """
    lists = Lists()
    candidates = sorted(
        filter(_may_be_list, delivered), key=lambda name: (name.count("/"), names.natural(name))
    )
    if len(candidates) > MAX_LISTS:
        lists.set_aside(
            f"Of {len(candidates):,} lists the {MAX_LISTS} nearest to the top are read; {candidates[MAX_LISTS]} is beyond them."
        )
    tables = (
        list(_tables(delivery, candidates[:MAX_LISTS], Index(images), lists, params))
        if candidates and images
        else []
    )
    _check_stated(delivery, tables, params)
    for table in tables if not labels else ():
        table.columns.label, table.columns.one_hot = None, []
    for table in tables:
        if labels and not table.columns.has_labels:
            try:
                lists.unlabelled.update({*table.images()})
            except DataError as error:
                lists.refuse(table, str(error))
            if table.columns.others:
                unclear = table.columns.unclear(table.name)
                lists.problems.append(unclear)
                lists.rejected += [unclear] if table.split_of_list else []
    of_splits = {table.split_of_list for table in tables} - {None}
    by_name = "train" in of_splits and len(of_splits) > 1
    labelled = [table for table in tables if table.columns.has_labels]
    others = [
        table
        for table in tables
        if not table.columns.has_labels
        and (table.columns.has_splits or table.columns.group is not None or (by_name and table.split_of_list))
    ]
    for chosen in (labelled, others):
        _join(lists, chosen, use_split=by_name)
    lists.unlabelled -= {name for name, place in lists.rows.items() if place.label or place.reason}
    if lists.read:
        opened = {*lists.damaged, *(table.name for table in tables)}
        lists.rejected += [
            f"{name}, named after the {split} split, names no delivered image."
            for name in candidates
            if name not in opened and (split := _split_of_list(name))
        ]
    return lists


def _join(lists: Lists, tables: Sequence["_Table"], *, use_split: bool) -> None:
    """Add what tables state, unless they contradict each other for more than a few images."""
    rows: dict[str, Place] = {}
    read: list[_Table] = []
    contradictions: list[str] = []
    for table in tables:
        try:
            own, findings = table.read(use_split=use_split)
        except DataError as error:
            if table.columns.sure:
                lists.refuse(table, str(error))
            else:
                lists.problems.append(str(error))
            continue
        for path, place in own.items():
            before = rows.get(path)
            rows[path] = _both(before, place) if before else place
            if before and not before.reason and not place.reason and rows[path].reason:
                contradictions.append(path)
        read.append(table)
        lists.notes.extend(findings)
    if len(contradictions) > MOST_CONTRADICTIONS * len(rows):
        example = contradictions[0]
        lists.set_aside(
            f"{listed([table.name for table in read], EXAMPLES)} contradict each other about {len(contradictions):,} of {len(rows):,} "
            f"images: {example} {rows[example].reason}. Remove all but the lists that are meant, such as those of one fold."
        )
        return
    for path, place in rows.items():
        before = lists.rows.get(path)
        lists.rows[path] = _both(before, place) if before else place
    lists.read += [table.name for table in read]
    lists.columns += [table.source for table in read if table.columns.has_labels]
    lists.sure |= any(table.columns.sure for table in read)


def _check_stated(delivery: Delivery, tables: Sequence["_Table"], params: ColumnParams | None) -> None:
    """Refuse a column that is stated and that no list has."""
    for key, column in params or ():
        if column not in ("auto", "none") and not any(key in table.columns.stated for table in tables):
            shown = [
                f"{table.name} ({listed([f'`{title}`' for title in table.columns.header if title], 10) or 'without titles'})"
                for table in tables
            ]
            raise DataError(
                f"{delivery.path}: no list has the column `{column}` (data.columns.{key}). Lists that name images: "
                f"{listed(shown, EXAMPLES) or 'none'}."
            )


def _tables(
    delivery: Delivery, candidates: Sequence[str], index: Index, lists: Lists, params: ColumnParams | None
) -> Iterator["_Table"]:
    numbered = [parts for name in candidates if (parts := numbered_lists(name, candidates))]
    apart = {part for parts in numbered for part in parts}
    opened = chain(
        (
            (name, partial(rows_of, name, content))
            for name, content in _contents(
                delivery, [name for name in candidates if name not in apart], lists
            )
        ),
        ((parts[0], partial(numbered_rows, dict(_contents(delivery, parts, lists)))) for parts in numbered),
    )
    for name, rows in opened:
        try:
            if table := _Table.open(name, *rows(), index, params):
                yield table
        except DataError as error:
            lists.set_aside(str(error))
            if _split_of_list(name):
                lists.damaged[name] = str(error)


def _both(before: Place, place: Place) -> Place:
    """Join what two lists state about an image."""
    if before.label and place.label and before.label != place.label:
        both = f"{short(before.label)}, {short(place.label)}"
        return Place(reason=f"has two labels in the lists: {both}", fault="two_labels")
    if before.split and place.split and before.split != place.split:
        splits = f"{before.split}, {place.split}"
        return Place(reason=f"is in the lists of two splits: {splits}", fault="two_labels")
    stated = before if before.reason else place
    label = None if stated.reason else before.label or place.label
    split, group = before.split or place.split, before.group or place.group
    return Place(split, label, group, reason=stated.reason, fault=stated.fault)


def _may_be_list(name: str) -> bool:
    base = posixpath.basename(name).lower()
    if "." not in base:
        return "metadata" in base or "labels" in base
    stem, _, suffix = base.rpartition(".")
    if "submission" in base or "submit" in base:
        return False
    if suffix == "txt":
        own = names.split_word(stem)
        return bool(own) or any(
            word in stem for word in ("label", "list", "annotation", "split", "partition")
        )
    if suffix == "json":
        if "map" in names.words(stem) or "." in stem.replace(".coco", ""):
            return False
        return bool(names.split_word(stem)) or any(
            word in stem for word in ("annotation", "coco", "instances", "label", "metadata")
        )
    return suffix in LISTS


def _contents(delivery: Delivery, candidates: Sequence[str], lists: Lists) -> Iterator[tuple[str, bytes]]:
    left = MAX_LIST_BYTES
    for name, content in delivery.read(candidates, MAX_LIST_BYTES + 1):
        limit = min(left, MAX_JSON_BYTES) if name.lower().endswith(".json") else left
        if len(content) > limit:
            lists.set_aside(
                f"{name} is not read: it has more than {limit:,} bytes{' left for lists' * (left < MAX_LIST_BYTES)}."
            )
            continue
        left -= len(content)
        yield name, content


@dataclass
class _Table:
    """Hold one list and the meaning of its columns.

    Attributes:
        rows: opens the rows anew, each a list of cells.
        columns: what its columns are.
        split_of_list: the split that the list's name states.
        legacy: the code page that it was read in, if that was guessed.
    """

    name: str
    rows: Rows
    index: Index
    columns: Columns
    split_of_list: Split | None = None
    legacy: str = ""

    @classmethod
    def open(
        cls, name: str, readings: Sequence[Rows], legacy: str, index: Index, params: ColumnParams | None
    ) -> "_Table | None":
        """Find the columns of a list; None if it names no delivered image.

        Raises:
            DataError: it is no text, or is broken.
        """
        table = cls(name, readings[0], index, Columns([], 0), _split_of_list(name), legacy)
        try:
            samples = [list(islice(rows(), SAMPLE_ROWS + 1)) for rows in readings]
            best = max(range(len(readings)), key=lambda n: table.hits(samples[n])) if len(readings) > 1 else 0
            if not samples[best]:
                return None
            if (width := max(map(len, samples[best]))) > MAX_COLUMNS:
                raise DataError(
                    f"{name} is not read: a row has {width:,} columns, more than {MAX_COLUMNS:,}."
                )
            table.rows = readings[best]
            columns = find_columns(name, samples[best], table.finds, table.rows, params)
        except (csv.Error, ValueError, RecursionError) as error:
            raise DataError(f"{name} cannot be read: {short(str(error), 200)}") from error
        if columns is None:
            return None
        table.columns = columns
        columns.sure |= columns.has_labels and not columns.header and table.split_of_list is not None
        return table

    @property
    def source(self) -> str:
        """Name the list, and the column of its classes."""
        label = self.columns.label
        return (
            self.name
            if label is None or not self.columns.header
            else f"{self.name} (column `{self.columns.name(label)}`)"
        )

    def hits(self, sample: Sequence[Sequence[str]]) -> int:
        """Count the rows whose first cell names a delivered image; none if they differ in length, as labels of several words do."""
        found = [len(row) for row in sample if row and self.finds(row[0])]
        return 0 if len({*found}) > 1 and max(found) > 2 else len(found)

    def finds(self, written: str) -> bool:
        try:
            return (
                bool(written.strip())
                and self.index.find(written.strip(), posixpath.dirname(self.name), self.split_of_list)
                is not None
            )
        except LookupError:
            return True

    def images(self) -> Iterator[str]:
        """Yield the delivered images that the list names.

        Raises:
            DataError: its rows are damaged.
        """
        for row in self.checked(self.rows()):
            if self.columns.path < len(row):
                try:
                    found = self.index.find(
                        row[self.columns.path].strip(), posixpath.dirname(self.name), self.split_of_list
                    )
                except LookupError:
                    continue
                if found:
                    yield found

    def read(self, *, use_split: bool) -> tuple[dict[str, Place], list[Finding]]:
        """Read all rows: delivered path to its place, and what is wrong with rows.

        Raises:
            DataError: a list of several labels per image, of no classes, or none of its images is delivered.
        """
        faults = Faults()
        rows: dict[str, Place] = {}
        known: dict[Place, Place] = {}
        several: dict[str, tuple[str, str]] = {}
        counts: Counter[str] = Counter()
        total = 0
        codes: set[Split | None] = set()
        reader = self.rows()
        if self.columns.header:
            next(reader, None)
        for cells in self.checked(reader):
            total += any(cells)
            path = self.image(cells, total, faults) if any(cells) else None
            if path is None:
                continue
            place = self.place(cells, self.split_of_list if use_split else None)
            codes.add(place.split)
            before = rows.get(path)
            if before is None:
                counts.update([place.label] if place.label else [])
            elif before.label and place.label and before.label != place.label:
                several[path] = before.label, place.label
                both = f"{short(before.label)}, {short(place.label)}"
                reason = f"has two labels in {self.name}: {both}"
                place = Place(place.split, reason=reason, fault="two_labels")
            else:
                faults.add("repeat a file", path)
                continue
            rows[path] = known.setdefault(place, place)
        if self.columns.split is not None and self.columns.coded and not codes >= {*SPLITS}:
            raise DataError(
                f"{self.name}: the numbers in the column `{self.columns.name(self.columns.split)}` stand for train, val and test only if 0, 1 "
                "and 2 all occur. Write the names instead, or pass the column over: -S data.columns.split=none"
            )
        self.check(total, faults, counts, several, rows)
        if self.legacy:
            faults.add(f"may be garbled: the list is no UTF-8 and was read as {self.legacy}", self.name)
        return rows, faults.findings(self.name)

    def image(self, cells: Sequence[str], number: int, faults: Faults) -> str | None:
        """Find the delivered image of a row; None if there is none."""
        folder = posixpath.dirname(self.name)
        written = cells[self.columns.path].strip() if self.columns.path < len(cells) else ""
        if not written:
            faults.add("name no file", f"row {number}")
            return None
        try:
            path = self.index.find(written, folder, self.split_of_list)
        except LookupError:
            faults.add(AMBIGUOUS, written)
            return None
        if path is None:
            faults.add(MISSING, written)
        elif written.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", written):
            faults.add("have absolute paths, and were found by the end of the path", written)
        elif (
            ".." in re.split(r"[/\\]", written)
            and posixpath.normpath(posixpath.join(folder, written)) != path
        ):
            faults.add("lead out of the delivery by `..`, and were found by the file's name", written)
        return path

    def place(self, cells: Sequence[str], split: Split | None) -> Place:
        """Return what a row states."""
        label, fault = self.label_of(cells)
        if self.columns.split is not None:
            text = cells[self.columns.split].strip() if self.columns.split < len(cells) else ""
            split = SPLIT_CODES.get(text) if self.columns.coded else names.split_of(text)
            if split is None and not fault:
                fault = f"has {f'the unknown split `{short(text)}`' if text else 'no split'} in {self.name}"
        elif self.columns.flag is not None:
            text = cells[self.columns.flag].strip().lower() if self.columns.flag < len(cells) else ""
            yes, no = SPLIT_FLAGS["_".join(names.words(self.columns.header[self.columns.flag]))]
            split = yes if text in TRUE else no
            if text not in (*TRUE, *FALSE) and not fault:
                fault = f"has neither yes nor no (`{short(text)}`) in the column `{self.columns.header[self.columns.flag]}` of {self.name}"
        group = ""
        if self.columns.group is not None and self.columns.group < len(cells):
            group = cells[self.columns.group].strip()
        return Place(split, None if fault else label, group or None, reason=fault)

    def checked(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        number = 0
        try:
            for cells in reader:
                number += 1
                yield cells
        except (csv.Error, ValueError, RecursionError) as error:
            raise DataError(
                f"{self.name} cannot be read after row {number:,}: {short(str(error), 200)}"
            ) from error

    def label_of(self, cells: Sequence[str]) -> tuple[str | None, str]:
        """Return the class of a row, or why it has none; neither in a list without classes."""
        columns = self.columns
        if columns.one_hot:
            chosen = [c for c in columns.one_hot if c < len(cells) and cells[c].strip().lower() in TRUE]
            if len(chosen) > 1:
                both = ", ".join(map(columns.name, chosen[:EXAMPLES]))
                raise DataError(
                    f"{self.name} has several labels per image ({short(cells[columns.path])}: {both}), {ONE_CLASS}"
                )
            return (columns.name(chosen[0]), "") if chosen else (None, f"has no label in {self.name}")
        if columns.label is None:
            return None, ""
        label = cells[columns.label].strip() if columns.label < len(cells) else ""
        label = unicodedata.normalize("NFC", _without_boxes(label))
        if not label:
            return None, f"has no label in {self.name}"
        if len(label) > MAX_LABEL or "\0" in label:
            return None, f"has a label of {len(label):,} characters in {self.name} (`{short(label)}`)"
        return label, ""

    def check(
        self,
        total: int,
        faults: Faults,
        counts: Counter[str],
        several: Mapping[str, tuple[str, str]],
        rows: Mapping[str, Place],
    ) -> None:
        """Refuse a list that cannot be what states one class per image."""
        lost = faults.counts[MISSING] + faults.counts[AMBIGUOUS]
        if lost > total / 2:
            example = (faults.examples[MISSING] + faults.examples[AMBIGUOUS])[0]
            raise DataError(
                f"{self.name} names {total:,} files, and {lost:,} of them are not delivered or not unique, such as {example}."
            )
        if len(several) > 0.05 * len(rows):
            path, pair = next(iter(several.items()))
            raise DataError(
                f"{self.name} has several labels for {len(several):,} of {len(rows):,} images ({path}: {', '.join(map(short, pair))}), "
                f"{ONE_CLASS}"
            )
        if self.columns.label is None:
            return
        column = self.columns.name(self.columns.label)
        if mark := _combined(counts, plural=column.lower().endswith("s")):
            example = next(label for label in counts if mark in label)
            raise DataError(
                f"{self.name} has several labels per image in the column `{column}` (`{short(example)}`), {ONE_CLASS}"
            )
        for label, images in counts.items():
            if len(words := label.split()) > 1 and counts.keys() >= {*words}:
                faults.add(JOINED, label, images)
        if len(counts) > 20 and len(counts) > 0.5 * len(rows):
            raise DataError(
                f"{self.name}: the column `{column}` holds no classes: {len(counts):,} different values for {len(rows):,} images "
                f"({listed([short(label) for label in counts], 3)})."
            )


def _without_boxes(label: str) -> str:
    """Return the class of `n01440764 85 1 499 272`, as ImageNet's solutions have it; several are joined by `|`."""
    found = BOXES.fullmatch(label) if label.endswith(DIGITS) else None
    return "|".join(dict.fromkeys(label.split()[::5])) if found else label


def _combined(counts: Mapping[str, int], *, plural: bool) -> str:
    """Find the mark that joins several labels into one (`cat|dog`): most parts also occur elsewhere; empty without any."""
    for mark in ("|", ";", ",", " ") if plural else ("|", ";", ","):
        joined = [label for label in counts if mark in label]
        if not joined:
            continue
        parts = Counter(part.strip() for label in counts for part in label.split(mark))
        shared = sum(parts[part.strip()] > 1 for label in joined for part in label.split(mark))
        enough = 0.5 if mark in "|;" else 0.8
        if shared >= enough * sum(label.count(mark) + 1 for label in joined) and (
            mark != " " or len(parts) < len(counts)
        ):
            return mark
    return ""


def _split_of_list(name: str) -> Split | None:
    """Return the split that a list's own name states: train.csv, test_list.txt, places365_val.txt."""
    stem = posixpath.basename(name).rpartition(".")[0]
    found = names.split_word(stem)
    if not found or found[0] == "unlabelled" or SPLIT_LISTS & {*names.words(stem)}:
        return None
    return found[0]
