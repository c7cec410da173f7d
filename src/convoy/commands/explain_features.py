"""`convoy explain features`: a trained network's filters, and where its layers answer in an image."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from convoy.core.errors import DataError, RequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from convoy.core.dataset import Fit
    from convoy.evaluation.feature_maps import Features
    from convoy.models.trained import ModelFacts

PAGE = Path("build/explain/features.html")


def features(
    image: Annotated[Path, typer.Argument(help="An image file.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Folder that `train` wrote.")] = Path("build/model"),
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write. With --json, only where it is given.", show_default=str(PAGE)),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; channels count from 0.")
    ] = False,
) -> None:
    """Look into a trained network: its first filters, and the maps that IMAGE excites most at three depths.

    Example: convoy explain features photo.jpg

    Example: convoy explain features photo.jpg --model build/model --out photo.html
    """
    page = out if as_json else out or PAGE
    if page and page.suffix.lower() not in (".html", ".htm"):
        raise RequestError(
            f"{page} is no .html file, which is what is written. Try --out {page.with_suffix('.html')}"
        )
    content = _read(image)

    from convoy.evaluation.feature_maps import find
    from convoy.evaluation.report import Subject, write_features
    from convoy.models import trained

    network, facts = trained.load(model)
    image_u8 = _as_served(image, content, facts)
    found = find(network, [image_u8])
    if page:
        try:
            write_features(page, facts.network, facts.classes, [Subject(str(image), image_u8)], found)
        except OSError as error:
            raise RequestError(
                f"The page {page} cannot be written: {error.strerror}. Name another place: --out {PAGE}"
            ) from error
    if as_json:
        told = _told(str(image), facts, found) | {"page": str(page) if page else None}
        print(json.dumps(told, ensure_ascii=False))
    else:
        _say(facts, found, page)


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise RequestError(f"{image} cannot be read: {error.strerror}. Name an image file.") from error


def _as_served(image: Path, content: bytes, facts: "ModelFacts") -> "npt.NDArray[np.uint8]":
    """Bring a file's bytes to the square that the network sees."""
    from convoy.images.decode import decode
    from convoy.images.resize import Geometry

    geometry = Geometry(facts.image_px, cast("Fit", facts.fit))
    try:
        return geometry(decode(content).image_u8)
    except DataError as error:
        raise DataError(f"{image} {error}. Name another image.") from error


def _told(image: str, facts: "ModelFacts", found: "Features") -> dict[str, Any]:
    """Give what the page shows as plain data; volumes are [H, W, C]."""
    from convoy.evaluation.report import likeliest

    (seen,) = found.images
    return {
        "network": facts.network,
        "image": image,
        "predictions": [{"class": name, "probability": one} for name, one in likeliest(seen, facts.classes)],
        "filters": None
        if found.filters is None
        else {"layer": found.first, "count": len(found.filters), "shape": list(found.filters.shape[1:])},
        "layers": [
            {
                "depth": depth,
                "layer": layer.name,
                "operations": layer.operations,
                "volume": [*layer.volume[1:], layer.volume[0]],
                "channels": [
                    {"channel": one.channel, "strength": one.strength} for one in seen.strongest[depth]
                ],
            }
            for depth, layer in found.layers.items()
        ],
    }


def _say(facts: "ModelFacts", found: "Features", page: Path | None) -> None:
    """Print what was found in a few lines, and where the page is."""
    from convoy.core.console import info
    from convoy.evaluation.report import likeliest

    (seen,) = found.images
    name, probability = likeliest(seen, facts.classes)[0]
    info(f"{facts.network} says {name}, probability {probability:.4f}")
    if not found.layers:
        info("It has no convolution, so there are neither filters nor maps to see.")
    for depth, layer in found.layers.items():
        channels, height, width = layer.volume
        strongest = ", ".join(str(one.channel) for one in seen.strongest[depth])
        info(f"{depth:<7} {layer.name} {height}×{width}×{channels}: strongest channels {strongest}")
    info(f"Page: {page}")
