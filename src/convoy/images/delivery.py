"""What was delivered, recognised by content: a folder, an archive, or a folder with one archive in it."""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convoy.core import console
from convoy.core.errors import DataError
from convoy.images import archive
from convoy.images.decode import decode
from convoy.images.layout import EXPECTED, is_litter


@dataclass(frozen=True)
class Delivery:
    """Hand out delivered files under their paths inside the folder or archive.

    Attributes:
        path: the folder or the archive.
        kind: `folder`, `zip`, `tar`, `tar.gz`, `tar.bz2` or `tar.xz`.
    """

    path: Path
    archive: archive.Kind | None

    @property
    def kind(self) -> str:
        """Name what it is, for people."""
        return self.archive or "folder"

    def names(self) -> list[str]:
        """List delivered paths, `/` between folders, without what operating systems leave behind.

        Raises:
            DataError: the archive is unsafe or broken, a path occurs twice or is no plain file.
        """
        if self.archive is None:
            return list(_folder_names(self.path))
        seen: dict[str, None] = {}
        for raw in archive.names(self.path, self.archive):
            name = self._tidy(raw)
            if is_litter(name):
                continue
            if name in seen:
                raise DataError(f"{self.path} holds `{name}` twice. {archive.REPACK}")
            seen[name] = None
        return list(seen)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Stream delivered paths with the files' bytes; reads an archive once and writes nothing.

        Raises:
            DataError: the archive is unsafe or broken, or a file cannot be read.
        """
        if self.archive is not None:
            for raw, content in archive.members(self.path, self.archive):
                name = self._tidy(raw)
                if not is_litter(name):
                    yield name, content
            return
        yield from self._read(_folder_names(self.path))

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
        if self.archive is None:
            files, total = self._read(path for path in sha256 if (self.path / path).exists()), len(sha256)
        else:
            files = self.files()
        for path, content in console.track(files, activity, total):
            prepared = missing.pop(path, None)
            if prepared is None:
                continue
            if hashlib.sha256(content).hexdigest() != prepared:
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

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            try:
                content = (self.path / name).read_bytes()
            except OSError as error:
                raise DataError(f"{self.path / name} cannot be read: {error.strerror}.") from error
            yield name, content

    def _tidy(self, raw: str) -> str:
        """Bring `./a//b` to `a/b`."""
        return _utf8(posixpath.normpath(raw), self.path)


def open_delivery(data: Path) -> Delivery:
    """Recognise what lies at a path, by content: names and endings do not count.

    Args:
        data: a folder, or an archive (DVC imports a single file as a file).

    Raises:
        DataError: there is nothing, a file that is no archive, or more than one archive.
    """
    if data.is_file():
        kind = archive.kind_of(data)
        if kind is None:
            raise DataError(f"{data} is one file and no zip or tar archive. {EXPECTED}")
        return Delivery(data, kind)
    if not data.is_dir():
        raise DataError(
            f"{data} does not exist. Fetch it with `dvc repro`, or choose a source: `convoy data use SOURCE`."
        )
    folder = data
    while True:
        inside = sorted(path for path in folder.iterdir() if not is_litter(path.name))
        folders = [path for path in inside if path.is_dir()]
        if len(inside) != 1 or not folders:
            break
        (folder,) = folders
    if folders:
        return Delivery(data, None)
    archives = [(path, kind) for path in inside if path.is_file() and (kind := archive.kind_of(path))]
    if len(archives) > 1:
        found = ", ".join(path.name for path, _ in archives)
        raise DataError(
            f"{folder} holds {len(archives)} archives ({found}); one is read. Unpack them into train, val and test "
            "folders, or deliver one archive of all."
        )
    return Delivery(*archives[0]) if archives else Delivery(data, None)


def _folder_names(top: Path) -> Iterator[str]:
    """Walk a folder in sorted order. A link to a file is followed: DVC's cache can be linked in."""
    for where, folders, files in os.walk(top, onerror=_refuse):
        for name in sorted(folders):
            if (Path(where) / name).is_symlink() and not is_litter(name):
                raise DataError(f"{Path(where) / name} is a link to a folder. Put the folder itself there.")
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in sorted(files):
            path = Path(where) / name
            if is_litter(name):
                continue
            if not path.is_file():
                raise DataError(f"{path} is no plain file (a broken link, a pipe or a device). Remove it.")
            yield _utf8(path.relative_to(top).as_posix(), top)


def _utf8(name: str, where: Path) -> str:
    """Refuse a name that no manifest can hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds {name!a}, a file name that is no UTF-8. Rename it.") from error
    return name


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
