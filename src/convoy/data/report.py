"""The page of a dataset, `report.html`: what was delivered and what looks wrong, with its images inside. No stage reads it."""

import base64
import heapq
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core import files, templates
from convoy.core.dataset import SPLITS
from convoy.data import summary
from convoy.data.records import Finding, Pair, Record, Rows, Status
from convoy.data.scan import Scan
from convoy.data.settings import DataParams

THUMBNAIL_PX = 72  # largest side of an image in the report, in pixels
LOSSLESS_PX = 32  # largest side that is stored without loss: small ones would be blurred
JPEG_QUALITY = 80

MOST_CLASSES = 30
PER_CLASS = 6
PER_FINDING = 12
MOST_SUSPICIOUS = 96  # images of all findings together
MOST_PAIRS = 24
MOST_REASONS = 30  # reasons why files are not used
PER_REASON = 5  # files listed with a reason
UNUSED: tuple[Status, ...] = ("quarantined", "left_out")

BINS = 32
HISTOGRAMS: Mapping[str, tuple[str, str, bool]] = {
    "width": ("Width", "px", True),
    "height": ("Height", "px", True),
    "aspect": ("Aspect", "", True),
    "file_size": ("File size", "bytes", True),
    "brightness": ("Brightness", "of 255", False),
    "contrast": ("Contrast", "of 255", False),
    "sharpness": ("Sharpness", "", False),
    "colourfulness": ("Colourfulness", "", False),
}
"""Statistics that are drawn: title, unit, and whether the axis is logarithmic."""

Squares = npt.NDArray[np.uint8] | Rows


@dataclass(frozen=True)
class Histogram:
    """Describe the distribution of a statistic over the images used.

    Attributes:
        bars: height of each bin, 0..1 of the highest.
        low: where the first bin begins.
        high: where the last one ends.
        median: of all images.
        at: place of the median on the axis, 0..1.
    """

    title: str
    unit: str
    bars: tuple[float, ...]
    low: float
    high: float
    median: float
    at: float


def write(path: Path, scan: Scan, params: DataParams, squares: Squares) -> None:
    """Write the page as one HTML file of at most 3 MB, which loads nothing.

    Args:
        path: of the file.
        scan: the outcome of the check.
        params: the `data` section.
        squares: (n, image_px, image_px, 3) uint8, the images by `Record.kept`; may be mapped from a file.
    """
    draw = _Thumbnails(squares)
    counts = scan.counts
    totals = {label: sum(counts[split][label] for split in SPLITS) for label in scan.classes}
    first, rest, last = summary.extremes(totals, MOST_CLASSES)
    most = max(totals.values(), default=0)
    samples = _samples(scan.records, [*first, *last])
    kinds = summary.passed_over_by_kind(scan)

    def row(label: str) -> dict[str, Any]:
        return {
            "name": label,
            "total": totals[label],
            "splits": [
                {"split": split, "images": counts[split][label], "share": counts[split][label] / max(most, 1)}
                for split in SPLITS
            ],
            "samples": [_shown(record, draw) for record in samples[label]],
        }

    context = {
        "delivery": str(scan.delivery.path),
        "kind": scan.delivery.kind,
        "data": summary.metrics(scan)["data"],
        "splits": [{"name": split, "origin": summary.origin(split, scan)} for split in SPLITS],
        "shares": params.splits.model_dump(),
        "findings": _findings(scan, draw),
        "pairs": _pairs(scan, draw),
        "most_pairs": MOST_PAIRS,
        "all_pairs": len(scan.pairs),
        "first": [row(label) for label in first],
        "between": _between(rest, totals),
        "last": [row(label) for label in last],
        "histograms": list(histograms(scan)),
        "unused": {status: _unused(scan.records, status) for status in UNUSED},
        "passed_over": [(kind, number, example) for kind, (number, example) in kinds.items()],
    }
    files.write_text(path, templates.render("convoy.data", "report.html.j2", context, {"figure": _figure}))


def histograms(scan: Scan) -> Iterable[Histogram]:
    """Count the statistics of the images used in bins between the 0.5th and the 99.5th percentile; the ends take the rest."""
    used = [record.kept for record in scan.records if record.status == "ok"]
    if not used:
        return
    for name, (title, unit, logarithmic) in HISTOGRAMS.items():
        if name not in scan.statistics:
            continue
        values = scan.statistics[name][used].astype(np.float64)
        low, median, high = np.percentile(values, (0.5, 50, 99.5)).tolist()
        # A single value stands in the middle of an axis of its own.
        spread = high - low or abs(low) * 0.2 or 1.0
        low, high = (low, high) if high > low else (low - spread / 2, high + spread / 2)
        scaled = logarithmic and low > 0
        edges = np.geomspace(low, high, BINS + 1) if scaled else np.linspace(low, high, BINS + 1)
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        at = math.log(median / low) / math.log(high / low) if scaled else (median - low) / (high - low)
        bars = tuple((counts / counts.max()).tolist())
        yield Histogram(title, unit, bars, low, high, median, min(max(at, 0.0), 1.0))


class _Thumbnails:
    """Encode packed images as data URIs."""

    def __init__(self, squares: Squares) -> None:
        self._squares = squares

    def __call__(self, record: Record) -> str:
        """Return an image as data URI; empty where none was kept."""
        if record.kept < 0:
            return ""
        picture = Image.fromarray(np.array(self._squares[record.kept]))
        stream = io.BytesIO()
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
        if picture.width <= LOSSLESS_PX:
            picture.save(stream, format="PNG", optimize=True)
        else:
            picture.save(stream, format="JPEG", quality=JPEG_QUALITY)
        kind = "png" if picture.width <= LOSSLESS_PX else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _shown(record: Record, draw: _Thumbnails) -> dict[str, str]:
    return {
        "image": draw(record),
        "path": record.path,
        "name": record.path.rsplit("/", 1)[-1],
        "label": record.label or "",
        "split": record.split or "",
        "reason": record.reason,
    }


def _samples(records: Iterable[Record], labels: Iterable[str]) -> Mapping[str, list[Record]]:
    """Choose images of each class by the hash of their pixels: the same ones whatever the files are called."""
    of_class: defaultdict[str, list[Record]] = defaultdict(list)
    wanted = set(labels)
    for record in records:
        if record.status == "ok" and record.label in wanted:
            of_class[record.label].append(record)
    for label, images in of_class.items():
        of_class[label] = heapq.nsmallest(PER_CLASS, images, key=lambda record: (record.pixels, record.path))
    return of_class


def _findings(scan: Scan, draw: _Thumbnails) -> list[dict[str, Any]]:
    """Show the most severe findings first, with images until the page has enough of them."""
    ranked = summary.ranked(scan.findings)
    shown_of = [finding.paths[:PER_FINDING] for finding in ranked]
    wanted = {path for paths in shown_of for path in paths}
    by_path = {record.path: record for record in scan.records if record.path in wanted}
    left, found = MOST_SUSPICIOUS, []
    for finding, paths in zip(ranked, shown_of, strict=True):
        records = [by_path[path] for path in paths if path in by_path][: max(left, 0)]
        left -= len(records)
        found.append(_finding(finding, [_shown(record, draw) for record in records]))
    return found


def _finding(finding: Finding, images: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "check": finding.check,
        "figure": summary.figure(finding),
        "limit": "" if finding.limit is None else f"{finding.limit:g}",
        "action": finding.action,
        "text": summary.sentences(finding),
        "images": [image for image in images if image["image"]],
        "files": [image["path"] for image in images if not image["image"]],
        "more": len(finding.paths) - len(images),
    }


def _pairs(scan: Scan, draw: _Thumbnails) -> list[dict[str, Any]]:
    """Show near-duplicates side by side: those across splits first, then under two labels, then by their correlation."""

    def rank(pair: Pair) -> tuple[bool, bool, float]:
        first, second = scan.records[pair.first], scan.records[pair.second]
        return first.split == second.split, first.label == second.label, -pair.correlation

    return [
        {
            "first": _shown(scan.records[pair.first], draw),
            "second": _shown(scan.records[pair.second], draw),
            "correlation": pair.correlation,
            "mirrored": pair.mirrored,
        }
        for pair in heapq.nsmallest(MOST_PAIRS, scan.pairs, key=rank)
    ]


def _figure(value: float) -> str:
    """Format a statistic: whole numbers from 100 on, else three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _between(rest: Sequence[str], totals: Mapping[str, int]) -> str:
    if not rest:
        return ""
    least, most = min(totals[label] for label in rest), max(totals[label] for label in rest)
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"and {len(rest):,} more classes of {images} images each"


def _unused(records: Sequence[Record], status: Status) -> dict[str, Any]:
    reasons = summary.by_reason(records, status)
    shown = list(reasons.items())[:MOST_REASONS]
    faults = summary.by_fault(records) if status == "quarantined" else {}
    return {
        "count": sum(map(len, reasons.values())),
        "kinds": ", ".join(f"{fault} {number:,}" for fault, number in faults.items() if number),
        "reasons": [(reason, paths[:PER_REASON], len(paths)) for reason, paths in shown],
        "others": sum(len(paths) for paths in list(reasons.values())[MOST_REASONS:]),
    }
