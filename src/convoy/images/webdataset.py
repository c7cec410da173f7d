"""Read WebDataset shards: tar archives in which the files of a sample follow each other and share a key.

`000017.jpg` and `000017.cls` (a whole number or a name), or `000017.json` with `label` or `class`. What follows the first
dot of a file's name is its kind. Class names are in `classnames.txt` beside the shards, if there are any.
https://github.com/webdataset/webdataset
"""

import json
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from convoy.core.errors import DataError
from convoy.images.archive import Kind, kind_of, members
from convoy.images.containers import ArraySet, Part, RawFiles, assemble, clean
from convoy.images.decode import Content
from convoy.images.litter import DECODED_SUFFIXES, is_litter

SHARD = re.compile(r"\.(tar|t(gz|az|bz2?|b2|z2|xz|zst)|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
CLASS_NAMES = ("classnames.txt", "classes.txt", "class_names.txt")
LABEL_KEYS = ("label", "class", "cls")
LABEL_KINDS = ("cls", "cls.txt", "json")
MAX_LABEL_BYTES = 2**20
"""Longest file with a label, in bytes."""


def recognise(raw: RawFiles, first: Sequence[str]) -> ArraySet | None:
    """Recognise a WebDataset archive, or a folder of them; None for anything else.

    Raises:
        DataError: a sample has no label or several images, or an archive is damaged.
    """
    classes: list[str] | None = None
    if raw.archive:
        shards = {raw.path.name: (raw.path, raw.archive)}
        if not _pairs(first) or not _has_labels(raw.path, raw.archive):
            return None
    else:
        if raw.path.is_file() or not any(SHARD.search(name) for name in first):
            return None
        names = raw.names()
        found = {name: kind_of(raw.path / name) for name in names if SHARD.search(name)}
        shards = {name: (raw.path / name, kind) for name, kind in found.items() if kind}
        if not shards or not all(_has_labels(*shard) for shard in shards.values()):
            return None
        if texts := [name for name in names if name.rpartition("/")[2] in CLASS_NAMES]:
            text = (raw.path / texts[0]).read_bytes()[:MAX_LABEL_BYTES].decode(errors="replace")
            classes = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [_part(name, *shard) for name, shard in shards.items()]

    def stream(names: Collection[str]) -> Iterator[tuple[str, Iterator[Content]]]:
        for name in names:
            path, kind = shards[name]
            yield name, (content for _, kind_, content in _samples(path, kind) if kind_ in DECODED_SUFFIXES)

    return assemble("WebDataset", raw, parts, classes, stream)


def _samples(path: Path, kind: Kind) -> Iterator[tuple[str, str, bytes]]:
    """Stream the files of an archive as key, kind of file and content."""
    wanted = {*DECODED_SUFFIXES, *LABEL_KINDS}
    for raw, content in members(path, kind, whole=lambda raw: _key(raw)[1] in wanted):
        if not is_litter(name := clean(raw)):
            yield *_key(name), content


def _key(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name)
    stem, _, kind = base.partition(".")
    return posixpath.join(folder, stem), kind.lower()


def _pairs(names: Sequence[str]) -> bool:
    """Check whether some sample has both an image and a label."""
    keys = [_key(name) for name in names]
    images = {key for key, kind in keys if kind in DECODED_SUFFIXES}
    return any(key in images for key, kind in keys if kind in LABEL_KINDS)


def _has_labels(path: Path, kind: Kind) -> bool:
    """Check whether the first samples have images and labels: other archives have .json files too."""
    kinds: set[str] = set()
    has_label = False
    for number, (_, kind_, content) in enumerate(_samples(path, kind)):
        kinds.add(kind_)
        has_label = has_label or _label(kind_, content) is not None
        if has_label and kinds & DECODED_SUFFIXES:
            return True
        if number == len(LABEL_KINDS) + len(DECODED_SUFFIXES):
            break
    return False


def _label(kind: str, content: bytes) -> int | str | None:
    """Read the label in a file of a sample; None if it states none."""
    if kind not in LABEL_KINDS or len(content) > MAX_LABEL_BYTES:
        return None
    value: object = content.decode(errors="replace").strip()
    if kind == "json":
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return None
        value = (
            next((found[key] for key in LABEL_KEYS if key in found), None)
            if isinstance(found, dict)
            else None
        )
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text or None
    return value if type(value) is int and value >= 0 else None


def _part(name: str, path: Path, kind: Kind) -> Part:
    """Read the keys and labels of a shard.

    Raises:
        DataError: see `recognise`.
    """
    labels: list[int | str | None] = []
    tails: list[str] = []
    shared: dict[int | str, int | str] = {}
    for key, files in groupby(_samples(path, kind), key=lambda file: file[0]):
        images: list[str] = []
        label: int | str | None = None
        for _, kind_, content in files:
            if kind_ in DECODED_SUFFIXES:
                images.append(kind_)
            elif label is None:
                label = _label(kind_, content)
        if len(images) > 1:
            raise DataError(
                f"{path}: sample `{key}` has {len(images)} images ({', '.join(images)}). Write one image per sample."
            )
        if images:
            tails.append(f"{key}.{images[0]}")
            labels.append(label if label is None else shared.setdefault(label, label))
    known = [label for label in labels if label is not None]
    if not known:
        return Part(name, None, len(tails), tails)
    if len(known) < len(labels):
        first = tails[labels.index(None)]
        raise DataError(
            f"{path}: {len(labels) - len(known):,} of {len(labels):,} samples have no label, the first is `{first}`. "
            "Remove them, or add their .cls files."
        )
    return Part(name, known, len(tails), tails)
