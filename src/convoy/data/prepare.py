"""Prepare a delivery: check and split it, and pack it as the dataset that training maps into memory."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from convoy.core.console import info
from convoy.core.contract import BASELINE
from convoy.core.dataset import FACTS_FILE, IMAGES_FILE, LABELS_FILE, MANIFEST_FILE, REPORT_FILE, SPLITS
from convoy.core.files import write_json
from convoy.data import cache, class_changes, drift, report, summary
from convoy.data.cache import Cache
from convoy.data.records import SPOOL_BYTES, Record, Rows
from convoy.data.scan import Scan, refuse_findings, scan
from convoy.data.settings import DataParams
from convoy.images.resize import Geometry

CACHE = Path("cache", "images.sqlite")
"""Beside the dataset: DVC removes the stage's outputs before it runs."""

CHUNK_ROWS = 512
"""Images copied at once: 100 MB at 256 px."""

LEAST_STD = 1 / 255
"""Smallest standard deviation written: a constant channel must not cause a division by zero."""

MEASURED = ("brightness", "contrast", "sharpness")
"""Statistics of each image that the manifest has."""

MANIFEST = pa.schema(
    [
        ("path", pa.string()),  # inside the folder or archive
        ("sha256", pa.string()),  # of the file's bytes; empty where no image was decoded
        ("width", pa.int32()),  # pixels, upright; 0 if it was not decoded
        ("height", pa.int32()),
        ("mode", pa.string()),  # Pillow's, of the file; empty if it was not decoded
        ("pixels", pa.string()),  # `pixel_hash`; empty if it was not decoded
        ("label", pa.string()),  # null outside class folders
        ("split", pa.string()),  # null for a file that is not used
        ("verdict", pa.string()),  # `ok`, or why it is not used
        ("row", pa.int64()),  # index into images.npy, or -1
        ("group", pa.string()),  # null for an image of its own
        ("format", pa.string()),  # Pillow's, such as JPEG; empty if it was not decoded
        ("bytes", pa.int64()),  # size of the file; 0 if it was not decoded
        *((name, pa.float32()) for name in MEASURED),  # null where no image was kept
    ]
)
"""One row per delivered file, so that nothing is dropped silently."""


def prepare(
    data: Path, params: DataParams, out: Path, before: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, Any]:
    """Check a delivery, decode each image once, split and pack it; print a summary.

    Nothing is written to `out` before everything is checked; an earlier dataset there
    stays complete until the new one replaces it.

    Args:
        data: delivered folder or archive.
        params: the `data` section.
        out: folder to fill; `convoy.core.dataset` describes it.
        before: files of the dataset before, by name, whose classes are compared. Their difference is printed and not
            written, since what is written follows from the delivery and the params alone.

    Returns:
        The metrics of `summary.metrics`.

    Raises:
        DataError: see `scan`; or the classes differ from those before, and `data.classes` is `fail`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # The packed images wait in an unnamed file until all are checked; it is gone whatever ends the process.
    with (
        tempfile.TemporaryFile(dir=out.parent, buffering=SPOOL_BYTES) as spool,
        _replacing(out) as scratch,
        Cache(out.parent / CACHE, cache.key(params)) as seen,
    ):
        geometry = Geometry(params.image_px, params.fit, params.crop_share)
        result = scan(data, params, geometry, keep=lambda square_u8: spool.write(square_u8.data), cache=seen)
        changes = class_changes.check(result, before, params)
        refuse_findings(result.delivery, changes)
        squares = Rows(spool, (params.image_px, params.image_px, 3))
        _write(result, params, squares, scratch)
        write_json(scratch / BASELINE, drift.baseline(result, params.background))
        report.write(scratch / REPORT_FILE, result, params, squares)
    for line in summary.lines(replace(result, findings=[*result.findings, *changes]), params):
        info(line)
    return summary.metrics(result)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give an empty folder that replaces `out` if all went well."""
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(result: Scan, params: DataParams, squares: Rows, out: Path) -> None:
    """Write arrays, facts and manifest into an empty folder."""
    used = sorted(
        (record for record in result.records if record.split is not None),
        key=lambda record: (SPLITS.index(record.split or "train"), record.pixels, record.path),
    )
    label_index = {label: number for number, label in enumerate(result.classes)}
    np.save(out / LABELS_FILE, np.array([label_index[record.label or ""] for record in used], np.int64))
    counts = result.counts()
    stops = np.cumsum([sum(counts[split].values()) for split in SPLITS]).tolist()
    order = np.array([record.index for record in used], np.int64)
    mean, std = _write_images(out / IMAGES_FILE, squares, order, train_rows=stops[0])
    facts: dict[str, object] = {"classes": result.classes, "image_px": params.image_px, "fit": params.fit}
    if params.crop_share < 1:  # else the hash is that of earlier versions
        facts["crop_share"] = params.crop_share
    # The hash is of the content, whatever files it came in.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for record in used:
        digest.update(f"{record.split}\n{record.label}\n{record.pixels}".encode() + b"\0")
    measured = {
        "background": params.background,
        "splits": dict(zip(SPLITS, zip([0, *stops], stops, strict=False), strict=True)),
        "counts": counts,
        "mean": mean,
        "std": std,
        "hash": digest.hexdigest(),
    }
    write_json(out / FACTS_FILE, facts | measured)
    row_of = {record.path: row for row, record in enumerate(used)}
    records = sorted(result.records, key=lambda record: record.path)
    columns: dict[str, Any] = {
        "verdict": [_verdict(record) for record in records],
        "row": [row_of.get(record.path, -1) for record in records],
        "bytes": [record.size for record in records],
    }
    kept = np.array([record.index for record in records], np.int64)
    for name in MEASURED:
        # Without an image the last row is read, and hidden.
        columns[name] = pa.array(result.statistics[name][kept], mask=kept < 0)
    for name in MANIFEST.names:
        if name not in columns:
            columns[name] = [getattr(record, name) for record in records]
    pq.write_table(pa.table(columns, schema=MANIFEST), out / MANIFEST_FILE)


def _write_images(
    path: Path, squares: Rows, order: npt.NDArray[np.int64], train_rows: int
) -> tuple[list[float], list[float]]:
    """Write packed images in the given order as one NPY array; return mean and std per channel of the first `train_rows`, 0..1."""
    histogram = np.zeros((3, 256), np.int64)  # exact, whatever the number of images
    side = squares.shape[1]
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *squares.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(order), CHUNK_ROWS):
            chunk_u8 = squares[order[start : start + CHUNK_ROWS]]
            file.write(chunk_u8.data)
            if (count := min(len(chunk_u8), train_rows - start)) > 0:
                strip = Image.frombuffer("RGB", (side, count * side), chunk_u8[:count], "raw", "RGB", 0, 1)
                histogram += np.reshape(strip.histogram(), (3, 256))
    levels = np.arange(256) / 255
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    mean = (shares * levels).sum(axis=1)
    std = np.sqrt((shares * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1))
    return mean.tolist(), np.maximum(std, LEAST_STD).tolist()


def _verdict(record: Record) -> str:
    prefix = {"left_out": "left out: ", "passed_over": "passed over: "}.get(record.status, "")
    return prefix + record.reason or record.status
