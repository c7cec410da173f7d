"""What the readers of deliveries without a file per image share: raw files, splits by name, and paths of the images."""

import gzip
import io
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError
from convoy.images.archive import MAX_MEMBERS, Kind, members
from convoy.images.decode import Content
from convoy.images.delivery import Place
from convoy.images.litter import DECODED_SUFFIXES, is_litter, suffix_of

WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "tr": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "eval": "test",
    "holdout": "test",
}
"""Words in names of files and folders that state a split."""

UNLABELLED = "unlabelled image"

MAX_TEXT_BYTES = 2**20
"""Longest list of class names, in bytes."""


@dataclass(frozen=True)
class RawFiles:
    """List and open the files of a folder or an archive; a single file is itself.

    Attributes:
        path: the folder, archive or file.
        archive: kind of the archive; None for a folder or a file.
        opened: names of the files that were opened.
    """

    path: Path
    archive: Kind | None
    opened: set[str] = field(default_factory=set)

    def names(self) -> list[str]:
        """List paths, sorted within a folder, without what operating systems leave behind."""
        return list(self._names())

    def first(self, at_most: int) -> list[str]:
        """List the first paths, up to what is damaged or unsafe: whatever reads the files reports that."""
        found: list[str] = []
        with suppress(DataError, OSError):
            for name in islice(self._names(), at_most):
                found.append(name)  # noqa: PERF402 (those before an error are kept)
        return found

    def open(self, wanted: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        """Open some files, in the delivery's order; each is closed when the next is requested.

        Raises:
            DataError: an archive is unsafe or damaged.
        """
        self.opened.update(wanted)
        if self.archive:
            for raw, content in members(self.path, self.archive, whole=lambda raw: clean(raw) in wanted):
                if (name := clean(raw)) in wanted:
                    yield name, io.BytesIO(content)
            return
        for name in sorted(wanted):
            with self.locate(name).open("rb") as file:
                yield name, file

    def stream(
        self, images: Callable[[str, IO[bytes]], Iterator[Content]]
    ) -> Callable[[Collection[str]], Iterator[tuple[str, Iterator[Content]]]]:
        """Return a function that opens files by name and yields each with the images that `images` reads from it."""

        def opened(names: Collection[str]) -> Iterator[tuple[str, Iterator[Content]]]:
            for name, file in self.open(names):
                yield name, images(name, file)

        return opened

    def locate(self, name: str) -> Path:
        """Return where a file of a folder lies."""
        return self.path if self.path.is_file() else self.path / name

    def _names(self) -> Iterator[str]:
        if self.archive:
            for raw, _ in members(self.path, self.archive, names_only=True):
                if not is_litter(name := clean(raw)):
                    yield name
        elif self.path.is_file():
            yield self.path.name
        else:
            yield from _walk(self.path, "")


@dataclass(frozen=True)
class ArraySet:
    """Hold a delivery whose members are arrays or rows, as if it had a file per image.

    Attributes:
        kind: its format, such as `CIFAR (pickles)`.
        places: path of every image, with what the delivery states about it.
        notes: sentences about how the files are read, for people.
        files: streams the paths with the images' bytes: those delivered, or for arrays PPM and PGM.
    """

    kind: str
    places: Mapping[str, Place]
    files: Callable[[], Iterator[tuple[str, Content]]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Hold the labels of the images in one raw file.

    Attributes:
        name: of the raw file.
        labels: of its images, in order: names, or indices into the class names; None if the file has none.
        count: number of its images.
        tails: what distinguishes each image within the raw file; its number and `suffix` by default.
        suffix: such as `.ppm`.
        split: of its images; None if the names of the files state it, or nothing does.
    """

    name: str
    labels: Sequence[int | str] | None
    count: int
    tails: Sequence[str] | None = None
    suffix: str = ""
    split: Split | None = None


def assemble(
    kind: str,
    raw: RawFiles,
    parts: Sequence[Part],
    classes: Sequence[str] | None,
    stream: Callable[[Collection[str]], Iterator[tuple[str, Iterator[Content]]]],
) -> ArraySet:
    """Give every image a path and a place.

    Args:
        kind: the format.
        raw: the delivery.
        parts: the raw files with images.
        classes: names of labels that are indices; None if the numbers themselves are the names.
        stream: opens raw files by name, and yields each with the bytes of its images.

    Raises:
        DataError: an index without a name, images without labels beside labelled ones, splits without a train split.
    """
    split_of = _splits(parts, raw.path)
    _check_labelled(parts, split_of, raw.path)
    stems = _stems([part.name for part in parts])
    shared: dict[tuple[Split | None, str | None], Place] = {}
    places: dict[str, Place] = {}
    paths: dict[str, list[str]] = {}
    for part in parts:
        split = split_of[part.name]
        paths[part.name] = own = []
        for number in range(part.count):
            label = _label(part, number, classes, raw.path)
            passed_over = UNLABELLED if label is None else ""
            place = shared.setdefault((split, label), Place(split, label, passed_over=passed_over))
            folders = [name for name in (split, label and _folder(label)) if name]
            tail = part.tails[number] if part.tails else f"{number:05}{part.suffix}"
            path = "/".join((*folders, f"{stems[part.name]}-{tail}"))
            if path in places:
                raise DataError(f"{raw.path}: {part.name} contains `{tail}` twice.")
            places[path] = place
            own.append(path)

    def files() -> Iterator[tuple[str, Content]]:
        for name, contents in stream(paths):
            read = 0
            for path, content in zip(paths[name], contents, strict=False):
                read += 1
                yield path, content
            if read != len(paths[name]) or next(contents, None) is not None:
                raise DataError(
                    f"{raw.path}: {name} no longer has {len(paths[name]):,} images: it changed while it was read. Try again."
                )

    return ArraySet(kind, places, files)


def _check_labelled(parts: Sequence[Part], split_of: Mapping[str, Split | None], where: Path) -> None:
    labelled = [part.name for part in parts if part.labels is not None]
    if not labelled:
        raise DataError(f"{where}: {parts[0].name} states no labels, so nothing can be trained on it.")
    for part in parts:
        if part.labels is None and split_of[part.name] in (None, "train"):
            raise DataError(
                f"{where}: {part.name} states no labels for its {part.count:,} images, {labelled[0]} does. "
                "Deliver only labelled files."
            )
    if sum(part.count for part in parts) > MAX_MEMBERS:
        raise DataError(f"{where} contains more than {MAX_MEMBERS:,} images.")


def _splits(parts: Sequence[Part], where: Path) -> dict[str, Split | None]:
    """Read the split of each raw file from its name, or from the folders that it is in.

    Raises:
        DataError: some files state a split and others do not, or none states train.
    """
    found = {part.name: part.split or _split(part.name) for part in parts}
    stated = set(found.values())
    if None in stated and len(stated) > 1:
        without = next(name for name, split in found.items() if split is None)
        with_ = next(name for name, split in found.items() if split)
        raise DataError(
            f"{where}: the name of {with_} states the split {found[with_]}, that of {without} states none. "
            f"Name each file after its split: {', '.join(SPLITS)}."
        )
    if stated != {None} and "train" not in stated:
        raise DataError(
            f"{where} has only a {' and a '.join(sorted(map(str, stated)))} split ({', '.join(list(found)[:3])}). Add the train "
            "split; or, if all images are to be split, rename the files."
        )
    return found


def _split(name: str) -> Split | None:
    for part in reversed(name.lower().split("/")):
        words = {WORDS[word] for word in re.split(r"[^a-z0-9]+", part) if word in WORDS}
        if len(words) == 1:
            return words.pop()
    return None


def has_image(names: Sequence[str]) -> str:
    """Return the first name of an image file that is decoded; empty if none is."""
    return next((name for name in names if suffix_of(name) in DECODED_SUFFIXES), "")


def clean(name: str) -> str:
    """Normalise a member's path: `./a//b` becomes `a/b`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _walk(folder: Path, above: str) -> Iterator[str]:
    inside = (path for path in folder.iterdir() if not is_litter(path.name))
    entries = sorted(inside, key=lambda path: path.name)  # paths compare slowly
    for path in entries:
        if path.is_file():
            yield f"{above}{path.name}"
    for path in entries:
        if path.is_symlink() and path.is_dir():
            raise DataError(f"{path} is a link to a folder. Replace it by the folder.")
        if path.is_dir():
            yield from _walk(path, f"{above}{path.name}/")


def _label(part: Part, number: int, classes: Sequence[str] | None, where: Path) -> str | None:
    if part.labels is None:
        return None
    label = part.labels[number]
    if isinstance(label, int) and (label < 0 or (classes is not None and label >= len(classes))):
        names = f"of the {len(classes)} class names" if classes is not None else "of a class"
        raise DataError(
            f"{where}: image {number} of {part.name} has the label {label}, which is not an index {names}. "
            "Correct it, or deliver labelled images only."
        )
    name = label if isinstance(label, str) else str(label) if classes is None else classes[label]
    if not name.strip():
        raise DataError(
            f"{where}: image {number} of {part.name} has the label {label!r}, whose class name is empty. Name the class."
        )
    return unicodedata.normalize("NFC", name)


def _folder(label: str) -> str:
    """Spell a class name as one folder of a path; `%` stands for what a folder's name cannot hold."""
    spelled = re.sub(r"[%/\\\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", label)
    return re.sub(r"^\.", "%2E", spelled) or "%"


def _stems(names: Sequence[str]) -> dict[str, str]:
    """Name raw files without folders and suffix where that is unique."""
    short = {
        name: re.sub(r"(\.[A-Za-z0-9]{1,8}){1,2}$", "", name.rpartition("/")[2]) or name for name in names
    }
    if len(set(short.values())) == len(names):
        return short
    return {name: name.replace("/", "-") for name in names}


@contextmanager
def named(raw: RawFiles, name: str) -> Iterator[None]:
    """Put the delivery and the file before a reason."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{raw.path}: {name} is truncated or damaged ({error}). Fetch it again.") from error
    except DataError as error:
        raise DataError(f"{raw.path}: {name} {error}. Fetch it again from its publisher.") from error


def lines(file: IO[bytes]) -> list[str]:
    """Read a text file of class names, a name per line."""
    content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"has more than {MAX_TEXT_BYTES:,} bytes; a list of class names is shorter")
    return [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]


def netpbm(image: npt.NDArray[np.uint8]) -> bytes:
    """Write an (H, W) image as PGM, an (H, W, 3) image as PPM."""
    height, width = image.shape[:2]
    return f"P{5 if image.ndim == 2 else 6}\n{width} {height}\n255\n".encode() + image.tobytes()
