"""Read a delivery, a folder or an archive, file by file.

Its kind is detected by content: a folder with a single archive in it counts as the archive.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convoy.core import console
from convoy.core.dataset import Split
from convoy.core.errors import DataError
from convoy.images.archive import REPACK, Kind, kind_of, members
from convoy.images.decode import Content, decode, read

if TYPE_CHECKING:
    from convoy.images.containers import ArraySet

EXPECTED = (
    "Expected: one folder per class with its images inside, or train|val|test folders of such class folders."
)

LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__pycache__"})
"""Names that operating systems leave behind, in lower case; hidden files (`.DS_Store`) are skipped as well."""


def is_litter(name: str) -> bool:
    """Check whether a path is one that an operating system left behind."""
    return any(part.startswith(".") or part.lower() in LITTER for part in name.split("/"))


@dataclass(frozen=True, slots=True)
class Place:
    """Hold what a delivery states about one of its files.

    Attributes:
        split: the delivered split; None if the delivery has no splits, or the file is in none of them.
        label: its class; None outside the classes.
        group: images of one group, such as the frames of a video, stay in one split; None for an image of its own.
        passed_over: kind of the file if it is not read as an image, such as `unlabelled image`; else empty.
    """

    split: Split | None = None
    label: str | None = None
    group: str | None = None
    passed_over: str = ""


@dataclass(frozen=True)
class Delivery:
    """List and read delivered files by their paths inside the folder or archive.

    Attributes:
        path: the folder or the archive.
        archive: kind of the archive; None for a folder.
        arrays: the images where members are arrays or rows; None for files of images.
    """

    path: Path
    archive: Kind | None
    arrays: "ArraySet | None" = None

    @property
    def places(self) -> Mapping[str, Place] | None:
        """Return what an array set states about each path; None where names of folders and files state it."""
        return self.arrays.places if self.arrays else None

    @property
    def kind(self) -> str:
        """Return `folder`, `zip`, `tar`, `tar.gz`, `tar.bz2` or `tar.xz`; or the format of an array set."""
        return self.arrays.kind if self.arrays else self.archive or "folder"

    def names(self) -> list[str]:
        """List delivered paths, `/` between folders, without what operating systems leave behind.

        Raises:
            DataError: the archive is unsafe or damaged, a path occurs twice or is not a regular file.
        """
        if self.arrays:
            return list(self.arrays.places)
        if self.archive is None:
            return list(_folder_names(self.path))
        seen: dict[str, None] = {}
        for name, _ in self._members(self.archive, names_only=True):
            if name in seen:
                raise DataError(f"{self.path} contains `{name}` twice. {REPACK}")
            seen[name] = None
        return list(seen)

    def files(self) -> Iterator[tuple[str, Content]]:
        """Stream delivered paths with the files' bytes; reads an archive once and writes nothing.

        In a folder, only the first bytes of files that are not images are read, and nothing of files larger than any image.

        Raises:
            DataError: the archive is unsafe or damaged, or a file cannot be read.
        """
        if self.arrays:
            return self.arrays.files()
        if self.archive is None:
            return self._read(_folder_names(self.path))
        return self._members(self.archive)

    def images(
        self, sha256: Mapping[str, str], activity: str, total: int
    ) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        """Decode files that were prepared earlier: yield each path with its (H, W, 3) uint8 image.

        Of a folder only these files are read, in the order given; an archive is read from its start, in its own order.

        Args:
            sha256: delivered paths with the SHA-256 that their bytes had when they were prepared.
            activity: for the progress display.
            total: number of files in the delivery, for the progress through an archive.

        Raises:
            DataError: a file cannot be decoded; or, after the last image, some are missing or have changed.
        """
        if not sha256:
            return
        missing, changed = dict(sha256), []
        if self.archive is None and self.arrays is None:
            files, total = self._read(path for path in sha256 if (self.path / path).exists()), len(sha256)
        else:
            files = self.files()
        for path, content in console.track(files, activity, total):
            prepared = missing.pop(path, None)
            if prepared is None:
                continue
            if isinstance(content, DataError) or hashlib.sha256(content).hexdigest() != prepared:
                changed.append(path)
                continue
            try:
                yield path, decode(content).image_u8
            except DataError as error:
                raise DataError(
                    f"{self.path}: {path} was prepared, but now it {error}. Prepare again: dvc repro --force prepare"
                ) from error
            if not missing:
                break
        for paths, problem in ((list(missing), "are no longer delivered"), (changed, "have changed")):
            if paths:
                raise DataError(
                    f"{self.path}: {len(paths):,} of {len(sha256):,} images {problem} since they were prepared, the first is "
                    f"{paths[0]}. Run the pipeline on the current data: dvc repro"
                )

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, Content]]:
        for name in names:
            content: Content
            try:
                content = read(self.path / name)
            except DataError as error:
                content = error
            except OSError as error:
                raise DataError(f"{self.path / name} cannot be read: {error.strerror}.") from error
            yield name, content

    def _members(self, kind: Kind, *, names_only: bool = False) -> Iterator[tuple[str, bytes]]:
        for raw, content in members(self.path, kind, names_only=names_only):
            name = _utf8(posixpath.normpath(raw), self.path)  # `./a//b` becomes `a/b`
            if not is_litter(name):
                yield name, content


def open_delivery(data: Path) -> Delivery:
    """Detect what is delivered at a path, by content, whatever its name.

    Args:
        data: a folder, or an archive (DVC imports a single file as a file).

    Raises:
        DataError: nothing is there, a file that is not an archive, or several archives.
    """
    from convoy.images.array_sets import recognise  # noqa: PLC0415 (it imports this module)

    if data.is_file():
        kind = kind_of(data)
        arrays = recognise(data, kind)
        if kind is None and arrays is None:
            raise DataError(f"{data} is a file, but not a zip or tar archive, nor a Parquet file. {EXPECTED}")
        return Delivery(data, kind, arrays)
    if not data.is_dir():
        raise DataError(
            f"{data} does not exist. Fetch it with `dvc repro`, or choose a source: `convoy data use SOURCE`."
        )
    if arrays := recognise(data, None):
        return Delivery(data, None, arrays)
    folder = data
    while True:
        inside = sorted(path for path in folder.iterdir() if not is_litter(path.name))
        folders = [path for path in inside if path.is_dir()]
        if len(inside) != 1 or not folders:
            break
        (folder,) = folders
    if folders:
        return Delivery(data, None)
    archives = [(path, kind) for path in inside if path.is_file() and (kind := kind_of(path))]
    if len(archives) > 1:
        names = ", ".join(path.name for path, _ in archives)
        raise DataError(
            f"{folder} contains {len(archives)} archives ({names}); only a single one is supported. "
            "Unpack them into train, val and test folders, or pack them as one archive."
        )
    return Delivery(*archives[0], recognise(*archives[0])) if archives else Delivery(data, None)


def _folder_names(top: Path) -> Iterator[str]:
    """Walk a folder in sorted order. A link to a file is followed: DVC's cache can be linked in."""
    for where, folders, files in os.walk(top, onerror=_refuse):
        for name in sorted(folders):
            if (Path(where) / name).is_symlink() and not is_litter(name):
                raise DataError(f"{Path(where) / name} is a link to a folder. Replace it by the folder.")
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in sorted(files):
            path = Path(where) / name
            if is_litter(name):
                continue
            if not path.is_file():
                raise DataError(
                    f"{path} is not a regular file but a broken link, a pipe or a device. Remove it."
                )
            yield _utf8(path.relative_to(top).as_posix(), top)


def _utf8(name: str, delivery: Path) -> str:
    """Refuse a name that a manifest cannot hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{delivery} contains {name!a}, a file name that is not UTF-8. Rename it.") from error
    return name


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
