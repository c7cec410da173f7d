"""Small members of the shipped families: the same structure with a few filters everywhere."""

from typing import Any

from convoy.models.layer_types import Branches, Conv, Dense, Layer, LocalResponseNorm
from convoy.models.spec import Spec

NARROWER = 16
"""By how much a miniature has fewer filters and units."""


def miniature(spec: Spec) -> Spec:
    """Shrink every convolution and dense layer; kernels, strides, branches and heads stay."""
    return spec.model_copy(update={"layers": tuple(map(_small, spec.layers))})


def _small(layer: Layer) -> Layer:
    changes: dict[str, Any] = {}
    if isinstance(layer, Conv):
        changes["filters"] = max(layer.filters // NARROWER // layer.groups, 1) * layer.groups * 2
    if isinstance(layer, Dense) and layer.units != "classes":
        changes["units"] = max(layer.units // NARROWER, 8)
    if isinstance(layer, LocalResponseNorm):
        changes["size"] = 3
    if isinstance(layer, Branches):
        changes["branches"] = {name: tuple(map(_small, part)) for name, part in layer.branches.items()}
    changes |= {body: tuple(map(_small, getattr(layer, body))) for body in type(layer).bodies}
    return layer.model_copy(update=changes)
