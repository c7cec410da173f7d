"""The param `train.augment`: a list of transforms, or a shorthand; read, checked and written out."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, LiteralString

from pydantic import AfterValidator, BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.training.augment import names
from convoy.training.augment.auto import AUTO
from convoy.training.augment.color import ColorJitter
from convoy.training.augment.draws import Transform, Warp
from convoy.training.augment.erase import Erase
from convoy.training.augment.geometry import GEOMETRY, Flip, ResizedCrop, Shift
from convoy.training.augment.mix import Cutmix, Mixup

TRANSFORMS: dict[str, type[Transform]] = {
    **GEOMETRY,
    "color_jitter": ColorJitter,
    **AUTO,
    "erase": Erase,
    "mixup": Mixup,
    "cutmix": Cutmix,
}
"""By their words, in the order in which they are applied."""

WORDS = {kind: word for word, kind in TRANSFORMS.items()}

LIGHT: list[Any] = [{"resized_crop": {"scale": [0.7, 1.0]}}, "flip"]
PHOTO: list[Any] = [{"resized_crop": {"scale": [0.3, 1.0]}}, "flip", "color_jitter"]
STRONG: list[Any] = [*PHOTO, "trivial_augment", "erase", "mixup", "cutmix"]
SHORTHANDS: dict[str, list[Any]] = {"light": LIGHT, "photo": PHOTO, "strong": STRONG}

SMALLEST_CROP_PX = 4
"""Shorter side of a `resized_crop` of ratio 1, at least: less shows nothing."""


def without_padding(augment: object, crop_padding: object) -> str:
    """Write the list that replaces a former one, with `crop`, and its `crop_padding`."""
    items = augment if isinstance(augment, list) else []
    return yaml.inline([{"shift": {"pixels": crop_padding}} if item == "crop" else item for item in items])


def in_order(transforms: Sequence[Transform]) -> list[Transform]:
    """Sort transforms as they are applied."""
    return sorted(transforms, key=lambda transform: list(TRANSFORMS.values()).index(type(transform)))


def written(transform: Transform) -> dict[str, Any]:
    """Write a transform with all of its arguments."""
    return {WORDS[type(transform)]: transform.model_dump()}


def described(transforms: Sequence[Transform]) -> str:
    """Write a policy on one line, all arguments included, in the order in which it is applied."""
    return yaml.inline([written(transform) for transform in in_order(transforms)])


def check(
    transforms: Sequence[Transform],
    *,
    image_px: int,
    store_px: int,
    batch_size: int,
    smallest: int | None = None,
) -> None:
    """Refuse a policy that cannot apply to the images or batches of a training.

    Args:
        transforms: those of `train.augment`.
        image_px: side of the network's input.
        store_px: side of the stored training images.
        batch_size: `train.batch_size`.
        smallest: images of the smallest batch; None where the dataset is not known yet.

    Raises:
        RequestError: with the argument, the limit, and what to set.
    """
    smallest = batch_size if smallest is None else smallest
    mixing = [WORDS[type(transform)] for transform in transforms if isinstance(transform, Mixup | Cutmix)]
    if mixing and smallest < 2:
        raise RequestError(
            f"train.augment: {mixing[0]} mixes two images of a batch, but with train.batch_size: {batch_size} a batch has "
            f"{smallest}. Set train.batch_size to {max(batch_size + 1, 4)} or more, or remove {' and '.join(mixing)}"
        )
    for transform in transforms:
        if isinstance(transform, Shift) and transform.pixels >= image_px:
            raise RequestError(
                f"train.augment: shift.pixels is {transform.pixels}, but images have {image_px} px (data.image_px): a shift "
                f"moves at most {image_px - 1}. Usual is an eighth of the side: shift: {{pixels: {max(1, image_px // 8)}}}"
            )
        if isinstance(transform, ResizedCrop):
            low = transform.scale[0]
            if store_px * low**0.5 < SMALLEST_CROP_PX:
                least = (SMALLEST_CROP_PX / store_px) ** 2
                raise RequestError(
                    f"train.augment: resized_crop.scale starts at {low}, which is less than {SMALLEST_CROP_PX} × "
                    f"{SMALLEST_CROP_PX} of the {store_px} × {store_px} stored pixels. Start at {_up(least)} or more, such as "
                    "resized_crop: {scale: [0.3, 1.0]}"
                )
        if isinstance(transform, Erase) and transform.scale[1] * image_px**2 < 1:
            raise RequestError(
                f"train.augment: erase.scale ends at {transform.scale[1]}, which is less than a pixel of images of {image_px} "
                f"px. End at {_up(1 / image_px**2)} or more, such as erase: {{scale: [0.02, 0.33]}}"
            )


def unused_store(transforms: Sequence[Transform], *, image_px: int, store_px: int) -> str:
    """Describe stored images that are larger than anything uses; empty where all is used."""
    if store_px <= image_px or any(isinstance(transform, ResizedCrop) for transform in transforms):
        return ""
    return (
        f"data.store_px {store_px} changes nothing but time and space: of train.augment, only resized_crop cuts from images that are "
        f"stored larger than data.image_px {image_px}. Add resized_crop to train.augment, or set data.store_px: 0"
    )


def _up(share: float) -> float:
    """Round a share up to two digits that a person would type."""
    digits = 1
    while round(share, digits) < share or not round(share, digits):
        digits += 1
    return round(share, digits)


def _expanded(value: object) -> object:
    """Replace a shorthand by its list."""
    if not isinstance(value, str):
        return value
    if value in SHORTHANDS:
        return SHORTHANDS[value]
    if value in TRANSFORMS:
        raise _error(f"a transform stands in a list: [{value}]")
    raise _error(_unknown(value, "shorthand", [*SHORTHANDS, *TRANSFORMS]))


def _read(item: object) -> Transform:
    """Make a transform of a word, or of `word: {arguments}`."""
    if isinstance(item, Transform):
        return item
    if isinstance(item, Mapping) and len(item) == 1:
        ((word, arguments),) = item.items()
    elif isinstance(item, str):
        word, arguments = item, None
    else:
        raise _error(
            "an item should be a word, such as flip, or one word with its arguments, such as shift: {pixels: 2}"
        )
    if word in SHORTHANDS:
        raise _error(
            f"`{word}` stands for a whole list and cannot be an item: write augment: {word}, or its items: {yaml.inline(SHORTHANDS[word])}"
        )
    if word not in TRANSFORMS:
        raise _error(_unknown(str(word), "transform", TRANSFORMS))
    kind = TRANSFORMS[word]
    if arguments is not None and not isinstance(arguments, Mapping):
        known = ", ".join(kind.model_fields)
        raise _error(
            f"{word} takes its arguments by name, such as {_example(word)}"
            + (f"; there are: {known}" if known else "")
        )
    try:
        return params.check(word, kind, dict(arguments or {}))
    except RequestError as error:
        raise _error("; ".join(line.strip() for line in str(error).splitlines()[1:])) from error


def _consistent(transforms: list[Transform]) -> list[Transform]:
    """Refuse a list whose transforms exclude each other."""
    words = [WORDS[type(transform)] for transform in transforms]
    by_word = dict(zip(words, transforms, strict=True))
    for word in by_word:
        if words.count(word) > 1:
            raise _error(
                f"{word} occurs {words.count(word)} times; keep one of them, with the arguments of all"
            )
    flip = by_word.get("flip")
    if "alternating_flip" in by_word and isinstance(flip, Flip) and flip.axis != "vertical":
        raise _error(
            "flip and alternating_flip both mirror left to right. Remove one of them, or set flip: {axis: vertical}"
        )
    if {"trivial_augment", "rand_augment"} <= by_word.keys():
        raise _error("trivial_augment and rand_augment draw from the same operations. Remove one of them")
    fills = {word: value.fill for word, value in by_word.items() if isinstance(value, Warp)}
    if len(set(fills.values())) > 1:
        raise _error(
            f"rotate and affine are one interpolation with one fill, but they have {' and '.join(fills.values())}. "
            "Give both the same fill"
        )
    mixup, cutmix = by_word.get("mixup"), by_word.get("cutmix")
    if isinstance(mixup, Mixup) and isinstance(cutmix, Cutmix) and mixup.p + cutmix.p > 1:
        raise _error(
            f"an image is mixed at most once, so mixup.p and cutmix.p add up to 1 at most; they are {mixup.p} and "
            f"{cutmix.p}. Such as mixup: {{p: 0.5}}, cutmix: {{p: 0.5}}"
        )
    return transforms


def _unknown(name: str, kind: LiteralString, known: Mapping[str, object] | Sequence[str]) -> str:
    """Answer a name with its counterpart here, else with the nearest spelling or what there is."""
    plain = names.normal(name)
    listed = (
        f"There are: {', '.join(TRANSFORMS)}; or a shorthand instead of the list: {', '.join(SHORTHANDS)}"
    )
    for word in known:
        if names.normal(word) == plain:
            return f"unknown {kind}; did you mean `{word}`?"
    if plain in names.COUNTERPARTS:
        line = names.COUNTERPARTS[plain]
        if line in SHORTHANDS:
            return f"unknown {kind}; did you mean augment: {line}?"
        return f"unknown {kind}; did you mean `{line}`, such as {_example(line)}? {listed}"
    if plain in names.REASONS:
        return f"no counterpart: {names.REASONS[plain]}. {listed}"
    near = params.did_you_mean(name, known)
    return f"unknown {kind}{near}" if "did you mean" in near else f"unknown {kind}. {listed}"


def _example(line: str) -> str:
    """Write a word with its usual arguments; a line that has some stays."""
    if ":" in line:
        return f"- {line}"
    arguments = TRANSFORMS[line]().model_dump()
    return f"{line}: {yaml.inline(arguments)}" if arguments else line


def _error(reason: str) -> PydanticCustomError:
    return PydanticCustomError("augment", "{reason}", {"reason": reason})


Augment = Annotated[
    list[Annotated[Transform, BeforeValidator(_read), PlainSerializer(written)]],
    BeforeValidator(_expanded),
    AfterValidator(_consistent),
]
"""Type of `train.augment`: transforms with all of their arguments."""
