"""torchvision's classifiers behind one-line specs."""

from typing import TYPE_CHECKING, Any, cast

from convoy.errors import RequestError
from convoy.params import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_HEADS: dict[str, dict[str, Any]] = {
    # Auxiliary heads return tuples in training, and transform_input undoes a normalisation that only
    # torchvision's own weights expect. init_weights is what both do unasked, after a warning.
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}


def _models() -> Any:  # noqa: ANN401 (torchvision has no types)
    """Import torchvision, a second that only networks from it should cost."""
    from torchvision import models  # type: ignore[import-untyped]  # noqa: PLC0415

    return models


def names() -> list[str]:
    """List every classifier that the installed torchvision has."""
    models = _models()
    return sorted(models.list_models(module=models))


def check(name: str, where: str) -> None:
    """Refuse a name that torchvision does not have; `where` leads to it in the message.

    Raises:
        RequestError: with the nearest spelling.
    """
    known = names()
    if name not in known:
        raise RequestError(f"{where}: torchvision has no classifier `{name}`{did_you_mean(name, known)}")


def fixes_side(name: str) -> bool:
    """Say whether a network of this family is made for one image side and takes no other."""
    return name.startswith(("vit_", "maxvit_"))


def make(name: str, classes: int, image_px: int) -> "nn.Module":
    """Build a classifier with fresh weights; nothing is downloaded.

    Raises:
        ValueError, RuntimeError, AssertionError: torchvision's own, when the family fixes the side of
            its images and cannot take this one.
    """
    extra = dict(_HEADS.get(name, {}))
    if name.startswith("vit_"):
        extra["image_size"] = image_px
    if name.startswith("maxvit_"):
        extra["input_size"] = (image_px, image_px)
    return cast("nn.Module", _models().get_model(name, weights=None, num_classes=classes, **extra))
