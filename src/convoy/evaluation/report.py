"""The pages of an evaluation, each one HTML file with everything inside: `report.html` and `features.html`."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from convoy.core import files, lettering, templates
from convoy.evaluation.feature_maps import ActivationMap, Features, ImageFeatures

THUMBNAIL_PX = (
    128  # largest side of a mistake in the report, in pixels: two hundred should still open at once
)
LARGEST_IMAGE_PX = 224  # largest side of an image in the features page, in pixels; larger ones are shrunk
LARGEST_MAP = 112  # largest side of a map in the features page, in cells; larger ones are shrunk
MOST_FILTERS = 96  # most filters drawn: transformers start with a thousand
MOST_CLASSES = 5  # most classes whose probability is listed with an image

MOST_COUNTS = 20  # most classes for which the cells of the confusion matrix have room for a number
MOST_NAMES = 50  # most classes for which its axes have room for every name, and the page for a table of all
LONGEST_NAME = 18  # characters of a class name that an axis has room for

TEXT = "#76818d"  # colour of text on the transparent background, readable on white and on black
CELLS = LinearSegmentedColormap.from_list("share", ["#dbe8f7", "#1a5fb4"])


@dataclass(frozen=True)
class Subject:
    """Name an image whose feature maps are drawn.

    Attributes:
        source: the file that it came from.
        image_u8: (P, P, 3) RGB, as the network sees it.
        actual: its class, where that is known.
    """

    source: str
    image_u8: npt.NDArray[np.uint8]
    actual: str | None = None


def most_confident_mistakes(
    images_u8: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    paths: Sequence[str],
    classes: Sequence[str],
    *,
    most: int,
) -> list[dict[str, Any]]:
    """Select the misclassified images with the highest predicted probability, highest first.

    These are where wrong labels and confusable classes show. Of the (N, P, P, 3) images only those selected are read.

    Returns:
        What the report lists of each, of at most `most`; `image` is a PNG as data URI.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    selected = wrong[np.argsort(-confidence, kind="stable")][:most]
    return [
        describe(
            n,
            predicted[n],
            images_u8,
            labels=labels,
            probabilities=probabilities,
            paths=paths,
            classes=classes,
        )
        for n in selected
    ]


def describe(
    n: int,
    predicted: int,
    images_u8: npt.NDArray[np.uint8],
    *,
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    paths: Sequence[str],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return what the report lists of image `n` of a split beside another class than its label's; `image` is a data URI."""
    return {
        "path": paths[n],
        "actual": classes[labels[n]],
        "predicted": classes[predicted],
        "probability": float(probabilities[n, predicted]),
        "probability_of_actual": float(probabilities[n, labels[n]]),
        "image": _png(images_u8[n], THUMBNAIL_PX, Image.Resampling.BICUBIC),
    }


def write_report(
    path: Path,
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    counts: npt.NDArray[np.int64],
    *,
    mistakes: Sequence[Mapping[str, Any]],
    suspects: Mapping[str, Any],
) -> None:
    """Write the evaluation report, and `confusion.png` beside it.

    `facts` describe what was measured: network, data_hash, split, image_px, fit, crop_share, counts per split and class. `summary` is
    that of `evaluate.summarise`, `counts` the (K, K) confusion matrix, `suspects` that of `evaluate.check_labels`.
    """
    classes = list(summary["per_class"])
    figure = draw_confusion(counts, classes)
    path.with_name("confusion.png").write_bytes(figure)
    many = len(classes) > MOST_NAMES
    ranked = list(summary["per_class"].items())
    if many:  # classes that no test image has come last
        ranked.sort(key=lambda item: (not item[1]["images"], item[1]["f1"] or 0))
    context = {
        "facts": facts,
        "test": summary,
        "many": many,
        "ranked": ranked,
        "wrong": round(summary["images"] * (1 - summary["accuracy"])),
        "confused": _most_confused(counts, classes),
        "mistakes": mistakes,
        "suspects": suspects,
        "confusion": _data_uri(figure),
    }
    files.write_text(path, templates.render("convoy.evaluation", "report.html.j2", context))


def draw_confusion(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Draw (K, K) counts as a PNG with transparent background: rows are actual classes, shaded by their share of the row.

    Shading by share shows a rare class's mistakes as clearly as a frequent one's.
    """
    total = len(classes)
    side = min(max(3.6, 0.42 * total + 1.6), 12.0)
    figure = Figure(figsize=(side, side), dpi=144, layout="constrained")
    axes = figure.subplots()
    # The square root lifts a share of 2 % out of the background, where mistakes are looked for.
    shade = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    axes.imshow(np.ma.masked_equal(shade, 0), cmap=CELLS, vmin=0, vmax=1)
    axes.set_xlabel("predicted", color=TEXT, fontsize=12)
    axes.set_ylabel("actual", color=TEXT, fontsize=12)
    if total <= MOST_NAMES:
        names = [name if len(name) <= LONGEST_NAME else f"{name[:9]}…{name[-8:]}" for name in classes]
        upright = 0 if max(map(len, names)) <= 3 else 90
        # A `$` would start a formula and swallow the rest of the name.
        axes.set_xticks(range(total), names, rotation=upright, parse_math=False)
        axes.set_yticks(range(total), names, parse_math=False)
    axes.tick_params(colors=TEXT, length=0)
    axes.spines[:].set(color=TEXT, linewidth=0.5)
    if total <= MOST_COUNTS:
        for actual, predicted in np.argwhere(counts):
            color = "#ffffff" if shade[actual, predicted] > 0.6 else "#1c2530"
            count = f"{counts[actual, predicted]}"
            axes.text(predicted, actual, count, ha="center", va="center", color=color, fontsize=9)
    content = io.BytesIO()
    lettering.fit(figure)
    # Without the metadata, the file would name the matplotlib that drew it and change with it.
    figure.savefig(content, format="png", transparent=True, metadata={"Software": None})
    return content.getvalue()


def write_features(
    path: Path, network: str, classes: Sequence[str], subjects: Sequence[Subject], features: Features
) -> None:
    """Write the page of a network's filters and feature maps; `subjects` are in the order of `features.images`."""
    filters = () if features.filters is None else features.filters[:MOST_FILTERS]
    context = {
        "network": network,
        "classes": len(classes),
        "features": features,
        "image_px": subjects[0].image_u8.shape[0],
        "filters": [draw_filter(x.sum(axis=2, keepdims=True) if features.gray else x) for x in filters],
        "subjects": [
            {
                "source": subject.source,
                "name": subject.source.rsplit("/", 1)[-1],
                "actual": subject.actual,
                "png": _png(subject.image_u8, LARGEST_IMAGE_PX),
                "predictions": likeliest(image, classes)[:MOST_CLASSES],
                "maps": {
                    depth: [{"channel": m.channel, "strength": m.strength, "png": draw_map(m)} for m in maps]
                    for depth, maps in image.strongest.items()
                },
            }
            for subject, image in zip(subjects, features.images, strict=True)
        ],
    }
    files.write_text(path, templates.render("convoy.evaluation", "features.html.j2", context))


def likeliest(image: ImageFeatures, classes: Sequence[str]) -> list[tuple[str, float]]:
    """List classes with their probabilities, the largest first."""
    order = np.argsort(-image.probabilities, kind="stable")
    return [(classes[k], float(image.probabilities[k])) for k in order]


def draw_filter(weights: npt.NDArray[np.float32]) -> str:
    """Draw (KH, KW, 3 or 1) weights so that 0 is mid-gray and the largest of either sign is full."""
    most = float(np.abs(weights).max()) or 1.0
    shades = np.round(127.5 + 127.5 * weights / most).astype(np.uint8)
    return _png(np.broadcast_to(shades, (*weights.shape[:2], 3)), max(weights.shape[:2]))


def draw_map(activation: ActivationMap) -> str:
    """Draw a map so that 0 and less is black, its strength and more white."""
    values, strength = activation.values, activation.strength
    shares = values / strength if strength > 0 else np.zeros_like(values)
    return _png(np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8), LARGEST_MAP)


def _most_confused(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """List the three most frequent confusions: actual, predicted, images."""
    wrong = counts * (1 - np.eye(len(classes), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [divmod(int(n), len(classes)) for n in order]
    return [(classes[a], classes[p], int(wrong[a, p])) for a, p in pairs if wrong[a, p]]


def _png(
    image_u8: npt.NDArray[np.uint8], largest: int, filter_: Image.Resampling = Image.Resampling.BOX
) -> str:
    """Encode (H, W) or (H, W, 3) as a data URI, shrunk to a largest side."""
    content = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image_u8))
    picture.thumbnail((largest, largest), filter_)
    picture.save(content, format="PNG", optimize=True)
    return _data_uri(content.getvalue())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
