"""From a delivery to the packed dataset that training maps into memory."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.console import info
from convoy.core.dataset import FACTS_FILE, IMAGES_FILE, LABELS_FILE, MANIFEST_FILE, SPLITS
from convoy.core.files import write_json
from convoy.data import manifest, pack
from convoy.data.scan import Survey, survey
from convoy.data.settings import DataParams
from convoy.data.split import LEFT_OUT, OK
from convoy.images.resize import Geometry


def prepare(data: Path, params: DataParams, out: Path) -> dict[str, Any]:
    """Check a delivery, decode each image once, split, and pack; say what was found.

    Nothing is written to `out` before everything was checked; an earlier dataset there
    stays whole until the new one replaces it.

    Args:
        data: delivered folder or archive.
        params: the `data` section.
        out: folder to fill; `convoy.data.dataset` describes it.

    Returns:
        Metrics `{"data": {...}}`: numbers of images, classes, files not used, images per split.

    Raises:
        DataError: see `survey`.
    """
    to_square = Geometry(params.image_px, params.fit)
    with pack.Rows(out.parent, params.image_px) as rows:
        found = survey(data, params, shrink=to_square, keep=rows.append)
        scratch = out.with_name(f".{out.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            _write(found, params, rows, scratch)
            if out.exists():
                shutil.rmtree(out)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    for line in describe(found, params):
        info(line)
    return metrics(found)


def metrics(found: Survey) -> dict[str, Any]:
    """Count what was found, for build/metrics/prepare.json."""
    verdicts = [record.verdict for record in found.records]
    return {
        "data": {
            "images": verdicts.count(OK),
            "classes": len(found.classes),
            "quarantined": sum(record.quarantined for record in found.records),
            "left_out": sum(verdict.startswith(LEFT_OUT) for verdict in verdicts),
            **{split: found.count(split) for split in SPLITS},
        }
    }


def describe(found: Survey, params: DataParams) -> list[str]:
    """Say in a few lines what was found, what was cut from what, and what is not used."""
    data = metrics(found)["data"]
    parts = ", ".join(f"{split} {data[split]:,}" for split in SPLITS)
    quarantined = f"{data['quarantined']:,} quarantined" if data["quarantined"] else "no image quarantined"
    where = f"{found.delivery.path} ({found.delivery.kind})"
    lines = [f"{where}: {data['classes']:,} classes, {data['images']:,} images: {parts}; {quarantined}"]
    if found.cut:
        shares = ", ".join(f"{split} {getattr(params.splits, split):g}" for split in found.cut)
        source = "the train part" if len(found.cut) == 1 else "what was delivered"
        lines.append(f"Cut from {source} by pixel hash, as data.splits says: {shares}")
    if data["left_out"]:
        lines.append(f"Left out, since their pixels are delivered in test or val too: {data['left_out']:,}")
    return lines


def _write(found: Survey, params: DataParams, rows: pack.Rows, out: Path) -> None:
    """Write arrays, facts and manifest into an empty folder."""
    records = found.records
    used = [index for index, record in enumerate(records) if record.split is not None]
    place = {split: number for number, split in enumerate(SPLITS)}
    used.sort(
        key=lambda index: (place[records[index].split or "train"], records[index].pixels, records[index].path)
    )
    label_index = {label: number for number, label in enumerate(found.classes)}
    order = np.array([found.kept[index] for index in used], np.int64)
    labels = np.array([label_index[records[index].label or ""] for index in used], np.int64)
    np.save(out / LABELS_FILE, labels)
    statistics = pack.write_images(out / IMAGES_FILE, rows, order, train_rows=found.count("train"))
    mean, std = statistics.mean_and_std()
    counts = found.counts()
    stops = np.cumsum([found.count(split) for split in SPLITS]).tolist()
    facts: dict[str, object] = {"classes": found.classes, "image_px": params.image_px, "fit": params.fit}
    lines = [(records[i].split or "", records[i].label or "", records[i].pixels) for i in used]
    write_json(
        out / FACTS_FILE,
        facts
        | {
            "splits": {
                split: [stop - found.count(split), stop] for split, stop in zip(SPLITS, stops, strict=True)
            },
            "counts": counts,
            "mean": mean,
            "std": std,
            "hash": pack.content_hash(facts, lines),
        },
    )
    row_of = {index: row for row, index in enumerate(used)}
    manifest.write(out / MANIFEST_FILE, records, [row_of.get(index, -1) for index in range(len(records))])
