"""The transform `erase`: cover a rectangle of some images."""

import numpy as np
from pydantic import Field

from convoy.training.augment.draws import Draw, Ints, Transform
from convoy.training.augment.geometry import Ratios, Shares, placed, rectangles


class Erase(Transform):
    """Cover a random rectangle with the mean colour of the training images. Source: Zhong et al., Random Erasing, AAAI 2020."""

    p: float = Field(0.25, gt=0, le=1, description="probability")
    scale: Shares = Field([0.02, 0.33], description="share of the area that is covered, from low to high")
    ratio: Ratios = Field([0.3, 3.3], description="width over height, from low to high")

    def boxes(self, draw: Draw, px: int) -> Ints:
        """Draw (4, N) rectangles: top, bottom, left, right (the ends are outside); empty where nothing is covered."""
        sides, fits = rectangles(draw, self.scale, self.ratio, px)
        erased = draw.chosen(self.p) & fits
        starts = placed(draw, np.minimum(sides, px), px)
        ends = np.where(erased, starts + sides, starts)
        draw.note(erased, lambda image: f"erase {sides[1, image]}×{sides[0, image]}")
        return np.stack([starts[0], ends[0], starts[1], ends[1]])
