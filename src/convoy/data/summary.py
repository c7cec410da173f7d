"""Summarise what a delivery contains: the table and the figures that `prepare`, `convoy data check` and `convoy data use` share."""

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

from convoy.core import escaping
from convoy.core.console import table
from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import listed
from convoy.data.names import natural
from convoy.data.records import Finding, Record, Status
from convoy.data.scan import Scan
from convoy.data.settings import CheckParams, DataParams
from convoy.images.formats import Fault

COLUMNS = 100
"""Longest line, in characters."""

SHOWN_CLASSES = 20
SHOWN_REASONS = 5
SHOWN_FILES = 5
SHOWN_KINDS = 10
METRIC_KINDS = 5  # the most frequent ones: metrics stay few
LONGEST_CLASS = 40
LONGEST_PATH = 60

SEVERITY = ("fail", "drop", "report")
"""Actions, the most severe first."""

UNUSED: tuple[Status, ...] = ("quarantined", "left_out", "passed_over")


def lines(scan: Scan, params: DataParams) -> list[str]:
    """Describe a delivery for people: classes and splits, what is not used, what is suspicious."""
    data = metrics(scan)["data"]
    splits = ", ".join(f"{split} {data[split]:,}" for split in SPLITS)
    images = f"{data['images']:,} images ({splits}), {data['quarantined']:,} quarantined"
    found = [f"{scan.delivery.path} ({scan.delivery.kind}): {data['classes']:,} classes, {images}"]
    if scan.cut:
        shares = ", ".join(f"{split} {getattr(params.splits, split):g}" for split in scan.cut)
        source = "all images" if is_cut("train", scan) else "the train split"
        found.append(f"Cut from {source} by pixel hash (data.splits): {shares}")
    found += [_wrapped(note) for note in scan.delivery.notes]
    found += ["", class_table(scan), *_passed_over(scan)]
    found += _unused(scan.records, "quarantined", "Quarantined, since they cannot be used")
    found += _unused(scan.records, "left_out", "Left out")
    return found + _findings(scan.findings)


def class_table(scan: Scan) -> str:
    """Lay out the number of images of each class in each split; of many classes, those with the most and the fewest."""
    counts = scan.counts
    totals = {label: sum(counts[split][label] for split in SPLITS) for label in scan.classes}
    first, rest, last = extremes(totals, SHOWN_CLASSES)

    def row(label: str) -> tuple[str, ...]:
        numbers = [counts[split][label] for split in SPLITS]
        return (
            escaping.short(label, LONGEST_CLASS),
            *(f"{number:,}" for number in (*numbers, totals[label])),
        )

    between = []
    if rest:
        least, most = min(totals[label] for label in rest), max(totals[label] for label in rest)
        images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        between = [(f"and {len(rest):,} more", "", "", "", f"{images} each")]
    sums = [sum(counts[split].values()) for split in SPLITS]
    return table(
        ("Class", *(f"{split} ({origin(split, scan)})" for split in SPLITS), "All"),
        [
            *map(row, first),
            *between,
            *map(row, last),
            (f"{len(scan.classes):,} classes", *(f"{number:,}" for number in (*sums, sum(sums)))),
        ],
        right=range(1, 5),
    )


def is_cut(split: Split, scan: Scan) -> bool:
    """Check whether the images of a split were chosen by their hash; train is what the others leave if both are cut."""
    measured = [part for part in SPLITS[1:] if part in scan.cut or any(scan.counts[part].values())]
    return split in scan.cut or (split == "train" and len(scan.cut) == len(measured))


def origin(split: Split, scan: Scan) -> str:
    """State where a split comes from: `cut`, `delivered`, or `none` of a test split that is neither."""
    if is_cut(split, scan):
        return "cut"
    return "delivered" if any(scan.counts[split].values()) else "none"


def extremes(totals: Mapping[str, int], most: int) -> tuple[list[str], list[str], list[str]]:
    """Choose the classes that are shown: all in natural order, or, of more than `most`, those with the most and the fewest images.

    Returns:
        Those shown first, those not shown, those shown last.
    """
    if len(totals) <= most:
        return sorted(totals, key=natural), [], []
    ordered = sorted(totals, key=lambda label: (-totals[label], natural(label)))
    half = most // 2
    return ordered[:half], ordered[half:-half], ordered[-half:]


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Order findings: the most severe action first, then those that concern most files."""
    return sorted(findings, key=lambda found: (SEVERITY.index(found.action), -len(found.paths), found.check))


def sentences(finding: Finding) -> str:
    """Return what a check found without the indented lines that list files, which are shown elsewhere."""
    return " ".join(re.sub(":$", ".", line) for line in finding.text.splitlines() if not line.startswith(" "))


def figure(finding: Finding) -> str:
    """Format what a check measured."""
    return f"{finding.figure:,.4g}" if finding.figure % 1 else f"{finding.figure:,.0f}"


def passed_over_by_kind(scan: Scan) -> dict[str, tuple[int, str]]:
    """Count the files that are passed over by kind, litter included, with an example each; the most frequent kind first."""
    kinds = dict(scan.delivery.litter)
    for record in scan.records:
        if record.status == "passed_over":
            number, example = kinds.get(record.reason, (0, record.path))
            kinds[record.reason] = number + 1, example
    return dict(sorted(kinds.items(), key=lambda kind: (-kind[1][0], kind[0])))


def by_reason(records: Iterable[Record], status: Status) -> dict[str, list[str]]:
    """Group the paths of files that are not used by the reason, the most frequent first."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.status == status:
            reasons[record.reason].append(record.path)
    return dict(sorted(reasons.items(), key=lambda reason: -len(reason[1])))


def by_fault(records: Iterable[Record]) -> dict[str, int]:
    """Count the quarantined files by the kind of the reason, zeros included."""
    counts = Counter(record.fault for record in records if record.status == "quarantined")
    return {fault: counts[fault] for fault in get_args(Fault)}


def facts(scan: Scan) -> dict[str, Any]:
    """Return all that `lines` describes, and every file that is not used, for programs (`--json`)."""
    unused: dict[str, list[dict[str, str]]] = {status: [] for status in UNUSED}
    for record in scan.records:
        if record.status != "ok":
            kind = {"kind": record.fault} if record.fault else {}
            unused[record.status].append({"path": record.path, "reason": record.reason, **kind})
    kinds = passed_over_by_kind(scan)
    return {
        **metrics(scan),
        "classes": scan.classes,
        "counts": scan.counts,
        "cut": list(scan.cut),
        "notes": list(scan.delivery.notes),
        "quarantined_by_kind": by_fault(scan.records),
        "passed_over_by_kind": {kind: number for kind, (number, _) in kinds.items()},
        "litter_by_kind": {kind: number for kind, (number, _) in scan.delivery.litter.items()},
        "findings": [asdict(found) for found in ranked(scan.findings)],
        **unused,
    }


def metrics(scan: Scan) -> dict[str, Any]:
    """Count images, files and findings, for build/metrics/prepare.json, where `dvc metrics diff` shows a change of the data.

    `checks` has the figure of every check in `data.checks`, `quarantined` every kind of reason; 0 where there is nothing.
    """
    statuses = Counter(record.status for record in scan.records)
    kinds = passed_over_by_kind(scan)
    figures = dict.fromkeys(CheckParams.model_fields, 0.0)
    for found in scan.findings:
        if found.check in figures:
            figures[found.check] = max(figures[found.check], found.figure)
    return {
        "data": {
            "images": statuses["ok"],
            "classes": len(scan.classes),
            "quarantined": statuses["quarantined"],
            "left_out": statuses["left_out"],
            "passed_over": sum(number for number, _ in kinds.values()),
            **{split: sum(images.values()) for split, images in scan.counts.items()},
            "near_duplicate_pairs": len(scan.pairs),
        },
        "checks": {check: int(figure) if figure % 1 == 0 else figure for check, figure in figures.items()},
        "quarantined": by_fault(scan.records),
        "passed_over": {
            kind.replace(" ", "_"): number for kind, (number, _) in list(kinds.items())[:METRIC_KINDS]
        },
    }


def _passed_over(scan: Scan) -> list[str]:
    kinds = passed_over_by_kind(scan)
    if not kinds:
        return []
    rows = [
        (escaping.short(kind, LONGEST_CLASS), f"{number:,}", escaping.short(example, LONGEST_PATH - 12))
        for kind, (number, example) in list(kinds.items())[:SHOWN_KINDS]
    ]
    if len(kinds) > SHOWN_KINDS:
        others = sum(number for number, _ in list(kinds.values())[SHOWN_KINDS:])
        rows.append((f"and {len(kinds) - SHOWN_KINDS} other kinds", f"{others:,}", ""))
    return ["", table(("Passed over", "Files", "Such as"), rows, right=(1,))]


def _unused(records: Sequence[Record], status: Status, title: str) -> list[str]:
    reasons = by_reason(records, status)
    if not reasons:
        return []
    faults = [f"{fault} {number:,}" for fault, number in by_fault(records).items() if number]
    kinds = f" ({', '.join(faults)})" if faults and status == "quarantined" else ""
    found = ["", f"{title}: {sum(map(len, reasons.values())):,}{kinds}"]
    for reason, paths in list(reasons.items())[:SHOWN_REASONS]:
        shown = [escaping.short(path, LONGEST_PATH) for path in paths]
        found.append(_wrapped(f"{listed(shown, SHOWN_FILES)}: {reason}"))
    if others := sum(len(paths) for paths in list(reasons.values())[SHOWN_REASONS:]):
        found.append(f"  and {others:,} more; `convoy data check --json` lists all")
    return found


def _findings(findings: Iterable[Finding]) -> list[str]:
    found = []
    for finding in ranked(findings):
        limit = "" if finding.limit is None else f", limit {finding.limit:g}"
        found.append(
            _wrapped(f"{finding.action}: {sentences(finding)} ({finding.check} {figure(finding)}{limit})")
        )
    if not found:
        return ["", "Findings: none"]
    return ["", f"Findings: {len(found):,} (limits and actions: data.checks in params.yaml)", *found]


def _wrapped(text: str) -> str:
    words = " ".join(escaping.visible(word) for word in text.split())
    return "\n".join(
        textwrap.wrap(words, COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    )
