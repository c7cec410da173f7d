"""Compare the classes of a delivery with those of the dataset before, and state what follows from a difference."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from convoy.core.dataset import FACTS_FILE, MANIFEST_FILE
from convoy.core.errors import listed
from convoy.core.files import read_json
from convoy.data.records import Finding
from convoy.data.scan import Scan
from convoy.data.settings import DataParams

NAMED = 10
"""Classes of a list that a sentence names."""

EVIDENCE = 0.5
"""Share of the images of a class, beyond which finding them in another class shows what became of it."""


@dataclass(frozen=True)
class ClassChanges:
    """Hold how classes differ; an image is the same where its pixels are.

    Attributes:
        before: sorted.
        now: sorted.
        new: classes whose images were in no class before, to their number of images now.
        missing: classes whose images are in no class now, to their number of images before.
        moved: class before, class now, images in both, images before: most images of a missing class, or of those of a
            new class, carry the other name.
    """

    before: tuple[str, ...]
    now: tuple[str, ...]
    new: Mapping[str, int]
    missing: Mapping[str, int]
    moved: Sequence[tuple[str, str, int, int]]


def check(scan: Scan, before: Mapping[str, Path], params: DataParams) -> list[Finding]:
    """Compare with the dataset before, and find a difference of classes: `data.classes` states what happens.

    Args:
        scan: of the delivery.
        before: files of the earlier dataset, by their names in its folder; empty if there is none.
        params: the `data` section.
    """
    if not {FACTS_FILE, MANIFEST_FILE} <= before.keys():
        return []
    facts = read_json(before[FACTS_FILE])
    earlier = facts["classes"]
    # Without a common class it is another dataset, not a later version of this one.
    if earlier == scan.classes or not set(earlier) & set(scan.classes):
        return []
    images = Counter({label: sum(of[label] for of in facts["counts"].values()) for label in earlier})
    changes = compare(scan, images, before[MANIFEST_FILE])
    text, refused = _describe(changes), params.classes == "fail"
    if refused:
        text += (
            f" Before: {_names(changes.before)}. Now: {_names(changes.now)}. To accept the classes as they are now: data.classes: "
            "extend in params.yaml (`dvc exp run -S data.classes=extend` once)."
        )
    number = len(changes.new) + len(changes.missing) + len(changes.moved)
    return [Finding("classes", number, None, "fail" if refused else "report", text)]


def compare(scan: Scan, images_before: Mapping[str, int], manifest: Path) -> ClassChanges:
    """Compare a delivery with the images of each class of an earlier dataset, by its manifest."""
    used = pq.read_table(manifest, columns=["pixels", "label"], filters=[("row", ">=", 0)])
    before = dict(zip(used["pixels"].to_pylist(), used["label"].to_pylist(), strict=True))
    now = {record.pixels: record.label or "" for record in scan.records if record.status == "ok"}
    images = Counter(record.label for record in scan.records if record.status == "ok")
    gone, added = set(images_before) - set(scan.classes), set(scan.classes) - set(images_before)
    common: defaultdict[tuple[str, str], int] = defaultdict(int)
    for pixels, label in before.items():
        if pixels in now and (label in gone or now[pixels] in added):
            common[label, now[pixels]] += 1
    moved = []
    for (label, current), number in sorted(common.items()):
        if label != current and (
            (label in gone and number > EVIDENCE * images_before[label])
            or (current in added and number > EVIDENCE * images[current])
        ):
            moved.append((label, current, number, images_before[label]))
    explained = {label for label, *_ in moved}, {current for _, current, *_ in moved}
    return ClassChanges(
        before=tuple(images_before),
        now=tuple(scan.classes),
        new={label: images[label] for label in sorted(added - explained[1])},
        missing={label: images_before[label] for label in sorted(gone - explained[0])},
        moved=moved,
    )


def _describe(changes: ClassChanges) -> str:
    """State the difference, and what follows for training, comparison and promotion."""
    gone, added = set(changes.before) - set(changes.now), set(changes.now) - set(changes.before)
    parts = [
        f"{kind} {listed([_counted(*item) for item in classes.items()], NAMED)}"
        for kind, classes in (("new:", changes.new), ("missing:", changes.missing))
        if classes
    ]
    if changes.moved:
        renamed = [
            f"`{old}` is `{new}` now ({number:,} of its {images:,} images)"
            for old, new, number, images in changes.moved
        ]
        parts.append(listed(renamed, NAMED))
    follows = ["a network is trained with a new head, and accuracies before and after are not comparable"]
    shifted = [
        f"`{label}`"
        for label in sorted(set(changes.before) & set(changes.now))
        if changes.before.index(label) != changes.now.index(label)
    ]
    if shifted:
        follows.append(f"the number of {listed(shifted, NAMED)} changes, so outputs must be read by name")
    if added:
        follows.append("the champion is wrong on every test image of a class that it lacks")
    if gone:
        follows.append(
            "the gate refuses a candidate that lacks a class of the champion, unless it is overridden"
        )
    return f"The classes differ from those of the dataset before: {'; '.join(parts)}. It follows that {'; '.join(follows)}."


def _counted(label: str, images: int) -> str:
    return f"`{label}` ({images:,} image{'s' * (images != 1)})"


def _names(classes: Sequence[str]) -> str:
    return f"{listed([f'`{label}`' for label in classes], 2 * NAMED)} ({len(classes):,})"
