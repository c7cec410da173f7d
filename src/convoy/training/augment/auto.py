"""The transforms `trivial_augment` and `rand_augment`: operations drawn for each image from a fixed list."""

import numpy as np
import numpy.typing as npt
from pydantic import Field

from convoy.training.augment.color import color_matrices
from convoy.training.augment.draws import Draw, Floats, Ints, Lottery, Mask, Operations, Transform
from convoy.training.augment.geometry import rotation, shearing, translation

MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
COLORS = ("brightness", "contrast", "saturation")
SIGNED = (*MOVES, *COLORS, "sharpness")  # to either side
OPERATIONS = (*SIGNED, "nothing", "posterize", "solarize", "autocontrast", "equalize")

WIDE = {"shear": 0.99, "translate": 0.45, "rotate": 135.0, "color": 0.99, "bits": 6.0}
USUAL = {"shear": 0.3, "translate": 0.45, "rotate": 30.0, "color": 0.9, "bits": 4.0}
"""Largest strengths: of torchvision's TrivialAugmentWide and RandAugment. Shear is a factor, translate a share of the side, rotate
degrees, color the distance of a factor from 1, bits those that posterize removes; solarize goes down to threshold 0."""

LONGEST = 32  # pixels of TrivialAugment's translation, at most


class TrivialAugment(Lottery):
    """Apply one operation of random strength to each image. Source: Müller, Hutter, TrivialAugment, ICCV 2021 (wide space)."""

    def rounds(self, draw: Draw, px: int) -> list[Operations]:
        """Draw an operation and its strength."""
        most = WIDE | {"translate": min(LONGEST / px, WIDE["translate"])}
        return [_operations(draw, draw.uniform(0, 1), most)]


class RandAugment(Lottery):
    """Apply `ops` operations of one strength to each image. Source: Cubuk et al., RandAugment, NeurIPS 2020."""

    ops: int = Field(2, ge=1, le=8, description="operations per image, one after the other")
    strength: float = Field(
        0.3,
        gt=0,
        le=1,
        description="share of each operation's largest strength; 0.3 is torchvision's magnitude 9",
    )

    def rounds(self, draw: Draw, px: int) -> list[Operations]:  # noqa: ARG002 (of the base)
        """Draw the operations."""
        return [_operations(draw, np.full(len(draw), self.strength), USUAL) for _ in range(self.ops)]


def moved(operations: Operations) -> tuple[Ints, Floats]:
    """Select the images that are moved: their (M,) numbers and (M, 3, 3) matrices from old to new positions."""
    images = _of(operations, MOVES)
    zero = np.zeros(len(images))
    amount = {
        name: np.where(_is(operations, name)[images], operations.strengths[images], 0) for name in MOVES
    }
    matrices = (
        translation(2 * amount["translate_x"], zero)
        @ translation(zero, 2 * amount["translate_y"])
        @ rotation(amount["rotate"])
        @ shearing(amount["shear_x"], amount["shear_y"])
    )
    return images, matrices


def recolored(operations: Operations) -> tuple[Ints, tuple[Floats, Floats]]:
    """Select the images whose colours are mixed linearly: their (M,) numbers, and what `color_matrices` makes for them."""
    images = _of(operations, COLORS)
    brightness, contrast, saturation = (
        np.where(_is(operations, name)[images], 1 + operations.strengths[images], 1) for name in COLORS
    )
    return images, color_matrices(brightness, contrast, saturation, np.zeros(len(images)))


def toned(operations: Operations) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """Select the images that are posterized or solarized: their (M,) numbers, and (M, 256) tables from old to new value."""
    images = _of(operations, ("posterize", "solarize"))
    values = np.arange(256)[None, :]
    strengths = operations.strengths[images][:, None]
    bits = np.rint(strengths).astype(np.int64)
    posterized = values & (0xFF << bits)
    solarized = np.where(values >= strengths, 255 - values, values)
    posterize = _is(operations, "posterize")[images][:, None]
    return images, np.where(posterize, posterized, solarized).astype(np.uint8)


def sharpened(operations: Operations) -> tuple[Ints, Floats]:
    """Select the images that are sharpened or blurred: their (M,) numbers and factors; 0 is blurred, 1 unchanged."""
    images = _of(operations, ("sharpness",))
    return images, 1 + operations.strengths[images]


def stretched(operations: Operations, name: str) -> Ints:
    """Select the images of an operation that has no strength: `autocontrast` or `equalize`."""
    return _of(operations, (name,))


def _operations(draw: Draw, share: Floats, most: dict[str, float]) -> Operations:
    """Draw an operation per image; `share` of each one's largest strength, 0..1."""
    numbers = draw.random.integers(0, len(OPERATIONS), size=len(draw))
    sides = np.where(draw.chosen(0.5), -1.0, 1.0)
    strengths = np.zeros(len(draw))
    scale = dict.fromkeys((*COLORS, "sharpness"), most["color"]) | {
        "shear_x": most["shear"],
        "shear_y": most["shear"],
        "translate_x": most["translate"],
        "translate_y": most["translate"],
        "rotate": most["rotate"],
        "posterize": most["bits"],
    }
    for number, name in enumerate(OPERATIONS):
        amount = 255 * (1 - share) if name == "solarize" else share * scale.get(name, 0.0)
        strengths = np.where(numbers == number, amount * (sides if name in SIGNED else 1), strengths)
    draw.note(
        numbers != OPERATIONS.index("nothing"),
        lambda image: f"{OPERATIONS[numbers[image]]} {strengths[image]:.2f}".removesuffix(" 0.00"),
    )
    return Operations(numbers, strengths)


def _of(operations: Operations, names: tuple[str, ...]) -> Ints:
    return np.flatnonzero(np.isin(operations.numbers, [OPERATIONS.index(name) for name in names]))


def _is(operations: Operations, name: str) -> Mask:
    mask: Mask = operations.numbers == OPERATIONS.index(name)
    return mask


AUTO: dict[str, type[Transform]] = {"trivial_augment": TrivialAugment, "rand_augment": RandAugment}
