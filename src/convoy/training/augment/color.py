"""The transform `color_jitter`, as one matrix per image."""

import numpy as np
from pydantic import Field

from convoy.training.augment.draws import Draw, Floats, Transform

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL and torchvision
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # FCC NTSC, 1953
RGB = np.linalg.inv(YIQ)


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue of each image.

    The four are linear and commute: brightness scales, contrast scales the distance from the image's mean luma, saturation
    that from each pixel's luma, and hue turns the chroma plane of YIQ, as NVIDIA DALI's does (torchvision turns HSV, which
    no matrix does). So one matrix per image does all of it, and pixels are clamped once at the end.
    """

    brightness: float = Field(0.4, ge=0, le=1, description="factor 1 ± this")
    contrast: float = Field(0.4, ge=0, le=1, description="factor 1 ± this")
    saturation: float = Field(0.4, ge=0, le=1, description="factor 1 ± this")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest turn of the hue, in turns, to either side")

    def matrices(self, draw: Draw) -> tuple[Floats, Floats]:
        """Draw, and return what `recolored` takes."""
        brightness, contrast, saturation = (
            draw.uniform(1 - most, 1 + most) for most in (self.brightness, self.contrast, self.saturation)
        )
        hue = draw.uniform(-self.hue, self.hue)
        draw.note(
            np.ones(len(draw), bool),
            lambda image: f"light {brightness[image]:.2f} {contrast[image]:.2f} {saturation[image]:.2f}",
        )
        return color_matrices(brightness, contrast, saturation, hue)


def color_matrices(
    brightness: Floats, contrast: Floats, saturation: Floats, hue: Floats
) -> tuple[Floats, Floats]:
    """Combine (N,) factors and turns.

    Returns:
        (N, 3, 3) and (N, 3): new colour = matrix @ colour + vector · (mean colour of the image), the latter for each channel.
    """
    cos, sin = np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue)
    chroma = np.zeros((len(hue), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * cos
    chroma[:, 1, 2], chroma[:, 2, 1] = -saturation * sin, saturation * sin
    matrices = (brightness * contrast)[:, None, None] * (RGB @ chroma @ YIQ)
    return matrices, (brightness * (1 - contrast))[:, None] * LUMA
