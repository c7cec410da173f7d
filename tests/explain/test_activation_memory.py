"""What backward keeps, by our rules and as autograd saves it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from convoy.explain.activation_memory import kept_bytes
from convoy.models import modules, spec
from convoy.models.layer_types import ACTIVATIONS
from convoy.models.shapes import infer
from convoy.models.spec import Spec

SHIPPED = Path(__file__).parents[2] / "networks"
FLOAT = 4


def saved(module: nn.Module, px: int, images: int, device: str = "meta") -> int:
    """Bytes of the distinct storages that autograd saves in a forward pass, weights and buffers left out."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = module(torch.rand(images, 3, px, px, device=device))
    own = {tensor.untyped_storage()._cdata for tensor in [*module.parameters(), *module.buffers()]}
    total = sum(storage.nbytes() for at, storage in storages.items() if at not in own)
    assert made is not None
    return total


def by_rule_and_by_torch(network: Spec, px: int, images: int, device: str = "meta") -> tuple[int, int]:
    steps = infer(network, 10, px)
    with torch.device(device):
        module = modules.network(steps, auxiliary=True).train()
    return images * kept_bytes(steps, px), saved(module, px, images, device)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_keeps_what_autograd_saves(name):
    network = spec.load(name, SHIPPED)
    px = network.made_for.image_px if network.made_for else 32
    by_rule, by_torch = by_rule_and_by_torch(network, px, images=8)
    assert by_rule == pytest.approx(by_torch, rel=0.001)


CASES = {
    **{word: [word] for word in ACTIVATIONS if word != "threshold"},
    "threshold": [{"threshold": {"threshold": 0.1, "value": 0.0}}],
    "norm": ["norm"],
    "local_response_norm": [{"local_response_norm": 5}],
    "max_pool": [{"max_pool": {"kernel": 3, "stride": 2, "padding": 1}}],
    "avg_pool": [{"avg_pool": 2}],
    "adaptive_avg_pool": [{"adaptive_avg_pool": [2, 3]}],
    "adaptive_max_pool": [{"adaptive_max_pool": 1}],
    "global_avg_pool": ["global_avg_pool"],
    "dropout": [{"dropout": 0.5}],
    "dropout of nothing": [{"dropout": 0.0}],
    "flatten": ["flatten"],
    "padding replicate": [{"conv": {"filters": 4, "kernel": 3, "padding": 1, "padding_mode": "replicate"}}],
    "padding reflect": [{"conv": {"filters": 4, "kernel": 3, "padding": 1, "padding_mode": "reflect"}}],
    "padding circular": [{"conv": {"filters": 4, "kernel": 3, "padding": 1, "padding_mode": "circular"}}],
    "uneven padding": [{"conv": {"filters": 4, "kernel": 3, "stride": 2, "padding": "same"}}],
    "uneven replicate": [
        {"conv": {"filters": 4, "kernel": 2, "padding": "same", "padding_mode": "replicate"}}
    ],
    "residual": [{"residual": {"body": [{"conv": {"filters": 6, "kernel": 1}}, "relu"]}}],
    "branches": [{"branches": [[{"conv": {"filters": 4, "kernel": 1}}, "silu"], []]}],
    "repeat": [{"repeat": {"times": 2, "layers": [{"conv": {"filters": 6, "kernel": 1}}, "norm", "tanh"]}}],
    "auxiliary": [
        {"auxiliary": {"weight": 0.3, "layers": ["global_avg_pool", "flatten", {"dense": "classes"}]}}
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_each_layer_keeps_what_autograd_saves(case):
    # Convolutions and a sum around it: neither keeps what it made, so that the case alone decides.
    around = {"conv": {"filters": 6, "kernel": 3}}
    end = [] if case == "flatten" else [{"conv": {"filters": 5, "kernel": 1}}, "flatten"]
    network = Spec.model_validate(
        {"name": "case", "layers": [around, *CASES[case], *end, {"dense": "classes"}]}
    )
    images = 64
    by_rule, by_torch = by_rule_and_by_torch(network, 12, images, device="cpu")
    statistics = (
        2 * 6 * FLOAT * 2
    )  # of up to two norms: mean and deviation of six channels each, once per batch
    assert 0 <= by_torch - by_rule <= statistics
