"""Convolutions on small maps by matrix products compute what torch's do, forwards and backwards."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from convoy.models.spec import Spec
from convoy.training import small_maps
from convoy.training.fit import fit
from convoy.training.small_maps import Convolution, SmallMapConv2d, use_products


@pytest.fixture
def amx(monkeypatch):
    """Pretend a processor with AMX, or without."""
    return lambda has: monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has)


@pytest.mark.parametrize("tiny", [0, 1000], ids=["filters", "all"])
@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        (4, (3, 3), (1, 1), (1, 1)),
        (5, (3, 3), (2, 2), (1, 1)),
        (5, (3, 2), (2, 1), (0, 1)),
        (2, (1, 1), (1, 1), (0, 0)),
        (3, (1, 3), (1, 1), (0, 1)),
        (2, (1, 1), (1, 1), (1, 1)),  # zeros around all that a filter sees
    ],
)
def test_results_and_gradients_are_those_of_torch(monkeypatch, tiny, side, kernel, stride, padding):
    monkeypatch.setattr(small_maps, "TINY", tiny)
    make = torch.Generator().manual_seed(1)
    values = torch.randn(3, 2, side, side, generator=make, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 2, *kernel, generator=make, dtype=torch.float64).requires_grad_()
    mine = Convolution.apply(values, weight, stride, padding)
    truth = torch.conv2d(values, weight, None, stride, padding)
    torch.testing.assert_close(mine, truth)
    assert torch.autograd.gradcheck(
        lambda *given: Convolution.apply(*given, stride, padding), (values, weight)
    )


@pytest.mark.parametrize("side", [1, 2, 5, 6])
def test_a_layer_differs_from_torchs_by_rounding_and_on_small_maps_only(side):
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 16, 3, padding="same")
    values = torch.randn(4, 8, side, side).to(memory_format=torch.channels_last)

    def compute():
        layer.zero_grad()
        given = values.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            convolved = layer(given)
        convolved.float().pow(2).sum().backward()
        return [convolved, given.grad, layer.weight.grad, layer.bias.grad]

    plain = compute()
    layer.__class__ = SmallMapConv2d
    products = compute()
    for one, other in zip(plain, products, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert (one - other).norm() < 0.01 * one.norm()  # bf16 has 8 bits
    assert torch.equal(plain[2], products[2]) is (side == 6)


def test_without_gradients_or_in_float32_torch_computes(monkeypatch):
    monkeypatch.setattr(Convolution, "apply", None)
    layer, values = nn.Conv2d(2, 2, 3, padding=1), torch.rand(1, 2, 2, 2)
    layer.__class__ = SmallMapConv2d
    layer(values)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        layer(values)
    layer.requires_grad_(requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(values)


def test_plain_convolutions_are_changed_and_only_with_amx(amx):
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 2, padding="same"),  # more zeros on one side
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, padding="valid"),
    )
    names = list(network.state_dict())
    amx(False)
    assert use_products(network) == []
    amx(True)
    assert use_products(network) == ["0", "1", "6"]
    assert list(network.state_dict()) == names


def test_a_training_in_bf16_uses_products(amx, dataset, params, tmp_path):
    layers = [
        {"conv": {"filters": 3, "kernel": 3, "stride": 2}},
        "global_avg_pool",
        "flatten",
        {"dense": "classes"},
    ]
    network = Spec.model_validate({"name": "plain", "layers": layers})
    amx(True)
    seen = []

    class Look(pl.Callback):
        def on_train_end(self, _trainer, module):
            seen.append(any(isinstance(layer, SmallMapConv2d) for layer in module.model.network.modules()))

    for precision in ("bf16", 32):
        fit(dataset, network, params(epochs=1, precision=precision), 7, tmp_path, callbacks=[Look()])
    assert seen == [True, False]
