"""Measure how `prepare` checks data and write benchmarks/DATA.md.

    python benchmarks/data.py prepare cifar10-jpeg.tar.gz                    about 4 minutes of two cores
    python benchmarks/data.py many cifar10-jpeg.tar.gz                       the same with 600,000 images, about 10 minutes
    python benchmarks/data.py duplicates cifar10-jpeg.tar.gz                 about 3 minutes of one core
    python benchmarks/data.py duplicates cifar10-jpeg.tar.gz --others PYTHON  beside imagededup and cleanvision

The archive holds CIFAR-10 as 60,000 JPEG files, `train/CLASS/…` and `test/CLASS/…`. PYTHON is the interpreter of another environment,
in which imagededup and cleanvision are installed.
"""

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core.params import section
from convoy.data import duplicates
from convoy.data.records import Pair
from convoy.data.settings import DataParams
from convoy.images.decode import decode
from convoy.images.delivery import open_delivery

ROOT = Path(__file__).parents[1]
SIZES = (15_000, 30_000, 60_000, 120_000)
PLANTED, PLANTED_LARGE = 500, 110
"""Copies of each kind, of 32 px and of larger images; each of another image, so that no copy is found through another."""

SHARED_FILES = SHARED_IMAGES = (3_000, 15_000)  # imagededup takes a quarter of an hour for 60,000
"""Files, and images already decoded, that the programs compare."""

ADDED = 600
"""Images of a later delivery."""

TIMES = 10
"""Copies of each image in the large delivery, each turned, enlarged or negated otherwise."""

PARTS = {"prepare": "Prepare", "many": "Prepare, ten times as many"}

PREPARE = """
import resource, sys, time
from pathlib import Path
from convoy.core.params import section
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
began = time.perf_counter()
prepare(Path(sys.argv[1]), section("data", DataParams), Path(sys.argv[2]))
spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("MEASURED", time.perf_counter() - began, sum(each.ru_utime + each.ru_stime for each in spent), spent[0].ru_maxrss / 1024)
"""

U8 = npt.NDArray[np.uint8]
Result = TypeVar("Result")

FILES = {
    "imagededup PHash": (
        "from imagededup.methods import PHash\n"
        "PHash(verbose=False).find_duplicates(image_dir=GIVEN, num_enc_workers=0, num_dist_workers=0)\n"
    ),
    "cleanvision": (
        "from cleanvision import Imagelab\n"
        "Imagelab(data_path=GIVEN).find_issues({'near_duplicates': {}}, n_jobs=1, verbose=False)\n"
    ),
}
"""What other programs run on a folder of files."""

IMAGES = {
    "imagededup PHash": (
        "from imagededup.methods import PHash\n"
        "method = PHash(verbose=False)\n"
        "hashes = {str(n): method.encode_image(image_array=image_u8) for n, image_u8 in enumerate(np.load(GIVEN))}\n"
        "began_search = spent()\n"
        "method.find_duplicates(encoding_map=hashes, num_dist_workers=0)\n"
    ),
}
"""What they run on an array of images; cleanvision reads files only."""


def jpeg(image_u8: U8) -> U8:
    """Compress as JPEG of quality 60."""
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream))


def halved(resampling: Image.Resampling) -> Callable[[U8], U8]:
    """Resize to half the size and back."""

    def resize(image_u8: U8) -> U8:
        height, width, _ = image_u8.shape
        half = Image.fromarray(image_u8).resize((width // 2, height // 2), resampling)
        return np.asarray(half.resize((width, height), resampling))

    return resize


def brighter(factor: float) -> Callable[[U8], U8]:
    """Multiply the levels."""
    return lambda image_u8: np.clip(image_u8 * factor + 0.5, 0, 255).astype(np.uint8)


def shifted(down: int, across: int) -> Callable[[U8], U8]:
    """Shift by pixels and repeat the edge."""

    def shift(image_u8: U8) -> U8:
        height, width, _ = image_u8.shape
        padded = np.pad(image_u8, ((1, 1), (1, 1), (0, 0)), "edge")
        return padded[1 + down : 1 + down + height, 1 + across : 1 + across + width]

    return shift


COPIES: dict[str, Callable[[U8], U8]] = {
    "JPEG, quality 60": jpeg,
    "half size and back, bicubic": halved(Image.Resampling.BICUBIC),
    "half size and back, bilinear": halved(Image.Resampling.BILINEAR),
    "brightness +10 %": brighter(1.1),
    "brightness -10 %": brighter(0.9),
    "shifted by a pixel": shifted(0, 1),
    "shifted by a pixel both ways": shifted(-1, 1),
    "mirrored": lambda image_u8: image_u8[:, ::-1],
    "mirrored, JPEG, quality 60": lambda image_u8: jpeg(np.ascontiguousarray(image_u8[:, ::-1])),
}


def main() -> None:
    """Run the part that was chosen and replace its section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["prepare", "many", "duplicates"])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--others", metavar="PYTHON", help="interpreter that has imagededup and cleanvision")
    parser.add_argument("--trials", type=int, default=3, help="runs of each measurement")
    chosen = parser.parse_args()
    if chosen.part != "duplicates":
        part = prepared if chosen.part == "prepare" else prepared_many
        write(PARTS[chosen.part], part(chosen.archive, chosen.trials))
        return
    names, files = zip(
        *sorted((name, content) for name, content in open_delivery(chosen.archive).files()), strict=True
    )
    images = [decode(content).image_u8 for content in files]
    write("Near-duplicates", near_duplicates(names, images, chosen.trials))
    if chosen.others:
        lines = beside(chosen.others, files, images, chosen.trials)
        write("Near-duplicates, other programs", lines)


def write(title: str, lines: list[str]) -> None:
    """Replace a section of DATA.md."""
    path = ROOT / "benchmarks/DATA.md"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Data\n"
    sections = [part for part in text.split("\n## ") if not part.startswith(f"{title}\n")]
    sections.append("\n".join([title, "", *lines]))
    path.write_text("\n## ".join(part.strip("\n") + "\n" for part in sections), encoding="utf-8")


def prepared(archive: Path, trials: int) -> list[str]:
    """Time the stage on all images, and again after some were added."""
    lines = [
        f"`python benchmarks/data.py prepare`: {archive.name}, 60,000 files, image_px {image_px()}, all checks. {machine()}",
        "",
        "| delivery | wall clock, s | processor, s | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        larger = Path(folder, "larger.tar.gz")
        enlarge(archive, larger)
        runs: dict[str, list[list[float]]] = {"all new": [], "nothing new": [], f"{ADDED} added": []}
        for trial in range(trials):
            out = Path(folder, str(trial), "dataset")
            for name, delivery in zip(runs, (archive, archive, larger), strict=True):
                runs[name].append(run_prepare(delivery, out))
                print(name, runs[name][-1], flush=True)
    return [*lines, *(row(name, figures) for name, figures in runs.items())]


def prepared_many(archive: Path, trials: int) -> list[str]:
    """Time the stage on ten times as many images."""
    lines = [
        f"`python benchmarks/data.py many`: {TIMES} copies of each image, turned, enlarged or negated, in one tar. {machine()}",
        "",
        "| images | wall clock, s | processor, s | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, TIMES):
            delivery = Path(folder, f"{times}.tar")
            multiply(archive, delivery, times)
            figures = [
                run_prepare(delivery, Path(folder, f"{times}-{trial}", "dataset")) for trial in range(trials)
            ]
            lines.append(row(f"{times * 60_000:,}", figures))
            print(lines[-1], flush=True)
    return lines


def row(name: str, figures: list[list[float]]) -> str:
    """Format the medians and ranges of several runs."""
    return f"| {name} | " + " | ".join(spread(list(column)) for column in zip(*figures, strict=True)) + " |"


def run_prepare(delivery: Path, out: Path) -> list[float]:
    """Run the stage in a process of its own; return wall-clock and processor seconds and its peak memory in MiB."""
    command = [sys.executable, "-c", PREPARE, str(delivery), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.rsplit("MEASURED", 1)[1].split()]


def enlarge(archive: Path, larger: Path) -> None:
    """Write the archive with more images: the first of train, negated."""
    with tarfile.open(larger, "w:gz", compresslevel=1) as target:
        left = ADDED
        for name, content in open_delivery(archive).files():
            add(target, name, content)
            if name.startswith("train/") and left:
                left -= 1
                add(target, f"{Path(name).parent}/added-{left}.jpg", encoded(255 - decode(content).image_u8))


def multiply(archive: Path, larger: Path, times: int) -> None:
    """Write each image several times: turned by 90 degrees, or a corner enlarged, or negated."""
    with tarfile.open(larger, "w") as target:
        for name, content in open_delivery(archive).files():
            add(target, name, content)
            image_u8 = decode(content).image_u8 if times > 1 else None
            for n in range(1, times):
                copy = np.rot90(image_u8, n % 4)
                if n // 4 % 2:
                    copy = np.asarray(Image.fromarray(copy[:22, :22]).resize((32, 32)))
                add(target, f"{Path(name).with_suffix('')}-{n}.jpg", encoded(copy if n < 8 else 255 - copy))


def add(target: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    target.addfile(info, io.BytesIO(content))


def encoded(image_u8: U8) -> bytes:
    """Encode as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_u8)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def image_px() -> int:
    """Read the size in params.yaml."""
    return section("data", DataParams, ROOT / "params.yaml").image_px


def machine() -> str:
    """Describe the machine and the versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "pillow", "onnxruntime"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {versions}; "
        f"load average before {os.getloadavg()[0]:.1f}. Median (lowest to highest) where there were several runs."
    )


def near_duplicates(names: Sequence[str], images: Sequence[U8], trials: int) -> list[str]:
    """Measure time, recall and what is found in CIFAR-10."""
    limit = the_limit()
    began = time.process_time()
    prints = np.stack([duplicates.fingerprint(image_u8) for image_u8 in images])
    each = (time.process_time() - began) / len(images)
    large = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    of_large = statistics.median(timed(lambda: duplicates.fingerprint(large))[0] for _ in range(9))
    lines = [
        (
            f"`python benchmarks/data.py duplicates`, {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of {platform.machine()}, "
            f"a single thread used, Python {platform.python_version()}, numpy {version('numpy')}, scipy {version('scipy')}, Pillow "
            f"{version('pillow')}; load average before {os.getloadavg()[0]:.1f}, so that processor seconds count. "
            f"data.checks.near_duplicates.limit {limit:g}."
        ),
        "",
        (
            f"A fingerprint: {each * 1e6:.0f} µs of a 32 px image, mean of {len(images):,}; {of_large * 1e3:.1f} ms of 12 megapixels, median of 9. "
            f"The search, median of {trials} run(s) (lowest to highest); beyond CIFAR-10's 60,000 images, the same upside down:"
        ),
        "",
        f"| images | processor, s | wall clock, s | {ADDED} of them new, processor, s | pairs |",
        "|---|---|---|---|---|",
    ]
    upside_down = prints.reshape(-1, duplicates.PX, duplicates.PX)[:, ::-1].reshape(prints.shape)
    both = np.concatenate([prints, upside_down])
    for size in SIZES:
        chosen = both[:size] if size >= len(prints) else prints[:: len(prints) // size]
        runs = [timed(lambda chosen=chosen: search(chosen, limit)) for _ in range(trials)]
        more = [grown(chosen, limit, runs[0][2]) for _ in range(trials)]
        lines.append(
            f"| {size:,} | {spread([run[0] for run in runs])} | {spread([run[1] for run in runs])} | {spread(more)} | {len(runs[0][2]):,} |"
        )
        print(lines[-1], flush=True)
        if size == len(prints):
            pairs = runs[0][2]
    return [*lines, "", *recall(images, prints, limit), "", *cifar(names, pairs)]


def the_limit() -> float:
    """Read the limit in params.yaml."""
    return section("data", DataParams, ROOT / "params.yaml").checks.near_duplicates.limit


def search(prints: U8, limit: float) -> list[Pair]:
    """Search all images."""
    return duplicates.pairs(prints, np.ones(len(prints), bool), limit)


def grown(prints: U8, limit: float, expected: list[Pair]) -> float:
    """Return the processor seconds of a search that continues that of all but a few images, and finds what a fresh one does."""
    eligible = np.ones(len(prints), bool)
    older = eligible.copy()
    older[np.random.default_rng(0).permutation(len(prints))[:ADDED]] = False
    _, earlier = duplicates.search(prints, older, limit)
    spent, _, (found, _) = timed(lambda: duplicates.search(prints, eligible, limit, earlier))
    if found != expected:
        raise RuntimeError("A search that continues an earlier one finds other pairs.")
    return spent


def timed(call: Callable[[], Result]) -> tuple[float, float, Result]:
    """Return processor seconds, wall-clock seconds and the result."""
    processor, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - processor, time.perf_counter() - wall, result


def spread(seconds: list[float]) -> str:
    """Format a median and its range."""
    if len(seconds) == 1:
        return f"{seconds[0]:.1f}"
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def recall(images: Sequence[U8], prints: U8, limit: float) -> list[str]:
    """Plant copies of images, each of another image, and count those that are found among all others."""
    lines = [
        (
            f"Copies found, of {PLANTED} and {PLANTED_LARGE} copies each planted among CIFAR-10's images; large: 200 to 400 px, each composed of "
            "four of them."
        ),
        "",
        "| copy | 32 px | large |",
        "|---|---|---|",
    ]
    random = np.random.default_rng(0)
    copies = list(COPIES.values())
    originals = [images[n] for n in random.permutation(len(images))[: PLANTED * len(copies)]]
    kept = np.ones(len(images), bool)
    kept[np.random.default_rng(0).permutation(len(images))[: len(originals)]] = False
    originals += [mosaic(images, random) for _ in range(PLANTED_LARGE * len(copies))]
    number = np.concatenate([np.repeat(np.arange(len(copies)), n) for n in (PLANTED, PLANTED_LARGE)])
    planted = [
        duplicates.fingerprint(copies[n](image_u8)) for n, image_u8 in zip(number, originals, strict=True)
    ]
    first = np.stack([duplicates.fingerprint(image_u8) for image_u8 in originals])
    together = np.concatenate([first, np.stack(planted), prints[kept]])
    cluster = duplicates.clusters(search(together, limit), len(together))
    same = cluster[: len(first)] == cluster[len(first) : 2 * len(first)]
    is_large = np.arange(len(first)) >= PLANTED * len(copies)
    for n, name in enumerate(COPIES):
        small, large = (same[(number == n) & (is_large == which)].mean() for which in (False, True))
        lines.append(f"| {name} | {small:.3f} | {large:.3f} |")
        print(lines[-1], flush=True)
    return lines


def mosaic(images: Sequence[U8], random: np.random.Generator) -> U8:
    """Compose a picture of 200 to 400 px of four images."""
    four = [images[n] for n in random.integers(0, len(images), 4)]
    square = np.concatenate([np.concatenate(four[:2], 1), np.concatenate(four[2:], 1)])
    size = tuple(random.integers(200, 401, 2).tolist())
    return np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BICUBIC))


def cifar(names: Sequence[str], pairs: list[Pair]) -> list[str]:
    """Count what was found in CIFAR-10."""
    cluster = duplicates.clusters(pairs, len(names))
    test = np.array([name.startswith("test/") for name in names])
    in_train = np.isin(cluster[test], cluster[~test])
    alone = np.bincount(cluster, minlength=len(names))[cluster] == 1
    return [
        (
            f"CIFAR-10: {int(in_train.sum()):,} of {int(test.sum()):,} test images ({in_train.mean():.1%}) are in train too; "
            f"{int((~alone).sum()):,} of {len(names):,} images have a near-duplicate. The authors of ciFAIR (Barz and Denzler, 2020) judged 3.3 % "
            "of the test images by eye, other pictures of the same object and scene included."
        )
    ]


def beside(python: str, files: Sequence[bytes], images: Sequence[U8], trials: int) -> list[str]:
    """Time Convoy, imagededup and cleanvision on the same files, and on the same images already decoded."""
    limit = the_limit()
    lines = [
        (
            f"One thread each, median of {trials} run(s) by turns (lowest to highest). Files: decoding included, of which none can do "
            "without. Decoded: from an array of images to pairs, hashes or fingerprints included; cleanvision reads files only."
        ),
        "",
        "| given | program | processor, s | images per processor second | slower than Convoy by | of it search, s |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for count in SHARED_FILES:
            some = Path(folder, str(count))
            some.mkdir()
            for number, content in enumerate(files[:: len(files) // count]):
                (some / f"{number:05}.jpg").write_bytes(content)
            programs = {"Convoy": partial(ours, some, limit)}
            programs |= {name: partial(theirs, python, some, code) for name, code in FILES.items()}
            lines += compared(f"{count:,} files", count, programs, trials)
        for count in SHARED_IMAGES:
            array = Path(folder, f"{count}.npy")
            np.save(array, np.stack(images[:: len(images) // count]))
            programs = {"Convoy": partial(ours_decoded, array, limit)}
            programs |= {name: partial(theirs, python, array, code) for name, code in IMAGES.items()}
            lines += compared(f"{count:,} decoded", count, programs, trials)
    return lines


Spent = tuple[float, float]
"""Processor seconds, and those of the search among them; NaN where that is not measured."""


def compared(given: str, count: int, programs: Mapping[str, Callable[[], Spent]], trials: int) -> list[str]:
    """Time programs by turns."""
    runs: dict[str, list[Spent]] = {name: [] for name in programs}
    for _ in range(trials):
        for name, program in programs.items():
            runs[name].append(program())
    lines = []
    middle = {name: statistics.median(run[0] for run in each) for name, each in runs.items()}
    for name, each in runs.items():
        found = "-" if np.isnan(each[0][1]) else f"{statistics.median(run[1] for run in each):.2f}"
        lines.append(
            f"| {given} | {name} | {spread([run[0] for run in each])} | {count / middle[name]:,.0f} "
            f"| {middle[name] / middle['Convoy']:.1f} | {found} |"
        )
        print(lines[-1], flush=True)
    return lines


def ours(folder: Path, limit: float) -> Spent:
    """Decode and compare the files of a folder."""
    began = time.process_time()
    prints = [duplicates.fingerprint(decode(path.read_bytes()).image_u8) for path in sorted(folder.iterdir())]
    of_search = timed(lambda: search(np.stack(prints), limit))[0]
    return time.process_time() - began, of_search


def ours_decoded(array: Path, limit: float) -> Spent:
    """Compare the images of an array."""
    began = time.process_time()
    images = np.load(array)
    prints = [duplicates.fingerprints_of(images[start : start + 256]) for start in range(0, len(images), 256)]
    of_search = timed(lambda: search(np.concatenate(prints), limit))[0]
    return time.process_time() - began, of_search


def theirs(python: str, given: Path, code: str) -> Spent:
    """Run code in another environment, and time it without its imports."""
    imports = code.split("\n", maxsplit=1)[0]
    measure = (
        "import resource\nimport numpy as np\n"
        "def spent():\n"
        "    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        f"GIVEN = {str(given)!r}\n{imports}\nbegan = spent()\nbegan_search = np.nan\nimport warnings; warnings.simplefilter('ignore')\n{code}"
        "print('SECONDS', spent() - began, spent() - began_search)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", measure], env=environment, capture_output=True, text=True, check=True
    )
    whole, of_search = (float(word) for word in done.stdout.rsplit("SECONDS", 1)[1].split()[:2])
    return whole, of_search


if __name__ == "__main__":
    main()
