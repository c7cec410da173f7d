from types import SimpleNamespace

import pytest
import torch

from convoy.core.errors import RequestError
from convoy.training.optim import (
    WARMUP_START,
    in_one_kernel,
    lr_schedule,
    make_optimizer,
    schedule_of,
)


@pytest.mark.parametrize(
    ("device", "clip_norm", "expected"),
    [("cpu", 0.0, True), ("cuda", 0.0, True), ("mps", 0.0, None), ("cpu", 1.0, None)],
)
def test_a_single_kernel_steps_where_nothing_is_clipped(params, device, clip_norm, expected):
    values = [SimpleNamespace(device=torch.device(device))] * 2
    assert in_one_kernel(values, params(clip_norm=clip_norm)) is expected


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


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_linear_and_cosine_end_at_a_share_and_constant_stays(params, warmup):
    how = {"epochs": 4, "warmup": warmup, "lr_end": 0.2}
    for schedule, half in (("linear", 0.6), ("cosine", 0.6)):
        factor = schedule_of(params(schedule=schedule, **how), 10)
        top = round(warmup * 40)
        assert factor(0) == (WARMUP_START if warmup else 1)
        assert factor(top) == 1
        assert factor((top + 40) // 2) == pytest.approx(half)
        assert factor(40) == pytest.approx(0.2)
    constant = schedule_of(params(schedule="constant", **how | {"lr_end": 0.0}), 10)
    assert [constant(step) for step in (round(warmup * 40), 39)] == [1, 1]


@pytest.mark.parametrize(
    ("step_epochs", "expected"),
    [(2, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]), ([1, 4, 6], [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125])],
)
def test_step_falls_by_its_factor_after_so_many_epochs_or_after_those_listed(params, step_epochs, expected):
    how = {"epochs": 7, "schedule": "step", "step_epochs": step_epochs, "step_factor": 0.5}
    plain, warm = (schedule_of(params(warmup=share, **how), 10) for share in (0.0, 0.1))
    for epoch, factor in enumerate(expected):
        assert plain(10 * epoch) == plain(10 * epoch + 9) == warm(10 * epoch + 9) == factor
    assert warm(0) == WARMUP_START


def test_weights_decay_norms_and_biases_do_not_and_blocks_learn_at_their_factors(params):
    dimensions = [{"conv.weight": 4, "conv.bias": 1, "norm.weight": 1}, {"dense.weight": 2}]
    blocks = [
        {name: torch.nn.Parameter(torch.ones((1,) * n)) for name, n in block.items()} for block in dimensions
    ]
    chosen = params(weight_decay=0.01, lr=0.2)
    optimizer, schedule = make_optimizer(blocks, [0.5, 1.0], chosen, lambda step: 1 / (step + 1))
    groups = optimizer.param_groups
    assert [[value.ndim for value in group["params"]] for group in groups] == [[4], [1, 1], [2]]
    assert [group["weight_decay"] for group in groups] == [0.01, 0, 0.01]
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.2]
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in groups] == [0.05, 0.05, 0.1]


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_torchs_and_sgd_has_nesterov_momentum(params, name, kind):
    block = {"weight": torch.nn.Parameter(torch.ones(1))}
    optimizer, _ = make_optimizer([block], [1.0], params(optimizer=name), lambda _: 1.0)
    assert type(optimizer) is kind
    assert name == "adamw" or (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)


def test_muon_without_inner_matrices_is_refused_with_what_to_set(classifier, tiny, params):
    chosen = params(optimizer="muon")
    with pytest.raises(RequestError, match=r"muon.* none.*optimizer: sgd or adamw"):
        classifier(tiny, chosen).configure_optimizers()
