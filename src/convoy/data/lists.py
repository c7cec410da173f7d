"""Read lists of files (CSV, TSV, JSON Lines, COCO, plain text) that state classes, splits and groups.

Lists are untrusted: each is read up to a size, row by row, and what is wrong with its rows is counted and named.
"""

import csv
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from convoy.core.dataset import Split
from convoy.core.errors import DataError, listed
from convoy.data import names
from convoy.data.list_formats import MAX_JSON_BYTES, rows_of, short
from convoy.data.records import Finding
from convoy.images.delivery import Delivery, Place

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

MISSING = "name files that are not delivered"
JOINED = "have a label whose words are labels themselves, as if an image had several"
AMBIGUOUS = "fit several delivered files, and are not used"

PATH_COLUMNS = names.ordered(
    "path filepath filepaths file_path image_path img_path file_name filename filenames file image_name img_name image img images "
    "image_index image_id imageid img_id id_code name fname id"
)
LABEL_COLUMNS = names.ordered(
    "label labels class class_name classname class_label label_name classes category category_name target target_name breed species "
    "variety diagnosis dx y tags class_id label_id category_id"
)
SPLIT_COLUMNS = frozenset(names.ordered("split data_set dataset subset set partition part usage phase"))
SPLIT_FLAGS: Mapping[str, tuple[Split, Split]] = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation"), ("val", "train")),
    **dict.fromkeys(("is_test", "is_testing"), ("test", "train")),
    **dict.fromkeys(("is_train", "is_training"), ("train", "test")),
}
"""Columns of yes and no that state the split, with that of each answer."""

TRUE, FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")

GROUP_COLUMNS = frozenset(
    names.ordered(
        "group group_id patient patient_id patientid subject subject_id lesion_id video_id sequence_id scene_id"
    )
)


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
        sure: whether the columns of the classes are named so, not only the sole other column.
    """

    rows: dict[str, Place] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    unlabelled: set[str] = field(default_factory=set)
    notes: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    sure: bool = False


def read_lists(delivery: Delivery, delivered: Sequence[str], images: Sequence[str]) -> Lists:
    """Read the lists of a delivery that name its images; others are left alone."""
    lists = Lists()
    candidates = sorted(
        filter(_may_be_list, delivered), key=lambda name: (name.count("/"), names.natural(name))
    )
    if not candidates or not images:
        return lists
    tables = list(_tables(delivery, candidates[:MAX_LISTS], _Index(images), lists))
    chosen = [table for table in tables if table.has_labels]
    of_splits = {table.split_of_list for table in chosen or tables} - {None}
    by_name = "train" in of_splits and len(of_splits) > 1
    chosen = chosen or [
        table for table in tables if by_name or table.split is not None or table.group is not None
    ]
    for table in chosen:
        try:
            rows, findings = table.read(use_split=by_name)
        except DataError as error:
            lists.problems.append(str(error))
            lists.rejected += [str(error)] if table.sure else []
            continue
        for path, place in rows.items():
            lists.rows[path] = _both(lists.rows.get(path), place)
        lists.read.append(table.name)
        lists.columns += [table.source] if table.has_labels else []
        lists.sure |= table.sure
        lists.notes.extend(findings)
    lists.unlabelled -= lists.rows.keys()
    return lists


def _tables(
    delivery: Delivery, candidates: Sequence[str], index: "_Index", lists: Lists
) -> Iterator["_Table"]:
    for name, content in _contents(delivery, candidates, lists.problems):
        try:
            table = _Table.open(name, content, index)
            if table is None:
                continue
            if not table.has_labels:
                lists.unlabelled.update(table.images())
                if table.others:
                    lists.problems.append(table.unclear())
            yield table
        except DataError as error:
            lists.problems.append(str(error))


def _both(before: Place | None, place: Place) -> Place:
    """Join what two lists state about an image."""
    if before is None:
        return place
    if before.label and place.label and before.label != place.label:
        return Place(reason=f"has two labels in the lists: {short(before.label)}, {short(place.label)}")
    if before.split != place.split and place.label == before.label:
        return Place(reason=f"is in the lists of two splits: {before.split}, {place.split}")
    return place if place.label else before


def _may_be_list(name: str) -> bool:
    base = posixpath.basename(name).lower()
    stem, _, suffix = base.rpartition(".")
    if "submission" in base or "submit" in base:
        return False
    if suffix == "txt":
        own = names.split_word(stem)
        return bool(own) or any(word in stem for word in ("label", "list", "annotation"))
    if suffix == "json":
        return any(
            word in stem for word in ("annotation", "coco", "instances", "label", "metadata")
        ) and "." not in stem.replace(".coco", "")
    return suffix in ("csv", "tsv", "jsonl", "ndjson")


def _contents(
    delivery: Delivery, candidates: Sequence[str], problems: list[str]
) -> Iterator[tuple[str, bytes]]:
    left = MAX_LIST_BYTES
    for name, content in delivery.read(candidates, MAX_LIST_BYTES + 1):
        limit = min(left, MAX_JSON_BYTES) if name.lower().endswith(".json") else left
        if len(content) > limit:
            problems.append(
                f"{name} is not read: it has more than {limit:,} bytes{' left for lists' * (left < MAX_LIST_BYTES)}."
            )
            continue
        left -= len(content)
        yield name, content


class _Index:
    """Find delivered images by what a list writes for them."""

    def __init__(self, images: Sequence[str]) -> None:
        self.exact = frozenset(images)
        self.by_stem: dict[str, list[str] | str] = {}
        for name in images:
            key = self.key(posixpath.basename(name))
            before = self.by_stem.get(key)
            if before is None:
                self.by_stem[key] = name
            elif isinstance(before, str):
                self.by_stem[key] = [before, name]
            else:
                before.append(name)

    @staticmethod
    def key(base: str) -> str:
        stem, dot, suffix = base.rpartition(".")
        plain = stem if dot and suffix.lower() in names.IMAGES else base
        return unicodedata.normalize("NFC", plain).casefold()

    def find(self, written: str, folder: str, split: Split | None) -> str | None:
        """Return the one delivered path that is meant, without or with suffix, folders or case; None for none.

        Raises:
            LookupError: several fit.
        """
        text = written.replace("\\", "/")
        for start in (folder, ""):
            path = f"{start}/{text.lstrip('/')}" if start else text.lstrip("/")
            path = posixpath.normpath(path) if "./" in path or "//" in path else path
            if path in self.exact:
                return path
        base = posixpath.basename(text)
        found = self.by_stem.get(self.key(base)) if base else None
        if found is None:
            return None
        every = [found] if isinstance(found, str) else found
        has_suffix = base.rpartition(".")[2].lower() in names.IMAGES
        fits = [name for name in every if not has_suffix or _same(posixpath.basename(name), base)]
        parts = [part for part in text.split("/")[:-1] if part not in ("", ".", "..")]
        if parts and not text.startswith("/") and ":" not in parts[0] and ".." not in text.split("/"):
            # A relative path names its folders: another folder's file of the same name is not meant.
            fits = [name for name in fits if _ends_with(name, parts)]
        for narrower in (
            lambda name: _ends_with(name, parts),
            lambda name: _ends_with(name, parts[-1:]),
            lambda name: posixpath.dirname(name) == folder,
            lambda name: bool(folder) and name.startswith(f"{folder}/"),
            lambda name: bool(split) and any(names.split_of(part) == split for part in name.split("/")[:-1]),
        ):
            if len(fits) > 1:
                fits = [name for name in fits if narrower(name)] or fits
        if len(fits) > 1:
            raise LookupError(written)
        return fits[0] if fits else None


def _same(one: str, other: str) -> bool:
    return unicodedata.normalize("NFC", one).casefold() == unicodedata.normalize("NFC", other).casefold()


def _ends_with(name: str, parts: Sequence[str]) -> bool:
    own = name.split("/")[:-1]
    return not parts or [part.casefold() for part in own[-len(parts) :]] == [
        part.casefold() for part in parts
    ]


@dataclass
class _Table:
    """Hold one list and the meaning of its columns.

    Attributes:
        rows: opens the rows anew, each a list of cells.
        path: index of the column with the images.
        label: index of the column with the classes.
        flag: index of a column of `SPLIT_FLAGS`.
        one_hot: columns of 0 and 1, each a class; empty without any.
        others: further columns, if none of them is clearly the class.
        split_of_list: the split that the list's name states.
    """

    name: str
    rows: Callable[[], Iterator[list[str]]]
    index: _Index
    header: list[str]
    path: int
    label: int | None = None
    split: int | None = None
    flag: int | None = None
    group: int | None = None
    one_hot: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    split_of_list: Split | None = None
    legacy: str = ""
    sure: bool = False

    @classmethod
    def open(cls, name: str, content: bytes, index: _Index) -> "_Table | None":
        """Find the columns of a list by its header and content; None if it names no delivered image.

        Raises:
            DataError: it is no text, or is broken.
        """
        rows, legacy = rows_of(name, content)
        try:
            sample = list(islice(rows(), SAMPLE_ROWS + 1))
        except (csv.Error, ValueError, RecursionError) as error:
            raise DataError(f"{name} cannot be read: {short(str(error), 200)}") from error
        if not sample:
            return None
        width = max(map(len, sample))
        if width > MAX_COLUMNS:
            raise DataError(f"{name} is not read: a row has {width:,} columns, more than {MAX_COLUMNS:,}.")
        table = cls(name, rows, index, [], 0, split_of_list=_split_of_list(name), legacy=legacy)
        hits = [
            sum(table.finds(row[column]) for row in sample if column < len(row)) for column in range(width)
        ]
        titles = ["_".join(names.words(cell)) for cell in sample[0]] + [""] * (width - len(sample[0]))
        if not any(hits):
            if len(sample) > 1 and {*titles} & {*PATH_COLUMNS} and {*titles} & {*LABEL_COLUMNS}:
                raise DataError(
                    f"{name} names no delivered image; its first row is {short(', '.join(sample[1]))}."
                )
            return None
        enough = [column for column in range(width) if hits[column] >= 0.9 * max(hits)]
        table.path = min(enough, key=lambda column: (_rank(titles[column], PATH_COLUMNS), column))
        headless = (
            table.path < len(sample[0])
            and table.finds(sample[0][table.path])
            and titles[table.path] not in PATH_COLUMNS
        )
        table.header = (
            [] if headless else [cell.strip() for cell in sample[0]] + [""] * (width - len(sample[0]))
        )
        body = sample if headless else sample[1:]
        rest = [column for column in range(width) if column != table.path]
        values = {
            column: {row[column].strip() for row in body if column < len(row)} - {""} for column in rest
        }
        table.split = next(
            (
                column
                for column in rest
                if values[column]
                and (
                    all(map(names.split_of, values[column]))
                    if headless or titles[column] not in SPLIT_COLUMNS
                    else any(map(names.split_of, values[column]))
                )
                and (headless or titles[column] in SPLIT_COLUMNS)
            ),
            None,
        )
        if table.split is None and not headless:
            table.flag = next((column for column in rest if titles[column] in SPLIT_FLAGS), None)
        rest = [column for column in rest if column not in (table.split, table.flag)]
        if not headless:
            table.group = next((column for column in rest if titles[column] in GROUP_COLUMNS), None)
            rest = [column for column in rest if column != table.group]
        rest = [column for column in rest if values[column] or titles[column] in LABEL_COLUMNS]
        table.choose_label(rest, titles, values, headless=headless)
        return table

    @property
    def has_labels(self) -> bool:
        """Check whether the list states classes."""
        return self.label is not None or bool(self.one_hot)

    @property
    def source(self) -> str:
        """Name the list, and the column of its classes."""
        if self.label is None or not (self.header and self.header[self.label]):
            return self.name
        return f"{self.name} (column `{short(self.header[self.label])}`)"

    def choose_label(
        self, rest: list[int], titles: Sequence[str], values: Mapping[int, set[str]], *, headless: bool
    ) -> None:
        """Find the column of the classes: by its name, or because it is the only other; or a column for each class."""
        titled = [
            column for column in rest if not headless and titles[column] in LABEL_COLUMNS and values[column]
        ]
        binary = [
            column
            for column in rest
            if values[column] and values[column] <= {"0", "1", "0.0", "1.0", "true", "false", "True", "False"}
        ]
        if titled:
            self.sure = True
            # Words before numbers: `labels` beside `class id`.
            self.label = min(
                titled, key=lambda c: (all(_number(v) for v in values[c]), _rank(titles[c], LABEL_COLUMNS), c)
            )
        elif len(rest) == 1 and (headless or values[rest[0]]):
            self.label = rest[0]
        elif headless and len(words := [c for c in rest if not all(map(_number, values[c]))]) == 1:
            self.label = words[0]  # beside corners of a box, as in Tiny ImageNet
        elif len(binary) > 1 and len(binary) == len(rest):
            self.one_hot, self.sure = binary, True
        else:
            self.others = rest

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
        """Yield the delivered images that the list names."""
        for row in self.rows():
            if self.path < len(row):
                try:
                    found = self.index.find(
                        row[self.path].strip(), posixpath.dirname(self.name), self.split_of_list
                    )
                except LookupError:
                    continue
                if found:
                    yield found

    def unclear(self) -> str:
        """Describe a list whose column with the classes is not clear."""
        columns = listed(
            [f"`{short(self.header[column])}`" for column in self.others if self.header], EXAMPLES
        ) or len(self.others)
        return f"{self.name} names images, but which column has the classes is unclear ({columns}): name it `label`."

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
        reader = self.rows()
        if self.header:
            next(reader, None)
        for cells in self.checked(reader):
            total += any(cells)
            path = self.image(cells, total, faults) if any(cells) else None
            if path is None:
                continue
            place = self.place(cells, self.split_of_list if use_split else None)
            before = rows.get(path)
            if before is None:
                counts.update([place.label] if place.label else [])
            elif before.label and place.label and before.label != place.label:
                several[path] = before.label, place.label
                both = f"{short(before.label)}, {short(place.label)}"
                place = Place(place.split, reason=f"has two labels in {self.name}: {both}")
            else:
                faults.add("repeat a file", path)
                continue
            rows[path] = known.setdefault(place, place)
        self.check(total, faults, counts, several, rows)
        if self.legacy:
            faults.add(f"may be garbled: the list is no UTF-8 and was read as {self.legacy}", self.name)
        return rows, faults.findings(self.name)

    def image(self, cells: Sequence[str], number: int, faults: Faults) -> str | None:
        """Find the delivered image of a row; None if there is none."""
        folder = posixpath.dirname(self.name)
        written = cells[self.path].strip() if self.path < len(cells) else ""
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
        if self.split is not None:
            text = cells[self.split].strip() if self.split < len(cells) else ""
            split = names.split_of(text)
            if split is None and not fault:
                fault = f"has {f'the unknown split `{short(text)}`' if text else 'no split'} in {self.name}"
        elif self.flag is not None:
            text = cells[self.flag].strip().lower() if self.flag < len(cells) else ""
            yes, no = SPLIT_FLAGS["_".join(names.words(self.header[self.flag]))]
            split = yes if text in TRUE else no
            if text not in (*TRUE, *FALSE) and not fault:
                fault = f"has neither yes nor no (`{short(text)}`) in the column `{self.header[self.flag]}` of {self.name}"
        group = ""
        if self.group is not None and self.group < len(cells):
            group = cells[self.group].strip()
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
        if self.one_hot:
            chosen = [
                c for c in self.one_hot if c < len(cells) and cells[c].strip().lower() in ("1", "1.0", "true")
            ]
            if len(chosen) > 1:
                both = ", ".join(self.header[column] for column in chosen[:EXAMPLES])
                raise DataError(
                    f"{self.name} has several labels per image ({short(cells[self.path])}: {both}), and this is a classifier of one "
                    "class per image. Choose one label per image, or deliver class folders."
                )
            if not chosen:
                return None, f"has no label in {self.name}"
            return unicodedata.normalize("NFC", self.header[chosen[0]]) if self.header else str(chosen[0]), ""
        if self.label is None:
            return None, ""
        label = unicodedata.normalize("NFC", cells[self.label].strip()) if self.label < len(cells) else ""
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
                f"{self.name} has several labels for {len(several):,} of {len(rows):,} images ({path}: {', '.join(map(short, pair))}), and "
                "this is a classifier of one class per image. Choose one label per image, or deliver class folders."
            )
        if self.label is None:
            return
        column = self.header[self.label] if self.header else str(self.label + 1)
        if mark := _combined(counts, plural=column.lower().endswith("s")):
            example = next(label for label in counts if mark in label)
            raise DataError(
                f"{self.name} has several labels per image in the column `{column}` (`{short(example)}`), and this is a classifier of "
                "one class per image. Choose one label per image, or deliver class folders."
            )
        for label, images in counts.items():
            if len(words := label.split()) > 1 and counts.keys() >= {*words}:
                faults.add(JOINED, label, images)
        if len(counts) > 20 and len(counts) > 0.5 * len(rows):
            raise DataError(
                f"{self.name}: the column `{column}` holds no classes: {len(counts):,} different values for {len(rows):,} images "
                f"({listed([short(label) for label in counts], 3)})."
            )


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
    """Return the split that a list's own name states: train.csv, test_list.txt, trainLabels.csv."""
    stem = posixpath.basename(name).rpartition(".")[0]
    kept = [
        word
        for word in names.words(stem)
        if word not in ("label", "labels", "list", "annotation", "annotations", "metadata", "meta", "files")
    ]
    return names.split_of(" ".join(kept))


def _rank(title: str, order: Sequence[str]) -> int:
    return order.index(title) if title in order else len(order)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
