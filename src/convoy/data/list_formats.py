"""Read the rows of a list of files: CSV, TSV, JSON Lines, JSON (COCO too) or plain text. Lists are untrusted."""

import codecs
import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from convoy.core.errors import DataError, listed

MAX_JSON_BYTES = 2**26
"""Largest JSON file, in bytes: Python's objects take ten times as much."""

EXAMPLES = 5


def rows_of(name: str, content: bytes) -> tuple[Callable[[], Iterator[list[str]]], str]:
    """Return what opens the rows of a list anew, and the code page that it was read in if that was guessed."""
    suffix = name.rpartition(".")[2].lower()
    encoding, legacy = _encoding(name, content)

    def text() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(content), encoding, newline="")

    if suffix == "json":
        return _json_rows(name, text()), legacy
    if suffix in ("jsonl", "ndjson"):
        return lambda: _object_rows(_json_lines(text())), legacy
    if suffix == "txt":
        return lambda: (
            _words_of(line) for line in text() if line.strip() and not line.startswith("#")
        ), legacy
    delimiter = "\t" if suffix == "tsv" else _delimiter([line for line in islice(text(), 20) if line.strip()])
    return lambda: csv.reader(text(), delimiter=delimiter, skipinitialspace=True), legacy


def _encoding(name: str, content: bytes) -> tuple[str, str]:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return encoding, ""
    if b"\0" in content:
        raise DataError(
            f"{name} contains NUL bytes: it is no text, or UTF-16 without a byte order mark. Save it as UTF-8."
        )
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), 2**20):
            decoder.decode(content[start : start + 2**20])
    except UnicodeDecodeError:
        return "latin-1", "Latin-1"
    return "utf-8", ""


def _delimiter(lines: Sequence[str]) -> str:
    """Choose the mark between cells that occurs in every line, most often in the first."""
    marks = [mark for mark in ",;\t|" if lines and all(mark in line for line in lines)]
    return max(marks, key=lines[0].count) if marks else ","


def _words_of(line: str) -> list[str]:
    """Split a line of a text list: `cat/1.jpg 3`, or with commas or tabs; a path may contain spaces."""
    line = line.strip()
    for mark in ("\t", ",", ";"):
        if mark in line:
            return [cell.strip() for cell in line.split(mark)]
    path, space, last = line.rpartition(" ")
    return [path.strip(), last] if space else [line]


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
    """Read COCO's `annotations.json`, a list of objects, or an object of paths and labels."""
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
    return lambda: iter(())


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
