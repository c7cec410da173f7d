import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from convoy.models.spec import Spec
from convoy.training.fit import fit
from convoy.training.precision import Float32Conv2d, choose_precision, keep_slow_in_float32


@pytest.fixture
def device(monkeypatch):
    """Pretend a machine: `device(cuda=…, cpu=…)` with whether each computes in bf16, or `apple=True`."""

    def pretend(*, cuda=None, cpu=False, apple=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu)

    return pretend


@pytest.mark.parametrize(
    ("machine", "lightning", "reason"),
    [
        ({"cpu": True}, "bf16-mixed", "processor has AVX-512 BF16"),
        ({"cpu": False}, "32-true", "processor does not have AVX-512 BF16"),
        ({"cuda": False, "cpu": True}, "32-true", "Some GPU does not have it"),
        ({"cuda": True, "cpu": False}, "bf16-mixed", "Some GPU has it"),
        ({"apple": True, "cpu": True}, "32-true", "Apple"),
    ],
)
def test_auto_is_bf16_where_the_device_computes_in_it(device, machine, lightning, reason):
    device(**machine)
    precision, explanation = choose_precision("auto")
    assert precision == lightning
    assert reason in explanation


def test_an_explicit_precision_is_used(device):
    device(cpu=False)
    assert choose_precision(32)[0] == "32-true"
    precision, reason = choose_precision("bf16")
    assert precision == "bf16-mixed"
    assert "does not have AVX-512 BF16, so this is slow" in reason


def depthwise(kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8)


def test_depthwise_layers_with_a_stride_or_large_filters_compute_in_float32():
    network = nn.Sequential(
        nn.Conv2d(8, 8, 5, 2), nn.Conv2d(8, 8, 5, groups=2), depthwise(3, 1), depthwise(3, 2), depthwise(5, 1)
    )
    names = list(network.state_dict())
    assert keep_slow_in_float32(network) == ["3", "4"]
    assert list(network.state_dict()) == names
    seen = []
    network[3].register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    images = torch.rand(2, 8, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert network[2](images).dtype == torch.bfloat16
        assert network[3](images.bfloat16()).dtype == torch.bfloat16
        exact = network[3](images)
    assert exact.dtype == torch.float32
    assert len(seen) == 2, "hooks stay"
    assert torch.equal(
        exact, nn.functional.conv2d(images, network[3].weight, network[3].bias, 2, 1, groups=8)
    )


def test_a_training_in_bf16_keeps_them_in_float32(dataset, params, tmp_path):
    depthwise = {"conv": {"filters": 3, "kernel": 3, "stride": 2, "groups": 3}}
    layers = [depthwise, "global_avg_pool", "flatten", {"dense": "classes"}]
    network = Spec.model_validate({"name": "depthwise", "layers": layers})
    seen = {}

    class Look(pl.Callback):
        def on_train_end(self, _trainer, module):
            seen.update({name: type(layer) for name, layer in module.model.network.named_modules()})

    for precision in ("bf16", 32):
        fit(dataset, network, params(epochs=1, precision=precision), 7, tmp_path, callbacks=[Look()])
        assert (Float32Conv2d in seen.values()) is (precision == "bf16")
