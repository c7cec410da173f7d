"""Check readable images, and the dataset that they make up, against the limits in `data.checks`."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import listed
from convoy.data.duplicates import clusters
from convoy.data.names import natural
from convoy.data.records import Finding, Pair, Record
from convoy.data.settings import CheckParams, ImageCheck
from convoy.data.split import PRECEDENCE
from convoy.images.decode import Note

EXAMPLES = 5
"""Number of files or classes that a text names."""

PIXELS_FOR_SHARPNESS = 16
"""Shorter side, in pixels, from which blur can be told from small drawings."""

LEAST_OF_CLASS = 20
"""Images of a class from which its median and deviation are meaningful."""

MOST_OUTLIERS = 0.02
"""Share of a class beyond which images far from its median are a kind of their own, such as those of a second camera."""

SPREADS: Mapping[str, tuple[bool, float]] = {
    "brightness": (False, 4.0),
    "contrast": (False, 4.0),
    "colourfulness": (False, 4.0),
    "sharpness": (True, 0.05),
    "bytes_per_pixel": (True, 0.05),
    "aspect": (True, 0.05),
}
"""Statistics in which an image can be an outlier: whether their logarithm is compared, and the smallest deviation assumed, so
that a class of nearly equal images does not make an outlier of each other one."""

WORDS: Mapping[str, tuple[str, str]] = {
    "small": ("A side below {limit:g} px", "{width:.0f} x {height:.0f}"),
    "aspect": ("More than {limit:g} times as long as wide", "{width:.0f} x {height:.0f}"),
    "blank": ("A single colour", "gray {brightness:.0f}"),
    "dark": ("Nearly black", "mean gray {brightness:.1f}"),
    "bright": ("Nearly white", "mean gray {brightness:.1f}"),
    "blurred": ("Blurred", "sharpness {sharpness:.2f}"),
}
"""Checks of a number: what they find, and the figure of an image."""

GRAY = ("blank", "dark", "bright")
"""Checks that find transparent images where the colour behind them is like their own."""

CERTAIN = 0.985
"""Correlation above which images are copies even where all images of a class are alike: recompressed (JPEG quality 60) or 10 % brighter
copies of CIFAR-10's images have at least 0.986; of the sample digits, enlarged to 28 px, two pairs do, and 42 % of the images exceed 0.92."""

MOST_ALIKE = 0.2
"""Share of the images of a class with a near-duplicate in it, beyond which its images are alike by nature: drawn shapes, digits."""

NOTES: Mapping[Note, str] = {
    "truncated": "The file ends early, or lacks a part inside: a few pixels are missing (data.max_truncated)",
    "bad_metadata": "Metadata are damaged and not used",
    "bad_profile": "The colour profile cannot be used, so the colours count as sRGB",
    "low_bits": "At most 12 of 16 bits are used, so the image is nearly black; multiply its values before you deliver it",
    "empty_alpha": "Alpha is 0 throughout and was ignored",
}
"""What was unusual about a file and is reported; a colour profile or a bit depth that was converted is ordinary."""

Column = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Suspect:
    """Hold an image that a check found.

    Attributes:
        number: index of its record.
        figure: what was measured, for people.
    """

    number: int
    figure: str


class ImageChecks:
    """Check single images; those that are dropped are left out before the splits are cut.

    Attributes:
        records: as they are after the checks made so far.
        findings: of the checks made so far.
        delivered: splits that are delivered.
    """

    def __init__(self, records: Sequence[Record], delivered: Collection[Split]) -> None:
        self.records = list(records)
        self.findings: list[Finding] = []
        self.delivered = delivered

    def settle(
        self, name: str, check: ImageCheck, suspects: Sequence[Suspect], what: str, remedy: str = ""
    ) -> None:
        """Do what `data.checks` states for the images that a check found.

        Args:
            name: of the check, a key of `data.checks`.
            check: its limit and action.
            suspects: the most suspicious first; each is used so far.
            what: what was found, such as `Blurred`.
            remedy: completes a refusal.
        """
        if not suspects:
            return
        used = sum(record.status == "ok" for record in self.records)
        share = len(suspects) / used
        action = "fail" if share > check.max_share else check.action
        examples = [f"{self.records[suspect.number].path} ({suspect.figure})" for suspect in suspects]
        more = f" and {len(examples) - EXAMPLES:,} more" if len(examples) > EXAMPLES else ""
        text = f"{what}: {len(suspects):,} of {used:,} images ({share:.2%}): {'; '.join(examples[:EXAMPLES])}{more}."
        key = f"data.checks.{name}"
        if action == "fail":
            allowed = f"{key}.max_share allows {check.max_share:.1%}"
            reason = allowed if share > check.max_share else f"{key}.action is fail"
            change = f"{key} in params.yaml"
            text = " ".join(
                [text, f"Refused, since {reason}.", f"{remedy}Repair or remove them, or change {change}."]
            )
        elif action == "drop":
            text = f"{text} Left out: {self._by_split(suspects)}."
            for suspect in suspects:
                record = self.records[suspect.number]
                reason = f"{name}: {suspect.figure} (data.checks.{name})"
                self.records[suspect.number] = record._replace(split=None, status="left_out", reason=reason)
        paths = tuple(self.records[suspect.number].path for suspect in suspects)
        self.findings.append(Finding(name, len(suspects), check.limit, action, text, paths))

    def report(self, name: str, check: ImageCheck, pairs: Sequence[Pair], what: str) -> None:
        """Report pairs of images, the most similar first, whatever the check's action."""
        if not pairs:
            return
        ordered = sorted(pairs, key=lambda pair: -pair.correlation)
        examples = [
            f"{self.records[pair.first].path} and {self.records[pair.second].path} ({pair.correlation:.3f}{', mirrored' * pair.mirrored})"
            for pair in ordered[:EXAMPLES]
        ]
        numbers = dict.fromkeys(number for pair in ordered for number in (pair.first, pair.second))
        left = len(pairs) - EXAMPLES
        more = f" and {left:,} more pair{'s' * (left > 1)}" if left > 0 else ""
        text = f"{what}: {len(numbers):,} images. {'; '.join(examples)}{more}."
        paths = tuple(self.records[number].path for number in numbers)
        self.findings.append(Finding(name, len(numbers), check.limit, "report", text, paths))

    def _by_split(self, suspects: Sequence[Suspect]) -> str:
        if not self.delivered:
            return f"{len(suspects):,} before the splits were cut"
        counts = Counter(self.records[suspect.number].split or "train" for suspect in suspects)
        return ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])


def check_images(
    records: Sequence[Record],
    statistics: Mapping[str, Column],
    transparent: Sequence[int],
    params: CheckParams,
    delivered: Collection[Split],
) -> ImageChecks:
    """Find images that are small, long, blank, dark, bright, blurred, unlike their class, or copies.

    Args:
        records: of every delivered file, with the delivered splits.
        statistics: of the images, by `Record.kept`.
        transparent: whether each image has transparent pixels, by `Record.kept`.
        params: limits and actions.
        delivered: splits that are delivered.
    """
    checks = ImageChecks(records, delivered)
    numbers = [number for number, record in enumerate(records) if record.status == "ok"]
    if not numbers:
        return checks
    rows = np.array([records[number].kept for number in numbers])
    column = {name: values[rows] for name, values in statistics.items()}
    see_through = np.frombuffer(bytes(transparent), bool)[rows]
    shorter = np.minimum(column["width"], column["height"])
    brightness, sharpness = column["brightness"], column["sharpness"]
    blank = (column["contrast"] < params.blank.limit) & (shorter >= params.small.limit)
    resolved = ~blank & (shorter >= PIXELS_FOR_SHARPNESS)
    # For each check: the images that it finds, and a number that is lowest for the most suspicious.
    found: dict[str, tuple[npt.NDArray[np.bool_], Column]] = {
        "small": (shorter < params.small.limit, shorter),
        "aspect": (column["aspect"] > params.aspect.limit, -column["aspect"]),
        "blank": (blank, column["contrast"]),
        "dark": (~blank & (brightness < params.dark.limit), brightness),
        "bright": (~blank & (brightness > params.bright.limit), -brightness),
        "blurred": (resolved & (sharpness < params.blurred.limit), sharpness),
    }
    for name, (mask, order) in found.items():
        places = np.flatnonzero(mask & ~_left_out(checks.records, numbers))
        places = places[np.argsort(order[places], kind="stable")]
        what, figure = WORDS[name]
        suspects = [
            Suspect(
                numbers[place], figure.format(**{key: float(values[place]) for key, values in column.items()})
            )
            for place in places
        ]
        check: ImageCheck = getattr(params, name)
        remedy = _background(int(see_through[places].sum())) if name in GRAY else ""
        checks.settle(name, check, suspects, what.format(limit=check.limit), remedy)
    checks.settle(
        "outliers",
        params.outliers,
        _outliers(checks.records, statistics, params.outliers.limit),
        "Unlike their class",
    )
    checks.settle(
        "duplicates",
        params.duplicates,
        _copies(checks.records, int(params.duplicates.limit)),
        "The pixels of another image in the same class and split",
    )
    return checks


def _left_out(records: Sequence[Record], numbers: Sequence[int]) -> npt.NDArray[np.bool_]:
    return np.array([records[number].status != "ok" for number in numbers])


def check_notes(noted: Mapping[Note, Sequence[str]]) -> list[Finding]:
    """Report what was unusual about files that were decoded, given as paths."""
    return [
        Finding(
            note,
            len(noted[note]),
            None,
            "report",
            f"{words}: {listed(noted[note], EXAMPLES)}.",
            tuple(noted[note]),
        )
        for note, words in NOTES.items()
        if noted.get(note)
    ]


def look_alikes(records: Sequence[Record], pairs: Sequence[Pair]) -> set[str]:
    """Find the classes of which more than `MOST_ALIKE` of the images are in a pair within the class."""
    used = Counter(record.label for record in records if record.status == "ok")
    paired = {
        number
        for pair in pairs
        if records[pair.first].label == records[pair.second].label
        for number in (pair.first, pair.second)
    }
    counts = Counter(records[number].label or "" for number in paired)
    return {label for label, number in counts.items() if number > max(2, MOST_ALIKE * used[label])}


def same_colours(
    pairs: Sequence[Pair], records: Sequence[Record], statistics: Mapping[str, Column]
) -> list[Pair]:
    """Select pairs whose mean colours and contrast differ by at most 12 % and 5 levels, as those of copies do.

    Large drawn shapes of different colours correlate as much as copies: gray levels are compared there, whatever their range.
    """
    if not pairs:
        return []
    first, second = (
        np.array([records[number].kept for number in numbers])
        for numbers in zip(*((pair.first, pair.second) for pair in pairs), strict=True)
    )
    equal = np.ones(len(pairs), bool)
    for name in ("red", "green", "blue", "contrast"):
        one, other = statistics[name][first], statistics[name][second]
        equal &= np.abs(one - other) <= 0.12 * np.maximum(one, other) + 5
    return [pair for pair, is_equal in zip(pairs, equal, strict=True) if is_equal]


def settle_near_duplicates(
    checks: ImageChecks, pairs: Sequence[Pair], alike: Sequence[str], check: ImageCheck
) -> None:
    """Let the training copy of near-duplicates in several delivered splits give way, and report the others.

    Of images of one class that are connected by pairs, those in the first split of `PRECEDENCE` stay; the check's action decides
    about the others. Near-duplicates of two classes are only reported: a part with a scratch and the same part without are
    nearly the same too.

    Args:
        checks: of single images; the findings are added there.
        pairs: of `duplicates.pairs`, by index in the records.
        alike: classes of `look_alikes`.
        check: `data.checks.near_duplicates`.
    """
    records = checks.records
    if alike:
        text = (
            f"{_classes(sorted(alike, key=natural))}: over {MOST_ALIKE:.0%} of the images resemble another of their class (drawings, digits, or a series), so only "
            f"copies, with a correlation above {CERTAIN} and the same colours, count as near-duplicates. State a series, such as the frames of a video, by data.group."
        )
        checks.findings.append(Finding("look_alikes", len(alike), MOST_ALIKE, "report", text))
    usable = [pair for pair in pairs if records[pair.first].status == records[pair.second].status == "ok"]
    same = [pair for pair in usable if records[pair.first].label == records[pair.second].label]
    suspects = _giving_way(records, same)
    checks.settle("near_duplicates", check, suspects, "Nearly the same as an image of another split")
    moved = {suspect.number for suspect in suspects}
    rest = [pair for pair in same if pair.first not in moved and pair.second not in moved]
    together = "; splits that are cut keep them together" * (len(checks.delivered) < len(SPLITS))
    what = f"Nearly the same as another image of their class and split{together}"
    checks.report("near_duplicates", check, rest, what)
    several = [pair for pair in usable if records[pair.first].label != records[pair.second].label]
    checks.report("two_labels", check, several, "Nearly the same under two labels")


def _giving_way(records: Sequence[Record], pairs: Sequence[Pair]) -> list[Suspect]:
    """Find images that are connected to one in a split before theirs in `PRECEDENCE`; identical pixels are left to `split.assign`."""
    same = _same_pixels(records)
    first = {number: numbers[0] for numbers in same.values() for number in numbers}
    identical = [Pair(numbers[0], number, 1.0) for numbers in same.values() for number in numbers[1:]]
    cluster = clusters([*pairs, *identical], len(records)).tolist()
    partners: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for pair in pairs:
        partners[pair.first].append((pair.correlation, pair.second))
        partners[pair.second].append((pair.correlation, pair.first))
    connected = {cluster[number] for number in partners}
    members = [n for n, record in enumerate(records) if record.status == "ok" and cluster[n] in connected]
    kept: dict[int, int] = {}  # of each cluster: an image in the first of its splits
    for number in sorted(members, key=lambda member: _rank(records[member])):
        kept.setdefault(cluster[number], number)
    found: list[tuple[float, Suspect]] = []
    for number in members:
        own = _rank(records[number])
        keeper = records[kept[cluster[number]]]
        nearest = partners[first.get(number, number)]
        if _rank(keeper) == own or keeper.pixels == records[number].pixels or not nearest:
            continue
        _, correlation, partner = min((_rank(records[other]), -value, other) for value, other in nearest)
        figure = f"{-correlation:.3f} with {records[partner].path}"
        if _rank(records[partner]) >= own:
            figure += f", in a chain with {keeper.path}"
        found.append((correlation, Suspect(number, figure)))
    return [suspect for _, suspect in sorted(found, key=lambda item: item[0])]


def _rank(record: Record) -> int:
    return PRECEDENCE.index(record.split or "train")


def check_dataset(records: Sequence[Record], params: CheckParams) -> list[Finding]:
    """Find classes with few images, and classes much smaller than others in training.

    Args:
        records: with the split that uses each.
        params: limits and actions.
    """
    used = Counter(record.label for record in records if record.status == "ok" and record.label)
    trained = Counter(record.label for record in records if record.split == "train" and record.label)
    findings = []
    few = sorted((number, label) for label, number in used.items() if number < params.few_images.limit)
    if few:
        measured = {record.label for record in records if record.split in SPLITS[1:]}
        only_trained = [label for _, label in few if label not in measured]
        what = [f"what is measured of {'it' if len(few) == 1 else 'them'} is based on few images"]
        if len(only_trained) == len(few):
            what = [
                f"{'it is' if len(few) == 1 else 'they are'} in train only, and nothing is measured of {'it' if len(few) == 1 else 'them'}"
            ]
        elif only_trained:
            what += [
                f"nothing is measured of {listed([f'`{label}`' for label in only_trained], EXAMPLES)}, in train only"
            ]
        text = (
            f"{_classes([label for _, label in few])} {'has' if len(few) == 1 else 'have'} fewer than {params.few_images.limit:g} images "
            f"({_numbers(few)}): {'; '.join(what)}. Add more."
        )
        findings.append(
            Finding("few_images", few[0][0], params.few_images.limit, params.few_images.action, text)
        )
    if len(trained) > 1:
        (largest, most), (smallest, least) = (
            trained.most_common(1)[0],
            min(trained.items(), key=lambda item: item[::-1]),
        )
        ratio = most / least
        if ratio > params.imbalance.limit:
            share = most / trained.total()
            text = (
                f"In training, class `{largest}` has {most:,} images and `{smallest}` {least:,}: {ratio:,.0f} to 1. A model that always "
                f"answers `{largest}` is right for {share:.1%} of them, so compare the recall of each class, not accuracy alone. "
                "Add images of the rare class, or try train.class_weights or train.sampler."
            )
            findings.append(
                Finding("imbalance", round(ratio, 2), params.imbalance.limit, params.imbalance.action, text)
            )
    return findings


def _outliers(records: Sequence[Record], statistics: Mapping[str, Column], limit: float) -> list[Suspect]:
    """Find images with a statistic further from the median of their class than `limit` robust standard deviations.

    The deviation is 1.4826 times the median absolute deviation, the standard deviation of a normal distribution
    (Rousseeuw and Croux, "Alternatives to the median absolute deviation", 1993).
    """
    of_class: defaultdict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        if record.status == "ok":
            of_class[record.label or ""].append(number)
    worst: dict[int, tuple[float, str]] = {}
    for label, numbers in of_class.items():
        if len(numbers) < LEAST_OF_CLASS:
            continue
        rows = np.array([records[number].kept for number in numbers])
        for name, (logarithm, least) in SPREADS.items():
            values = statistics[name][rows].astype(float)
            scale = np.log(np.maximum(values, 1e-3)) if logarithm else values
            distance = np.abs(scale - np.median(scale))
            distance /= max(least, 1.4826 * float(np.median(distance)))
            found = np.flatnonzero(distance > limit)
            if len(found) > max(1, MOST_OUTLIERS * len(numbers)):
                continue
            for place in found.tolist():
                figure = f"{name.replace('_', ' ')} {values[place]:.3g}, median of `{label}` {np.median(values):.3g}"
                worst[numbers[place]] = max(
                    worst.get(numbers[place], (0.0, "")), (float(distance[place]), figure)
                )
    return [
        Suspect(number, figure) for number, (_, figure) in sorted(worst.items(), key=lambda item: -item[1][0])
    ]


def _copies(records: Sequence[Record], limit: int) -> list[Suspect]:
    """Find images beyond the first `limit` with the same pixels, class and split; the same under two classes are quarantined."""
    return [
        suspect for numbers in _same_pixels(records).values() for suspect in _surplus(records, numbers, limit)
    ]


def _same_pixels(records: Sequence[Record]) -> dict[str, list[int]]:
    """Collect the used images of which there are several with the same pixels."""
    times = Counter(record.pixels for record in records if record.status == "ok")
    same: defaultdict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        if record.status == "ok" and times[record.pixels] > 1:
            same[record.pixels].append(number)
    return same


def _surplus(records: Sequence[Record], numbers: Sequence[int], limit: int) -> Iterator[Suspect]:
    if len({records[number].label for number in numbers}) > 1:
        return
    in_split: defaultdict[Split, list[int]] = defaultdict(list)
    for number in numbers:
        in_split[records[number].split or "train"].append(number)
    for copies in in_split.values():
        for number in copies[max(1, limit) :]:
            yield Suspect(number, f"as {records[copies[0]].path}")


def _background(transparent: int) -> str:
    if not transparent:
        return ""
    return (
        f"{transparent:,} of them have transparent pixels, which are laid over data.background: choose another colour there "
        "(white, black or #RRGGBB). "
    )


def _classes(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - EXAMPLES:,} more" if len(labels) > EXAMPLES else ""
    named = ", ".join(f"`{label}`" for label in labels[:EXAMPLES])
    return f"{'Class' if len(labels) == 1 else 'Classes'} {named}{more}"


def _numbers(few: Sequence[tuple[int, str]]) -> str:
    least, most = few[0][0], few[-1][0]
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
