"""Transforms that move pixels: shift, flip, alternating_flip, resized_crop, rotate, affine."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from convoy.training.augment.draws import Draw, Fill, Floats, Frame, Framing, Ints, Mask, Transform, Warp

TRIES = 10  # windows drawn per image until one fits, as torchvision's RandomResizedCrop


def ascending(pair: list[float]) -> list[float]:
    """Refuse a range whose ends are swapped."""
    if pair[0] > pair[1]:
        raise PydanticCustomError(
            "range",
            "input should be [low, high], low first: [{high}, {low}]",
            {"low": pair[0], "high": pair[1]},
        )
    return pair


Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[list[Share], Field(min_length=2, max_length=2), AfterValidator(ascending)]
Ratio = Annotated[float, Field(ge=0.1, le=10)]
Ratios = Annotated[list[Ratio], Field(min_length=2, max_length=2), AfterValidator(ascending)]
Zoom = Annotated[float, Field(ge=0.25, le=4)]
Zooms = Annotated[list[Zoom], Field(min_length=2, max_length=2), AfterValidator(ascending)]


class Shift(Framing):
    """Move each image by up to `pixels` in both directions, as cropping it from a padded one does."""

    pixels: int = Field(2, ge=0, le=512, description="largest shift, in pixels; less than data.image_px")
    fill: Fill = Field("reflect", description="what enters from beyond the edge")

    def place(self, frame: Frame, draw: Draw, store_px: int) -> None:  # noqa: ARG002 (of the base)
        """Draw a shift per axis."""
        frame.shift += draw.random.integers(-self.pixels, self.pixels + 1, size=(2, len(draw)))
        frame.fill = self.fill
        draw.note(
            np.abs(frame.shift).max(axis=0) > 0,
            lambda image: f"shift {-frame.shift[1, image]:+d} {-frame.shift[0, image]:+d}",
        )


class Flip(Framing):
    """Mirror each image with probability `p`."""

    axis: Literal["horizontal", "vertical", "both"] = Field(
        "horizontal",
        description="horizontal: left and right change places; vertical: top and bottom; both: each by itself",
    )
    p: float = Field(0.5, gt=0, le=1, description="probability")

    def place(self, frame: Frame, draw: Draw, store_px: int) -> None:  # noqa: ARG002 (of the base)
        """Choose images per axis."""
        if self.axis != "vertical":
            _mirror(frame, 1, draw.chosen(self.p), draw)
        if self.axis != "horizontal":
            _mirror(frame, 0, draw.chosen(self.p), draw)


class AlternatingFlip(Framing):
    """Mirror each image left to right in every other epoch, so that it is seen both ways equally often.

    Half of the images start mirrored, chosen by a hash of seed and row. Source: Jordan, 94% on CIFAR-10 in 3.29 seconds
    on a single GPU, 2024.
    """

    def place(self, frame: Frame, draw: Draw, store_px: int) -> None:  # noqa: ARG002 (of the base)
        """Follow from seed, row and epoch."""
        _mirror(frame, 1, _coin(draw.rows, draw.seed) != bool(draw.epoch % 2), draw)


class ResizedCrop(Framing):
    """Cut a random part of each image and resize it to the network's input, antialiased."""

    scale: Shares = Field([0.3, 1.0], description="share of the stored image's area, from low to high")
    ratio: Ratios = Field([0.75, 1.3333], description="width over height of the part, from low to high")

    def place(self, frame: Frame, draw: Draw, store_px: int) -> None:
        """Draw the parts; the whole image where none fits."""
        sides, fits = rectangles(draw, self.scale, self.ratio, store_px)
        frame.side = np.where(fits, sides, store_px)
        frame.corner = placed(draw, frame.side, store_px)
        draw.note(
            np.ones(len(draw), bool),
            lambda image: f"crop {frame.side[1, image]}×{frame.side[0, image]}",
        )


class Rotate(Warp):
    """Turn each image about its centre."""

    degrees: float = Field(15.0, gt=0, le=180, description="largest angle, to either side")
    fill: Fill = Field("reflect", description="what enters from beyond the edge")

    def matrices(self, draw: Draw) -> Floats:
        """Draw an angle."""
        degrees = draw.uniform(-self.degrees, self.degrees)
        draw.note(degrees != 0, lambda image: f"turn {degrees[image]:+.0f}°")
        return rotation(degrees)


class Affine(Warp):
    """Turn, move, scale and shear each image."""

    degrees: float = Field(10.0, ge=0, le=180, description="largest angle, to either side")
    translate: float = Field(0.1, ge=0, le=1, description="largest shift, as a share of the side")
    scale: Zooms = Field([0.9, 1.1], description="factor on the size, from low to high")
    shear: float = Field(0.0, ge=0, le=60, description="largest shear to the side, in degrees")
    fill: Fill = Field("reflect", description="what enters from beyond the edge")

    def matrices(self, draw: Draw) -> Floats:
        """Draw all four."""
        degrees = draw.uniform(-self.degrees, self.degrees)
        moves = 2 * draw.random.uniform(-self.translate, self.translate, size=(2, len(draw)))
        scale = draw.uniform(*self.scale)
        shear = np.tan(np.radians(draw.uniform(-self.shear, self.shear)))
        zoom = rotation(degrees) * np.where(np.arange(3) < 2, scale[:, None], 1)[:, None, :]
        draw.note(
            np.ones(len(draw), bool),
            lambda image: f"turn {degrees[image]:+.0f}° zoom {scale[image]:.2f}",
        )
        return translation(moves[0], moves[1]) @ zoom @ shearing(shear, 0 * shear)


def rectangles(draw: Draw, scale: list[float], ratio: list[float], px: int) -> tuple[Ints, Mask]:
    """Draw area and ratio of rectangles until they fit into squares of `px`, as torchvision.

    Returns:
        (2, N) heights and widths, and (N,) whether one did fit.
    """
    area = px**2 * draw.random.uniform(scale[0], scale[1], (TRIES, len(draw)))
    wide = np.exp(draw.random.uniform(np.log(ratio[0]), np.log(ratio[1]), (TRIES, len(draw))))
    sides = np.rint(np.sqrt([area / wide, area * wide])).astype(np.int64)  # (2, TRIES, N)
    fits = (sides.min(axis=0) >= 1) & (sides.max(axis=0) <= px)
    tried = fits.argmax(axis=0), np.arange(len(draw))  # the first that fits
    return sides[:, *tried], fits[tried]


def placed(draw: Draw, sides: Ints, px: int) -> Ints:
    """Draw the (2, N) first rows and columns of rectangles of (2, N) sides within squares of `px`."""
    return (draw.random.random((2, len(draw))) * (px - sides + 1)).astype(np.int64)


def rotation(degrees: Floats) -> Floats:
    """Make (N, 3, 3) matrices that turn (N,) degrees clockwise, as y points down."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrices = identity(len(degrees))
    matrices[:, 0, 0], matrices[:, 0, 1] = cos, -sin
    matrices[:, 1, 0], matrices[:, 1, 1] = sin, cos
    return matrices


def translation(right: Floats, down: Floats) -> Floats:
    """Make (N, 3, 3) matrices that move content; 2 is the whole side."""
    matrices = identity(len(right))
    matrices[:, 0, 2], matrices[:, 1, 2] = right, down
    return matrices


def shearing(x: Floats, y: Floats) -> Floats:
    """Make (N, 3, 3) matrices that add `x` times the height to x, and `y` times the width to y."""
    matrices = identity(len(x))
    matrices[:, 0, 1], matrices[:, 1, 0] = x, y
    return matrices


def identity(count: int) -> Floats:
    """Make (N, 3, 3) matrices that move nothing."""
    return np.tile(np.eye(3), (count, 1, 1))


def reflect(positions: Ints, side: int) -> Ints:
    """Fold positions outside 0..side-1 back in, as between two mirrors; the edge pixel is not repeated."""
    if side == 1:
        return np.zeros_like(positions)
    folded: Ints = (side - 1) - np.abs((side - 1) - positions % (2 * (side - 1)))
    return folded


def _mirror(frame: Frame, axis: int, images: Mask, draw: Draw) -> None:
    frame.mirrored[axis] ^= images
    draw.note(images, lambda _: "flip" if axis else "flip vertical")


def _coin(rows: Ints, seed: int) -> Mask:
    """Decide by a hash of seed and row: SplitMix64's finalizer (Steele et al. 2014), whose lowest bit is fair."""
    mixed = rows.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) & np.uint64(1)).astype(bool)


GEOMETRY: dict[str, type[Transform]] = {
    "resized_crop": ResizedCrop,
    "shift": Shift,
    "flip": Flip,
    "alternating_flip": AlternatingFlip,
    "rotate": Rotate,
    "affine": Affine,
}
"""In the order in which they are applied."""
