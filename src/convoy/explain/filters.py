"""What a convolution can be asked for by name: filters, and how an image's border is padded."""

from enum import StrEnum
from typing import NamedTuple


class PaddingMode(StrEnum):
    """Say what stands in the padding: zeros, or the nearest pixel of the border."""

    ZERO = "zero"
    REPLICATE = "replicate"


class Named(NamedTuple):
    """Hold a filter as one would type it, and what it answers to."""

    weights: str
    finds: str


NAMED = {
    "edge": Named("-1 -1 -1; -1 8 -1; -1 -1 -1", "what differs from its surroundings"),
    "vertical": Named("-1 0 1; -1 0 1; -1 0 1", "edges from dark, left, to bright, right"),
    "horizontal": Named("-1 -1 -1; 0 0 0; 1 1 1", "edges from dark, above, to bright, below"),
    "diagonal": Named("1 -1 -1; -1 1 -1; -1 -1 1", "strokes from top left to bottom right"),
    "sharpen": Named("0 -1 0; -1 5 -1; 0 -1 0", "the image, its differences raised"),
    "blur": Named("1/16 1/8 1/16; 1/8 1/4 1/8; 1/16 1/8 1/16", "the weighted mean around each pixel"),
    "emboss": Named("-2 -1 0; -1 1 1; 0 1 2", "relief, lit from the bottom right"),
    "identity": Named("0 0 0; 0 1 0; 0 0 0", "the image itself"),
}
