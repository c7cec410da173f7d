import pytest
import torch

from convoy.training.optim import WARMUP_START, choose_precision, lr_schedule


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_the_learning_rate_rises_to_its_highest_and_falls_to_zero(schedule, warmup):
    factors = [lr_schedule(schedule, warmup, 100)(step) for step in range(101)]
    top = round(warmup * 100)
    assert factors[top] == max(factors) == 1
    assert factors[0] == pytest.approx(WARMUP_START if warmup else 1)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[99] > 0
    assert factors[100] == 0


def test_one_cycle_falls_in_a_straight_line_and_cosine_along_a_wave():
    quarter = 0.2 * 100 + 0.25 * 80
    assert lr_schedule("one_cycle", 0.2, 100)(int(quarter)) == pytest.approx(0.75)
    assert lr_schedule("cosine", 0.2, 100)(int(quarter)) == pytest.approx((1 + 2**-0.5) / 2)


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
