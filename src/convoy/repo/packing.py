"""Pack a delivered folder of many files as one archive, which DVC imports instead, and pack it again when the folder changes.

DVC hashes a folder file by file: 60,000 files take 30 s of processor time to import and 4 s at each `dvc status`; their archive 1 s and
0.5 s. DVC sees a change of the archive only, so `make repro`, `make retrain` and `convoy why` walk the folder first (0.2 s) and compare
names, sizes, times and inodes, as DVC does for the files that it has hashed before.
"""

import hashlib
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from convoy.core import files, pipeline
from convoy.core.console import track
from convoy.core.errors import DataError, RequestError

FOLDER = "packed"
MANY_FILES = 10_000
"""Number of files from which a folder is packed unless `--no-pack` is given."""


@dataclass(frozen=True)
class Packed:
    """Describe an archive and the folder that it was made of.

    Attributes:
        archive: absolute path; `<archive>.json` beside it holds the rest.
        source: absolute path of the folder.
        listing: digest of its names, sizes, times and inodes.
        files: number of its files.
    """

    archive: Path
    source: Path
    listing: str
    files: int


@dataclass(frozen=True)
class _Entry:
    name: str  # relative to the folder, `/` between folders; with a slash at the end for a folder
    path: str
    size: int
    mtime_ns: int
    inode: int


def has_many_files(folder: Path) -> bool:
    """Check whether a folder has more than `MANY_FILES` files, and stop counting there."""
    count = 0
    for _, _, names in os.walk(folder):
        count += len(names)
        if count > MANY_FILES:
            return True
    return False


def archive_of(source: Path, root: Path) -> Path:
    """Return where the archive of a folder lies: in the repository's folder `packed`, which git ignores."""
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", source.name).strip("-.") or "data"
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
    return root / FOLDER / f"{stem}-{digest}.tar"


def made_files(source: Path, root: Path) -> tuple[str, str]:
    """Return the paths of the files that `pack` makes, relative to the repository."""
    archive = archive_of(source, root)
    return archive.relative_to(root).as_posix(), facts_file(archive).relative_to(root).as_posix()


def pack(source: Path, root: Path) -> Packed:
    """Write an archive of a folder: the same names and contents give the same bytes.

    Linked files and folders are packed as what they link to.

    Args:
        source: absolute path of the folder.
        root: the repository.

    Raises:
        DataError: a name is not UTF-8, a file is no regular file or changes meanwhile.
    """
    archive = archive_of(source, root)
    archive.parent.mkdir(exist_ok=True)
    (archive.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    return _write(source, archive)


def of(root: Path) -> Packed | None:
    """Read which folder the archive that data.dvc imports was made of; None if it imports anything else."""
    try:
        # The worktree of a round links the archive, not what lies beside it.
        archive = (root / pipeline.data_import(root).address).resolve()
        if archive.parent.name != FOLDER:
            return None
        found = files.read_json(facts_file(archive))
        return Packed(archive, Path(found["source"]), str(found["listing"]), int(found["files"]))
    except (RequestError, OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def has_changed(packed: Packed) -> bool:
    """Walk the folder of an archive and check whether it has changed since; False if the folder is gone."""
    return packed.source.is_dir() and (
        not packed.archive.exists() or _digest(_entries(packed.source)) != packed.listing
    )


def refresh(root: Path) -> list[str]:
    """Pack again what data.dvc imports, if its folder has changed, so that DVC sees it; return lines to print.

    Raises:
        DataError: see `pack`.
    """
    packed = of(root)
    if packed is None:
        return []
    if not packed.source.is_dir():
        remedy = "Choose another source: convoy data use SOURCE"
        return [f"Warning: {packed.source} is gone; its last state, {packed.archive}, is used. {remedy}"]
    if not has_changed(packed):
        return []
    now = _write(packed.source, packed.archive)
    lines = [f"{packed.source} has changed ({packed.files:,} → {now.files:,} files): packed again"]
    if pipeline.data_import(root).frozen:
        lines.append(
            f"Warning: {pipeline.DATA_IMPORT} is frozen, so data/ stays as it is until you type: dvc update {pipeline.DATA_IMPORT}"
        )
    return lines


def _write(source: Path, archive: Path) -> Packed:
    entries = list(_entries(source))
    listing = _digest(entries)
    handle, name = tempfile.mkstemp(dir=archive.parent, suffix=".tar")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for entry in track(entries, f"pack {source.name}", len(entries)):
                _add(tar, entry)
        if _digest(_entries(source)) != listing:
            raise DataError(f"{source} has changed while it was packed. Try again when nothing writes to it.")
        count = sum(not entry.name.endswith("/") for entry in entries)
        # An interruption between the two leaves a digest that differs, and the folder is packed again.
        temporary.replace(archive)
        packed = Packed(archive, source, listing, count)
        files.write_json(
            facts_file(archive), {**asdict(packed), "archive": archive.name, "source": str(source)}
        )
    finally:
        temporary.unlink(missing_ok=True)
    return packed


def _add(tar: tarfile.TarFile, entry: _Entry) -> None:
    """Add a file or folder; owner, time and permissions are left at zero, so that only names and contents count."""
    member = tarfile.TarInfo(entry.name.rstrip("/"))
    if entry.name.endswith("/"):
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
        return
    member.size = entry.size
    try:
        with open(entry.path, "rb") as file:  # noqa: PTH123 (60,000 Path objects take longer than the rest)
            tar.addfile(member, file)
    except OSError as error:
        reason = error.strerror or "it became shorter while it was packed"
        raise DataError(f"{entry.path} cannot be packed: {reason}.") from error


def _entries(source: Path) -> Iterator[_Entry]:
    """Walk a folder in sorted order, links followed."""
    yield from _walk(str(source), "", frozenset())


def _walk(folder: str, above: str, outer: frozenset[tuple[int, int]]) -> Iterator[_Entry]:
    status = os.stat(folder)  # noqa: PTH116 (see `_add`)
    own = (status.st_dev, status.st_ino)
    if own in outer:
        raise DataError(f"{folder} links to a folder that it is in. Remove the link.")
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{folder} contains {entry.name!a}, a file name that is not UTF-8. Rename it."
            ) from error
        try:
            status = entry.stat()
        except OSError as error:
            raise DataError(f"{entry.path} cannot be read: {error.strerror}. Remove it.") from error
        if stat.S_ISDIR(status.st_mode):
            yield _Entry(f"{above}{entry.name}/", entry.path, 0, 0, 0)
            yield from _walk(entry.path, f"{above}{entry.name}/", outer | {own})
        elif stat.S_ISREG(status.st_mode):
            name = f"{above}{entry.name}"
            yield _Entry(name, entry.path, status.st_size, status.st_mtime_ns, status.st_ino)
        else:
            raise DataError(f"{entry.path} is not a regular file but a pipe or a device. Remove it.")


def _digest(entries: Iterator[_Entry] | list[_Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size} {entry.mtime_ns} {entry.inode}\n".encode())
    return digest.hexdigest()


def facts_file(archive: Path) -> Path:
    """Return the file beside an archive that describes its folder."""
    return archive.with_name(f"{archive.name}.json")
