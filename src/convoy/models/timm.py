"""timm's classifiers behind one-line specs: `timm: NAME`, or `timm: NAME.TAG` for other weights than timm's default.

NAME is an architecture, such as `efficientnet_b0`; NAME.TAG also names a set of weights, such as `efficientnet_b0.ra_in1k`.
"""

import difflib
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from convoy.core.errors import NetworkError, RequestError, refuse_credentials
from convoy.models.torchvision import Pretrained

if TYPE_CHECKING:
    from torch import nn

HUB = "https://huggingface.co"  # unless the environment's HF_ENDPOINT names a mirror
FILE = "model.safetensors"


def _timm() -> Any:  # noqa: ANN401 (few of timm's functions have types)
    """Import timm, which takes seconds, only where it is needed."""
    import timm  # noqa: PLC0415 (takes seconds)

    return timm


def names() -> list[str]:
    """List every architecture of the installed timm, without tags."""
    return list(_timm().list_models())


def check(name: str, where: str) -> None:
    """Refuse an unknown architecture or tag; `where` starts the message.

    Raises:
        RequestError: with the nearest spellings.
    """
    architecture, dot, _ = name.partition(".")
    known = names()
    if architecture not in known:
        raise RequestError(
            f"{where}: timm {_timm().__version__} has no network `{architecture}`{_nearest(architecture, known)} "
            f"All {len(known):,}: convoy network list --all --filter WORD"
        )
    if dot and name not in (tagged := _tagged(architecture)):
        raise RequestError(
            f"{where}: timm {_timm().__version__} has no weights `{name}`; there are: "
            f"{', '.join(tagged) or f'none of {architecture}'}"
        )


def fixes_side(name: str) -> bool:
    """Return whether a network is built for one image side only, as transformers with position embeddings are."""
    settings = _timm().get_pretrained_cfg(name)
    return settings is not None and bool(settings.fixed_input_size)


def make(name: str, classes: int, image_px: int) -> "nn.Module":
    """Build a classifier with fresh weights, without dropout and of operations that ONNX has; nothing is downloaded.

    Raises:
        ValueError, RuntimeError, AssertionError: timm's, when the architecture does not support this side.
    """
    create = _timm().create_model
    settings: dict[str, Any] = {"pretrained": False, "num_classes": classes, "exportable": True}
    if fixes_side(name):
        with suppress(TypeError):  # a few have a fixed side and no argument for it: their forward decides
            return cast("nn.Module", create(name, img_size=image_px, **settings))
    return cast("nn.Module", create(name, **settings))


def made_for(name: str) -> tuple[int, int]:
    """Return image side and number of classes of timm's default weights; 224 and 1000 where it has none."""
    settings = _timm().get_pretrained_cfg(name)
    return (settings.input_size[-1], settings.num_classes or 1000) if settings else (224, 1000)


def pretrained(name: str, label: str | None = None) -> Pretrained:
    """Look up a network's weights on the Hugging Face hub: timm's default, those of its tag, or those of a label.

    The hub states no hash in the address, so `sha256` is empty: the first download is what is pinned.

    Raises:
        RequestError: timm has no such network or tag.
        NetworkError: no weights of this label, none on the hub, or weights without a classifier.
    """
    check(name, "ImageNet weights")
    architecture = name.partition(".")[0]
    try:
        settings = _timm().get_pretrained_cfg(label or name)
    except RuntimeError as error:  # a tag of another version of timm
        raise NetworkError(
            f"timm {_timm().__version__} has no weights `{label}` for {architecture}; there are: "
            f"{', '.join(_tagged(architecture))}. Pin the current ones: convoy weights use imagenet"
        ) from error
    if settings is None or not settings.hf_hub_id or settings.custom_load or not settings.num_classes:
        usable = [full for full in _tagged(architecture) if _is_usable(full)]
        others = f"Those that fit: {', '.join(usable)}." if usable else "It has none that fit."
        raise NetworkError(
            f"timm's weights {label or name} cannot be used: they are not on the Hugging Face hub, in a format of their own, or "
            f"without a classifier. {others} Write one of them as `timm: NAME.TAG`, or set network.weights to none."
        )
    repository, _, revision = settings.hf_hub_id.partition("@")
    hub = os.environ.get("HF_ENDPOINT") or HUB
    url = f"{hub.rstrip('/')}/{repository}/resolve/{revision or 'main'}/{settings.hf_hub_filename or FILE}"
    refuse_credentials(url)
    return Pretrained(
        label=f"{architecture}.{settings.tag}" if settings.tag else architecture,
        url=url,
        sha256="",
        mean=list(settings.mean),
        std=list(settings.std),
        classes=_classes(settings.num_classes),
        notes=_notes(settings),
    )


def _tagged(architecture: str) -> list[str]:
    """List the names of an architecture's weights, tags included."""
    return list(_timm().list_pretrained(f"{architecture}.*"))


def _is_usable(name: str) -> bool:
    settings = _timm().get_pretrained_cfg(name)
    return bool(settings and settings.hf_hub_id and not settings.custom_load and settings.num_classes)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else "."


def _classes(count: int) -> list[str]:
    """Name the classes of ImageNet's parts in the order of the logits; elsewhere by their number."""
    data = _timm().data
    subset = data.infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return [str(number) for number in range(count)]
    info = data.ImageNetInfo(subset)
    return [info.index_to_description(number) for number in range(count)]


def _notes(settings: Any) -> tuple[str, ...]:  # noqa: ANN401 (timm's PretrainedCfg)
    """Tell what preprocessing the weights were evaluated with, beside mean and std, and their licence."""
    px, share = settings.input_size[-1], settings.crop_pct
    fit = "squash" if settings.crop_mode == "squash" else "crop"
    cut = f", data.crop_share: {share:g}" if fit == "crop" else ""
    preprocessing = (
        f"timm evaluates these weights at {px} px, {settings.interpolation}, share {share:g} of the image. Nearest settings: "
        f"data.image_px: {px}, data.fit: {fit}{cut} (Convoy resizes bilinearly; mean and std come with the weights)."
    )
    return preprocessing, f"Licence of the weights: {settings.license or 'not stated by timm'}."
