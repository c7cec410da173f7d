"""Read the rows of a list of files: CSV, TSV, JSON Lines, JSON (COCO too) or plain text. Lists are untrusted."""

import codecs
import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from convoy.core.errors import DataError, listed

MAX_JSON_BYTES = 2**26
"""Largest JSON file, in bytes: Python's objects take ten times as much."""

EXAMPLES = 5


Rows = Callable[[], Iterator[list[str]]]
"""Opens the rows of a list anew."""


def rows_of(name: str, content: bytes) -> tuple[list[Rows], str]:
    """Return the rows of a list, and the code page that it was read in if that was guessed.

    Lines of text may be read in several ways: paths and labels may contain spaces.
    """
    suffix = name.rpartition(".")[2].lower()
    encoding, legacy = _encoding(name, content)

    def text() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(content), encoding, newline="")

    if suffix == "json":
        return [_json_rows(name, text())], legacy
    if suffix in ("jsonl", "ndjson"):
        return [lambda: _object_rows(_json_lines(text()))], legacy
    if suffix == "txt":
        return [partial(_lines, text, split) for split in (_path_and_word, str.split, _word_and_rest)], legacy
    delimiter = (
        "\t"
        if suffix in ("tsv", "tab")
        else _delimiter([line for line in islice(text(), 20) if line.strip()])
    )
    return [lambda: csv.reader(text(), delimiter=delimiter, skipinitialspace=True)], legacy


def _lines(text: Callable[[], io.TextIOWrapper], split: Callable[[str], list[str]]) -> Iterator[list[str]]:
    """Split the lines of a text list: by tabs, commas or semicolons where they occur, else by `split`."""
    for number, line in enumerate(text()):
        line = line.strip()  # noqa: PLW2901 (the same line)
        if not line or line.startswith("#") or (not number and line.isdigit()):  # CelebA begins with a count
            continue
        mark = next((mark for mark in "\t,;" if mark in line), None)
        yield [cell.strip() for cell in line.split(mark)] if mark else split(line)


def _path_and_word(line: str) -> list[str]:
    """Split `my photos/1.jpg cat`."""
    path, space, last = line.rpartition(" ")
    return [path.strip(), last] if space else [line]


def _word_and_rest(line: str) -> list[str]:
    """Split `0034309 Boeing 707`."""
    return line.split(maxsplit=1)


def _encoding(name: str, content: bytes) -> tuple[str, str]:
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    marked = next((encoding for mark, encoding in marks.items() if content.startswith(mark)), "")
    if not marked and b"\0" in content:
        raise DataError(
            f"{name} contains NUL bytes: it is not text, or UTF-16 without a byte order mark. Save it as UTF-8."
        )
    decoder = codecs.getincrementaldecoder(marked or "utf-8")()
    try:
        for start in range(0, len(content), 2**20):
            decoder.decode(content[start : start + 2**20])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        if marked:
            raise DataError(
                f"{name} begins with the byte order mark of {marked}, but is not valid {marked} ({error.reason}). Save it as UTF-8."
            ) from error
        return "latin-1", "Latin-1"
    return marked or "utf-8", ""


def _delimiter(lines: Sequence[str]) -> str:
    """Choose the mark between cells that occurs in every line, most often in the first."""
    marks = [mark for mark in ",;\t|" if lines and all(mark in line for line in lines)]
    return max(marks, key=lines[0].count) if marks else ","


NUMBERED = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
"""Lists that belong together by the number at the start of each line, as in CUB-200-2011 and NABirds."""


def numbered_lists(name: str, delivered: Collection[str]) -> list[str]:
    """List what belongs together with a list of classes or splits of numbered images; empty unless it is the first."""
    folder = name.rpartition("/")[0]
    parts = [f"{folder}/{part}" if folder else part for part in NUMBERED]
    others = [part for part in parts[1:3] if part in delivered]
    return parts if others[:1] == [name] else []


def numbered_rows(contents: Mapping[str, bytes]) -> tuple[list[Rows], str]:
    """Join `images.txt` (number and path), `image_class_labels.txt`, `train_test_split.txt` (1: train) and `classes.txt`."""
    images, labels, splits, classes = (
        {line[0]: line[1] for line in _numbered(contents, own) if len(line) == 2} for own in NUMBERED
    )
    header = ["path", *["label"] * bool(labels), *["split"] * bool(splits)]
    rows = [header]
    for number, path in images.items():
        label = labels.get(number, "")
        split = {"1": "train", "0": "test"}.get(splits.get(number, ""), "")
        rows.append([path, *[classes.get(label, label)] * bool(labels), *[split] * bool(splits)])
    return [lambda: iter(rows)], ""


def _numbered(contents: Mapping[str, bytes], own: str) -> Iterator[list[str]]:
    for name, content in contents.items():
        if name.rpartition("/")[2] == own:
            encoding, _ = _encoding(name, content)
            for line in io.TextIOWrapper(io.BytesIO(content), encoding):
                yield line.strip().split(maxsplit=1)


def _json_lines(lines: Iterable[str]) -> Iterator[Any]:
    for line in lines:
        if line.strip():
            yield json.loads(line)


def _object_rows(objects: Iterable[Any]) -> Iterator[list[str]]:
    """Convert JSON objects to rows under the keys of the first."""
    header: list[str] = []
    for one in objects:
        if not isinstance(one, dict):
            raise ValueError("not an object per row")  # noqa: TRY004 (broken content, not a wrong call)
        if not header:
            header = list(map(str, one))
            yield header
        yield [_text(one.get(key)) for key in header]


def _text(value: object) -> str:
    """Write a JSON value as a cell; several labels joined as in other lists."""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None or isinstance(value, dict) else str(value)


def _json_rows(name: str, text: io.TextIOWrapper) -> Callable[[], Iterator[list[str]]]:
    """Read COCO's `annotations.json`, a list of objects, or an object of paths with labels or of labels with paths."""
    try:
        content = json.load(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON: {short(str(error), 200)}") from error
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        rows = _coco_rows(name, content)
        return lambda: iter(rows)
    if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        return lambda: _object_rows(content)
    if (
        isinstance(content, dict)
        and content
        and all(isinstance(value, str | int) for value in content.values())
    ):
        return lambda: iter([["path", "label"], *([path, str(label)] for path, label in content.items())])
    if isinstance(content, dict) and content and all(map(_are_paths, content.values())):
        # A list of paths per class, as in Food-101's `train.json`.
        return lambda: iter(
            [["path", "label"], *([path, str(label)] for label, paths in content.items() for path in paths)]
        )
    return lambda: iter(())


def _are_paths(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(path, str) for path in value)


def _coco_rows(name: str, content: Mapping[str, Any]) -> list[list[str]]:
    try:
        categories = {one["id"]: str(one["name"]) for one in content["categories"]}
        of_image: defaultdict[Any, set[str]] = defaultdict(set)
        for one in content["annotations"]:
            of_image[one["image_id"]].add(categories[one["category_id"]])
        files = {one["id"]: str(one["file_name"]) for one in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{name} is no COCO annotation: {type(error).__name__} {short(str(error))}."
        ) from error
    several = [image for image in files if len(of_image[image]) > 1]
    if several:
        example = several[0]
        raise DataError(
            f"{name} has several categories for {len(several):,} of {len(files):,} images ({short(files[example])}: "
            f"{listed(sorted(of_image[example]), EXAMPLES)}): it annotates objects, and this is a classifier of one class per image. "
            "Crop the objects, or deliver class folders."
        )
    return [["path", "label"], *([path, next(iter(of_image[image]), "")] for image, path in files.items())]


def short(text: str, most: int = 60) -> str:
    """Cut a text from a list for a message."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
