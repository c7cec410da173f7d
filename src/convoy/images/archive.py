"""Reading an archive member by member, in memory, as hostile as archives may be.

Nothing is extracted to disk, so nothing can escape. Links and devices are refused all
the same: their images would be missing in silence. Sizes are counted as they are read,
headers may lie.
"""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

from convoy.core.errors import DataError
from convoy.images.decode import MAX_PIXELS

Kind = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]

MAX_MEMBER_BYTES = 6 * MAX_PIXELS + 2**20
"""Largest file inside, in bytes: the largest image that is decoded, as 16-bit RGB without
compression, and its header. One member lies in memory at a time."""

MAX_EXPANSION = 200
"""Largest size unpacked, in multiples of the archive. Pictures hardly compress; plain BMP
drawings reach about 100, bombs 1,000 and more."""

FREE_BYTES = 2**28
"""An archive may unfold to this many bytes whatever its own size: it does no harm."""

MAX_MEMBERS = 20_000_000
"""Most members: beyond ImageNet-21k's 14 million. Each name takes memory."""

MAX_HEADER_BYTES = 2**20
"""Longest extended tar header (names, attributes), in bytes: tarfile reads each whole into memory."""

EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

UNREADABLE = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "zstd"}

REPACK = "Unpack it, check what it holds, and pack the class folders again."


def kind_of(path: Path) -> Kind | None:
    """Recognise an archive by its first bytes, whatever its name; None for any other file.

    Raises:
        DataError: it is compressed in a way that is not read, or compressed and no tar.
    """
    with path.open("rb") as file:
        head = file.read(512)
    for magic, name in UNREADABLE.items():
        if head.startswith(magic):
            raise DataError(
                f"{path} is a {name} archive; zip and tar (gz, bz2, xz) are read. Pack it as one of them."
            )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if _is_tar(head):
        return "tar"
    compressed: Kind
    if head.startswith(b"\x1f\x8b"):
        compressed = "tar.gz"
    elif head.startswith(b"BZh"):
        compressed = "tar.bz2"
    elif head.startswith(b"\xfd7zXZ\x00"):
        compressed = "tar.xz"
    else:
        return None
    with _broken(path), _uncompressed(path, compressed) as stream:
        head = stream.read(512)
    if not _is_tar(head):
        raise DataError(
            f"{path} is a compressed file but no tar archive, or damaged at its start. Deliver class folders, or a zip or tar of them."
        )
    return compressed


def names(path: Path, kind: Kind) -> Iterator[str]:
    """List the files inside; reads a tar to its end, so that a truncated one is found out here.

    Raises:
        DataError: as `members`.
    """
    walk = _walk_zip(path, wanted=False) if kind == "zip" else _walk_tar(path, kind, wanted=False)
    return (name for name, _ in walk)


def members(path: Path, kind: Kind) -> Iterator[tuple[str, bytes]]:
    """Stream the files inside with their bytes, in the archive's order.

    Raises:
        DataError: naming the member that leaves the archive's folder, is a link, a device,
            encrypted or too large, or saying that the archive is truncated, broken or a bomb.
    """
    return _walk_zip(path, wanted=True) if kind == "zip" else _walk_tar(path, kind, wanted=True)


def _walk_zip(path: Path, *, wanted: bool) -> Iterator[tuple[str, bytes]]:
    with _broken(path), zipfile.ZipFile(path) as archive:
        allowance = _Allowance(path)
        for member in archive.infolist():
            name = member.filename.replace("\\", "/")  # as some Windows programs write it
            allowance.count_member()
            _check_name(path, name)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(_not_a_file(path, name, "link" if stat.S_ISLNK(mode) else "device"))
            if member.is_dir() or name.endswith("/"):
                continue
            if member.flag_bits & 1:
                raise DataError(f"{path} is encrypted ({name}). Deliver it without a password.")
            if not wanted:
                yield name, b""
                continue
            with archive.open(member) as file:
                content = file.read(MAX_MEMBER_BYTES + 1)
            if len(content) > MAX_MEMBER_BYTES:
                raise DataError(_too_large(path, name))
            allowance.count(len(content))
            yield name, content


def _walk_tar(path: Path, kind: Kind, *, wanted: bool) -> Iterator[tuple[str, bytes]]:
    with (
        _broken(path),
        _uncompressed(path, kind) as stream,
        tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_StrictTarInfo) as archive,
    ):
        allowance = stream.allowance
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # tarfile would remember every header
            allowance.count_member()
            name = member.name
            _check_name(path, name)
            if member.isdir():
                continue
            if member.issym() or member.islnk():
                raise DataError(_not_a_file(path, name, "link"))
            if member.issparse() or not member.isfile():
                raise DataError(_not_a_file(path, name, "sparse file" if member.issparse() else "device"))
            if member.size > MAX_MEMBER_BYTES:
                raise DataError(_too_large(path, name))
            file = archive.extractfile(member) if wanted else None
            yield name, file.read() if file else b""
        while stream.read(2**20):
            pass  # the checksum of gz, bz2 and xz comes last, after the tar's own end


class _Allowance:
    """Count what an archive unfolds to, and stop a bomb."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_left = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
        self.members_left = MAX_MEMBERS

    def count(self, size: int) -> None:
        """Take bytes that were unpacked off the allowance."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise DataError(
                f"{self.path} unfolds to more than {MAX_EXPANSION} times its size: a decompression bomb, "
                f"or something other than images. {REPACK}"
            )

    def count_member(self) -> None:
        """Take one member off the allowance."""
        self.members_left -= 1
        if self.members_left < 0:
            raise DataError(
                f"{self.path} holds more than {MAX_MEMBERS:,} members. Deliver it in parts, or as a folder."
            )


class _Stream:
    """Read decompressed bytes, counted."""

    def __init__(self, file: IO[bytes], allowance: _Allowance) -> None:
        self.file = file
        self.allowance = allowance

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
    """Refuse what tarfile takes for the archive's end: a cut or damaged header."""

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


class _broken:  # noqa: N801 (reads as the statement that it is)
    """Turn what the standard library raises for damaged archives into a message about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NotImplementedError):
            raise DataError(
                f"{self.path} is packed in a way that is not read ({error}). Pack it as a plain zip."
            ) from error
        broken = (
            zipfile.BadZipFile,
            tarfile.TarError,
            EOFError,
            zlib.error,
            lzma.LZMAError,
            gzip.BadGzipFile,
        )
        if isinstance(error, broken) or type(error) is OSError:  # bz2 raises plain OSError
            raise DataError(
                f"{self.path} is truncated or damaged ({error}). Repair it where it comes from, then fetch it "
                "again; `dvc repro` does that for an import whose source has changed."
            ) from error


def _uncompressed(path: Path, kind: Kind) -> _Stream:
    openers: dict[str, Any] = {"tar": open, "tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open}
    return _Stream(openers[kind](path, "rb"), _Allowance(path))


def _is_tar(head: bytes) -> bool:
    """Tell a tar header by its checksum, which old tars have too, unlike the word `ustar`."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _check_name(path: Path, name: str) -> None:
    drive = name[1:3] == ":/" and name[0].isalpha()
    if name.startswith("/") or drive:
        raise DataError(f"{path} holds `{name}`, an absolute path, which points out of any folder. {REPACK}")
    if ".." in name.split("/"):
        raise DataError(f"{path} holds `{name}`, which leaves the archive's own folder. {REPACK}")


def _not_a_file(path: Path, name: str, what: str) -> str:
    return f"{path} holds `{name}`, a {what}; only plain files are read. {REPACK}"


def _too_large(path: Path, name: str) -> str:
    return f"{path} holds `{name}`, more than {MAX_MEMBER_BYTES:,} bytes: no image is that large. {REPACK}"
