"""Find classes that a split lacks: too few images to cut it, or absent from a delivered split."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import listed
from convoy.data.records import Finding, Record
from convoy.data.settings import DataParams

NAMED = 5
"""Classes that a sentence names."""


def check(
    records: Sequence[Record], params: DataParams, delivered: Collection[Split], units: Mapping[str, int]
) -> list[Finding]:
    """Find classes without a usable image in some split, and splits without any.

    With `data.rare: train_only` a class may be absent from val and test. None may be absent from train, and no split
    may be empty.

    Args:
        records: with the split that uses each.
        params: the `data` section.
        delivered: splits that are delivered; the others are cut from train.
        units: independent images of each class among those that are cut: groups and near-duplicates count once.

    Returns:
        Findings named `rare`; those with the action `fail` refuse the delivery.
    """
    counts = Counter((record.split, record.label) for record in records if record.status == "ok")
    classes = sorted({label for _, label in counts if label})
    absent = {split: [label for label in classes if not counts[split, label]] for split in SPLITS}
    found = [
        absent_from_delivered(split, absent[split], params, delivered, units, empty=absent[split] == classes)
        for split in SPLITS
        if split in delivered and absent[split]
    ]
    cut = [
        split
        for split in ("train", *params.cut(delivered))
        if split != "train" or len(delivered) < len(SPLITS)
    ]
    lacking = {label for split in cut for label in absent[split] if units.get(label)}
    images = Counter(record.label for record in records if record.status == "ok" and record.split in cut)
    few = {label: images[label] for label in classes if label in lacking and units[label] < len(cut)}
    if few:
        found.append(
            _too_few(few, records, params, cut, units, empty=any(absent[split] == classes for split in cut))
        )
    if held := sorted(lacking - few.keys()):
        found.append(_held_together(held, params, cut, trained=not set(held) & set(absent["train"])))
    return found


def absent_from_delivered(
    split: Split,
    absent: Sequence[str],
    params: DataParams,
    delivered: Collection[Split],
    trained: Mapping[str, int],
    *,
    empty: bool = False,
) -> Finding:
    """Describe what a delivered split lacks, with the remedies that are possible.

    Args:
        split: the delivered split.
        absent: classes without an image in it.
        params: the `data` section.
        delivered: all delivered splits.
        trained: independent images of each class in train.
        empty: whether no class has an image in it.
    """
    classes = _classes(absent)
    if split != "train" and params.rare == "train_only" and not empty:
        text = (
            f"The delivered {split} split has no usable image of {classes}: left out of averages of {split}."
        )
        return Finding("rare", len(absent), None, "report", text)
    remedies = ["Add some"] if empty else ["Add some", "remove the class from the other splits"]
    cuts = len(SPLITS) - len(delivered) + 2  # with this split
    if split != "train" and all(trained.get(label, 0) >= cuts for label in absent):
        remedies.append(f"leave out the whole {split} split, which Convoy then cuts from train")
    if split != "train" and not empty:
        remedies.append(
            f"set data.rare: train_only in params.yaml, which leaves the class out of averages of {split}"
        )
    lacks = "no usable image" if empty else f"no usable image of {classes}"
    text = f"The delivered {split} split has {lacks}. {_either(remedies)}."
    return Finding("rare", len(absent), None, "fail", text)


def _too_few(
    few: Mapping[str, int],
    records: Sequence[Record],
    params: DataParams,
    cut: Sequence[Split],
    units: Mapping[str, int],
    *,
    empty: bool,
) -> Finding:
    """Describe classes with fewer independent images than splits that need one."""
    together = ", counted as {} since groups and near-duplicates stay together"
    named = [
        f"`{label}` ({images:,} image{'s' * (images != 1)}{together.format(units[label]) * (units[label] != images)})"
        for label, images in few.items()
    ]
    classes = f"class{'es' * (len(few) != 1)} {listed(named, NAMED)}"
    paths = tuple(record.path for record in records if record.split in cut and record.label in few)
    measured = _and([split for split in cut if split != "train"])
    if params.rare == "train_only" and not empty:
        text = f"Only trained on, and left out of averages of {measured}, for want of {len(cut)} images: {classes}."
        return Finding("rare", len(few), None, "report", text, paths)
    remedies = ["Add images", "remove the class"]
    if any(record.group for record in records if record.label in few):
        remedies.append("state smaller groups (data.group, or the list's column)")
    elif any(units[label] != images for label, images in few.items()):
        remedies.append("raise data.checks.near_duplicates.limit if they only look alike")
    remedies += [
        "set data.rare: train_only in params.yaml, which trains the class and leaves it out of averages"
    ] * (not empty)
    text = f"Too few usable images to be in each of {_and(cut)}, which takes {len(cut)}: {classes}. {_either(remedies)}."
    return Finding("rare", len(few), None, "fail", text, paths)


def _held_together(
    held: Sequence[str], params: DataParams, cut: Sequence[Split], *, trained: bool
) -> Finding:
    """Describe classes with enough groups, all of which other classes need where they are."""
    text = (
        f"{_classes(held)} cannot be in each of {_and(cut)}: their images share groups or near-duplicates with other "
        "classes, which need them in another split."
    )
    text = text[:1].upper() + text[1:]
    if params.rare == "train_only" and trained:
        return Finding(
            "rare", len(held), None, "report", f"{text} They are left out of averages of splits without them."
        )
    remedies = ["Add images of other groups", "remove the class"]
    remedies += ["set data.rare: train_only in params.yaml, which leaves it out of averages"] * trained
    return Finding("rare", len(held), None, "fail", f"{text} {_either(remedies)}.")


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' * (len(names) != 1)} {listed([f'`{name}`' for name in names], NAMED)}"


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _either(remedies: Sequence[str]) -> str:
    return f"{', '.join(remedies[:-1])}, or {remedies[-1]}" if len(remedies) > 1 else remedies[0]
