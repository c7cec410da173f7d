"""The measurement as one HTML page that needs nothing beside itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core import files
from convoy.evaluation import picture

THUMBNAIL_PX = 128
"""Largest side of a picture in the page, in pixels: two hundred of them should still open at once."""


@dataclass(frozen=True)
class Mistake:
    """Hold one wrongly classified image with what was said about it."""

    path: str
    actual: str
    predicted: str
    probability: float  # of the predicted class
    probability_of_actual: float
    image: str  # a PNG as data URI


def most_confident_mistakes(
    images_u8: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    paths: Sequence[str],
    classes: Sequence[str],
    *,
    most: int,
) -> list[Mistake]:
    """Pick the wrong answers that were given with the highest probability, highest first.

    These are where wrong labels and confusable classes show.

    Args:
        images_u8: (N, P, P, 3) RGB; only the picked ones are read.
        labels: (N,) class numbers.
        probabilities: (N, K).
        paths: N names for the images.
        classes: K names.
        most: how many at most.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    picked = wrong[np.argsort(-confidence, kind="stable")][:most]
    return [
        Mistake(
            path=paths[n],
            actual=classes[labels[n]],
            predicted=classes[predicted[n]],
            probability=float(probabilities[n, predicted[n]]),
            probability_of_actual=float(probabilities[n, labels[n]]),
            image=_thumbnail(images_u8[n]),
        )
        for n in picked
    ]


def write(
    path: Path,
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    counts: npt.NDArray[np.int64],
    mistakes: Sequence[Mistake],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        facts: what was measured: network, data_hash, image_px, fit, counts per split and class.
        summary: as `metrics.summarise` makes it.
        counts: (K, K) confusion matrix.
        mistakes: what `most_confident_mistakes` picked.
    """
    classes = list(summary["per_class"])
    # Class names and paths come from the delivery: they are escaped, never markup.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convoy.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        facts=facts,
        test=summary,
        wrong=round(summary["images"] * (1 - summary["accuracy"])),
        confused=_most_confused(counts, classes),
        mistakes=mistakes,
        light=_data_uri(picture.draw(counts, classes)),
        dark=_data_uri(picture.draw(counts, classes, dark=True)),
    )
    files.write_text(path, page)


def _most_confused(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """List the three most frequent confusions: actual, predicted, images."""
    wrong = counts * (1 - np.eye(len(classes), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [divmod(int(n), len(classes)) for n in order]
    return [(classes[a], classes[p], int(wrong[a, p])) for a, p in pairs if wrong[a, p]]


def _thumbnail(image_u8: npt.NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    thumbnail = Image.fromarray(np.asarray(image_u8))
    thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    thumbnail.save(content, format="PNG")
    return _data_uri(content.getvalue())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
