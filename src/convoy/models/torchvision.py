"""torchvision's classifiers behind one-line specs."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from convoy.core.errors import NetworkError, RequestError
from convoy.core.params import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_HEADS: dict[str, dict[str, Any]] = {
    # Auxiliary heads return tuples in training, and transform_input undoes a normalisation that only
    # torchvision's own weights expect. init_weights is both constructors' default; passing it silences a warning.
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}


class Pretrained(NamedTuple):
    """A set of ImageNet weights that torchvision publishes."""

    label: str  # torchvision's, such as `ResNet18_Weights.IMAGENET1K_V1`
    url: str
    sha256: str  # first hexadecimal digits of the file's hash, from its name
    mean: list[float]  # per channel, 0..1 units: how the input is normalised
    std: list[float]
    classes: list[str]  # in the order of the logits
    notes: tuple[str, ...] = ()  # sentences for those who pin the weights


def _models() -> Any:  # noqa: ANN401 (torchvision has no types)
    """Import torchvision, which takes a second, only where it is needed."""
    from torchvision import models  # type: ignore[import-untyped]  # noqa: PLC0415

    return models


def names() -> list[str]:
    """List every classifier of the installed torchvision."""
    models = _models()
    return sorted(models.list_models(module=models))


def check(name: str, where: str) -> None:
    """Refuse an unknown classifier; `where` starts the message.

    Raises:
        RequestError: with the nearest spelling.
    """
    known = names()
    if name not in known:
        raise RequestError(f"{where}: torchvision has no classifier `{name}`{did_you_mean(name, known)}")


def fixes_side(name: str) -> bool:
    """Return whether networks of this family are built for one image side only."""
    return name.startswith(("vit_", "maxvit_"))


def make(name: str, classes: int, image_px: int) -> "nn.Module":
    """Build a classifier with fresh weights; nothing is downloaded.

    Raises:
        ValueError, RuntimeError, AssertionError: torchvision's, when the family does not support this side.
    """
    extra = dict(_HEADS.get(name, {}))
    if name.startswith("vit_"):
        extra["image_size"] = image_px
    if name.startswith("maxvit_"):
        extra["input_size"] = (image_px, image_px)
    return cast("nn.Module", _models().get_model(name, weights=None, num_classes=classes, **extra))


def pretrained(name: str, label: str | None = None) -> Pretrained:
    """Look up a classifier's weights: those that torchvision recommends, or those of a label.

    Raises:
        RequestError: torchvision has no such classifier: the spec's twin is wrong.
        NetworkError: the installed torchvision has no weights of this label.
    """
    check(name, "ImageNet weights, as `twin:` in the spec names their network")
    models = _models()
    weights = models.get_model_weights(name)
    known = {str(entry): entry for entry in weights}
    if label is not None and label not in known:
        raise NetworkError(
            f"the installed torchvision has no weights `{label}` for {name}{did_you_mean(label, known)} "
            "Pin the current ones: convoy weights use imagenet"
        )
    entry = known[label] if label is not None else weights.DEFAULT
    transforms = entry.transforms()
    mean, std = list(transforms.mean), list(transforms.std)
    if name in _HEADS:
        # With these weights torchvision sets transform_input, which maps pixels normalised with ImageNet's mean m and
        # std s by x·s/0.5 + (m - 0.5)/0.5 (torchvision/models/googlenet.py, _transform_input). Together that is
        # exactly (pixel - 0.5)/0.5.
        mean, std = [0.5] * 3, [0.5] * 3
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
    sha256 = digits[1] if digits else ""
    return Pretrained(str(entry), entry.url, sha256, mean, std, list(entry.meta["categories"]))
