"""Read an untrusted archive member by member, in memory.

Nothing is extracted to disk, so nothing can escape. Links and devices are still refused:
their images would be missing silently. Sizes are counted while reading, since headers may lie.
"""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

from convoy.core.errors import DataError
from convoy.images.decode import MAX_FILE_BYTES

Kind = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]

MAX_MEMBER_BYTES = MAX_FILE_BYTES
"""Largest member, in bytes. One member is in memory at a time."""

MAX_EXPANSION = 200
"""Largest unpacked size, in multiples of the archive. Images hardly compress; plain BMP
drawings reach about 100, bombs 1,000 and more."""

FREE_BYTES = 2**28
"""Unpacked bytes that any archive may have, whatever its own size: they do no harm."""

MAX_MEMBERS = 20_000_000
"""Largest number of members: more than ImageNet-21k's 14 million. Each name takes memory."""

MAX_HEADER_BYTES = 2**20
"""Longest extended tar header (names, attributes), in bytes: tarfile reads each whole into memory."""

EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

COMPRESSED: Mapping[bytes, Kind] = {b"\x1f\x8b": "tar.gz", b"BZh": "tar.bz2", b"\xfd7zXZ\x00": "tar.xz"}
UNSUPPORTED = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "zstd"}

REPACK = "Unpack it, check its content, and pack the class folders again."


def kind_of(path: Path) -> Kind | None:
    """Detect the kind of an archive by its first bytes, whatever its name; None for any other file.

    Raises:
        DataError: its compression is not supported, or it is a compressed file but not a tar.
    """
    with path.open("rb") as file:
        head = file.read(512)
    for magic, name in UNSUPPORTED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path} is a {name} archive, which is not supported. Pack it as zip or tar (gz, bz2, xz)."
            )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if _is_tar(head):
        return "tar"
    compressed = next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), None)
    if compressed is None:
        return None
    with _damage_reported(path), _Decompressed(path, compressed) as stream:
        head = stream.read(512)
    if not _is_tar(head):
        raise DataError(
            f"{path} is a compressed file but not a tar archive, or its start is damaged. "
            "Deliver class folders, or a zip or tar of them."
        )
    return compressed


Wanted = Callable[[str], bool]
"""Whether the bytes of a member are needed, by its name."""


def members(
    path: Path, kind: Kind, *, names_only: bool = False, whole: Wanted | None = None
) -> Iterator[tuple[str, bytes]]:
    """Stream the files inside with their bytes, in the archive's order; without their bytes for `names_only`.

    With `whole`, the files that it accepts come with all their bytes, whatever they are (arrays, tables, labels), and others with none.
    A tar is read to its end in both cases, so that a truncated one is detected.

    Raises:
        DataError: naming the member that points out of the archive, is a link, a device,
            encrypted or too large; or the archive is truncated, damaged or a decompression bomb.
    """
    with _damage_reported(path):
        if kind == "zip":
            yield from _zip_members(path, whole or (lambda _: not names_only))
        else:
            yield from _tar_members(path, kind, whole or (lambda _: not names_only))


def _zip_members(path: Path, is_wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        allowance = _Allowance(path)
        for member in archive.infolist():
            name = member.filename.replace("\\", "/")  # as some Windows programs write it
            allowance.count_member()
            _check_name(path, name)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_a_file(path, name, "link" if stat.S_ISLNK(mode) else "device")
            if member.is_dir() or name.endswith("/"):
                continue
            if member.flag_bits & 1:
                raise DataError(f"{path} is encrypted ({name}). Deliver it without a password.")
            if not is_wanted(name):
                yield name, b""
                continue
            with archive.open(member) as file:
                content = file.read(MAX_MEMBER_BYTES + 1)
            _check_size(path, name, len(content))
            allowance.count(len(content))
            yield name, content


def _tar_members(path: Path, kind: Kind, is_wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    with (
        _Decompressed(path, kind) as stream,
        tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_StrictTarInfo) as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep every header
            stream.allowance.count_member()
            name = member.name
            _check_name(path, name)
            if member.isdir():
                continue
            if member.issym() or member.islnk():
                raise _not_a_file(path, name, "link")
            if member.issparse() or not member.isfile():
                raise _not_a_file(path, name, "sparse file" if member.issparse() else "device")
            _check_size(path, name, member.size)
            yield name, cast("IO[bytes]", archive.extractfile(member)).read() if is_wanted(name) else b""
        while stream.read(2**20):
            pass  # the checksum of gz, bz2 and xz comes last, after the tar's own end


class _Allowance:
    """Count unpacked bytes and members, and stop a decompression bomb."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_left = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
        self.members_left = MAX_MEMBERS

    def count(self, size: int) -> None:
        """Subtract unpacked bytes."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise DataError(
                f"{self.path} unpacks to more than {MAX_EXPANSION} times its size: a decompression bomb, "
                f"or something other than images. {REPACK}"
            )

    def count_member(self) -> None:
        """Subtract one member."""
        self.members_left -= 1
        if self.members_left < 0:
            raise DataError(
                f"{self.path} contains more than {MAX_MEMBERS:,} members. Deliver a folder instead."
            )


class _Decompressed:
    """Read decompressed bytes, counted."""

    def __init__(self, path: Path, kind: Kind) -> None:
        openers: dict[Kind, Any] = {
            "tar": open,
            "tar.gz": gzip.open,
            "tar.bz2": bz2.open,
            "tar.xz": lzma.open,
        }
        self.file: IO[bytes] = openers[kind](path, "rb")
        self.allowance = _Allowance(path)

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end."""
        content = self.file.read(size)
        self.allowance.count(len(content))
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class _StrictTarInfo(tarfile.TarInfo):
    """Refuse a truncated or damaged header, which tarfile takes for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf.count(0) == tarfile.BLOCKSIZE:  # the end that an intact tar has
            return super().frombuf(buf, encoding, errors)
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if info.type in EXTENDED_HEADERS and info.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Convert the standard library's errors about damaged archives to a message about the file."""
    try:
        yield
    except NotImplementedError as error:
        raise DataError(
            f"{path} uses an unsupported compression ({error}). Pack it as a plain zip."
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and type(error) not in (OSError, gzip.BadGzipFile):
            raise  # no damage; bz2 raises plain OSError
        raise DataError(
            f"{path} is truncated or damaged ({error}). Repair it at its source, then fetch it again: "
            "`dvc repro` does that for an import whose source has changed."
        ) from error


def _is_tar(head: bytes) -> bool:
    """Recognise a tar header by its checksum, which old tars have too, unlike the word `ustar`."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _check_name(path: Path, name: str) -> None:
    if name.startswith("/") or (name[1:3] == ":/" and name[0].isalpha()):
        raise DataError(
            f"{path} contains `{name}`, an absolute path, which points out of any folder. {REPACK}"
        )
    if ".." in name.split("/"):
        raise DataError(f"{path} contains `{name}`, which points out of the archive's own folder. {REPACK}")


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise DataError(
            f"{path} contains `{name}` of more than {MAX_MEMBER_BYTES:,} bytes: no image is that large. {REPACK}"
        )


def _not_a_file(path: Path, name: str, kind: str) -> DataError:
    return DataError(f"{path} contains `{name}`, a {kind}; only regular files are read. {REPACK}")
