"""Fuzz the readers of deliveries: damage valid files and check that nothing but a `DataError` comes out.

Not part of the tests. Run it after an upgrade of Pillow or pyarrow, or a change of `convoy/images` or the lists of
`convoy/data`; what it finds becomes a test:

    PYTHONPATH=src:tests python benchmarks/fuzz.py --minutes 10 --seed 1
    PYTHONPATH=src:tests python benchmarks/fuzz.py --minutes 2 --only lists --seed 2

Every file is read in this process, so that a crash of a decoder ends the run: the last file is kept in `--keep`. Each
tenth is read under a tracer; if it reaches a new line, its damage is damaged further.
"""

import argparse
import io
import json
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from unittest import mock

import numpy as np
from PIL import Image, ImageCms

import array_sets_made as made
from convoy.core.errors import DataError
from convoy.data.layout import recognise
from convoy.images.decode import decode
from convoy.images.delivery import open_delivery
from convoy.images.parquet_metadata import MetadataReader

READERS = ("images", "archives", "arrays", "lists")

TRACED = 10
"""One of how many files is read under the tracer, which takes several times as long."""

MODULES = {
    "images": ("images/decode", "images/damaged", "images/profiles", "images/formats"),
    "archives": ("images/archive", "images/code_pages", "images/delivery"),
    "arrays": tuple(
        f"images/{name}" for name in ("array_sets", "cifar", "containers", "parquet", "pickles", "webdataset")
    ),
    "lists": ("data/lists", "data/list_formats", "data/labels"),
}
"""Whose lines are counted."""

SLOW_S = 5.0
"""Most CPU seconds that decoding a small damaged file may take."""

LARGE_BYTES = 2**28
"""Most memory that reading a small damaged file may take beyond what any before it took."""


@dataclass(frozen=True)
class Seed:
    """Hold a valid delivery, one file of which is damaged.

    Attributes:
        files: paths with contents; a single one without a folder is delivered as a file.
        damaged: the path of that file.
    """

    files: Mapping[str, bytes]
    damaged: str


def pictures() -> dict[str, bytes]:
    """Return valid files of every format, in several modes and with metadata."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise).resize((40, 33), Image.Resampling.BICUBIC)
    rgb, gray = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[274], exif[306], exif[282] = 6, "2026:01:01", 72.0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 13)
    about = {"exif": exif, "icc_profile": profile}
    variants = [
        ("JPEG", rgb, about), ("JPEG", rgb, {"progressive": True}), ("JPEG", rgb.convert("CMYK"), about),
        ("JPEG", gray, {"restart_marker_rows": 1}), ("PNG", rgba, about), ("PNG", rgb.quantize(30), {"transparency": 3}),
        ("PNG", deep, about), ("PNG", gray.convert("1"), {}), ("PNG", rgba, {"save_all": True, "append_images": [rgba]}),
        ("GIF", rgb.quantize(60), {}), ("GIF", rgb, {"save_all": True, "append_images": [rgb.rotate(9)]}),
        ("WEBP", rgb, about), ("WEBP", rgba, {"lossless": True}), ("WEBP", rgba, {"save_all": True, "append_images": [rgba]}),
        ("TIFF", rgb, about), ("TIFF", deep, {}), ("TIFF", rgb, {"compression": "tiff_lzw"}),
        ("TIFF", rgb, {"compression": "jpeg"}), ("TIFF", gray.convert("1"), {"compression": "group4"}),
        ("TIFF", rgb, {"compression": "tiff_deflate", "strip_size": 400}), ("TIFF", rgb.convert("LAB"), {}),
        ("BMP", rgb, {}), ("BMP", rgb.quantize(9), {}), ("PPM", rgb, {}), ("PPM", deep, {}), ("JPEG2000", rgb, {}),
        ("JPEG2000", rgba, {}), ("AVIF", rgb, about), ("AVIF", rgba, {}),
    ]  # fmt: skip
    files = {}
    for number, (format_, picture, options) in enumerate(variants):
        stream = io.BytesIO()
        picture.save(stream, format=format_, **options)
        files[f"{number}-{format_}-{picture.mode}"] = stream.getvalue()
    return files


def seeds(reader: str) -> dict[str, Seed]:
    """Return valid deliveries for a reader; of a delivery of several files one seed per file that may be damaged."""
    if reader == "images":
        return {name: Seed({name: content}, name) for name, content in pictures().items()}
    return {"archives": _archives, "arrays": _arrays, "lists": _lists}[reader]()


def _archives() -> dict[str, Seed]:
    png = {
        f"{label}/{n}.png": made.png(made.pictures(1, 4, n)[0]) for label in ("cat", "dog") for n in range(3)
    }
    odd = png | {"caf\xe9/1.png": png["cat/1.png"], "x" * 120 + "/1.png": b"", "dog/readme.txt": b"pets"}
    made_ = {"plain.tar": _tar(odd, ""), "pax.tar": _tar(odd, "", tarfile.PAX_FORMAT), "plain.zip": _zip(odd)}
    made_ |= {f"tar.{kind}": _tar(png, kind) for kind in ("gz", "bz2", "xz")}
    made_["deflated.zip"] = _zip(png, zipfile.ZIP_DEFLATED)
    single = {name: Seed({name: content}, name) for name, content in made_.items()}
    parts = {"data/train.zip": _zip(png), "data/test.tar": _tar(png, "")}
    return single | {name: Seed(parts, name) for name in parts}


def _tar(files: Mapping[str, bytes], compression: str, form: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _zip(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _arrays() -> dict[str, Seed]:
    train, test = ((made.pictures(n, 32, n), [k % 3 for k in range(n)]) for n in (6, 3))
    gray = [(made.pictures(n, 8, n, channels=1), [k % 3 for k in range(n)]) for n in (6, 3)]
    png = [made.png(image_u8) for image_u8 in made.pictures(6, 4)]
    labels = [n % 3 for n in range(6)]
    samples = {f"{n}": {"png": content, "cls": b"%d" % labels[n]} for n, content in enumerate(png)}
    described = {
        f"{n}": {"png": content, "json": b'{"label": %d}' % labels[n]} for n, content in enumerate(png)
    }
    npy = {}
    for name, array in (("x_train", train[0]), ("y_train", np.array(train[1], np.uint8))):
        stream = io.BytesIO()
        np.save(stream, array)
        npy[f"{name}.npy"] = stream.getvalue()
    deliveries: dict[str, Mapping[str, bytes]] = {
        "cifar-10": made.cifar_pickles(train, test), "cifar-10-python3": made.cifar_pickles(train, test, dump=made.python3),
        "cifar-100": made.cifar_100_pickles(train, test), "cifar-binary": made.cifar_binary(train, test),
        "mnist": made.mnist(*gray, gz=False), "mnist-gz": made.mnist(*gray), "npy": npy,
        "emnist": made.mnist(*gray, gz=False, prefix="emnist-letters-", parts=("train", "test")) | {"emnist-letters-mapping.txt": b"0 97\n1 98\n2 99\n"},
        "parquet-plain": {"train.parquet": made.parquet(png, [f"c{n}" for n in labels], None, as_bytes=True, compression="none")},
        "parquet-folder": {"train-0.parquet": made.parquet(png[:3], labels[:3]), "test-0.parquet": made.parquet(png[3:], labels[3:])},
        "webdataset": {"train-0.tar": made.webdataset(samples), "classnames.txt": b"a\nb\nc"},
        "webdataset-json": {"train-0.tar": made.webdataset(described)},
    }  # fmt: skip
    single = {"mnist.npz": made.npz(*gray), "train.parquet": made.parquet(png, labels)}
    return {name: Seed({name: content}, name) for name, content in single.items()} | {
        f"{kind}-{number}": Seed({f"data/{path}": content for path, content in files.items()}, f"data/{name}")
        for kind, files in deliveries.items()
        for number, name in enumerate(files)
        if not name.endswith(".html")
    }


def _lists() -> dict[str, Seed]:
    paths = [f"images/{n}.png" for n in range(6)]
    rows = [
        (path, ("cat", "dog")[n % 2], ("train", "test")[n // 4], f"p{n // 2}") for n, path in enumerate(paths)
    ]
    table = [("path", "label", "split", "patient_id"), *rows]
    objects = [dict(zip(table[0], row, strict=True)) for row in rows]
    coco = {
        "images": [{"id": n, "file_name": path} for n, path in enumerate(paths)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n % 2, "bbox": [0, 0, 1, 1]} for n in range(6)
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    one_hot = "filename,cat,dog\n" + "".join(f"{n}.png,{n % 2},{1 - n % 2}\n" for n in range(6))
    texts = {
        "labels.csv": "\n".join(",".join(row) for row in table), "semicolons.csv": "\n".join(";".join(row) for row in table),
        "labels.tsv": "\n".join("\t".join(row) for row in table), "_classes.csv": one_hot,
        "labels.jsonl": "\n".join(map(json.dumps, objects)), "labels.json": json.dumps(objects), "annotations.json": json.dumps(coco),
        "train.txt": "\n".join(f"{path} {n % 2}" for n, path in enumerate(paths)),
        "quoted.csv": "\n".join(",".join(f'"{cell}"' for cell in row) for row in table),
        "folders.csv": "image,label\n" + "\n".join(f"{path.rpartition('/')[2][:-4]},{label}" for path, label, *_ in rows),
    }  # fmt: skip
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {"utf16.csv": texts["labels.csv"].encode("utf-16"), "latin.csv": texts["labels.csv"].replace("cat", "k\xe4t").encode("latin-1")}  # fmt: skip
    png = made.png(made.pictures(1, 4)[0])
    return {
        name: Seed({**{f"data/{path}": png for path in paths}, f"data/{name}": content}, f"data/{name}")
        for name, content in contents.items()
    }


def read_image(path: Path, rng: np.random.Generator) -> str:
    """Decode an image; return what is wrong with the outcome."""
    decoded = decode(path.read_bytes(), max_truncated=float(rng.integers(2)))
    if decoded.image_u8.ndim != 3 or not 0 <= decoded.lost <= 1:
        return f"shape {decoded.image_u8.shape}, lost {decoded.lost}"
    return ""


def read_delivery(path: Path, _: np.random.Generator) -> str:
    """List a delivery, find each file's place, and read all files; return what is wrong with the outcome."""
    delivery = open_delivery(path)
    names = delivery.names()
    layout = recognise(delivery, "auto", "auto", "none")
    for name in names:
        layout.place(name)
    if {name for name, _ in delivery.files()} != set(names):
        return "the paths that are listed are not those that are read"
    return ""


def damaged(content: bytes, files: list[bytes], rng: np.random.Generator) -> bytes:
    """Change bits, bytes and numbers, cut, repeat and insert parts; up to four at once."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if data:
            at = int(rng.integers(len(data)))
            length = int(min(len(data) - at, rng.geometric(0.05)))
            CHANGES[int(rng.integers(len(CHANGES)))](data, at, length, files, rng)
    return bytes(data)


Change = Callable[[bytearray, int, int, list[bytes], np.random.Generator], None]


def _flip(data: bytearray, at: int, _: int, __: list[bytes], rng: np.random.Generator) -> None:
    data[at] ^= 1 << int(rng.integers(8))


def _noise(data: bytearray, at: int, length: int, _: list[bytes], rng: np.random.Generator) -> None:
    data[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()


def _number(data: bytearray, at: int, length: int, _: list[bytes], rng: np.random.Generator) -> None:
    value = (0, 1, 0x7F, 0x80, 0xFF)[int(rng.integers(5))]
    data[at : at + min(4, length)] = bytes([value]) * min(4, length)


def _cut(data: bytearray, at: int, *_: object) -> None:
    del data[at:]


def _remove(data: bytearray, at: int, length: int, *_: object) -> None:
    del data[at : at + length]


def _repeat(data: bytearray, at: int, length: int, _: list[bytes], rng: np.random.Generator) -> None:
    data[at:at] = data[at : at + length] * int(rng.integers(1, 9))


def _mix(data: bytearray, at: int, length: int, files: list[bytes], rng: np.random.Generator) -> None:
    other = files[int(rng.integers(len(files)))]
    start = int(rng.integers(len(other)))
    data[at : at + length] = other[start : start + length]


def _header(data: bytearray, at: int, _: int, __: list[bytes], rng: np.random.Generator) -> None:
    data[at % min(len(data), 64)] = int(rng.integers(256))


def _zeros(data: bytearray, at: int, *_: object) -> None:
    data[at:] = bytes(len(data) - at)


CHANGES: tuple[Change, ...] = (_flip, _noise, _number, _cut, _remove, _repeat, _mix, _header, _zeros)


class Coverage:
    """Count the lines of some modules that were reached.

    Attributes:
        reached: line numbers, by file.
    """

    def __init__(self, modules: tuple[str, ...]) -> None:
        source = Path(sys.modules["convoy.images.decode"].__file__ or "").parents[1]
        self._files = {str(source / f"{module}.py"): module for module in modules}
        self.reached: defaultdict[str, set[int]] = defaultdict(set)

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Trace what runs until the block ends."""
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)

    def count(self) -> int:
        """Count all lines reached so far."""
        return sum(map(len, self.reached.values()))

    def shares(self) -> str:
        """State the share of the lines inside functions that were reached, by module."""
        shares = []
        for file, module in self._files.items():
            lines = _lines(compile(Path(file).read_text(encoding="utf-8"), file, "exec"), inside=False)
            shares.append(f"{module} {len(self.reached[file] & lines) / len(lines):.0%}")
        return ", ".join(shares)

    def _trace(self, frame: FrameType, _: str, __: object) -> object:
        if frame.f_code.co_filename not in self._files:
            return None
        reached = self.reached[frame.f_code.co_filename]

        def line(frame: FrameType, _: str, __: object) -> object:
            reached.add(frame.f_lineno)
            return line

        return line


def _lines(code: CodeType, *, inside: bool) -> set[int]:
    found = (
        {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno} if inside else set()
    )
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _lines(constant, inside=inside or not constant.co_name[0].isupper())
    return found


class LastingReader(MetadataReader):
    """Read metadata in one process for all files, since each start takes half a second; in a new one after a crash."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the process, which ends with this one."""

    def check(self, footer: bytes) -> None:
        """Read the metadata of a file."""
        try:
            super().check(footer)
        except DataError:
            super().__exit__(None, None, None)
            raise


def main() -> int:
    """Fuzz for a time; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes, shared by the readers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=READERS, help="one reader")
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "convoy-fuzz", help="folder for findings"
    )
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    readers = [options.only] if options.only else READERS
    lasting = LastingReader()
    with mock.patch("convoy.images.parquet.MetadataReader", return_value=lasting):
        found = [
            fuzz(reader, options.minutes / len(readers), options.seed, options.keep) for reader in readers
        ]
    print(f"peak {peak() / 2**20:.0f} MiB, {sum(found)} findings")
    return 1 if any(found) else 0


def peak() -> int:
    """Return the most memory that the process has taken, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(reader: str, minutes: float, seed: int, keep: Path) -> int:
    """Fuzz a reader and print what came of it; return the number of findings."""
    rng, corpus = np.random.default_rng(seed), seeds(reader)
    read = read_image if reader == "images" else read_delivery
    outcomes: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    coverage, slowest, grown = Coverage(MODULES[reader]), 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, valid in corpus.items():
            if problem := read(write(valid, Path(scratch, name)), rng):
                raise SystemExit(f"{name} is not valid: {problem}")
        names = list(corpus)
        contents = [valid.files[valid.damaged] for valid in corpus.values()]
        end = time.process_time() + 60 * minutes
        while (start := time.process_time()) < end:
            number = int(rng.integers(len(contents)))
            name, valid = names[number], corpus[names[number]]
            content = damaged(contents[number], contents, rng)
            (keep / "last").write_bytes(content)
            path = write(Seed({valid.damaged: content}, valid.damaged), Path(scratch, name))
            is_traced, before, largest = not rng.integers(TRACED), coverage.count(), peak()
            outcome, problem = attempt(read, path, rng, coverage if is_traced else None)
            seconds = time.process_time() - start
            if content and is_traced and coverage.count() > before:
                names.append(name)
                contents.append(content)
                grown += 1
            if seconds > SLOW_S and not is_traced:
                problem = problem or f"slow: {seconds:.1f} s"
            if (growth := peak() - largest) > LARGE_BYTES:
                problem = problem or f"large: {growth / 2**20:.0f} MiB"
            slowest = max(slowest, 0.0 if is_traced else seconds)
            outcomes[outcome] += 1
            if problem:
                kind = problem.partition(": ")[0]
                problems[kind] += 1
                if problems[kind] == 1:
                    kept = keep / f"{reader}-{seed}-{len(problems)}-{name}"
                    kept.write_bytes(content)
                    print(f"{kept}: {problem}", flush=True)
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    print(
        f"{reader}: {len(corpus)} seeds, {counts}; {grown:,} reached new lines; slowest {slowest:.2f} s, {len(problems)} findings"
    )
    print(f"  lines reached: {coverage.shares()}", flush=True)
    return len(problems)


def write(seed: Seed, folder: Path) -> Path:
    """Write the files of a seed; return the path of the delivery."""
    for name, content in seed.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / seed.damaged.partition("/")[0]


Read = Callable[[Path, np.random.Generator], str]


def attempt(read: Read, path: Path, rng: np.random.Generator, coverage: Coverage | None) -> tuple[str, str]:
    """Read a delivery; return the outcome in a word, and what is wrong with it."""
    try:
        if coverage:
            with coverage.traced():
                return "read", read(path, rng)
        return "read", read(path, rng)
    except DataError:
        return "refused", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "failed", f"{type(error).__name__} at {_where(error.__traceback__)}: {str(error)[:200]}"


def _where(trace: TracebackType | None) -> str:
    """Name the innermost line of this project that an error went through."""
    found = "?"
    while trace:
        file = Path(trace.tb_frame.f_code.co_filename)
        found = f"{file.name}:{trace.tb_lineno}" if "convoy" in file.parts else found
        trace = trace.tb_next
    return found


if __name__ == "__main__":
    raise SystemExit(main())
