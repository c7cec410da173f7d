"""Networks of a few filters, built from layers or by torchvision, and their features on noise."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from convoy.evaluation import feature_maps
from convoy.models import build, torchvision
from convoy.models.spec import Spec
from convoy.models.trained import NormalizedModel

HEAD = ["global_avg_pool", "flatten", {"dense": "classes"}]
RNG = np.random.default_rng(0)


def noise(px: int) -> npt.NDArray[np.uint8]:
    return RNG.integers(0, 256, (px, px, 3), dtype=np.uint8)


def conv(filters: int, **more: Any) -> dict[str, Any]:
    return {"conv": {"filters": filters, "kernel": 3, "padding": "same", **more}}


def normalized(network: nn.Module, mean: tuple[float, float, float] = (0.5, 0.4, 0.3)) -> NormalizedModel:
    return NormalizedModel(network.eval(), mean, (0.25, 0.25, 0.25))


def from_layers(layers: list[Any], px: int = 32, **more: Any) -> NormalizedModel:
    torch.manual_seed(0)
    return normalized(build.build(Spec.model_validate({"name": "tiny", "layers": layers}), 2, px), **more)


def from_torchvision(name: str, px: int) -> NormalizedModel:
    torch.manual_seed(0)
    return normalized(torchvision.make(name, 2, px))


def features_of(model: NormalizedModel, px: int = 32) -> tuple[npt.NDArray[np.uint8], feature_maps.Features]:
    image_u8 = noise(px)
    return image_u8, feature_maps.find(model, [image_u8])
