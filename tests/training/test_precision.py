import pytest
import torch

from convoy.training.precision import choose


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


def test_auto_takes_bf16_where_the_processor_has_it(device):
    device(cpu=True)

    assert choose("auto") == ("bf16-mixed", "bf16: this processor has AVX-512 BF16")


def test_auto_takes_float32_where_the_processor_lacks_bf16(device):
    device(cpu=False)

    assert choose("auto") == ("32-true", "float32: this processor does not have AVX-512 BF16")


def test_auto_looks_at_the_gpu_where_there_is_one(device):
    device(cuda=False, cpu=True)
    assert choose("auto") == ("32-true", "float32: Some GPU does not have it")
    device(cuda=True, cpu=False)
    assert choose("auto") == ("bf16-mixed", "bf16: Some GPU has it")


def test_auto_takes_float32_on_an_apple_gpu(device):
    device(apple=True, cpu=True)

    assert choose("auto").lightning == "32-true"


def test_what_is_asked_for_is_taken(device):
    device(cpu=False)

    assert choose(32) == ("32-true", "float32, as train.precision says")
    assert choose("bf16") == (
        "bf16-mixed",
        "bf16, as train.precision says; this processor does not have AVX-512 BF16, so this is slow",
    )
