"""What a network sees, as one HTML page that needs nothing beside itself."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core import files
from convoy.evaluation.feature_maps import ActivationMap, Depth, Features, Seen

LARGEST_IMAGE_PX = 224
"""Largest side of an image in the page, in pixels; larger ones are shrunk."""
LARGEST_MAP = 112
"""Largest side of a map in the page, in cells; larger ones are shrunk."""
MOST_FILTERS = 96
"""Most filters drawn: transformers start with a thousand."""
MOST_CLASSES = 5
"""Most classes whose probability is listed."""


@dataclass(frozen=True)
class Subject:
    """Name an image that the network looked at.

    Attributes:
        source: the file that it came from.
        image_u8: (P, P, 3) RGB, as the network sees it.
        actual: its class, where that is known.
    """

    source: str
    image_u8: npt.NDArray[np.uint8]
    actual: str | None = None


def write(
    path: Path, network: str, classes: Sequence[str], subjects: Sequence[Subject], features: Features
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        network: its name.
        classes: K names.
        subjects: the images, in the order in which `features` has them.
        features: what `features.find` found.
    """
    # Class names and paths come from the delivery: they are escaped, never markup.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convoy.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    weights = () if features.filters is None else features.filters[:MOST_FILTERS]
    page = environment.get_template("features_page.html.j2").render(
        network=network,
        classes=len(classes),
        features=features,
        image_px=subjects[0].image_u8.shape[0],
        filters=[_filter(one.sum(axis=2, keepdims=True) if features.gray else one) for one in weights],
        subjects=[
            _subject(subject, seen, classes) for subject, seen in zip(subjects, features.images, strict=True)
        ],
    )
    files.write_text(path, page)


def likeliest(seen: Seen, classes: Sequence[str]) -> list[tuple[str, float]]:
    """List classes with their probabilities, the largest first."""
    order = np.argsort(-seen.probabilities, kind="stable")
    return [(classes[k], float(seen.probabilities[k])) for k in order]


def _subject(subject: Subject, seen: Seen, classes: Sequence[str]) -> dict[str, Any]:
    maps: dict[Depth, list[dict[str, Any]]] = {
        depth: [{"channel": one.channel, "strength": one.strength, "png": _map(one)} for one in strongest]
        for depth, strongest in seen.strongest.items()
    }
    return {
        "source": subject.source,
        "name": subject.source.rsplit("/", 1)[-1],
        "actual": subject.actual,
        "png": _png(subject.image_u8, LARGEST_IMAGE_PX),
        "predictions": likeliest(seen, classes)[:MOST_CLASSES],
        "maps": maps,
    }


def _filter(weights: npt.NDArray[np.float32]) -> str:
    """Draw (KH, KW, 3 or 1) weights so that 0 is mid-gray and the largest of either sign is full."""
    most = float(np.abs(weights).max()) or 1.0
    shades = np.round(127.5 + 127.5 * weights / most).astype(np.uint8)
    return _png(np.broadcast_to(shades, (*weights.shape[:2], 3)), max(weights.shape[:2]))


def _map(one: ActivationMap) -> str:
    """Draw a map so that 0 and less is black, its strength and more white."""
    shares = one.values / one.strength if one.strength > 0 else np.zeros_like(one.values)
    return _png(np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8), LARGEST_MAP)


def _png(image_u8: npt.NDArray[np.uint8], largest: int) -> str:
    """Encode (H, W) or (H, W, 3) as a data URI, shrunk to a largest side."""
    content = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image_u8))
    picture.thumbnail((largest, largest), Image.Resampling.BOX)
    picture.save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
