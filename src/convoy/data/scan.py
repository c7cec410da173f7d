"""Look at every delivered file once: decode, judge, split, and refuse what no training can use."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from convoy.core.console import track
from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError
from convoy.data.records import IGNORED, Record, Shrink, Square, read
from convoy.data.settings import DataParams
from convoy.data.split import OK, Image, assign
from convoy.images.delivery import Delivery, open_delivery
from convoy.images.layout import EXPECTED, Layout, recognise

EXAMPLES = 5
"""How many files a message names."""


@dataclass(frozen=True)
class Survey:
    """Everything delivered, judged.

    Attributes:
        records: one per delivered file, in the delivery's order.
        kept: for each record the number of its image among those passed to `keep`, or -1.
        classes: sorted; each has a usable image in every split.
        cut: the parts that the delivery lacks.
    """

    delivery: Delivery
    records: list[Record]
    kept: list[int]
    classes: list[str]
    cut: tuple[Split, ...]

    def count(self, split: Split, label: str | None = None) -> int:
        """Count usable images of a split, of one class or of all."""
        return sum(record.split == split and label in (None, record.label) for record in self.records)

    def counts(self) -> dict[Split, dict[str, int]]:
        """Count usable images per split and class, zeros included."""
        found = Counter((record.split, record.label) for record in self.records)
        return {split: {label: found[split, label] for label in self.classes} for split in SPLITS}


def survey(data: Path, params: DataParams, shrink: Shrink, keep: Callable[[Square], None]) -> Survey:
    """Decode every delivered file once and decide what becomes of it; write nothing.

    What the names alone reveal is checked before the first image is decoded.

    Args:
        data: folder or archive.
        params: the `data` section.
        shrink: makes of each readable image of a class what is kept of it; called from threads.
        keep: called with that, in the records' order, so that nothing is decoded twice.

    Raises:
        DataError: no images, one class only, a class missing in a split, more unusable files
            than `data.max_quarantined` allows, an unsafe or broken archive.
    """
    delivery = open_delivery(data)
    names = delivery.names()
    layout = recognise(names)
    _check_names(delivery, layout, names)
    records: list[Record] = []
    kept: list[int] = []
    images = 0
    for record, square_u8 in track(read(delivery.files(), layout, shrink), "read images", len(names)):
        records.append(record)
        kept.append(-1 if square_u8 is None else images)
        if square_u8 is not None:
            keep(square_u8)
            images += 1
    _split(records, params, layout)
    _check_quarantine(delivery, records, params)
    classes = sorted({record.label for record in records if record.label})
    result = Survey(delivery, records, kept, classes, layout.missing)
    _check_classes(result, params)
    return result


def _split(records: list[Record], params: DataParams, layout: Layout) -> None:
    """Fill in split and verdict of the readable images, in place."""
    readable = [index for index, record in enumerate(records) if record.verdict == OK]
    images = [
        Image(record.path, record.pixels, record.label or "", record.split)
        for record in (records[index] for index in readable)
    ]
    assignments = assign(images, params.splits, layout.missing)
    for index, assigned in zip(readable, assignments, strict=True):
        records[index] = replace(records[index], split=assigned.split, verdict=assigned.verdict)


def _check_names(delivery: Delivery, layout: Layout, names: list[str]) -> None:
    """Refuse what the paths alone show to be useless, before anything is decoded."""
    places = [layout.place(name) for name in names]
    classes = sorted({place.label for place in places if place.label})
    if not classes:
        raise DataError(f"{delivery.path} holds no images in class folders. {_found(names)} {EXPECTED}")
    _check_two(delivery, classes)
    delivered = {(place.split, place.label) for place in places}
    for split in SPLITS:
        absent = [label for label in classes if (split, label) not in delivered]
        if split in layout.parts.values() and absent:
            raise DataError(_absent_delivered(delivery, split, absent))


def _check_quarantine(delivery: Delivery, records: list[Record], params: DataParams) -> None:
    unusable = [record for record in records if record.quarantined]
    judged = sum(not record.verdict.startswith(IGNORED) for record in records)
    if len(unusable) > params.max_quarantined * judged:
        lines = [f"  {record.path}: {record.verdict}" for record in unusable[:EXAMPLES]]
        if len(unusable) > EXAMPLES:
            lines.append(f"  and {len(unusable) - EXAMPLES:,} more")
        raise DataError(
            f"{delivery.path}: {len(unusable):,} of {judged:,} files cannot be used ({len(unusable) / judged:.1%}; "
            f"data.max_quarantined allows {params.max_quarantined:.1%}):\n" + "\n".join(lines) + "\n"
            "Repair or remove them, or raise data.max_quarantined in params.yaml. Nothing was written."
        )


def _check_classes(found: Survey, params: DataParams) -> None:
    """Refuse a class without a usable image in some split: every label after it would shift."""
    usable = {record.label for record in found.records if record.verdict == OK}
    if not usable:
        raise DataError(
            f"{found.delivery.path} holds no usable image. {_found([record.path for record in found.records])} {EXPECTED}"
        )
    for label in found.classes:
        if label not in usable:
            example = next(record for record in found.records if record.label == label)
            raise DataError(
                f"{found.delivery.path}: class `{label}` has no usable image ({example.path}: {example.verdict}). "
                "Repair its images, or remove its folder."
            )
    counts = found.counts()
    for split in SPLITS:
        absent = [label for label in found.classes if not counts[split][label]]
        if absent and (split in found.cut or (split == "train" and found.cut)):
            raise DataError(_absent_cut(found, params, split, absent))
        if absent:
            raise DataError(_absent_delivered(found.delivery, split, absent))


def _check_two(delivery: Delivery, classes: list[str]) -> None:
    if len(classes) == 1:
        raise DataError(
            f"{delivery.path} holds one class only, `{classes[0]}`: there is nothing to tell apart. "
            f"Add a folder for at least one other class. {EXPECTED}"
        )


def _absent_cut(found: Survey, params: DataParams, split: Split, absent: list[str]) -> str:
    images = sum(record.label == absent[0] and record.verdict == OK for record in found.records)
    shares = ", ".join(f"data.splits.{part} ({getattr(params.splits, part):g})" for part in found.cut)
    others = f" (as of {len(absent) - 1} other classes)" if len(absent) > 1 else ""
    return (
        f"{found.delivery.path}: class `{absent[0]}` has {images:,} usable image{'s' * (images != 1)}, and none of them{others} fell in the "
        f"{split} part that was cut. Add images of it, deliver a {split} folder of your own, change {shares} "
        "in params.yaml, or remove the class."
    )


def _absent_delivered(delivery: Delivery, split: Split, absent: list[str]) -> str:
    named = ", ".join(f"`{label}`" for label in absent[:EXAMPLES])
    more = f" and {len(absent) - EXAMPLES} more" if len(absent) > EXAMPLES else ""
    return (
        f"{delivery.path}: the delivered {split} part has no usable image of class {named}{more}. "
        f"Add some, remove the class from the other parts, or leave the {split} folder out "
        "so that Convoy cuts it from train."
        if split != "train"
        else f"{delivery.path}: the delivered train part has no usable image of class {named}{more}. "
        "Add some, or remove the class from the other parts."
    )


def _found(names: list[str]) -> str:
    if not names:
        return "It is empty."
    examples = ", ".join(names[:EXAMPLES])
    return f"Found: {len(names):,} file{'s' * (len(names) != 1)}, such as {examples}."
