"""Place a spec's layers for images of one size, or say which size would do; without torch."""

from convoy.core.errors import NetworkError
from convoy.models.layer_types import Auxiliary, Layer
from convoy.models.shapes import MisfitError, Step, chain, describe, leaving
from convoy.models.spec import Spec

LARGEST_PX = 1024
"""Largest image side that the search for a working one tries, in pixels: the most that params.yaml allows."""


def placed(spec: Spec, classes: int, image_px: int) -> tuple[Step, ...]:
    """Place the layers of a network.

    Args:
        spec: made of layers, not of torchvision's.
        classes: K, the width of the head.
        image_px: side of the images, in pixels.

    Raises:
        NetworkError: the images are too small, naming the layer, the volume that arrived and the
            smallest side that works; or layers that do not fit each other at any size.
    """
    image = (3, image_px, image_px)
    try:
        steps = chain(spec.layers, image, classes)
    except MisfitError as misfit:
        raise too_small(spec, image_px, misfit, smallest(spec.layers, classes, image_px + 1)) from misfit
    made = leaving(steps, image)
    if made != (classes,):
        raise NetworkError(
            f"{spec.name} ends in {describe(made)}, not in one number for each of the {classes} classes. "
            "Let its last layers be `- flatten` and `- dense: classes`."
        )
    return steps


def smallest(layers: tuple[Layer, ...], classes: int, start: int) -> int | None:
    """Find the smallest side from `start` on, up to LARGEST_PX, whose images the layers take.

    Raises:
        NetworkError: no side works, and at the first that is not too small the layers do not fit each other.
    """
    mistake: NetworkError | None = None
    for side in range(start, LARGEST_PX + 1):
        try:
            chain(layers, (3, side, side), classes)
        except MisfitError:
            continue
        except NetworkError as error:  # of this side perhaps: branches may differ at odd ones alone
            mistake = mistake or error
            continue
        return side
    if mistake:
        raise mistake
    return None


def too_small(spec: Spec, image_px: int, misfit: Exception, works: int | None) -> NetworkError:
    """Phrase that a network does not take images of a size, and what to do."""
    remedy = (
        f"The smallest that works is {works}: set data.image_px to it, or choose another network.name."
        if works
        else f"No side up to {LARGEST_PX} works: correct the layer, or choose another network.name."
    )
    body = tuple(layer for layer in spec.layers if not isinstance(layer, Auxiliary))
    if len(body) < len(spec.layers):
        alone = smallest(body, 2, image_px)
        if alone and alone != works:
            remedy += f" Without its auxiliary heads {alone} would do: take them out of a copy of the spec."
    return NetworkError(f"{spec.name} does not take images of {image_px} px: {misfit}. {remedy}")
