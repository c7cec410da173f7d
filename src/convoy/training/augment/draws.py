"""What transforms draw for a batch: random numbers, the part of the stored image that each output shows, matrices.

Everything here is numpy on the CPU, so that every device gets the same numbers, and params are validated without importing
torch. N images of a batch; axis 0 is vertical (rows), axis 1 horizontal (columns).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from convoy.core.params import Section

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Fill = Literal["reflect", "edge", "black"]


class Transform(Section):
    """Declare the arguments of a transform; their defaults are usual values, so that its word alone is enough."""


@dataclass(frozen=True)
class Draw:
    """Hold what the random choices of a batch follow from.

    Attributes:
        random: its state follows from seed, epoch and step; transforms draw from it in a fixed order.
        rows: (N,) row of each image in its split.
        epoch: from 0.
        seed: of params.yaml.
        notes: per image, what was applied; None where it is not needed.
    """

    random: np.random.Generator
    rows: Ints
    epoch: int = 0
    seed: int = 0
    notes: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def uniform(self, low: float, high: float) -> Floats:
        """Draw a number for each image: (N,)."""
        return self.random.uniform(low, high, len(self))

    def chosen(self, p: float) -> Mask:
        """Choose each image with probability `p`: (N,)."""
        chosen: Mask = self.random.random(len(self)) < p
        return chosen

    def note(self, images: Mask, text: Callable[[int], str]) -> None:
        """Note what was applied to the images of a mask, by their number in the batch."""
        if self.notes is not None:
            for image in np.flatnonzero(images).tolist():
                self.notes[image].append(text(image))


@dataclass
class Frame:
    """The window of each stored image that its output shows; the content is then shifted, then mirrored.

    Attributes:
        corner: (2, N) first row and column of the window, in stored pixels.
        side: (2, N) height and width of the window, in stored pixels.
        shift: (2, N) output pixels by which the content moves up and to the left.
        mirrored: (2, N) whether top and bottom, left and right change places.
        fill: what a shift brings in from beyond the edge.
    """

    corner: Ints
    side: Ints
    shift: Ints
    mirrored: Mask
    fill: Fill = "reflect"

    @classmethod
    def centered(cls, count: int, store_px: int, window_px: int) -> "Frame":
        """Show the centre of each image, as serving does."""
        corner = np.full((2, count), (store_px - window_px) // 2, np.int64)
        still = np.zeros((2, count), np.int64)
        return cls(corner, np.full_like(corner, window_px), still, still != 0)


class Framing(Transform, ABC):
    """Cut, shift or mirror images along their axes."""

    @abstractmethod
    def place(self, frame: Frame, draw: Draw, store_px: int) -> None:
        """Change the frames of a batch, whose images are stored as squares of `store_px`."""


class Warp(Transform, ABC):
    """Move the pixels of each image by an affine matrix, with interpolation."""

    fill: Fill

    @abstractmethod
    def matrices(self, draw: Draw) -> Floats:
        """Draw (N, 3, 3) matrices from old to new positions (x, y, 1), x to the right and y down, -1 to 1 within the image."""


@dataclass(frozen=True)
class Operations:
    """One operation per image: (N,) numbers in `auto.OPERATIONS`, and its signed strength in the operation's own unit."""

    numbers: Ints
    strengths: Floats


class Lottery(Transform, ABC):
    """Draw operations for each image from a fixed list."""

    @abstractmethod
    def rounds(self, draw: Draw, px: int) -> list[Operations]:
        """Draw one operation per image for each round; `px` is the side of the images."""
