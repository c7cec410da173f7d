"""Fuzz the image decoder: damage valid files of every format and check that nothing but a `DataError` comes out.

Not part of the tests. Run it after an upgrade of Pillow or a change of `convoy/images`; what it finds becomes a test:

    PYTHONPATH=src python benchmarks/fuzz.py --minutes 5 --seed 1

Each file is decoded in this process, so that a crash of a decoder ends the run: the last file is kept in `--keep`.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from convoy.core.errors import DataError
from convoy.images.decode import decode

SLOW_S = 5.0
"""Most CPU seconds that decoding a small damaged file may take."""

LARGE_BYTES = 2**30
"""Most memory that the process may take."""


def seeds() -> dict[str, bytes]:
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


def main() -> int:
    """Fuzz for a time; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "convoy-fuzz", help="folder for findings"
    )
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    last = options.keep / "last"
    rng, files = np.random.default_rng(options.seed), seeds()
    contents = list(files.values())
    outcomes: Counter[str] = Counter()
    found, slowest = 0, 0.0
    for name, content in files.items():
        if decode(content).lost:
            raise SystemExit(f"{name} is not valid")
    end = time.process_time() + 60 * options.minutes
    while (start := time.process_time()) < end:
        name = list(files)[int(rng.integers(len(files)))]
        content = damaged(files[name], contents, rng)
        last.write_bytes(content)
        problem = ""
        try:
            decoded = decode(content, max_truncated=float(rng.integers(2)))
            outcome = "decoded"
            if decoded.image_u8.ndim != 3 or not 0 <= decoded.lost <= 1:
                problem = f"shape {decoded.image_u8.shape}, lost {decoded.lost}"
        except DataError:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome, problem = "failed", f"{type(error).__name__}: {error}"
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        outcomes[outcome] += 1
        if seconds > SLOW_S:
            problem = problem or f"took {seconds:.1f} s"
        if problem:
            found += 1
            path = options.keep / f"{options.seed}-{found}-{name}"
            path.write_bytes(content)
            print(f"{path}: {problem}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    print(f"{counts}; slowest {slowest:.2f} s, peak {peak / 2**20:.0f} MiB, {found} findings")
    return 1 if found or peak > LARGE_BYTES else 0


if __name__ == "__main__":
    raise SystemExit(main())
