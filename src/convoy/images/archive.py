"""Read an untrusted archive member by member, in memory.

Nothing is extracted to disk, so nothing can escape. Links and devices are still refused:
their images would be missing silently. Sizes are counted while reading, since headers may lie.
"""

import bz2
import gzip
import io
import lzma
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Self, cast, overload

from convoy.core.errors import DataError
from convoy.images import code_pages
from convoy.images.decode import MAX_FILE_BYTES, Content, Readable, TooLargeError, read_stream

Kind = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]

MAX_EXPANSION = 200
"""Largest unpacked size, in multiples of the archive. Images hardly compress; plain BMP
drawings reach about 100, bombs 1,000 and more."""

FREE_BYTES = 2**28
"""Unpacked bytes that any archive may have, whatever its own size: they do no harm."""

FREE_PASSED_BYTES = 2**31
"""Bytes of a tar that any archive may unpack to where most of them are passed over, such as a video's: they cost time only."""

PIECE_BYTES = 2**20

MAX_MEMBERS = 20_000_000
"""Largest number of members: more than ImageNet-21k's 14 million. Each name takes memory."""

UTF8_FLAG = 0x800
"""Bit of a zip member's flags: its name is UTF-8."""

MAX_HEADER_BYTES = 2**20
"""Longest extended tar header (names, attributes), in bytes: tarfile reads each whole into memory."""

EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
COMPRESSED: Mapping[bytes, Kind] = {
    b"\x1f\x8b": "tar.gz",
    b"BZh": "tar.bz2",
    b"\xfd7zXZ\x00": "tar.xz",
    b"\x28\xb5\x2f\xfd": "tar.zst",
}
UNSUPPORTED = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR"}

Load = Callable[[str, Readable, int], Content]
"""Reads an open member of a name and a stated size."""

DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(
        ValueError,
        OverflowError,
        IndexError,
        struct.error,
    ),  # of zipfile and tarfile, for fields that are garbage
)
"""What the standard library raises for damaged archives."""

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
                f"{path} is a {name} archive, which is not supported. Pack it as zip or tar (gz, bz2, xz, zst)."
            )
    if head.startswith(ZIP):
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


def is_archive(path: Path) -> bool:
    """Check whether a file starts as an archive, supported or not; False for a compressed file that is no tar."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((*UNSUPPORTED, *ZIP)):
        return True
    try:
        return kind_of(path) is not None
    except DataError:
        return False


Wanted = Callable[[str], bool]
"""Whether the bytes of a member are needed, by its name."""


@overload
def members(
    path: Path, kind: Kind, *, names_only: bool = False, folders: bool = False
) -> Iterator[tuple[str, Content]]: ...


@overload
def members(path: Path, kind: Kind, *, whole: Wanted) -> Iterator[tuple[str, bytes]]: ...


def members(
    path: Path,
    kind: Kind,
    *,
    names_only: bool = False,
    folders: bool = False,
    whole: Wanted | None = None,
) -> Iterator[tuple[str, Content]]:
    """Stream the files inside, in the archive's order, each with its bytes as `decode.read_stream` reads them.

    Without bytes for `names_only`. With `folders` also folders, with a slash at the end of their names. With `whole`, the files that
    it accepts come with all their bytes, whatever they are (arrays, tables, labels), and others with none.
    A tar is read to its end in any case, so that a truncated one is detected.

    Raises:
        DataError: naming the member that points out of the archive, is a link, a device, encrypted, or too large for
            `whole`; or the archive is truncated, damaged or a decompression bomb.
    """
    is_wanted = whole or (lambda _: not names_only)

    def load(name: str, file: Readable, size: int) -> Content:
        if whole is None:
            return _read(file, size)
        content = file.read(min(size, MAX_FILE_BYTES) + 1)
        if max(size, len(content)) > MAX_FILE_BYTES:
            raise DataError(f"{path} contains `{name}` of more than {MAX_FILE_BYTES:,} bytes. {REPACK}")
        return content

    with _damage_reported(path):
        found = (
            _zip_members(path, is_wanted, load)
            if kind == "zip"
            else _tar_members(path, kind, is_wanted, load)
        )
        yield from (member for member in found if folders or not member[0].endswith("/"))


def _zip_members(path: Path, is_wanted: Wanted, load: Load) -> Iterator[tuple[str, Content]]:
    with zipfile.ZipFile(path) as archive:
        allowance = _Allowance(path)
        page = _code_page(archive) or code_pages.ZIP_DEFAULT
        for member in archive.infolist():
            name = _packed(member).decode(page) if _is_unmarked(member) else member.filename
            name = name.replace("\\", "/")  # as some Windows programs write it
            allowance.count_member()
            _check_name(path, name)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_a_file(path, name, "link" if stat.S_ISLNK(mode) else "device")
            if name.endswith("/"):
                yield name, b""
                continue
            if member.flag_bits & 1:
                raise DataError(f"{path} is encrypted ({name}). Deliver it without a password.")
            if not is_wanted(name):
                yield name, b""
                continue
            with archive.open(member) as file:
                content = load(name, _Counted(file, allowance), member.file_size)
            yield name, content


def code_page(path: Path, kind: Kind) -> str | None:
    """Return the code page of names in a zip that are not marked as UTF-8; empty if none makes sense, None if there are no such names."""
    if kind != "zip":
        return None
    with _damage_reported(path), zipfile.ZipFile(path) as archive:
        if all(_packed(member).isascii() for member in archive.infolist() if _is_unmarked(member)):
            return None
        return _code_page(archive) or ""


def _code_page(archive: zipfile.ZipFile) -> str | None:
    return code_pages.find(_packed(member) for member in archive.infolist() if _is_unmarked(member))


def _is_unmarked(member: zipfile.ZipInfo) -> bool:
    return not member.flag_bits & UTF8_FLAG


def _packed(member: zipfile.ZipInfo) -> bytes:
    return member.filename.encode(code_pages.ZIP_DEFAULT)  # in which zipfile decodes it


def _tar_members(path: Path, kind: Kind, is_wanted: Wanted, load: Load) -> Iterator[tuple[str, Content]]:
    most = path.stat().st_size if kind == "tar" else sys.maxsize
    allowance = _Allowance(path)
    with _Tape(path, kind) as tape:
        for name, size, member in _tar_headers(tape):
            allowance.count_member()
            if not 0 <= size <= most:  # else the end of a member of an exabyte would be looked for, for ever
                raise tarfile.ReadError(f"a member of {size:,} bytes")
            tape.allowance.check(size)
            _check_name(path, name)
            if member is not None and member.isdir():
                yield f"{name}/", b""
                continue
            if member is not None and (member.issym() or member.islnk()):
                raise _link(path, name, member)
            if member is not None and (member.issparse() or not member.isfile()):
                raise _not_a_file(path, name, "sparse file" if member.issparse() else "device")
            end = tape.tell() + size + -size % tarfile.BLOCKSIZE
            if not is_wanted(name):
                yield name, b""
            elif size > PIECE_BYTES:
                yield name, load(name, _Counted(tape, allowance, size), size)
            else:
                whole = tape.read(size)
                if len(whole) < size:
                    raise tarfile.ReadError("unexpected end of data")
                file = io.BytesIO(whole)
                content = load(name, file, size)
                allowance.count(file.tell())
                yield name, content
            tape.seek(end)
        while tape.read(PIECE_BYTES):
            pass  # the checksum of gz, bz2 and xz comes last, after the tar's own end


def _tar_headers(tape: "_Tape") -> Iterator[tuple[str, int, tarfile.TarInfo | None]]:
    """Yield the name and the size of each member, and what tarfile reads of it; None for an ordinary file.

    The tape is then at the member's data, and must be at the next header when the next member is asked for. tarfile takes
    four times as long for an ordinary header, which matters for small images.
    """
    with tarfile.TarFile(fileobj=cast("IO[bytes]", tape), tarinfo=_StrictTarInfo) as archive:
        member = archive.next()  # the first, which it has read already
        while member is not None:
            yield member.name, member.size, member
            while ordinary := _ordinary_file(header := tape.read(tarfile.BLOCKSIZE)):
                if archive.pax_headers:  # of all members
                    break
                yield *ordinary, None
            if header.count(0) == tarfile.BLOCKSIZE:
                return
            tape.unread(header)
            try:
                member = _StrictTarInfo.fromtarfile(archive)
            except tarfile.HeaderError as error:
                raise tarfile.ReadError(str(error)) from error


def _ordinary_file(header: bytes) -> tuple[str, int] | None:
    """Read name and size from the header of a regular file whose fields suffice; None for any other header."""
    size, checksum, prefix = header[124:136].strip(b" \0"), header[148:156].strip(b" \0"), header[345:346]
    if header[156:157] != tarfile.REGTYPE or prefix != b"\0" or not (size.isdigit() and checksum.isdigit()):
        return None
    try:
        # Adler-32 begins with the sum of all bytes plus 1, modulo 65521, and takes a tenth of the time of `sum`. The checksum counts as spaces.
        total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
        if (total - int(checksum, 8)) % 65521:
            return None
        return header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"), int(size, 8)
    except ValueError:
        return None


def _read(file: Readable, size: int) -> Content:
    try:
        return read_stream(file, size)
    except TooLargeError as error:
        return error


class _Allowance:
    """Count unpacked bytes and members, and stop a decompression bomb."""

    def __init__(self, path: Path, free: int | None = None) -> None:
        self.path = path
        self.bytes_left = max(FREE_BYTES if free is None else free, MAX_EXPANSION * path.stat().st_size)
        self.members_left = MAX_MEMBERS

    def count(self, size: int) -> None:
        """Subtract unpacked bytes."""
        self.check(size)
        self.bytes_left -= size

    def check(self, size: int) -> None:
        """Refuse what would unpack to more bytes than are left."""
        if size > self.bytes_left:
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


class _Counted:
    """Read a member in pieces, so that a bomb is stopped before it is in memory."""

    def __init__(self, file: Readable, allowance: _Allowance, left: int | None = None) -> None:
        self.file, self.allowance, self.left = file, allowance, left

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end."""
        pieces = []
        if self.left is not None:
            size = min(size, self.left)
            self.left -= size
        while size > 0 and (piece := self.file.read(min(size, PIECE_BYTES))):
            self.allowance.count(len(piece))
            pieces.append(piece)
            size -= len(piece)
        if size > 0 and self.left is not None:
            raise tarfile.ReadError("unexpected end of data")
        return b"".join(pieces)


class _Decompressed(io.RawIOBase):
    """Read decompressed bytes, counted."""

    def __init__(self, path: Path, kind: Kind) -> None:
        openers: dict[Kind, Any] = {
            "tar": open,
            "tar.gz": gzip.open,
            "tar.bz2": bz2.open,
            "tar.xz": lzma.open,
            "tar.zst": _open_zstd,
        }
        self.file: IO[bytes] = openers[kind](path, "rb")
        self.allowance = _Allowance(path, FREE_PASSED_BYTES)

    def readable(self) -> bool:
        """Return True, as any stream that is read."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 (any writable buffer)
        """Fill a buffer; less of it only at the end."""
        content = self.file.read(len(buffer))
        self.allowance.count(len(content))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


class _Tape:
    """Read a decompressed tar forwards."""

    def __init__(self, path: Path, kind: Kind) -> None:
        raw = _Decompressed(path, kind)
        self.allowance = raw.allowance
        self._file = io.BufferedReader(raw, PIECE_BYTES // 4)
        self._position = 0
        self._unread = b""

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end."""
        if self._unread:
            content, self._unread = self._unread, b""
        else:
            content = self._file.read(size)
        self._position += len(content)
        return content

    def unread(self, header: bytes) -> None:
        """Put back what was read last; the next read takes all of it."""
        self._unread = header
        self._position -= len(header)

    def tell(self) -> int:
        """Return the number of bytes read."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip to a later position."""
        while self._position < position:
            if not self.read(min(position - self._position, PIECE_BYTES)):
                raise tarfile.ReadError("unexpected end of data")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _open_zstd(path: Path, _: str) -> IO[bytes]:
    from pyarrow import CompressedInputStream  # noqa: PLC0415 (takes 0.1 s)

    return cast("IO[bytes]", CompressedInputStream(str(path), "zstd"))


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
    except DAMAGE as error:
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
    if ".." in name and ".." in name.split("/"):
        raise DataError(f"{path} contains `{name}`, which points out of the archive's own folder. {REPACK}")


def _not_a_file(path: Path, name: str, kind: str) -> DataError:
    return DataError(f"{path} contains `{name}`, a {kind}; only regular files are read. {REPACK}")


def _link(path: Path, name: str, member: tarfile.TarInfo) -> DataError:
    """Refuse a link with the command that packs the files themselves."""
    kind, option = ("hard link", "--hard-dereference") if member.islnk() else ("link", "--dereference")
    return DataError(
        f"{path} contains `{name}`, a {kind} to `{member.linkname}`; only regular files are read. Pack the folder again with the "
        f"files themselves: `tar {option} -czf photos.tar.gz photos`; where tar lacks that option, pack a copy that `cp -RL` made."
    )
