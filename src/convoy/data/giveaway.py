"""Find properties of the files that give the label away, so that a network can learn them instead of what the images show.

All photographs of one class are PNG, larger, from another camera or darker: a model then scores well on the test images
of the same delivery, and fails on every other picture. Some properties are the class (brightness, for day and night), so
`data.checks.giveaway` reports by default; the images themselves are not to blame, so nothing is dropped.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convoy.data.records import Finding, Record
from convoy.data.settings import DatasetCheck

EXAMPLES = 5
"""Number of properties that a text names, and of files."""

BINS = 64
"""Categories of a property at most: its values if there are as few, else quantiles, or the most frequent values."""

Z = 1.645
"""Standard deviations of the one-sided 95 % confidence bound."""

NUMBERS = (
    "brightness",
    "contrast",
    "sharpness",
    "colourfulness",
    "width",
    "height",
    "aspect",
    "file_size",
    "bytes_per_pixel",
)
"""Statistics that are looked at."""

SOURCES = frozenset(
    {
        "cimg",
        "dji",
        "dsc",
        "dscf",
        "dscn",
        "gopr",
        "imag",
        "img",
        "mvimg",
        "pxl",
        "scan",
    }  # cameras, telephones, scanners
    | {
        "download",
        "fb",
        "frame",
        "hqdefault",
        "image",
        "images",
        "photo",
        "screenshot",
        "snapchat",
        "th",
        "vlcsnap",
        "whatsapp",
    }
    | {
        "depositphotos",
        "flickr",
        "gettyimages",
        "istockphoto",
        "pexels",
        "pixabay",
        "shutterstock",
        "unsplash",
    }
)
"""First words of file names that cameras, telephones, programs and photo agencies give. Other names are the deliverer's own, and
are mostly those of the class (`cat.17.jpg`, `n01440764_10026.JPEG`)."""

FIRST_WORD = re.compile(r"[^\W\d_]*")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Giveaway:
    """Hold a property that predicts a class.

    Attributes:
        name: of the property, such as `file type`.
        label: the class that it predicts best.
        auc: area under the curve (ROC) of the property against that class, 0.5..1.
        others: number of further classes that it predicts.
        figures: what it is in the class and in the others, for people.
    """

    name: str
    label: str
    auc: float
    others: int
    figures: str


def check(
    records: Sequence[Record],
    statistics: Mapping[str, npt.NDArray[np.float32]],
    transparent: Sequence[int],
    params: DatasetCheck,
) -> list[Finding]:
    """Find the properties whose AUC is above the limit, also at the lower end of its confidence interval.

    Args:
        records: of every delivered file.
        statistics: of the images, by `Record.kept`.
        transparent: whether each image has transparent pixels, by `Record.kept`.
        params: `data.checks.giveaway`.

    Returns:
        One finding, or none.
    """
    used = [record for record in records if record.status == "ok"]
    found = sorted(
        giveaways(used, statistics, transparent, params.limit), key=lambda one: (-one.auc, one.name)
    )
    if not found:
        return []
    named = []
    for one in found[:EXAMPLES]:
        more = f" and {one.others:,} more" if one.others else ""
        named.append(f"{one.name} (`{one.label}`{more}: AUC {one.auc:.3f}, {one.figures})")
    more = f"; and {len(found) - EXAMPLES:,} more" if len(found) > EXAMPLES else ""
    text = (
        f"The class follows from a property of the files: {'; '.join(named)}{more}. A network can learn it instead of what the images show, and "
        "fail on images from elsewhere. Deliver all classes from the same sources, or make them alike; leave it if the property is the class."
    )
    if params.action == "fail":
        text += " Refused, since data.checks.giveaway.action is fail."
    paths = [record.path for record in used if record.label == found[0].label]
    return [
        Finding(
            "giveaway", round(found[0].auc, 4), params.limit, params.action, text, tuple(paths[:EXAMPLES])
        )
    ]


def giveaways(
    used: Sequence[Record],
    statistics: Mapping[str, npt.NDArray[np.float32]],
    transparent: Sequence[int],
    limit: float,
) -> Iterator[Giveaway]:
    """Measure every property of used images against every class; yield those that predict one beyond `limit`."""
    names = [record.label or "" for record in used]
    number = {label: n for n, label in enumerate(sorted(set(names)))}
    labels, of_image = np.array(list(number)), np.array([number[name] for name in names])
    if len(labels) < 2:
        return
    # A class so small that not even an AUC of 1 would be certain is only one of the others.
    sizes = np.bincount(of_image)
    large = lower_bound(np.ones(len(sizes)), sizes, len(used) - sizes) > limit
    labels, of_image = labels[large], np.where(large, np.cumsum(large) - 1, large.sum())[of_image]
    rows = np.array([record.kept for record in used])
    half = np.array(
        [int(record.pixels[-1:] or "0", 16) % 2 for record in used]
    )  # identical images are in the same
    sizes = np.bincount(of_image)[: len(labels)]

    def above(name: str, auc: Floats, figures: Callable[[int], str]) -> Iterator[Giveaway]:
        bound = lower_bound(auc[: len(labels)], sizes, len(used) - sizes)
        if found := np.flatnonzero(bound > limit).tolist():
            best = max(found, key=lambda label: bound[label])
            yield Giveaway(name, str(labels[best]), float(auc[best]), len(found) - 1, figures(best))

    for name in NUMBERS:
        values = statistics[name][rows].astype(float)
        ranked = by_rank(values, of_image)
        best = np.maximum(np.maximum(ranked, 1 - ranked), by_category(_binned(values), of_image, half))

        def medians(label: int, values: Floats = values) -> str:
            inside = of_image == label
            return f"median {np.median(values[inside]):.4g} against {np.median(values[~inside]):.4g}"

        yield from above(name.replace("_", " "), best, medians)
    for name, words in _words(used, transparent).items():
        kinds, category = _frequent(words)

        def shares(label: int, kinds: Sequence[str] = kinds, category: Ints = category) -> str:
            inside = of_image == label
            typical = int(np.bincount(category[inside]).argmax())
            share, elsewhere = (float((category[mask] == typical).mean()) for mask in (inside, ~inside))
            return f"{kinds[typical]} {share:.0%} against {elsewhere:.0%}"

        yield from above(name, by_category(category, of_image, half), shares)


def by_rank(values: Floats, of_image: Ints) -> Floats:
    """Compute the AUC of (n,) numbers against each of C classes, given as (n,) indices: the Mann-Whitney statistic; ties count half.

    Returns:
        (C,) 0..1: the share of pairs in which the image of the class has the higher number.
    """
    _, inverse, times = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(times) - (times - 1) / 2)[inverse]
    sizes = np.bincount(of_image)
    sums = np.bincount(of_image, weights=rank)
    pairs = sizes * (len(values) - sizes)
    return np.where(pairs > 0, (sums - sizes * (sizes + 1) / 2) / np.maximum(pairs, 1), 0.5)


def by_category(category: Ints, of_image: Ints, half: Ints) -> Floats:
    """Compute the AUC with which (n,) categories predict each of C classes, given as (n,) indices.

    The categories are ranked by the share of the class among their images in one half of the dataset, and measured on the
    other, in turn: ranked on all images, a category per image would predict perfectly.

    Returns:
        (C,) about 0.5..1.
    """
    shape = (2, int(category.max()) + 1, int(of_image.max()) + 1)
    places = np.ravel_multi_index((half, category, of_image), shape)
    counts = np.bincount(places, minlength=math.prod(shape)).reshape(shape).astype(float)
    prior = counts.sum((0, 1)) / counts.sum()
    found = np.zeros(shape[2])
    for ranked, measured in (counts, counts[::-1]):
        share = (ranked + prior) / (ranked.sum(1, keepdims=True) + 1)
        order = np.argsort(share, axis=0)
        inside = np.take_along_axis(measured, order, 0)
        outside = np.take_along_axis(measured.sum(1, keepdims=True) - measured, order, 0)
        below = np.cumsum(outside, axis=0) - outside / 2
        pairs = inside.sum(0) * outside.sum(0)
        found += np.where(pairs > 0, (inside * below).sum(0) / np.maximum(pairs, 1), 0.5) / 2
    return found


def lower_bound(auc: Floats, inside: Ints, outside: Ints) -> Floats:
    """Bound the true AUC from below, with 95 % confidence.

    Solves auc - a = `Z` x the standard error that Hanley and McNeil ("The meaning and use of the area under a ROC curve", 1982)
    give for a, as Newcombe proposes ("Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    2006): at an AUC of 1 the plain standard error would be 0, for three images too.

    Args:
        auc: (C,) measured, 0.5..1.
        inside: (C,) images of each class.
        outside: (C,) images of all others.
    """
    low, high = np.full(len(auc), 0.5), auc.astype(float)
    for _ in range(40):
        middle = (low + high) / 2
        first, second = middle / (2 - middle) - middle**2, 2 * middle**2 / (1 + middle) - middle**2
        # The model is not symmetric; which class is the positive one is arbitrary here.
        larger = np.maximum(
            (inside - 1) * first + (outside - 1) * second, (inside - 1) * second + (outside - 1) * first
        )
        variance = middle * (1 - middle) + larger
        too_low = middle + Z * np.sqrt(variance / (inside * outside)) < auc
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return low


def _binned(values: Floats) -> Ints:
    """Number the values, or, of more than `BINS`, their quantiles."""
    distinct = np.unique(values)
    if len(distinct) <= BINS:
        return np.searchsorted(distinct, values)
    return np.searchsorted(np.quantile(values, np.arange(1, BINS) / BINS), values)


def _frequent(words: Sequence[str]) -> tuple[list[str], Ints]:
    """Number words by their frequency; those beyond the first `BINS` are one category."""
    times = Counter(words)
    distinct = sorted(times, key=lambda word: (-times[word], word))
    number = {word: min(n, BINS) for n, word in enumerate(distinct)}
    return [*distinct[:BINS], "others"], np.array([number[word] for word in words], np.int64)


def _words(used: Sequence[Record], transparent: Sequence[int]) -> Mapping[str, Sequence[str]]:
    """Collect the properties that are words."""
    return {
        "file type": [record.format for record in used],
        "mode": [record.mode for record in used],
        "transparency": ["transparent" if transparent[record.kept] else "opaque" for record in used],
        "file name": [_source(record) for record in used],
        "folder": _folders(used),
    }


def _source(record: Record) -> str:
    """Return the first word of a file name if cameras or programs give such names."""
    word = FIRST_WORD.match(record.path.rpartition("/")[2].casefold().lstrip("_"))
    found = word[0] if word else ""
    return f"{found}…" if found in SOURCES and found != (record.label or "").casefold() else "another name"


def _folders(used: Sequence[Record]) -> list[str]:
    """Return the folder of each image inside its class; one name for those that a single class has, which are its own."""
    places = [(record.path.rpartition("/")[0], record.label) for record in used]
    inside = {place: _inside(*place) for place in set(places)}
    classes: defaultdict[str, set[str | None]] = defaultdict(set)
    for (_, label), folder in inside.items():
        classes[folder].add(label)
    word = {
        place: f"`{folder}`" if folder and len(classes[folder]) > 1 else "none in common"
        for place, folder in inside.items()
    }
    return [word[place] for place in places]


def _inside(folder: str, label: str | None) -> str:
    parents = unicodedata.normalize("NFC", folder).split("/")
    if label in parents:
        parents = parents[len(parents) - parents[::-1].index(label) :]
    return "/".join(parents)
