"""A first layer that whitens the patches of images: its filters are computed from training images and never trained.

Patches of natural images are strongly correlated, and a network learns faster where they are not: the filters are the
eigenvectors of the patches' covariance, scaled so that each response has the same variance, and their negatives, so
that an activation loses nothing. After tysam-code's hlb-CIFAR10 (2023) and Keller Jordan's airbench94 (2024).

N images, C channels, P the side of an image, KH and KW of a patch, D = C x KH x KW values of a patch.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from convoy.core.errors import RequestError
from convoy.models.build import Whitening
from convoy.models.layer_types import Whiten, pair
from convoy.models.spec import Spec
from convoy.models.trained import NormalizedModel
from convoy.training.stored import Images

MOST_IMAGES = 5_000  # airbench94's; spread evenly over the training images
MOST_PIXELS = 2**25  # of all these images together: about 670 images of 224 px, a few seconds
CHUNK_VALUES = 2**23  # of the patches that are in memory at a time, as float64


def check(spec: Spec, images: int, image_px: int) -> None:
    """Refuse a whitening layer whose filters the training images do not determine.

    Raises:
        RequestError: they have fewer patches than a patch has values.
    """
    if not spec.layers or not isinstance(spec.layers[0], Whiten):
        return
    height, width = pair(spec.layers[0].kernel)
    patches = images * max(image_px - height + 1, 0) * max(image_px - width + 1, 0)
    if patches < 3 * height * width:
        raise RequestError(
            f"whiten of {spec.name} computes {3 * height * width} directions of {height}×{width} patches, and {images:,} training images of "
            f"{image_px} px have only {patches:,} patches. Add images, set a smaller kernel in networks/{spec.name}.yaml, or replace whiten by "
            f"conv: {{filters: {6 * height * width}, kernel: {height}}}"
        )


def whiten(model: NormalizedModel, images_u8: Images) -> None:
    """Compute the filters of a network's whitening layer, if it has one, from (N, P, P, 3) training images.

    A pure function of the images and of the model's mean and std.
    """
    for layer in model.network.modules():
        if isinstance(layer, Whitening):
            kernel = (layer.kernel_size[0], layer.kernel_size[1])
            filters = whitening_filters(covariance(model, images_u8, kernel), layer.eps)
            with torch.no_grad():
                layer.weight.copy_(filters.view_as(layer.weight))


def covariance(model: NormalizedModel, images_u8: Images, kernel: tuple[int, int]) -> Tensor:
    """Average the outer product of every patch of the normalised images with itself: (D, D) float64.

    The mean of the patches is not subtracted, as in airbench94: normalised images have a mean of about 0.
    """
    side_px = images_u8.shape[1]
    values = 3 * kernel[0] * kernel[1]
    count = min(len(images_u8), MOST_IMAGES, max(MOST_PIXELS // side_px**2, 1))
    rows = np.linspace(0, len(images_u8) - 1, count).astype(np.int64)
    total, patches = torch.zeros(values, values, dtype=torch.float64), 0
    for chunk in np.array_split(rows, -(-count * values * side_px**2 // CHUNK_VALUES)):
        pixels = torch.from_numpy(images_u8[chunk]).permute(0, 3, 1, 2).float()
        cut = functional.unfold(model.normalize(pixels), kernel).double()  # (n, D, patches of an image)
        total += torch.einsum("ndp,nep->de", cut, cut)
        patches += cut.shape[0] * cut.shape[2]
    return total / patches


def whitening_filters(covariance: Tensor, eps: float) -> Tensor:
    """Make (2 D, D) filters whose responses to patches of this (D, D) covariance are uncorrelated.

    The variance of a response is λ / (λ + eps), λ the variance along its eigenvector: about 1, and less for what is
    little more than noise.
    """
    variances, vectors = torch.linalg.eigh(covariance)
    scaled = (
        vectors.T / (variances.clamp(min=0) + eps).sqrt()[:, None]
    )  # rounding makes a variance of 0 negative
    return torch.cat((scaled, -scaled))
