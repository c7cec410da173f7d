"""Data drift: compare the statistics of later images with those of the images that a model was trained on.

`prepare` writes the baseline of the train split, export copies it beside the model, `convoy data drift` compares.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ImageColor

from convoy.core import escaping, files
from convoy.core.console import table, track
from convoy.core.contract import BASELINE, DEFAULT_BACKGROUND
from convoy.core.dataset import Split
from convoy.core.errors import DataError, RequestError
from convoy.data.layout import Layout, recognise
from convoy.data.records import Finding
from convoy.data.scan import Scan, read
from convoy.data.statistics import STATISTICS, columns
from convoy.images.decode import decode
from convoy.images.delivery import Place, open_delivery

Drift = Literal["none", "moderate", "strong", "undecided"]

DRIFTED: tuple[Drift, ...] = ("moderate", "strong")

MODERATE, STRONG = 0.1, 0.25
"""Values of PSI from which a population has shifted moderately or strongly: Siddiqi, "Credit Risk Scorecards", 2006."""

ALPHA = 0.001
"""Probability that a statistic without drift exceeds its bound: with a dozen of statistics, an alarm in a hundred is false."""

FEW_IMAGES = 100
"""Fewer images show drift only where it is strong, and cannot show that there is none."""

DECILES = 10
POINTS = 129
"""Points of a distribution that a baseline keeps: KS is too low by at most 1/128. Fewer different values are kept exactly."""

DIGITS = 4
"""Decimals of a statistic that are compared, so that the last bits of another processor's sums are no drift."""

LEAST_EXPECTED = 5
"""Images of a class that must be expected; rarer ones are counted together, as usual in a chi-square test."""

SHOWN_CLASSES = 5

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """Hold the empirical distribution of a statistic at some of its values.

    Attributes:
        values: ascending.
        below: share of images below each value.
        at_most: share of images at or below it.
    """

    values: tuple[float, ...]
    below: tuple[float, ...]
    at_most: tuple[float, ...]

    @classmethod
    def of(cls, measured: Values) -> "Distribution":
        """Summarise (n,) values, n >= 1."""
        ordered = np.sort(np.round(measured, DIGITS))
        points = np.unique(ordered)
        if len(points) > POINTS:
            points = np.unique(ordered[np.linspace(0, len(ordered) - 1, POINTS).round().astype(int)])
        below = np.searchsorted(ordered, points, "left") / len(ordered)
        at_most = np.searchsorted(ordered, points, "right") / len(ordered)
        return cls(*(tuple(column.tolist()) for column in (points, np.round(below, 6), np.round(at_most, 6))))

    @property
    def median(self) -> float:
        """Return the first value that half of the images do not exceed."""
        return self.values[int(np.searchsorted(self.at_most, 0.5))]


@dataclass(frozen=True)
class Baseline:
    """Hold what `baseline.json` states of the training images.

    Attributes:
        statistics: a distribution each, by name.
        classes: share of each class.
        images: their number.
        background: colour behind their transparent pixels.
    """

    statistics: Mapping[str, Distribution]
    classes: Mapping[str, float]
    images: int
    background: str

    @classmethod
    def read(cls, path: Path) -> "Baseline":
        """Read the file that `prepare` wrote.

        Raises:
            RequestError: it cannot be read.
            DataError: it is damaged.
        """
        try:
            content = files.read_json(path)
            known = {}
            for name, fields in content["statistics"].items():
                columns_ = list(
                    zip(*(map(float, fields[key]) for key in ("values", "below", "at_most")), strict=True)
                )
                known[name] = Distribution(*zip(*columns_, strict=True))
            shares = {str(label): float(share) for label, share in content["classes"].items()}
            background = str(content.get("background", DEFAULT_BACKGROUND))
            ImageColor.getrgb(background)  # raises ValueError for an invalid colour
            return cls(known, shares, int(content["images"]), background)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not a baseline of this version ({type(error).__name__}: {error}). Make it again: dvc repro"
            ) from error


@dataclass(frozen=True)
class Comparison:
    """Hold how far a statistic has drifted.

    Attributes:
        statistic: its name; `classes` for the shares of the classes.
        baseline: median of the training images; None for classes.
        now: median of the images compared.
        psi: population stability index over the deciles of the baseline, or over classes.
        psi_bound: value that PSI exceeds without drift with probability `ALPHA`, at this number of images.
        ks: largest distance of both cumulative distributions, 0..1; None for classes.
        ks_bound: likewise of KS.
    """

    statistic: str
    baseline: float | None
    now: float | None
    psi: float
    psi_bound: float
    ks: float | None
    ks_bound: float | None
    drift: Drift


def baseline(scan: Scan, background: str) -> dict[str, Any]:
    """Describe the images of the train split, for `baseline.json`.

    Returns:
        `images`, `classes` (share of each), `background` (behind transparent pixels) and `statistics` (a `Distribution` each).
    """
    train = [record for record in scan.records if record.split == "train"]
    rows = [record.kept for record in train]
    labels = Counter(record.label or "" for record in train)
    return {
        "images": len(train),
        "background": background,
        "classes": {label: labels[label] / len(train) for label in scan.classes},
        "statistics": {
            name: asdict(Distribution.of(measured[rows].astype(np.float64)))
            for name, measured in scan.statistics.items()
        },
    }


def compare(data: Path, path: Path) -> dict[str, Any]:
    """Compare later images with a baseline.

    Args:
        data: folder or archive with images; class folders are not needed.
        path: `baseline.json`, or the folder of a model or dataset that has it.

    Returns:
        `drift` (the strongest of all), `images`, `unreadable` (paths of files without a readable image), `baseline`, `baseline_images`, `unknown_classes` and `statistics`: a `Comparison` each, the strongest drift first.

    Raises:
        DataError: there is no image, or the baseline is damaged.
    """
    if path.is_dir():
        path = path / BASELINE
    known = Baseline.read(path)
    measured, labels, unreadable = _measure(data, known.background)
    count = len(next(iter(measured.values())))
    if not count:
        raise DataError(f"{data} contains no image that can be read. Give a folder, zip or tar with images.")
    stated = any(label in known.classes for label in labels)
    found = compare_measured(known, measured, labels if stated else {})
    return {
        "drift": strongest(found),
        "images": count,
        "unreadable": unreadable,
        "baseline": str(path),
        "baseline_images": known.images,
        "unknown_classes": sorted(label for label in labels if label not in known.classes) if stated else [],
        "statistics": [asdict(each) for each in found],
    }


def compare_measured(
    known: "Baseline", measured: Mapping[str, npt.NDArray[np.float32]], labels: Mapping[str, int]
) -> list[Comparison]:
    """Compare (n,) values of each statistic, and the number of images per class, with a baseline; the strongest drift first."""
    found = [
        compare_values(name, known.statistics[name], measured[name].astype(np.float64), known.images)
        for name in STATISTICS
        if name in known.statistics
    ]
    if labels:
        found.append(compare_classes(known.classes, labels, known.images))
    return sorted(found, key=lambda each: (-_rank(each.drift), -each.psi))


def strongest(found: Iterable[Comparison]) -> Drift:
    """Return the strongest drift of all comparisons."""
    return max((each.drift for each in found), key=_rank, default="undecided")


def compare_values(name: str, known: Distribution, measured: Values, images: int) -> Comparison:
    """Compare (n,) values of a statistic with its distribution over the `images` of training."""
    ordered = np.sort(np.round(measured, DIGITS))
    count = len(ordered)
    values = np.array(known.values)
    below = np.searchsorted(ordered, values, "left") / count
    at_most = np.searchsorted(ordered, values, "right") / count
    gaps = np.abs(below - np.array(known.below)), np.abs(at_most - np.array(known.at_most))
    edges = np.unique(values[np.searchsorted(known.at_most, np.arange(1, DECILES) / DECILES - 1e-9)])
    expected = np.array([known.at_most[int(np.searchsorted(values, edge))] for edge in edges])
    actual = np.searchsorted(ordered, edges, "right") / count
    if edges[0] == values[0]:  # many images have the lowest value: what lies below it is a bin of its own
        expected = np.insert(expected, 0, 0.0)
        actual = np.insert(actual, 0, np.searchsorted(ordered, edges[0], "left") / count)
    old, new = (np.diff(shares, prepend=0.0, append=1.0) for shares in (expected, actual))
    psi, psi_bound = _psi(old * images, new * count)
    ks = float(np.max(gaps))
    # Smirnov's bound for two samples: sqrt(-ln(ALPHA / 2) / 2) sqrt((n + m) / nm).
    ks_bound = math.sqrt(-0.5 * math.log(ALPHA / 2)) * math.sqrt((images + count) / (images * count))
    drift = _judge(psi, count, shown=ks > ks_bound and psi > psi_bound)
    return Comparison(
        name, known.median, Distribution.of(measured).median, psi, psi_bound, ks, ks_bound, drift
    )


def compare_classes(shares: Mapping[str, float], labels: Mapping[str, int], images: int) -> Comparison:
    """Compare how the images are spread over the classes; rare classes are counted together."""
    count = sum(labels.values())
    names = sorted({*shares, *labels})
    old = np.array([shares.get(name, 0.0) for name in names])
    new = np.array([labels.get(name, 0) for name in names])
    rare = (old + new / count) / 2 * min(images, count) < LEAST_EXPECTED
    old, new = (np.append(side[~rare], side[rare].sum()) for side in (old, new / count))
    psi, psi_bound = _psi(old * images, new * count)
    return Comparison(
        "classes", None, None, psi, psi_bound, None, None, _judge(psi, count, shown=psi > psi_bound)
    )


def lines(found: Mapping[str, Any]) -> list[str]:
    """Describe what `compare` returns, for people."""
    drift = {"undecided": "cannot be decided"}.get(found["drift"], found["drift"])
    rows = [
        (
            each["statistic"],
            *(("", "") if each["baseline"] is None else (_figure(each["baseline"]), _figure(each["now"]))),
            f"{each['psi']:.3f}",
            *(("", "") if each["ks"] is None else (f"{each['ks']:.3f}", f"{each['ks_bound']:.3f}")),
            each["drift"],
        )
        for each in found["statistics"]
    ]
    text = [
        f"Drift: {drift} ({found['images']:,} images, compared with {found['baseline_images']:,} training images of {found['baseline']})",
        "",
        table(("Statistic", "Trained on", "Now", "PSI", "KS", "KS bound", "Drift"), rows, right=range(1, 6)),
        "",
        f"Medians. PSI from {MODERATE:g} is moderate, from {STRONG:g} strong, where so many images can show it (docs/data.md).",
    ]
    if found["images"] < FEW_IMAGES:
        text.append(
            f"{found['images']:,} images are few: at least {FEW_IMAGES} are needed to show that nothing has drifted."
        )
    if unknown := found["unknown_classes"]:
        names = ", ".join(f"`{escaping.short(name, 40)}`" for name in unknown[:SHOWN_CLASSES])
        more = f" and {len(unknown) - SHOWN_CLASSES:,} more" if len(unknown) > SHOWN_CLASSES else ""
        text.append(f"Classes that the model was not trained on: {names}{more}")
    if unreadable := found["unreadable"]:
        text.append(
            f"Not compared: {len(unreadable):,} files without a readable image, such as {escaping.short(unreadable[0], 60)}"
        )
    return text


def locate(root: Path) -> Path:
    """Find the baseline of the exported model, else that of the packed dataset.

    Raises:
        RequestError: there is neither.
    """
    paths = [root / "build" / folder / BASELINE for folder in ("deploy", "dataset")]
    for path in paths:
        if path.is_file():
            return path
    raise RequestError(
        f"there is nothing to compare with: neither {paths[0]} nor {paths[1]} exists. Make them with `dvc repro`, or name "
        f"the {BASELINE} beside a model: convoy data drift PATH --baseline FILE"
    )


@dataclass(frozen=True)
class _AnyImage:
    """Give every file a class, the empty one where the delivery states none, so that its image is measured."""

    layout: Layout | None
    delivered: tuple[Split, ...] = ()
    notes: tuple[Finding, ...] = ()
    by_image = False

    def place(self, name: str) -> Place:
        """Return the class that the folders state."""
        stated = self.layout.place(name) if self.layout else Place()
        return Place(label=stated.label or "")


def _measure(
    data: Path, background: str
) -> tuple[Mapping[str, npt.NDArray[np.float32]], Counter[str], list[str]]:
    """Measure every image of a delivery; return the statistics, the number of images per class, and files without an image."""
    delivery = open_delivery(data)
    names = delivery.names()
    try:
        layout: Layout | None = recognise(delivery)
    except DataError:  # such as a test folder without train: there is nothing to train
        layout = None
    measured = array("f")
    labels: Counter[str] = Counter()
    unreadable = []
    empty = np.empty((0, 0, 3), np.uint8)
    files_read = read(
        delivery.files(), _AnyImage(layout), lambda _: empty, partial(decode, background=background)
    )
    for record, image in track(files_read, "decode images", len(names)):
        if image is None:
            unreadable.append(record.path)
            continue
        measured.frombytes(image.statistics)
        if record.label:
            labels[record.label] += 1
    return columns(measured), labels, unreadable


def _psi(old: Values, new: Values) -> tuple[float, float]:
    """Compute PSI of the number of images in each bin, and the value that it exceeds by chance with probability `ALPHA`.

    Half an image is added to each bin, so that the index stays finite where one is empty. Without drift, PSI is distributed as
    chi-square with one degree less than bins, times 1/n + 1/m: Yurdakul, "Statistical properties of population stability
    index", 2018.
    """
    from scipy.stats import chi2  # noqa: PLC0415 (a second, which `prepare` does not need)

    bins = len(old)
    p, q = ((side + 0.5) / (side.sum() + 0.5 * bins) for side in (old, new))
    bound = float(chi2.ppf(1 - ALPHA, max(bins - 1, 1))) * (1 / old.sum() + 1 / new.sum())
    return float(((q - p) * np.log(q / p)).sum()), bound


def _judge(psi: float, images: int, *, shown: bool) -> Drift:
    if shown and psi >= MODERATE:
        return "strong" if psi >= STRONG else "moderate"
    return "undecided" if images < FEW_IMAGES else "none"


def _rank(drift: Drift) -> int:
    return ("none", "undecided", "moderate", "strong").index(drift)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
