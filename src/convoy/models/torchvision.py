"""torchvision's classifiers behind one-line specs."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from convoy.core.errors import NetworkError, RequestError
from convoy.core.params import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_HEADS: dict[str, dict[str, Any]] = {
    # Auxiliary heads return tuples in training, and transform_input undoes a normalisation that only
    # torchvision's own weights expect. init_weights is what both do unasked, after a warning.
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}

_HALF = [0.5, 0.5, 0.5]


class Pretrained(NamedTuple):
    """Describe one of torchvision's published sets of ImageNet weights.

    Attributes:
        label: torchvision's own, such as `ResNet18_Weights.IMAGENET1K_V1`.
        url: where they are.
        sha256: first hexadecimal digits of the file's hash, which its name carries.
        mean: of each channel, which the input is normalised with, in 0..1 units.
        std: likewise.
        classes: names in the order of the logits.
    """

    label: str
    url: str
    sha256: str
    mean: list[float]
    std: list[float]
    classes: list[str]


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


def pretrained(name: str, label: str | None = None) -> Pretrained:
    """Look up weights of a classifier: the ones torchvision recommends, or those of a label.

    Raises:
        RequestError: torchvision has no such classifier: a spec names a twin that is none.
        NetworkError: the installed torchvision has no weights under this label.
    """
    check(name, "ImageNet weights, as `twin:` in the spec names their network")
    models = _models()
    weights = models.get_model_weights(name)
    known = {str(one): one for one in weights}
    if label is not None and label not in known:
        raise NetworkError(
            f"the installed torchvision has no weights `{label}` for {name}{did_you_mean(label, known)} "
            "Pin those it has: convoy weights use imagenet"
        )
    entry = known[label] if label is not None else weights.DEFAULT
    transforms = entry.transforms()
    mean, std = list(transforms.mean), list(transforms.std)
    if name in _HEADS:
        # With these weights torchvision sets transform_input, which maps what is normalised with ImageNet's mean m and
        # std s by x·s/0.5 + (m - 0.5)/0.5 (torchvision/models/googlenet.py, _transform_input). Both together are
        # (pixel - 0.5)/0.5 exactly, so one normalisation does.
        mean, std = list(_HALF), list(_HALF)
    found = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
    return Pretrained(
        str(entry), entry.url, found[1] if found else "", mean, std, list(entry.meta["categories"])
    )
