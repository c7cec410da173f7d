"""Muon on the matrices of a network and another optimizer on the rest, as one."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from convoy.models import trained
from convoy.training.fit import fit
from convoy.training.muon import as_matrix, is_matrix
from convoy.training.optim import make_optimizer

MUON = {
    "steps": 3,
    "normalize": False,
    "rest": "sgd",
    "rest_lr": 0.3,
    "head_lr": 0.6,
    "rest_momentum": 0.8,
    "rest_decay": 0.004,
}


def small(channels_last):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.Linear(16, 3),
    )
    return network.to(memory_format=torch.channels_last) if channels_last else network


def blocks(network):
    """As `freezing.blocks`: a norm belongs to the layer before it, and what is in no block comes last."""
    named = [dict(module.named_parameters()) for module in network]
    return [
        named[0],
        named[1] | {f"norm.{n}": v for n, v in named[2].items()},
        named[3],
        named[5],
        named[6],
        {},
    ]


def optimizer_of(network, chosen):
    own = blocks(network)
    return make_optimizer(own, [0.5, *[1.0] * (len(own) - 1)], chosen, lambda step: 1 / (step + 1))


def gradients(network, seed):
    torch.manual_seed(seed)
    network.zero_grad()
    images = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
    cross_entropy(network(images), torch.arange(6) % 3).backward()


@pytest.fixture
def chosen(params):
    def make(**changes):
        return params(optimizer="muon", lr=0.1, momentum=0.6, weight_decay=0.01, muon=MUON | changes)

    return make


@pytest.mark.parametrize("channels_last", [True, False])
def test_inner_matrices_step_by_torchs_muon_and_the_rest_by_sgd_bit_for_bit(chosen, channels_last):
    network = small(channels_last)
    reference = copy.deepcopy(network)
    optimizer, schedule = optimizer_of(network, chosen())

    inner = [reference[1].weight, reference[5].weight]
    matrices = [nn.Parameter(as_matrix(value.detach()).clone()) for value in inner]
    muon = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.01, momentum=0.6, nesterov=True, ns_steps=3)
    outer = [value for value in reference.parameters() if all(value is not each for each in inner)]
    rates = [0.15 if value in set(reference[0].parameters()) else 0.3 for value in outer]
    rates = [0.6 if value is reference[6].weight else rate for value, rate in zip(outer, rates, strict=True)]
    decays = [0.004 / (0.6 if value is reference[6].weight else 0.3) for value in outer]
    groups = [
        {"params": [value], "lr": rate, "weight_decay": decay}
        for value, rate, decay in zip(outer, rates, decays, strict=True)
    ]
    sgd = torch.optim.SGD(groups, momentum=0.8, nesterov=True)
    for step in range(3):
        gradients(network, step)
        gradients(reference, step)
        for matrix, value in zip(matrices, inner, strict=True):
            matrix.grad = as_matrix(value.grad).clone()
        for group in (*muon.param_groups, *sgd.param_groups):
            group["first"] = group.get("first", group["lr"])
            group["lr"] = group["first"] / (step + 1)
        muon.step()
        sgd.step()
        optimizer.step()
        schedule.step()
        for matrix, value in zip(matrices, inner, strict=True):
            with torch.no_grad():
                as_matrix(value.detach()).copy_(matrix)
    for (name, value), expected in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(value, expected), name


def airbench(weight, gradient, buffer, lr, momentum):
    """Step as the public script airbench94_muon does, in float64."""
    buffer.mul_(momentum).add_(gradient)
    update = (gradient + momentum * buffer).reshape(len(weight), -1)
    update = update / update.norm()
    for _ in range(3):
        gram = update @ update.T
        update = 3.4445 * update + (-4.7750 * gram + 2.0315 * gram @ gram) @ update
    weight.mul_(len(weight) ** 0.5 / weight.norm())
    weight.sub_(lr * update.reshape(weight.shape))


def test_with_normalize_filters_follow_the_script_that_holds_the_record(chosen):
    network = small(channels_last=True)
    optimizer, _ = optimizer_of(network, chosen(normalize=True).model_copy(update={"weight_decay": 0.0}))
    filters = network[1].weight
    expected, buffer = filters.detach().double().clone(), torch.zeros(filters.shape, dtype=torch.float64)
    for step in range(3):
        gradients(network, step)
        airbench(expected, filters.grad.double(), buffer, 0.1, 0.6)
        optimizer.step()
    reached = filters.detach()
    assert float((reached - expected).norm() / expected.norm()) < 5e-3  # updates are computed in bf16
    assert reached.norm() > 0.9 * math.sqrt(12)


def test_filters_of_single_channels_and_narrow_matrices_are_no_matrices():
    shapes = {(12, 1, 3, 3): False, (12, 4, 3, 3): True, (3, 8, 1, 1): False, (64, 2, 1, 1): False}
    shapes |= {(5, 5): True, (5,): False, (1, 4, 8): False, (16, 3): False}
    for shape, expected in shapes.items():
        assert is_matrix(nn.Parameter(torch.ones(shape))) is expected, shape


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4, 1, 1), (6, 5)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_matrix_is_a_view_of_its_filters(shape, layout):
    value = torch.randn(shape)
    value = value.contiguous(memory_format=layout) if value.ndim == 4 else value
    matrix = as_matrix(value)
    assert matrix.shape == (shape[0], math.prod(shape[1:]))
    assert matrix.data_ptr() == value.data_ptr()
    matrix.zero_()
    assert not value.any()


@pytest.mark.parametrize("rest", ["sgd", "adamw"])
def test_a_training_that_is_killed_resumes_bit_for_bit(
    dataset, stack, params, out, on, resumable, starting, rest
):
    """With a released block, its own rates per block, averaged weights and clipping, which see one optimizer."""
    how = {"optimizer": "muon", "epochs": 3, "ema": 0.7, "muon": MUON | {"rest": rest, "normalize": True}}
    how |= {"transfer": {"freeze": 2, "release": 1, "lr_factor": 0.5}}
    expected = fit(dataset, stack, params(**how), 1, out, starting=starting(stack))
    whole = (out / "weights.pt").read_bytes()
    steps = []

    def kill(*_):
        steps.append(0)
        if len(steps) in {2, 6}:
            raise InterruptedError

    for _ in range(2):
        with pytest.raises(InterruptedError):
            fit(
                dataset,
                stack,
                params(**how),
                1,
                out,
                starting=starting(stack),
                resumable=resumable(),
                callbacks=[on("on_train_batch_end", kill)],
            )
    metrics = fit(dataset, stack, params(**how), 1, out, starting=starting(stack), resumable=resumable())
    assert (out / "weights.pt").read_bytes() == whole
    assert metrics["best"] == expected["best"]


def test_a_network_learns_with_muon(dataset, stack, params, out):
    how = {"optimizer": "muon", "lr": 0.1, "epochs": 8}
    assert fit(dataset, stack, params(**how), 1, out)["val"]["accuracy"] > 0.9
    assert trained.load(out)[1].network == "stack"
