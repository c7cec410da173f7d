"""Assign each image to a split by its pixels.

An image keeps its split when others are added or files are renamed, and identical images are always in the same split, so
that no test image is trained on. Near-duplicates and the images of a group are cut as one unit.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import listed
from convoy.data import rare
from convoy.data.records import Finding, Pair, Record
from convoy.data.settings import DataParams, SplitParams

PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")
"""The split that keeps an image delivered in several: measuring comes before training."""

HEAD = 13
"""Hexadecimal digits of a hash that are read as a number in 0..1; the digits behind them are independent of it."""

NAMED = 5
"""Classes or groups that a sentence names."""

SMALL = 500
"""Images that are cut below which each that is not trained on counts."""

MUCH = 0.2
"""Share of a small train part whose loss is reported."""

FAR = 2.0
"""Factor between a share that was cut and its param beyond which the share is reported."""


def pixel_hash(image_u8: npt.NDArray[np.uint8]) -> str:
    """Hash size and pixels of an (H, W, 3) image as 64 hexadecimal digits."""
    height, width, _ = image_u8.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(image_u8).data)
    return digest.hexdigest()


def cut(pixels: str, shares: SplitParams, missing: Collection[Split]) -> Split:
    """Choose the split of an image that was not delivered in val or test.

    The hash is read as a number in 0..1; test takes the lower end and val the upper one,
    so that changing one share does not move an image of the other.
    """
    fraction = _fraction(pixels)
    if "test" in missing and fraction < shares.test:
        return "test"
    if "val" in missing and fraction >= 1 - shares.val:
        return "val"
    return "train"


def assign(
    records: Sequence[Record], params: DataParams, delivered: tuple[Split, ...], pairs: Sequence[Pair]
) -> tuple[list[Record], list[Finding]]:
    """Set the split of each usable image; splits that are not delivered are cut from train.

    Identical pixels under two labels are quarantined under both. Where identical pixels were delivered in several
    splits, the first of `PRECEDENCE` keeps them. A class with enough units gets an image in each split that is cut.

    Args:
        records: of every delivered file.
        params: the `data` section.
        delivered: splits that are delivered; empty if all are cut.
        pairs: near-duplicates, by index in `records`; those of two classes bind nothing, since both may be what they are named.

    Returns:
        The records with their splits, and the findings `groups`, `moved`, `held_out`, `shares`, `rare` and `no_test`; one with the action
        `fail` refuses the delivery.
    """
    assigned, findings = _whole_groups(_used_once(records), params, delivered)
    missing = params.cut(delivered)
    units = _Units(assigned, pairs, params.splits, missing)
    for index in units.pool:
        split = units.split[units.root(index)]
        if assigned[index].split != split:  # copying a record takes a microsecond, and most stay in train
            assigned[index] = assigned[index]._replace(split=split)
    counts = units.counts()
    findings += [*units.findings(), *rare.check(assigned, params, delivered, counts)]
    if "test" not in (*delivered, *missing):
        text = (
            "No test images: what is measured is measured on the validation images, which choose the epoch and the temperature, so "
            "it is too good. The gate compares no such models. Deliver test images, or set data.splits.test to a share."
        )
        findings.append(Finding("no_test", 0, None, "report", text))
    return assigned, findings


def _used_once(records: Sequence[Record]) -> list[Record]:
    """Quarantine identical pixels under several labels; keep those of several splits in one of them."""
    times = Counter(record.pixels for record in records if record.status == "ok")
    same: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "ok" and times[record.pixels] > 1:
            same[record.pixels].append(record)
    return [
        _resolve(record, same[record.pixels]) if record.status == "ok" and record.pixels in same else record
        for record in records
    ]


def _resolve(record: Record, same: Sequence[Record]) -> Record:
    for other in same:
        if other.label != record.label:
            reason = f"has the pixels of {other.path}, with another label ({record.label}, {other.label})"
            return record._replace(split=None, status="quarantined", reason=reason, fault="two_labels")
    for split in PRECEDENCE[: PRECEDENCE.index(record.split or "train")]:
        for other in same:
            if other.split == split:
                reason = f"its pixels are in {split} too: {other.path}"
                return record._replace(split=None, status="left_out", reason=reason)
    return record


def _whole_groups(
    records: list[Record], params: DataParams, delivered: Collection[Split]
) -> tuple[list[Record], list[Finding]]:
    """Find groups in more delivered splits than `data.checks.groups` allows; `drop` leaves out what exceeds it."""
    check = params.checks.groups
    splits: defaultdict[str, dict[Split, str]] = defaultdict(dict)  # group: split: path of the first image
    for record in records if delivered else ():
        if record.status == "ok" and record.group is not None:
            splits[record.group].setdefault(record.split or "train", record.path)
    most = int(check.limit)
    straddling = {group: found for group, found in splits.items() if len(found) > most}
    if not straddling:
        return records, []
    concerned = [record for record in records if record.status == "ok" and record.group in straddling]
    share = len(concerned) / sum(record.status == "ok" for record in records)
    action = "fail" if share > check.max_share else check.action
    if action == "drop":
        records = [_dropped(record, straddling, most) for record in records]
    named = [
        f"`{group}` ({', '.join(split for split in SPLITS if split in found)})"
        for group, found in sorted(straddling.items())
    ]
    what = "group is" if len(named) == 1 else "groups are"
    text = f"{len(named):,} {what} in several delivered splits: {listed(named, NAMED)}; {len(concerned):,} images"
    kept = "those in train are left out, and those in val of groups in test"
    if action == "drop":
        text += f"; {kept}."
    elif action == "report":
        text += (
            ". What is measured on them is too good. data.checks.groups: drop leaves out the copies in train."
        )
    else:
        text += (
            f" ({share:.1%}; data.checks.groups allows {check.max_share:.1%}). Deliver each group in one split, or none of"
            f" the splits, so that Convoy cuts them; or set data.checks.groups.action to drop ({kept}) or report."
        )
    return records, [
        Finding("groups", len(concerned), check.limit, action, text, tuple(r.path for r in concerned))
    ]


def _dropped(record: Record, straddling: Mapping[str, Mapping[Split, str]], most: int) -> Record:
    """Leave an image out if its group is in enough splits that come before its own in `PRECEDENCE`."""
    if record.status != "ok" or record.group is None or record.group not in straddling:
        return record
    found = straddling[record.group]
    kept = [split for split in PRECEDENCE if split in found][:most]
    if (record.split or "train") in kept:
        return record
    reason = f"its group `{record.group}` is in {kept[0]} too: {found[kept[0]]}"
    return record._replace(split=None, status="left_out", reason=reason)


class _Units:
    """Cut what was delivered for training into splits, unit by unit.

    A unit is an image with its identical copies and near-duplicates, or all images of a group; the index of one of its
    records stands for it. One hash decides its split: an image's, or that of a group's name, so that a group keeps its
    split when images are added to it. Of several hashes, those of groups come first, then the lowest tail: the head,
    which is read as a number, is then distributed as that of a single image.

    Attributes:
        pool: indices of the records that are cut.
        split: of each unit.
    """

    def __init__(
        self,
        records: Sequence[Record],
        pairs: Sequence[Pair],
        shares: SplitParams,
        missing: tuple[Split, ...],
    ) -> None:
        self.records = records
        self.shares = shares
        self.missing = missing
        self.pool = [n for n, record in enumerate(records) if _is_cut(record)]
        self._parent = list(range(len(records)))
        self._join(pairs)
        self._deciding: dict[int, int] = {}  # of units with several hashes: the record whose hash counts
        self._several: dict[int, set[str]] = {}  # of units with several labels
        self.of_class: defaultdict[str, list[int]] = defaultdict(list)
        self._describe()
        units = [n for n in self.pool if self.root(n) == n]
        self.split: dict[int, Split] = {unit: cut(self._hash(unit), shares, missing) for unit in units}
        self.moved: list[tuple[str, int, Split]] = []  # class that needed it, unit, split that it moved to
        self._spread()

    def root(self, index: int) -> int:
        """Return the unit of a record."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def counts(self) -> dict[str, int]:
        """Count the units of each class."""
        return {label: len(units) for label, units in self.of_class.items()}

    def findings(self) -> Iterator[Finding]:
        """State which images moved so that no class is absent, and shares that are far from their params."""
        if self.moved:
            images = self._members({unit for _, unit, _ in self.moved})
            times = Counter((label, split) for label, _, split in self.moved)
            named = [f"`{label}` ({number} to {split})" for (label, split), number in times.items()]
            text = (
                f"{len(images):,} image{'s' * (len(images) != 1)} moved so that every class is in every split that is cut: "
                f"{listed(named, NAMED)}."
            )
            yield Finding("moved", len(images), None, "report", text, images)
        held_out = sum(self.split[self.root(index)] != "train" for index in self.pool)
        if len(self.pool) < SMALL and held_out > MUCH * len(self.pool):
            lower = " and ".join(f"data.splits.{split}" for split in self.missing)
            text = (
                f"{' and '.join(self.missing)} take {held_out:,} of {len(self.pool):,} images ({held_out / len(self.pool):.0%}), which are then "
                f"not trained on. Of so few, each counts: deliver more, or lower {lower}; results are then measured less precisely."
            )
            yield Finding("held_out", held_out / len(self.pool), None, "report", text)
        sizes = Counter(self.root(index) for index in self.pool)
        together = [size for size in sizes.values() if size > 1]
        for split in self.missing if together else ():
            images = self._members({unit for unit in sizes if self.split[unit] == split})
            share, wanted = len(images) / len(self.pool), getattr(self.shares, split)
            if not wanted / FAR <= share <= wanted * FAR:
                text = (
                    f"{split} has {share:.1%} of the images that were cut (data.splits.{split}: {wanted:.1%}): groups, copies and "
                    f"near-duplicates stay together, {len(together):,} sets of them, the largest of {max(together):,} images."
                )
                yield Finding("shares", share, wanted, "report", text)

    def _join(self, pairs: Sequence[Pair]) -> None:
        """Make one unit of identical images, near-duplicates and groups."""
        seen: dict[tuple[str, str], int] = {}
        for index in self.pool:
            record = self.records[index]
            self._unite(seen.setdefault(("pixels", record.pixels), index), index)
            if record.group is not None:
                self._unite(seen.setdefault(("group", record.group), index), index)
        for pair in pairs:
            first, second = self.records[pair.first], self.records[pair.second]
            if _is_cut(first) and _is_cut(second) and first.label == second.label:
                self._unite(pair.first, pair.second)

    def _unite(self, first: int, second: int) -> None:
        self._parent[self.root(second)] = self.root(first)

    def _describe(self) -> None:
        """Collect the classes of each unit, and the record whose hash decides its split."""
        for index in self.pool:
            unit, label = self.root(index), self.records[index].label or ""
            if unit == index:
                self.of_class[label].append(unit)
                continue
            first = self.records[unit].label or ""
            labels = self._several.get(unit, {first})
            if label not in labels:
                self._several[unit] = {*labels, label}
                self.of_class[label].append(unit)
            deciding = self._deciding.get(unit, unit)
            if self._rank(index) < self._rank(deciding):
                self._deciding[unit] = index

    def _rank(self, index: int) -> tuple[bool, str]:
        return self.records[index].group is None, self._own_hash(index)[HEAD:]

    def _own_hash(self, index: int) -> str:
        record = self.records[index]
        return record.pixels if record.group is None else hashlib.sha256(record.group.encode()).hexdigest()

    def _hash(self, unit: int) -> str:
        return self._own_hash(self._deciding.get(unit, unit))

    def _labels(self, unit: int) -> Collection[str]:
        return self._several.get(unit) or (self.records[unit].label or "",)

    def _spread(self) -> None:
        """Move units so that every class with enough of them is in every split; all others are trained on.

        A class gets the unit whose hash is nearest to the split's range, of those that leave no class without an
        image in the split that they come from. Nothing moves for a class that is in every split, so adding images to it moves none.
        """
        few = {label for label, units in self.of_class.items() if len(units) <= len(self.missing)}
        trained = {unit for label in few for unit in self.of_class[label]}
        self.split |= dict.fromkeys(trained, "train")
        images = Counter((label, split) for unit, split in self.split.items() for label in self._labels(unit))
        for label, units in sorted(self.of_class.items(), key=lambda item: (len(item[1]), item[0])):
            for split in (*self.missing, "train"):
                if label in few or images[label, split]:
                    continue
                spare = [
                    unit
                    for unit in units
                    if unit not in trained
                    and all(
                        images[each, self.split[unit]] > 1 for each in self._labels(unit) if each not in few
                    )
                ]
                if not spare:
                    continue
                unit = min(spare, key=lambda unit: (self._distance(unit, split), self._hash(unit)))
                for each in self._labels(unit):
                    images[each, self.split[unit]] -= 1
                    images[each, split] += 1
                self.split[unit] = split
                self.moved.append((label, unit, split))

    def _distance(self, unit: int, split: Split) -> float:
        """Measure how far a unit's hash, as a number in 0..1, is from the range of a split."""
        fraction = _fraction(self._hash(unit))
        if split == "test":
            return max(0.0, fraction - self.shares.test)
        if split == "val":
            return max(0.0, 1 - self.shares.val - fraction)
        return max(self.shares.test - fraction, fraction - (1 - self.shares.val), 0.0)

    def _members(self, units: Collection[int]) -> tuple[str, ...]:
        return tuple(self.records[index].path for index in self.pool if self.root(index) in units)


def _is_cut(record: Record) -> bool:
    return record.status == "ok" and record.split in (None, "train")


def _fraction(digest: str) -> float:
    return int(digest[:HEAD], 16) / 16.0**HEAD
