import gzip
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pytest

from convoy.core.errors import DataError
from convoy.images import archive, decode
from convoy.images.archive import kind_of, members

TARS = ("", "gz", "bz2", "xz")


def read(path):
    kind = kind_of(path)
    assert kind
    return dict(members(path, kind))


def names(path):
    return [name for name, _ in members(path, kind_of(path), names_only=True)]


def refusal(path):
    """Return the message with which an archive is refused, both when listed and when read."""
    with pytest.raises(DataError) as listing:
        names(path)
    with pytest.raises(DataError) as reading:
        read(path)
    assert str(listing.value) == str(reading.value)
    return str(listing.value)


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_zip_is_read_member_by_member(zipped, pets):
    path = zipped(pets)
    assert kind_of(path) == "zip"
    assert read(path) == pets
    assert names(path) == list(pets)


@pytest.mark.parametrize("compression", TARS)
def test_a_tar_is_read_whatever_its_compression(tarred, pets, compression):
    path = tarred(pets, compression)
    assert kind_of(path) == ("tar." + compression).rstrip(".")
    assert read(path) == pets


def test_names_with_spaces_and_other_scripts_survive(zipped, tarred):
    files = {"Äpfel und Birnen/grüne 1.png": b"1", "猫/ねこ.PNG": b"2"}
    assert read(zipped(files)) == read(tarred(files)) == files


def test_other_files_are_not_archives(tmp_path):
    path = tmp_path / "x.zip"
    for content in (b"", b"hello", b"\x89PNG\r\n", b"\0" * 2000):
        path.write_bytes(content)
        assert kind_of(path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c" + b"0" * 600, "x is a 7z archive.*zip or tar"),
        (b"Rar!\x1a\x07\0" + b"0" * 600, "x is a RAR archive.*zip or tar"),
        (gzip.compress(b"x" * 5000, mtime=0), "x is a compressed file but not a tar archive"),
    ],
    ids=["7z", "rar", "gzip"],
)
def test_an_unsupported_kind_of_archive_is_named(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        kind_of(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "why"), [("../x.png", "points out"), ("a/../../x.png", "points out"), ("/etc/x.png", "absolute")]
)
def test_a_member_that_points_out_of_the_archive_is_refused_by_name(zipped, tarred, name, why):
    for path in (zipped({"a/1.png": b"1", name: b"x"}), tarred({"a/1.png": b"1", name: b"x"})):
        message = refusal(path)
        assert f"contains `{name}`" in message
        assert why in message
        assert archive.REPACK in message


def test_a_windows_path_that_escapes_is_refused_as_well(zipped):
    assert "contains `../x.png`, which points out" in refusal(zipped({"..\\x.png": b"x"}))
    assert "contains `C:/x.png`, an absolute path" in refusal(zipped({"C:\\x.png": b"x"}))
    assert read(zipped({"cat\\1.png": b"x"})) == {"cat/1.png": b"x"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_devices_and_sparse_files_in_a_tar_are_refused_by_name(tarred, kind, reason):
    entry = special("cat/2.png", kind, "cat/1.png")
    assert f"contains `cat/2.png`, {reason};" in refusal(tarred({"cat/1.png": b"1"}, "gz", (entry,)))


@pytest.mark.parametrize(
    ("kind", "option"), [(tarfile.SYMTYPE, "tar --dereference"), (tarfile.LNKTYPE, "tar --hard-dereference")]
)
def test_a_link_in_a_tar_is_refused_with_the_command_that_packs_the_file(tarred, kind, option):
    message = refusal(tarred({"cat/1.png": b"1"}, "gz", (special("cat/2.png", kind, "cat/1.png"),)))
    for fact in ("contains `cat/2.png`", "link to `cat/1.png`", option, "cp -RL"):
        assert fact in message


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_the_remedy_for_hard_links_works(folder, pets, tmp_path):
    data = folder(pets)
    os.link(data / "cat/0.png", data / "cat/copy.png")
    subprocess.run(["tar", "-cf", "links.tar", "data"], cwd=tmp_path, check=True)
    assert "hard link" in refusal(tmp_path / "links.tar")
    subprocess.run(["cp", "-RL", "data", "copy"], cwd=tmp_path, check=True)
    subprocess.run(["tar", "-cf", "copy.tar", "-C", "copy", "."], cwd=tmp_path, check=True)
    assert len(read(tmp_path / "copy.tar")) == len(pets) + 1


@pytest.mark.parametrize(("mode", "reason"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")])
def test_a_link_or_a_device_in_a_zip_is_refused_by_name(tmp_path, mode, reason):
    entry = zipfile.ZipInfo("cat/1.png")
    entry.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x", "w") as file:
        file.writestr(entry, "/etc/passwd")
    assert f"contains `cat/1.png`, {reason}" in refusal(tmp_path / "x")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("kind", [*TARS, "zip"])
def test_a_truncated_archive_is_refused(zipped, tarred, pets, kind, share):
    path = zipped(pets) if kind == "zip" else tarred(pets, kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "is truncated or damaged" in refusal(path)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_tar_that_is_cut_or_damaged_at_a_header_is_refused(tarred, pets, damage):
    path = tarred(pets, "")
    with tarfile.open(path) as file:
        offset = file.getmembers()[30].offset
    content = path.read_bytes()
    rest = b"" if damage == "cut" else b"\xff" * 8 + content[offset + 8 :]
    path.write_bytes(content[:offset] + rest)
    assert "is truncated or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("local", "central", "value", "access", "message"),
    [
        (60, None, 0xFF, read, "is truncated or damaged"),
        (6, 8, 1, names, r"is encrypted \(cat/1.png\). Deliver it without a password"),
        (8, 10, 97, read, "uses an unsupported compression"),
    ],
    ids=["damaged content", "encrypted", "unknown method"],
)
def test_a_zip_whose_content_cannot_be_read_is_refused(zipped, local, central, value, access, message):
    path = zipped({"cat/1.png": bytes(range(256)) * 9})
    content = bytearray(path.read_bytes())
    content[local] = value
    if central:  # its place in the entry of the central directory
        content[content.index(b"PK\x01\x02") + central] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        access(path)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_tar_with_damaged_compressed_bytes_is_refused(tarred, pets, compression, share):
    path = tarred(pets, compression)
    content = bytearray(path.read_bytes())
    start = max(10, int(len(content) * share))  # behind the header
    content[start : start + 20] = b"\xaa" * 20
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"truncated or damaged|start is damaged"):
        read(path)


def test_damage_at_the_first_block_of_a_bz2_archive_is_refused(tarred, pets):
    path = tarred(pets, "bz2")
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\0" * 6 + content[10:])
    with pytest.raises(DataError, match=r"is truncated or damaged \(Invalid data stream\)"):
        kind_of(path)


def test_a_bomb_of_images_is_stopped_by_its_unpacked_size(zipped, tarred, monkeypatch):
    monkeypatch.setattr(archive, "FREE_BYTES", 10_000)
    bomb = {f"cat/{n}.bmp": b"BM" + b"\0" * 1_000_000 for n in range(4)}
    for path in (zipped(bomb), tarred(bomb, "gz"), tarred(bomb, "xz")):
        with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
            read(path)


def test_a_bomb_of_other_files_is_stopped_as_well(tarred, monkeypatch):
    monkeypatch.setattr(archive, "FREE_PASSED_BYTES", 10_000)
    path = tarred({f"cat/{n}.mp4": b"\0" * 1_000_000 for n in range(4)}, "xz")
    assert "unpacks to more than 200 times its size" in refusal(path)


def test_a_small_archive_may_unpack_to_many_bytes(zipped):
    assert len(read(zipped({"cat/1.bmp": b"BM" + b"\0" * 5_000_000}))["cat/1.bmp"]) == 5_000_002


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_of_a_file_that_is_no_image_only_the_start_is_read(zipped, tarred, pets, kind):
    video = b"\0\0\0\x18ftypmp42" + bytes(2**25)
    path = zipped(pets | {"clip.mp4": video}) if kind == "zip" else tarred(pets | {"clip.mp4": video}, kind)
    tracemalloc.start()
    try:
        assert read(path) == pets | {"clip.mp4": video[:512]}
        assert tracemalloc.get_traced_memory()[1] < 2**24, "bytes of memory at most"
    finally:
        tracemalloc.stop()


def test_a_member_larger_than_any_image_is_passed_on_as_unreadable(zipped, tarred, monkeypatch):
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 1000)
    largest, larger = (b"BM" + b"\0" * size for size in (998, 999))
    for path in (zipped({"1.bmp": larger, "2.bmp": largest}), tarred({"1.bmp": larger, "2.bmp": largest})):
        files = read(path)
        assert str(files["1.bmp"]).startswith("is too large: more than 1,000 bytes")
        assert files["2.bmp"] == largest


def test_a_tar_of_zstd_is_read_and_its_damage_is_refused(tarred, pets, tmp_path):
    plain = tarred(pets, "").read_bytes()
    packed = pa.compress(plain[:9000], codec="zstd", asbytes=True) + pa.compress(
        plain[9000:], codec="zstd", asbytes=True
    )
    (tmp_path / "x.tzst").write_bytes(packed)
    assert kind_of(tmp_path / "x.tzst") == "tar.zst"
    assert read(tmp_path / "x.tzst") == pets
    (tmp_path / "x.tzst").write_bytes(packed[:-100])
    assert "is truncated or damaged" in refusal(tmp_path / "x.tzst")


def test_too_many_members_are_refused(zipped, tarred, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    files = {f"cat/{n}.png": b"" for n in range(4)}
    for path in (zipped(files), tarred(files)):
        assert "contains more than 3 members" in refusal(path)


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])  # extended headers of pax, Solaris and GNU
def test_an_extended_header_that_needs_much_memory_is_refused(tmp_path, kind):
    header = special("cat/1.png", kind)
    header.size = archive.MAX_HEADER_BYTES + 1
    path = tmp_path / "x.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096)
    with pytest.raises(DataError, match=r"truncated or damaged .a header of 1,048,577 bytes"):
        names(path)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("shared", [{}, {"comment": "made by git"}, {"path": "renamed.jpg"}])
def test_ordinary_headers_between_others_give_what_tarfile_reads(tmp_path, format_, shared):
    path = tmp_path / "x.tar"
    made = {"a/1.jpg": 3, "a/empty.jpg": 0, f"{'b' * 70}/{'c' * 90}.jpg": 512, "a/2.jpg": 513, "a/é.jpg": 5}
    with tarfile.open(path, "w", format=format_, pax_headers=shared) as target:
        for name, size in made.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, 1.5
            target.addfile(info, io.BytesIO(name.encode() * size))
    with tarfile.open(path) as source:
        expected = [(one.name, one.size) for one in source]
    found = list(members(path, "tar", whole=lambda _: True))
    assert [(name, len(content)) for name, content in found] == expected
    assert [content for _, content in found] == [(name.encode() * size)[:size] for name, size in made.items()]


def test_a_changed_byte_of_an_ordinary_header_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as target:
        for name in ("a/1.jpg", "a/2.jpg"):
            target.addfile(tarfile.TarInfo(name))
    content = bytearray(path.read_bytes())
    content[512 + 2] ^= 1
    path.write_bytes(content)
    assert "damaged" in refusal(path)
