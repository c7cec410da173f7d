"""Prepare a delivery: check and split it, and pack it as the dataset that training maps into memory."""

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from convoy.core.console import info
from convoy.core.contract import BASELINE
from convoy.core.dataset import FACTS_FILE, LABELS_FILE, MANIFEST_FILE, REPORT_FILE, SPLITS
from convoy.core.files import write_json
from convoy.data import cache, class_changes, drift, pack, report, summary
from convoy.data.cache import Cache
from convoy.data.pack import Spool
from convoy.data.records import Record, Status
from convoy.data.scan import Scan, refuse_findings, scan
from convoy.data.settings import DataParams
from convoy.images.delivery import open_delivery

CACHE = Path("cache", "images.sqlite")
"""Beside the dataset: DVC removes the stage's outputs before it runs."""

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
        ("row", pa.int64()),  # index into labels.npy, or -1; less the first of its split, into its images
        ("group", pa.string()),  # null for an image of its own
        ("format", pa.string()),  # Pillow's, such as JPEG; empty if it was not decoded
        ("bytes", pa.int64()),  # size of the file; 0 if it was not decoded
        *((name, pa.float32()) for name in MEASURED),  # null where no image was kept
    ]
)
"""One row per delivered file, so that nothing is dropped silently."""

MANIFEST_ROWS = 2**16
"""Rows that are laid out at once, at 0.4 kB each."""

UNUSED = {"left_out": "left out: ", "passed_over": "passed over: "}
"""Begins the verdict on a file that is not used and not at fault."""

NUMBERS = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float32(): np.float32}


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
    delivery = open_delivery(data)
    store = pack.chosen_store(params, delivery)
    kept = params if store == "pixels" else params.model_copy(update={"store_px": 0})
    with (
        _imports_frozen(),
        pack.spool(out.parent, params, store) as spool,
        _replacing(out) as scratch,
        Cache(out.parent / CACHE, cache.key(kept)) as seen,
    ):
        result = scan(delivery, params, spool.shrink, spool.keep, cache=seen)
        gc.freeze()  # nor at the records
        changes = class_changes.check(result, before, params)
        refuse_findings(result.delivery, changes)
        _write(result, params, spool, scratch)
        write_json(scratch / BASELINE, drift.baseline(result, params.background))
        report.write(scratch / REPORT_FILE, result, params, spool.served)
    for line in summary.lines(replace(result, findings=[*result.findings, *changes]), params):
        info(line)
    return summary.metrics(result)


@contextmanager
def _imports_frozen() -> Iterator[None]:
    """Hide what was imported from the garbage collector, which looks at all of it several times while records become more."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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


def _write(result: Scan, params: DataParams, spool: Spool, out: Path) -> None:
    """Write arrays, facts and manifest into an empty folder."""
    used = sorted(
        (record for record in result.records if record.split is not None),
        key=lambda record: (SPLITS.index(record.split or "train"), record.pixels, record.path),
    )
    label_index = {label: number for number, label in enumerate(result.classes)}
    np.save(out / LABELS_FILE, np.array([label_index[record.label or ""] for record in used], np.int64))
    counts = result.counts
    stops = np.cumsum([sum(counts[split].values()) for split in SPLITS]).tolist()
    order = np.array([record.kept for record in used], np.int64)
    splits = dict(zip(SPLITS, zip([0, *stops], stops, strict=False), strict=True))
    mean, std = spool.write(out, {split: order[start:stop] for split, (start, stop) in splits.items()})
    if spool.store == "encoded":
        pack.write_files(result.delivery, used[: stops[0]], out)
    facts: dict[str, object] = {"classes": result.classes, "image_px": params.image_px, "fit": params.fit}
    # Without these the hash is that of earlier versions.
    facts |= {"crop_share": params.crop_share} if params.crop_share < 1 else {}
    facts |= {"store_px": params.train_px} if params.train_px > params.image_px else {}
    facts |= {"store": spool.store} if spool.store == "encoded" else {}
    # The hash is of the content, whatever files it came in; files that are stored decide the pixels that training decodes.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for record in used:
        file = f"\n{record.sha256}" if record.split == "train" and spool.store == "encoded" else ""
        digest.update(f"{record.split}\n{record.label}\n{record.pixels}{file}".encode() + b"\0")
    measured = {
        "background": params.background,
        "splits": splits,
        "counts": counts,
        "mean": mean,
        "std": std,
        "hash": digest.hexdigest(),
    }
    write_json(out / FACTS_FILE, facts | measured)
    _write_manifest(result, order, out / MANIFEST_FILE)


def _write_manifest(result: Scan, order: npt.NDArray[np.int64], path: Path) -> None:
    """Write a row per delivered file; `order` has the number of the image in each row of the arrays."""
    row_of = np.full(len(result.records) + 1, -1)  # the last one stands for files without an image
    row_of[order] = np.arange(len(order))
    every = sorted(result.records, key=attrgetter("path"))
    with pq.ParquetWriter(path, MANIFEST) as writer:
        for start in range(0, len(every), MANIFEST_ROWS):
            columns: dict[str, Any] = dict(
                zip(Record._fields, zip(*every[start : start + MANIFEST_ROWS], strict=True), strict=True)
            )
            kept = np.array(columns["kept"])
            columns["verdict"] = list(map(_verdict, columns["status"], columns["reason"]))
            columns["row"] = row_of[kept]
            columns["bytes"] = columns["size"]
            arrays = []
            for field in MANIFEST:
                if field.name in MEASURED:
                    # Without an image the last one is read, and hidden.
                    arrays.append(_column(result.statistics[field.name][kept], field.type, kept >= 0))
                else:
                    arrays.append(_column(columns[field.name], field.type))
            writer.write_table(pa.Table.from_arrays(arrays, schema=MANIFEST))


def _column(
    values: Sequence[Any] | npt.NDArray[Any], kind: pa.DataType, present: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """Lay values out as Arrow does; those that are not present, or None, are null.

    `pyarrow.array` would import pandas if it is installed, as by MLflow: a quarter of a second and 40 MB.
    """
    if kind == pa.string():
        if None in values:
            present = np.array([value is not None for value in values])
            values = [value or "" for value in values]
        texts = list(map(str.encode, values))
        buffers = [np.cumsum([0, *map(len, texts)], dtype=np.int32), b"".join(texts)]
    else:
        buffers = [np.asarray(values, NUMBERS[kind])]
    validity = None if present is None else pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, *map(pa.py_buffer, buffers)])


def _verdict(status: Status, reason: str) -> str:
    return UNUSED.get(status, "") + reason or status
