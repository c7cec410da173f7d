"""Read a delivery, a folder or archives, file by file.

Its kind is detected by content: a folder that holds archives instead of images is read as if each were unpacked there.
"""

import hashlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convoy.core import console
from convoy.core.contract import DEFAULT_BACKGROUND
from convoy.core.dataset import Split
from convoy.core.errors import DataError, listed
from convoy.core.escaping import visible
from convoy.images import code_pages, litter
from convoy.images.archive import REPACK, Kind, code_page, is_archive, kind_of, members
from convoy.images.decode import Content, Decoded, decode, read
from convoy.images.formats import HEAD_BYTES, Fault, starts_as_image, unsupported

if TYPE_CHECKING:
    from convoy.images.containers import ArraySet

EXPECTED = (
    "Expected: one folder per class with its images inside, or train|val|test folders of such class folders."
)

LISTS = frozenset({"csv", "tsv", "tab", "jsonl", "ndjson", "json"})
"""Ends of the names of files that may state classes."""

SAVED_ARRAYS = "npz"
"""Suffix of NumPy's zips of arrays."""

SHOWN = 5
"""Names in a message."""

FIRST_MEMBERS = 100

ARCHIVE_SUFFIX = re.compile(r"(\.tar)?\.[A-Za-z0-9]+$")

PART = re.compile(
    r"(?P<whole>.*?)[ ._-]*(?:(?:part|pt|vol|shard)[ ._-]*)?\(?(?P<number>\d+)\)?(?:[ _-]*of[ _-]*\d+)?",
    re.IGNORECASE | re.DOTALL,
)
"""Name of a numbered part of an archive, such as `takeout-20240101T000000Z-001` or `images_01`."""

PIECE = re.compile(
    r"\.(z\d\d|(zip|7z|rar|tar|t(gz|bz2?|xz|zst)|tar\.[a-z0-9]+)\.\d{2,}|part\d+\.rar)$", re.IGNORECASE
)
"""End of the name of a piece of a split archive, which is no archive on its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """Hold what a delivery states about one of its files.

    Attributes:
        split: the delivered split; None if the delivery has no splits, or the file is in none of them.
        label: its class; None outside the classes.
        group: images of one group, such as the frames of a video, stay in one split; None for an image of its own.
        passed_over: kind of the file if it is not read as an image, such as `unlabelled image`; else empty.
        reason: why an image that should have a class has none; empty if it only lies outside the classes.
        fault: kind of the reason.
    """

    split: Split | None = None
    label: str | None = None
    group: str | None = None
    passed_over: str = ""
    reason: str = ""
    fault: Fault = "outside_a_class"


@dataclass(frozen=True)
class Mount:
    """Place a folder or an archive in the tree of a delivery.

    Attributes:
        prefix: folder that its paths are in, with a slash at its end; empty at the top.
        path: of the folder or archive.
        archive: kind of the archive; None for a folder.
    """

    prefix: str
    path: Path
    archive: Kind | None = None


@dataclass(eq=False)
class Delivery:
    """List and read delivered files by their paths inside the folder or archive.

    Attributes:
        path: what was delivered.
        mounts: the folder or the archive; or the folder, and the archives in it that are read as folders.
        arrays: the images where members are arrays or rows; None for files of images.
        litter: after `names`, how many files are passed over without being listed, by kind, each with an example.
        empty_folders: after `names`, folders without a file that may be an image; not those inside them.
        notes: sentences about how the names are read, for people.
    """

    path: Path
    mounts: tuple[Mount, ...] = ()
    arrays: "ArraySet | None" = None
    litter: dict[str, tuple[int, str]] = field(default_factory=dict)
    empty_folders: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _names: list[str] = field(default_factory=list, repr=False)
    _skipped: set[str] | None = field(default=None, repr=False)

    @property
    def places(self) -> Mapping[str, Place] | None:
        """Return what an array set states about each path; None where names of folders and files state it."""
        return self.arrays.places if self.arrays else None

    @property
    def archive(self) -> Kind | None:
        """Return the kind of the archive; None for a folder, or several archives."""
        return self.mounts[0].archive if len(self.mounts) == 1 else None

    @property
    def kind(self) -> str:
        """Return `folder`, `zip`, `tar`, `tar.gz` and the like, the number of archives, or the format of an array set."""
        if self.arrays:
            return self.arrays.kind
        archives = [mount.archive for mount in self.mounts if mount.archive]
        if len(archives) > 1:
            return f"{len(archives)} archives"
        return archives[0] if archives else "folder"

    def names(self) -> list[str]:
        """List delivered paths, `/` between folders, without litter; fills `litter`, `empty_folders` and `notes`.

        Raises:
            DataError: an archive is unsafe, damaged or holds other archives; a path occurs twice or is not a regular file.
        """
        if self.arrays:
            self.notes[:] = self.arrays.notes
            return list(self.arrays.places)
        if self._skipped is None:  # listing an archive reads all of it
            self._names, self._skipped = self._listed()
        return self._names

    def _listed(self) -> tuple[list[str], set[str]]:
        """List what `names` returns, and the previews that are passed over."""
        self.litter.clear()
        seen: dict[str, None] = {}
        folders: set[str] = set()
        for mount in self.mounts:
            for name in _listing(mount, self.mounts):
                if what := litter.litter(f"{name}x" if name.endswith("/") else name):
                    if not name.endswith("/"):
                        self._count(what, name)
                elif name.endswith("/"):
                    folders.add(name[:-1])
                elif name not in seen:
                    seen[_utf8(name, mount.path)] = None
                elif not litter.kind(name):
                    raise DataError(f"{self.path} contains `{visible(name)}` twice. {REPACK}")
        self.notes[:] = dict.fromkeys([*self.notes, *filter(None, map(_note_on_names, self.mounts))])
        skipped = litter.small_copies(seen)
        for name in sorted(skipped):
            self._count(litter.THUMBNAIL, name)
            del seen[name]
        self._check_nested(seen)
        self.empty_folders[:] = _empty(folders, seen)
        return list(seen), skipped

    def holds(self) -> str:
        """Describe what `names` found, for refusals of a delivery without images."""
        names, count = self.names(), len(self.names())
        found = (
            f"Found: {count:,} file{'s' * (count != 1)}, such as {visible(listed(names, SHOWN))}."
            if names
            else ""
        )
        passed = [
            f"{number:,} of the kind {kind} ({visible(example)})"
            for kind, (number, example) in self.litter.items()
        ]
        passed_over = f"Passed over: {listed(passed, SHOWN)}." if passed else ""
        empty = (
            f"Folders without files: {visible(listed(self.empty_folders, SHOWN))}."
            if self.empty_folders
            else ""
        )
        return " ".join(filter(None, (found, passed_over, empty))) or "It is empty."

    def files(self) -> Iterator[tuple[str, Content]]:
        """Stream the paths that `names` lists with the files' bytes; reads an archive once and writes nothing.

        Only the first bytes of files that are not images are read, and nothing of files larger than any image.

        Raises:
            DataError: the archive is unsafe or damaged, or a file cannot be read.
        """
        if self._skipped is None and not self.arrays:
            self.names()
        return self._files(self._skipped or set())

    def _files(self, skipped: Collection[str] = ()) -> Iterator[tuple[str, Content]]:
        if self.arrays:
            yield from self.arrays.files()
            return
        repeated: set[str] = set()  # files that are no images, in several archives
        coming = iter(self._names)
        ahead = next(coming, "")
        for mount in self.mounts:
            if mount.archive is None:
                names = (name for name in _listing(mount, self.mounts) if not name.endswith("/"))
                files = self._read(name for name in names if not litter.is_litter(name))
            else:
                files = _members(mount, mount.archive)
            for name, content in files:
                is_next = name == ahead
                if not is_next and (
                    name in skipped or name in repeated or (mount.archive and litter.is_litter(name))
                ):
                    continue
                if len(self.mounts) > 1 and litter.kind(name):
                    repeated.add(name)
                if is_next:  # pass on the string that is held already
                    yield ahead, content
                    ahead = next(coming, "")
                else:
                    yield name, content

    def read(self, names: Collection[str], limit: int) -> Iterator[tuple[str, bytes]]:
        """Stream delivered files that are no images, such as lists of labels; of one above `limit` bytes, the first `limit`.

        Raises:
            DataError: the archive is damaged, or a file cannot be read.
        """
        for mount in self.mounts:
            if mount.archive is None:
                inside = ((name, self.path / name) for name in names if (self.path / name).is_file())
                for name, path in inside:
                    with path.open("rb") as file:
                        yield name, file.read(min(limit, path.stat().st_size))
                continue
            prefix = mount.prefix
            wanted = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
            whole = partial(_is_among, wanted)
            for raw, content in members(mount.path, mount.archive, whole=whole) if wanted else ():
                if whole(raw):
                    yield f"{prefix}{posixpath.normpath(raw)}", content[:limit]

    def images(
        self, sha256: Mapping[str, str], activity: str, total: int, *, background: str = DEFAULT_BACKGROUND
    ) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        """Decode files that were prepared earlier: yield each path with its (H, W, 3) uint8 image, as `originals` yields its bytes.

        Raises:
            DataError: a file cannot be decoded; or as `originals`.
        """
        for path, _, decoded in self.decoded(sha256, activity, total, background=background):
            yield path, decoded.image_u8

    def decoded(
        self, sha256: Mapping[str, str], activity: str, total: int, *, background: str = DEFAULT_BACKGROUND
    ) -> Iterator[tuple[str, bytes, Decoded]]:
        """Decode files that were prepared earlier: yield each path with its bytes and its image.

        Raises:
            DataError: as `images`.
        """
        for path, content in self.originals(sha256, activity, total):
            try:
                yield path, content, decode(content, background=background, max_truncated=1.0)
            except DataError as error:
                raise DataError(
                    f"{self.path}: {path} was prepared, but now it {error}. Prepare again: dvc repro --force prepare"
                ) from error

    def originals(self, sha256: Mapping[str, str], activity: str, total: int) -> Iterator[tuple[str, bytes]]:
        """Read files that were prepared earlier: yield each path with its bytes.

        Of a folder only these files are read, in the order given; an archive is read from its start, in its own order.

        Args:
            sha256: delivered paths with the SHA-256 that their bytes had when they were prepared.
            activity: for the progress display.
            total: number of files in the delivery, for the progress through an archive.

        Raises:
            DataError: after the last file, some are missing or have changed.
        """
        if not sha256:
            return
        missing, changed = dict(sha256), []
        if len(self.mounts) == 1 and self.archive is None and self.arrays is None:
            files, total = self._read(path for path in sha256 if (self.path / path).exists()), len(sha256)
        else:
            files = self._files()
        for path, content in console.track(files, activity, total):
            prepared = missing.pop(path, None)
            if prepared is None:
                continue
            if isinstance(content, DataError) or hashlib.sha256(content).hexdigest() != prepared:
                changed.append(path)
                continue
            yield path, content
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

    def _count(self, what: str, name: str) -> None:
        number, example = self.litter.get(what, (0, name))
        self.litter[what] = (number + 1, example)

    def _check_nested(self, names: Iterable[str]) -> None:
        """Refuse archives that hold archives instead of images."""
        if self.mounts[-1].archive is None or any(not litter.kind(name) for name in names):
            return
        if inside := [visible(name) for name in names if litter.kind(name) == litter.ARCHIVE]:
            raise DataError(
                f"{self.path} contains archives instead of images ({listed(inside, SHOWN)}), and archives inside archives are "
                "not read. Unpack it, and deliver the folder of archives: each is then read as a folder."
            )


def open_delivery(data: Path) -> Delivery:
    """Detect what is delivered at a path, by content, whatever its name.

    Args:
        data: a folder, or an archive (DVC imports a single file as a file).

    Raises:
        DataError: nothing is there, or a file that is not an archive.
    """
    from convoy.images.array_sets import recognise  # noqa: PLC0415 (it imports this module)

    if data.is_file():
        kind = kind_of(data)
        arrays = recognise(data, kind)
        if kind is None and arrays is None:
            raise DataError(f"{data} is a file, but not a zip or tar archive, nor a Parquet file. {EXPECTED}")
        return Delivery(data, (Mount("", data, kind),), arrays)
    if not data.is_dir():
        raise DataError(
            f"{data} does not exist. Fetch it with `dvc repro`, or choose a source: `convoy data use SOURCE`."
        )
    if arrays := recognise(data, None):
        return Delivery(data, (Mount("", data),), arrays)
    archives = _archives(data)
    if len(archives) == 1:
        ((name, kind),) = archives.items()
        arrays = recognise(data / name, kind)
        if arrays or not _has_lists(data):
            return Delivery(data / name, (Mount("", data / name, kind),), arrays)
    return _mounted(data, archives)


def _has_lists(data: Path) -> bool:
    """Check whether a folder of archives has lists too, which may state the classes: `train.csv` beside `train.zip`."""
    return any(litter.suffix_of(name) in LISTS and not litter.is_litter(name) for name in folder_names(data))


def _archives(data: Path) -> dict[str, Kind]:
    """Find the archives in a folder that holds archives instead of images, by their paths in it; none in any other folder.

    Raises:
        DataError: the folder holds archives that are not supported or damaged, instead of images.
    """
    paths = (name for name in folder_names(data) if not name.endswith("/") and not litter.is_litter(name))
    suspects, saved = [], []
    for name in paths:
        what, is_piece = litter.kind(name), PIECE.search(name)
        is_unknown = not (what or is_piece or is_archive(data / name))
        if litter.claims_to_be_image(name) or (is_unknown and starts_as_image(_head(data / name))):
            return {}
        if not is_unknown and (is_piece or what in ("", litter.ARCHIVE, litter.COMPRESSED)):
            suspects.append(name)
        elif litter.suffix_of(name) == SAVED_ARRAYS and is_archive(data / name):
            saved.append(name)
    if len(saved) > 1 and not suspects:
        raise DataError(
            f"{data} contains {len(saved)} sets of NumPy arrays instead of images ({visible(listed(saved, SHOWN))}). Deliver the file of "
            f"the set to train on: {visible(str(data / saved[0]))}"
        )
    return _recognised(data, suspects or saved)


def _recognised(data: Path, suspects: Iterable[str]) -> dict[str, Kind]:
    """Detect the kinds of what may be archives; none if a file is compressed data of another kind."""
    found: dict[str, Kind] = {}
    for name in suspects:
        if PIECE.search(name):
            raise DataError(
                f"{data / name} is a piece of a split archive, which cannot be read alone. Join the pieces (`zip -s 0 photos.zip "
                "--out whole.zip` for .z01, .z02, .zip; else `cat photos.zip.* > photos.zip`), and deliver the whole."
            )
        if litter.kind(name) == litter.COMPRESSED and not is_archive(data / name):
            return {}  # compressed data of another kind
        if kind := kind_of(data / name):
            found[name] = kind
        elif litter.kind(name) == litter.ARCHIVE:
            raise _no_archive(data / name)
    return found


def _no_archive(path: Path) -> DataError:
    head = _head(path)
    what = str(unsupported(head)).partition(", not an image")[0] if head else "is empty (0 bytes)"
    what = "does not start as one" if "supported format" in what else what
    return DataError(f"{path} is named like an archive, but {what}. Fetch it again, or remove it.")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _mounted(data: Path, archives: Mapping[str, Kind]) -> Delivery:
    """Read each archive as a folder of its own name, and numbered parts as one folder."""
    if not archives:
        return Delivery(data, (Mount("", data),))
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in archives:
        folders[posixpath.dirname(name)].append(name)
    mounts = [Mount("", data)]
    for folder, names in folders.items():
        stems = {name: ARCHIVE_SUFFIX.sub("", posixpath.basename(name)) for name in names}
        wholes = {
            name: match["whole"]
            for name, stem in stems.items()
            if (match := PART.fullmatch(stem))
            and match["whole"]
            and _shares_folders(data / name, archives[name])
        }
        if len({*wholes.values()}) == len(wholes):  # single numbers, as in `photos-2024.zip`
            wholes = {}
        is_whole = len(names) == len(wholes) and len({*wholes.values()}) == 1
        is_alone = len(names) == 1 and folder
        for name in names:
            inside = folder if is_whole or is_alone else posixpath.join(folder, wholes.get(name, stems[name]))
            mounts.append(Mount(inside and f"{inside}/", data / name, archives[name]))
    shown = [f"{mount.path.relative_to(data)} as {mount.prefix or 'the whole'}" for mount in mounts[1:]]
    return Delivery(data, tuple(mounts), notes=[f"Archives read as folders: {visible(listed(shown, SHOWN))}"])


def _shares_folders(path: Path, kind: Kind) -> bool:
    """Check whether the first files of an archive are in folders, or lie beside files with their labels (WebDataset)."""
    for name, _ in islice(members(path, kind, names_only=True, folders=True), FIRST_MEMBERS):
        if name.endswith(".cls"):
            return True
        if not (
            name.endswith("/") or litter.is_litter(name) or litter.kind(name)
        ) and "/" in posixpath.normpath(name):
            return True
    return False


def _note_on_names(mount: Mount) -> str:
    """State in which code page the names of a zip are read, where they do not state it themselves."""
    page = code_page(mount.path, mount.archive) if mount.archive else None
    if page is None:
        return ""
    if page:
        return f"Names in {mount.path.name} are not marked as UTF-8, and read as {code_pages.display(page)}."
    return (
        f"Names in {mount.path.name} are not marked as UTF-8, and make no sense in any known code page; class names may be "
        "garbled. Pack it again with a program that writes UTF-8, such as 7-Zip."
    )


def _listing(mount: Mount, mounts: Iterable[Mount]) -> Iterator[str]:
    """List files and folders of a mount, litter included; folders have a slash at the end. Archives that are mounts are not listed."""
    if mount.archive is None:
        mounted = {other.path for other in mounts if other.archive}
        names = folder_names(mount.path)
        yield from (name for name in names if mount.path / name not in mounted) if mounted else names
        return
    for raw, _ in members(mount.path, mount.archive, names_only=True, folders=True):
        name = _normal(raw)
        if name != ".":
            yield f"{mount.prefix}{name}{'/' * raw.endswith('/')}"


def _members(mount: Mount, kind: Kind) -> Iterator[tuple[str, Content]]:
    for raw, content in members(mount.path, kind):
        yield f"{mount.prefix}{_normal(raw)}", content


def _normal(raw: str) -> str:
    """Write `./a//b/` as `a/b`."""
    is_usual = raw and "//" not in raw and "./" not in raw and not raw.endswith(("/", "."))
    return raw if is_usual else posixpath.normpath(raw)


def _is_among(wanted: Collection[str], raw: str) -> bool:
    return posixpath.normpath(raw) in wanted


def folder_names(top: Path) -> Iterator[str]:
    """Walk a folder in sorted order: files and folders, litter included, folders with a slash at the end of their names.

    A link to a file is followed: DVC's cache can be linked in.
    """
    for where, folders, files in os.walk(top, onerror=lambda error: _refuse(error, top)):
        below = where.removeprefix(str(top)).strip(
            "/"
        )  # pathlib would take most of the time of 100,000 folders
        prefix = below and f"{below}/"
        folders.sort()
        for name in folders:
            if not litter.is_litter(f"{prefix}{name}/x"):
                _check_folder(f"{where}/{name}")
                yield f"{prefix}{name}/"
        for name in sorted(files):
            path = f"{where}/{name}"
            if not litter.is_litter(f"{prefix}{name}") and not os.path.isfile(path):  # noqa: PTH113 (as above)
                raise DataError(
                    f"{path} is not a regular file but a broken link, a pipe or a device. Remove it."
                )
            yield f"{prefix}{name}"


def _check_folder(path: str) -> None:
    if os.path.islink(path):  # noqa: PTH114 (as above)
        raise DataError(
            f"{path} is a link to a folder ({Path(path).readlink()}), which DVC would leave out. Replace it by the folder, or deliver a "
            "copy that holds the files themselves: `cp -RL photos copy`"
        )


def _empty(folders: Iterable[str], names: Iterable[str]) -> list[str]:
    """List the folders without a file that may be an image, by its name; of those inside each other the outermost."""
    every, used = {""}, {""}

    def add(target: set[str], folder: str) -> None:
        while folder not in target:
            target.add(folder)
            folder = posixpath.dirname(folder)

    for folder in folders:
        add(every, folder)
    for folder, has_images in {(name.rpartition("/")[0], not litter.kind(name)) for name in names}:
        add(used if has_images else every, folder)
    return sorted(folder for folder in every - used if posixpath.dirname(folder) in used)


def _utf8(name: str, delivery: Path) -> str:
    """Refuse a name that a manifest cannot hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{delivery} contains `{visible(name)}`, a file name that is not UTF-8. Rename it."
        ) from error
    return name


def _refuse(error: OSError, top: Path) -> None:
    name = Path(error.filename).relative_to(top).as_posix()
    if not litter.is_litter(f"{name}/x"):
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
