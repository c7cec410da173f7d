"""Hostile deliveries: each ends with an exit code and a message, writes nothing, and takes little memory."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import stat
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib

import pyarrow as pa
import pytest
from PIL import Image

from convoy import cli
from convoy.images import archive
from deliveries import png_of

PETS = {f"{label}/{n}.png": png_of(n + 100 * (label == "dog")) for label in ("cat", "dog") for n in range(30)}
BOMB = b"BM" + bytes(2**22)
MEMORY = 2**26  # bytes; tests shrink the bombs' limits to far less


@pytest.fixture
def check(tmp_path, capfd, monkeypatch):
    """Run `convoy data check`; return exit code and output. Nothing is written, and memory is bounded."""
    monkeypatch.setattr(archive, "FREE_BYTES", 2**21)
    monkeypatch.setattr(archive, "FREE_PASSED_BYTES", 2**24)

    def run(path, *, measured=False):
        monkeypatch.setattr(sys, "argv", ["convoy", "data", "check", str(path)])
        before = sorted(tmp_path.rglob("*"))
        if measured:  # which takes time
            tracemalloc.start()
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        printed = capfd.readouterr()
        output = " ".join((printed.out + printed.err).split())
        assert sorted(tmp_path.rglob("*")) == before
        assert peak < MEMORY
        assert "Traceback" not in output
        assert "\x1b" not in output
        return code, output

    return run


def zip_of(files, method=zipfile.ZIP_DEFLATED):
    """Pack (name or ZipInfo, content) pairs."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as packed:
        for name, content in files:
            packed.writestr(name, content)
    return stream.getvalue()


def zip_entry(name, mode=0, **fields):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def central(content, offset, value):
    """Overwrite bytes of the first entry of a zip's directory."""
    at = content.index(b"PK\x01\x02") + offset
    return content[:at] + value + content[at + len(value) :]


def end(content, offset, value):
    """Overwrite bytes of a zip's last record."""
    at = content.rindex(b"PK\x05\x06") + offset
    return content[:at] + value + content[at + len(value) :]


def overlapping(names, kernel):
    """Members that share one compressed stream: each local header's extra field covers those behind it (D. Fifield, WOOT 2019)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(kernel) + packer.flush()
    sizes = [30 + len(name) for name in names]
    facts = struct.pack("<III", zlib.crc32(kernel), len(packed), len(kernel))
    local, directory = b"", b""
    for number, name in enumerate(names):
        extra = sum(sizes[number + 1 :])
        common = struct.pack("<HHHHH", 20, 0, 8, 0, 33) + facts
        directory += (
            b"PK\x01\x02"
            + struct.pack("<H", 20)
            + common
            + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, len(local))
            + name
        )
        local += b"PK\x03\x04" + common + struct.pack("<HH", len(name), extra) + name
    start = len(local) + len(packed)
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(directory), start, 0)
    return local + packed + directory + last


GOOD = list(PETS.items())
PLAIN = zip_of(GOOD)
ONE = zip_of([("cat/1.png", PETS["cat/1.png"])])

ZIPS = {
    "zip-slip": (zip_of([*GOOD, ("../x.png", b"")]), 1, "contains `../x.png`, which points out of"),
    "zip-slip inside": (zip_of([*GOOD, ("cat/../../x.png", b"")]), 1, "contains `cat/../../x.png`, which points out"),
    "zip-slip with backslashes": (zip_of([("cat\\..\\..\\x.png", b"")]), 1, "contains `cat/../../x.png`, which points out"),
    "absolute path": (zip_of([*GOOD, ("/etc/x.png", b"")]), 1, "contains `/etc/x.png`, an absolute path"),
    "drive letter": (zip_of([*GOOD, ("C:\\x.png", b"")]), 1, "contains `C:/x.png`, an absolute path"),
    "share": (zip_of([*GOOD, ("\\\\server\\x.png", b"")]), 1, "contains `//server/x.png`, an absolute path"),
    "link": (zip_of([(zip_entry("cat/x.png", stat.S_IFLNK | 0o777), "/etc/passwd")]), 1, "contains `cat/x.png`, a link"),
    "device": (zip_of([(zip_entry("cat/x.png", stat.S_IFBLK | 0o666), "")]), 1, "contains `cat/x.png`, a device"),
    "pipe": (zip_of([(zip_entry("cat/x.png", stat.S_IFIFO | 0o666), "")]), 1, "contains `cat/x.png`, a device"),
    "encrypted": (central(ONE, 8, b"\x01\0"), 1, "is encrypted (cat/1.png). Deliver it without a password"),
    "unknown method": (central(PLAIN, 10, b"\x63\0"), 1, "unsupported compression"),
    "wrong checksum": (central(PLAIN, 16, b"\1\2\3\4"), 1, "truncated or damaged (Bad CRC-32 for file 'cat/0.png')"),
    "wrong size": (central(PLAIN, 24, b"\xff\xff\xff\x7f"), 1, "cat/0.png: is too large"),
    "wrong offset of a member": (central(PLAIN, 42, b"\xff\xff\xff\x7f"), 1, "truncated or damaged"),
    "wrong offset of the directory": (end(PLAIN, 16, b"\xff\xff\xff\x7f"), 1, "truncated or damaged"),
    "wrong size of the directory": (end(PLAIN, 12, b"\xff\xff\xff\x7f"), 1, "truncated or damaged"),
    "no directory": (PLAIN[: PLAIN.index(b"PK\x01\x02")], 1, "truncated or damaged"),
    "last piece of several": (end(PLAIN, 4, b"\1\0\1\0")[500:], 1, "not a zip or tar archive"),
    "bomb": (zip_of([("cat/1.bmp", BOMB), ("dog/1.bmp", BOMB)]), 1, "unpacks to more than 200 times its size"),
    "bomb of overlapping images": (overlapping([b"cat/%d.bmp" % n for n in range(60)] + [b"dog/1.bmp"], BOMB), 1, "unpacks to more than 200 times"),
    "bomb of overlapping zeros": (overlapping([b"cat/%d.png" % n for n in range(99)] + [b"dog/1.png"], bytes(2**22)), 1, "100 of 100 files are unusable"),
    "nested archives": (zip_of([("a.zip", ONE), ("b.zip", ONE)]), 1, "archives inside archives are not read"),
    "archive beside images": (zip_of([*GOOD, ("x.zip", PLAIN)]), 0, "archive 1 x.zip"),
    "repeated name": (zip_of([*GOOD, ("./cat/0.png", b"")]), 1, "contains `cat/0.png` twice"),
    "line break and escape in a name": (zip_of([*GOOD, ("cat/\x1b[2J\n::error::x.png", b"")]), 1, "cat/<U+001B>[2J\\n::error::x.png: is empty"),
    "end of a string in a name": (zip_of([*GOOD, (zip_entry("cat/x.png\0.exe"), png_of(99))]), 0, "61 images"),
    "names that differ in case": (zip_of([*GOOD, ("cat/A.png", png_of(98)), ("cat/a.png", png_of(99))]), 0, "62 images"),
    "ZIP64": (zip_of([(zip_entry(name, extract_version=45), content) for name, content in GOOD]), 0, "60 images"),
    "empty": (zip_of([]), 1, "It is empty."),
    "no names": (zip_of([(".", b"x")]), 1, "contains no images"),
    "many empty folders": (zip_of([*GOOD, *((f"class{n}/", b"") for n in range(2_000))]), 0, "2,000 folders without images"),
}  # fmt: skip


def tar_of(*entries, form=tarfile.PAX_FORMAT):
    """Pack (TarInfo or name, content) pairs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as packed:
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = info.size or len(content)
            packed.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tar_entry(name, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def with_size(field):
    """A tar whose first header states another size, with a right checksum."""
    content = bytearray(TAR)
    content[124:136] = field
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    return bytes(content)


TAR = tar_of(*GOOD)
BOMBS = tar_of(("cat/1.bmp", BOMB), ("dog/1.bmp", BOMB))
ZEROS = tar_of(*((f"cat/{n}.mp4", bytes(2**23)) for n in range(3)))

TARS = {
    "parent": (tar_of(*GOOD, ("../x.png", b"")), 1, "contains `../x.png`, which points out"),
    "absolute path": (tar_of(*GOOD, ("/etc/x.png", b"")), 1, "contains `/etc/x.png`, an absolute path"),
    "parent in an extended header": (tar_of((tar_entry("cat/x.png", pax_headers={"path": "../x.png"}), b"")), 1, "`../x.png`, which points out"),
    "link": (tar_of((tar_entry("cat/x", tarfile.SYMTYPE, linkname="/etc"), b"")), 1, "a link to `/etc`"),
    "hard link": (tar_of((tar_entry("cat/x", tarfile.LNKTYPE, linkname="/etc/shadow"), b"")), 1, "tar --hard-dereference"),
    "character device": (tar_of((tar_entry("cat/x.png", tarfile.CHRTYPE), b"")), 1, "contains `cat/x.png`, a device"),
    "block device": (tar_of((tar_entry("cat/x.png", tarfile.BLKTYPE), b"")), 1, "contains `cat/x.png`, a device"),
    "pipe": (tar_of((tar_entry("cat/x.png", tarfile.FIFOTYPE), b"")), 1, "contains `cat/x.png`, a device"),
    "sparse file": (tar_of((tar_entry("cat/x.png", tarfile.GNUTYPE_SPARSE), b"")), 1, "contains `cat/x.png`, a sparse file"),
    "sparse file in an extended header": (tar_of((tar_entry("cat/x.png", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15}), b"1\n0\n512\n".ljust(1024, b"\0"))), 1, "truncated or damaged"),
    "sparse map that is no number": (tar_of((tar_entry("cat/x.png", pax_headers={"GNU.sparse.map": "0,x", "GNU.sparse.size": "4"}), b"")), 1, "truncated or damaged"),
    "large extended header": (tar_of((tar_entry("cat/x.png", pax_headers={"comment": "x" * 2**21}), b"")), 1, "a header of"),
    "extended size that is negative": (tar_of((tar_entry("cat/x.png", pax_headers={"size": "-1024"}), b"")), 1, "truncated or damaged"),
    "extended size that is no number": (tar_of((tar_entry("cat/x.png", pax_headers={"size": "many"}), b"")),  1, "has a single class"),
    "size that is no number": (with_size(b"12345678xyz\0"),  1, "not a zip or tar archive"),
    "size that is negative": (with_size(b"\xff" * 11 + b"\0"), 1, "truncated or damaged"),
    "size of an exabyte": (with_size(b"\x80" + (2**60).to_bytes(11)), 1, "truncated or damaged"),
    "repeated name": (tar_of(*GOOD, ("cat//0.png", b"")), 1, "contains `cat/0.png` twice"),
    "line break and escape in a name": (tar_of(*GOOD, ("cat/\x1b]0;x\x07\n.png", b"")), 1, "<U+001B>]0;x<U+0007>\\n.png: is empty"),
    "name that is no UTF-8": (tar_of(*GOOD, ("cat/caf\udce9.png", b""), form=tarfile.GNU_FORMAT), 1, "`cat/caf\\xe9.png`, a file name that is not UTF-8"),
    "end of a string in a name": (tar_of(*GOOD, (tar_entry("x", pax_headers={"path": "cat/x\0y.png"}), png_of(99))), 0, "61 images"),
    "no header behind the first": (TAR[:512] + b"\xff" * 512 + TAR[1024:], 1, "damaged"),
    "wrong checksum of a header": (TAR[:1536] + b"\x01" + TAR[1537:], 1, "damaged"),
    "gz with wrong checksum": (gzip.compress(TAR)[:-8] + b"\1" * 8, 1, "truncated or damaged (CRC check failed"),
    "gz of a bomb": (gzip.compress(BOMBS), 1, "unpacks to more than 200 times its size"),
    "bz2 of a bomb": (bz2.compress(BOMBS), 1, "unpacks to more than 200 times its size"),
    "xz of a bomb": (lzma.compress(BOMBS, preset=0), 1, "unpacks to more than 200 times its size"),
    "zst of a bomb": (pa.compress(BOMBS, codec="zstd", asbytes=True), 1, "unpacks to more than 200 times its size"),
    "xz of zeros": (lzma.compress(ZEROS, preset=0), 1, "unpacks to more than 200 times its size"),
    "gz of nothing": (gzip.compress(b""), 1, "not a tar archive"),
    "nested archives": (tar_of(("a.tar", TAR), ("b.tar", TAR)), 1, "archives inside archives are not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip(name, check, tmp_path):
    content, code, fact = ZIPS[name]
    (tmp_path / "x.zip").write_bytes(content)
    found, output = check(tmp_path / "x.zip", measured="bomb" in name)
    assert fact in output
    assert found == code


@pytest.mark.parametrize("name", TARS)
def test_a_hostile_tar(name, check, tmp_path):
    content, code, fact = TARS[name]
    (tmp_path / "x.tar").write_bytes(content)
    found, output = check(tmp_path / "x.tar", measured="bomb" in name or "size" in name)
    assert fact in output
    assert found == code


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "bz2", "xz", "zst"])
def test_a_truncated_archive(kind, share, check, tmp_path):
    pack = {
        "zip": lambda _: PLAIN,
        "tar": bytes,
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    }
    content = pack[kind](TAR)
    if kind == "tar":
        content = content[: content.rindex(b"IEND")]  # the rest is padding
    (tmp_path / "x").write_bytes(content[: int(len(content) * share)])
    code, output = check(tmp_path / "x")
    assert code == 1
    assert "damaged" in output


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (os.mkfifo, "cat/x.png is not a regular file"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)), "cat/x.png is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "cat/x.png is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "cat/x.png is not a regular file"),
        (lambda path: path.symlink_to(path), "cat/x.png is not a regular file"),
        (lambda path: path.symlink_to("/etc"), "cat/x.png is a link to a folder (/etc)"),
        (lambda path: path.symlink_to(path.parent), "cat/x.png is a link to a folder"),
        (lambda path: path.symlink_to("/etc/passwd"), "cat/x.png: is not an image"),
        (lambda path: (path.write_bytes(b"BM"), os.truncate(path, 3 * 2**30)), "cat/x.png: is too large"),
    ],
)  # fmt: skip
def test_a_hostile_folder(make, fact, check, folder, monkeypatch):
    data = folder(PETS)
    make(data / "cat" / "x.png")
    code, output = check(data)
    assert fact in output
    assert code == 1


def encoded(format_, size=(40, 30), seed=7):
    stream = io.BytesIO()
    Image.open(io.BytesIO(png_of(seed, *size))).convert("RGB").save(stream, format_)
    return stream.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(width, height, pixels=b"", *others):
    """A PNG that states a size, with other chunks before its compressed pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *others, chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def stating(format_, width, height):
    """A small image whose header states another size."""
    content = bytearray(encoded(format_, (1, 1)))
    at, order, size = {"JPEG": (content.find(b"\xff\xc0") + 5, ">HH", (height, width)), "GIF": (6, "<HH", (width, height)), "BMP": (18, "<ii", (width, height))}[format_]  # fmt: skip
    struct.pack_into(order, content, at, *size)
    if format_ == "GIF":
        struct.pack_into(order, content, content.index(b",") + 5, *size)
    return bytes(content)


ZEROS_32_MIB = zlib.compress(bytes(2**25), 9)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
IMAGES = {
    "PNG of ten gigapixels": (png_with(100_000, 100_000), 1, "cat/x.png: is too large"),
    "JPEG of four gigapixels": (stating("JPEG", 65_000, 65_000), 1, "cat/x.png: is too large"),
    "GIF of four gigapixels": (stating("GIF", 65_000, 65_000), 1, "cat/x.png: is too large"),
    "BMP of a negative size": (stating("BMP", -5, 30_000), 1, "cat/x.png: "),
    "PNG without pixels": (png_with(0, 5), 1, "cat/x.png: "),
    "bomb behind the last pixel": (png_with(9, 9, bytes(28 * 9 + 2**25)), 0, "61 images"),
    "bomb of a text": (png_with(9, 9, bytes(28 * 9), chunk(b"zTXt", b"a\0\0" + ZEROS_32_MIB)), 0, "61 images"),
    "bomb of a colour profile": (png_with(9, 9, bytes(28 * 9), chunk(b"iCCP", b"a\0\0" + ZEROS_32_MIB)), 0, "61 images"),
    "strip across": (encoded("PNG", (20_000, 1)), 0, "1 of 61 images"),
    "strip down": (encoded("PNG", (1, 20_000)), 0, "1 of 61 images"),
    "zeros": (bytes(4096), 1, "cat/x.png: is not an image"),
    "link to a picture elsewhere": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 1, "cat/x.png: is an SVG"),
    **{f"half of {name}": (encoded(name)[: len(encoded(name)) // 2], 1, "cat/x.png: ") for name in FORMATS},
    **{f"first bytes of {name}": (encoded(name)[:16], 1, "cat/x.png: ") for name in FORMATS},
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_a_hostile_image(name, check, folder):
    content, code, fact = IMAGES[name]
    found, output = check(folder(PETS | {"cat/x.png": content}), measured="bomb" in name or "giga" in name)
    assert fact in output
    assert found == code


FLAT = {path.replace("/", ""): content for path, content in PETS.items()}
FLAT_ROWS = "".join(f"{path},{path[:3]}\n" for path in FLAT)
LISTS = {
    "duplicate rows": ({"labels.csv": "path,label\n" + FLAT_ROWS * 2}, 0, "rows that repeat a file: 60"),
    "duplicate rows of two labels": ({"labels.csv": "path,label\n" + FLAT_ROWS + FLAT_ROWS.replace(",cat", ",cow")}, 1, "several labels for 30 of 60 images"),
    "missing files": ({"labels.csv": "path,label\n" + FLAT_ROWS + "gone.png,cat\n" * 9}, 0, "rows that name files that are not delivered: 9"),
    "more missing than delivered files": ({"labels.csv": "path,label\n" + FLAT_ROWS + "gone.png,cat\n" * 90}, 1, "90 of them are not delivered"),
    "paths that lead out": ({"labels.csv": "path,label\n" + FLAT_ROWS + "/etc/passwd,cat\n../../etc/passwd,dog\n"}, 0, "rows that name files that are not delivered: 2, such as /etc/passwd, ../../etc/passwd"),
    "a class per image": ({"labels.csv": "path,label\n" + "".join(f"{path},{n}\n" for n, path in enumerate(FLAT))}, 1, "holds no classes: 60 different values for 60 images"),
    "a label of a megabyte": ({"labels.csv": "path,label\n" + FLAT_ROWS + f"cat0.png,{'x' * 2**20}\n"}, 1, "cannot be read"),
    "a million columns": ({"labels.csv": f"path,label{',x' * 10**6}\n" + FLAT_ROWS}, 1, "more than 2,000"),
    "an escape in a label": ({"labels.csv": "path,label\n" + FLAT_ROWS.replace(",cat", ",\x1b[2Jcat")}, 0, "<U+001B>[2Jcat"),
    "a formula": ({"labels.csv": "path,label\n" + FLAT_ROWS.replace(",cat", ",=cmd|' /C calc'!A0")}, 0, "=cmd|' /C calc'!A0"),
    "deep JSON": ({"labels.json": "[" * 10**6}, 1, "labels.json is no JSON"),
    "a line of JSON that never ends": ({"labels.jsonl": '{"path": "' + "x" * 2**20}, 1, "labels.jsonl cannot be read"),
    "numbers of JSON that are too long": ({"labels.json": json.dumps({"cat0.png": 1}).replace("1", "1" * 10**5)}, 1, "labels.json is no JSON"),
    "NUL": ({"labels.csv": "path,label\n" + FLAT_ROWS + "\0"}, 1, "labels.csv contains NUL bytes"),
    "an archive called list": ({"labels.csv": PLAIN.decode("latin-1")}, 1, "labels.csv "),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_hostile_list(name, check, folder):
    lists, code, fact = LISTS[name]
    found, output = check(
        folder(FLAT | {path: text.encode() for path, text in lists.items()}), measured="million" in name
    )
    assert fact in output
    assert found == code


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code(check, folder, tmp_path):
    content = pickle.dumps(_Runs(tmp_path / "made"))  # a folder, whose absence `check` asserts
    code, output = check(folder({"cifar-10-batches-py/data_batch_1": content}))
    assert "data_batch_1 is a pickle that runs `posix.mkdir`" in output
    assert code == 1


def test_class_folders_that_differ_in_case_stay_apart_and_are_pointed_out(check, folder):
    files = {path.replace("dog", "Cat"): content for path, content in PETS.items()}
    code, output = check(folder(files))
    assert "2 classes, 60 images" in output
    assert code == 0


def test_a_thousand_classes_of_a_single_image(check, tmp_path):
    """100,000 take 31 s of processor time and 300 MB: both are linear."""
    (tmp_path / "x.zip").write_bytes(zip_of((f"c{n}/1.png", png_of(n)) for n in range(1_000)))
    code, output = check(tmp_path / "x.zip")
    assert "Too few usable images" in output
    assert "and 995 more" in output
    assert code == 1
