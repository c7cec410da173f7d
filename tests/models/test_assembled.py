import pytest
import torch

from convoy.models import modules
from convoy.models.assembled import Auxiliary, Group, WithAuxiliary
from convoy.models.build import build
from convoy.models.parser import Reader
from convoy.models.shapes import chain
from convoy.models.spec import Spec

CONV = {"conv": {"filters": 4, "kernel": 3, "padding": 1}}
HEAD = ["flatten", {"dense": "classes"}]


def module(line):
    steps = chain(Reader().layers([line]), (3, 6, 6), 2)
    return modules.network(steps, auxiliary=False)[0]


def image():
    return torch.randn(2, 3, 6, 6)


def with_heads(*, auxiliary=True):
    spec = Spec.model_validate(
        {
            "name": "mine",
            "layers": [
                CONV,
                {"auxiliary": {"weight": 0.3, "layers": HEAD}},
                "relu",
                {"auxiliary": {"weight": 0.4, "layers": [{"max_pool": 2}, *HEAD], "name": "late"}},
                *HEAD,
            ],
        }
    )
    return build(spec, classes=5, image_px=6, auxiliary=auxiliary)


def test_a_residual_adds_what_arrives_through_its_shortcut():
    residual = module({"residual": {"body": [CONV], "shortcut": [{"conv": {"filters": 4, "kernel": 1}}]}})
    arrives = image()

    total = residual.body.conv1(arrives) + residual.shortcut.conv1(arrives)

    assert torch.equal(residual(arrives), total)


def test_a_residual_without_a_shortcut_adds_what_arrives():
    residual = module({"residual": ["tanh"]})
    arrives = image()

    assert torch.equal(residual(arrives), arrives.tanh() + arrives)


def test_branches_are_put_behind_each_other_in_their_order():
    branches = module({"branches": {"wide": [CONV], "none": [], "odd": ["tanh"]}})
    arrives = image()

    made = branches(arrives)

    assert [name for name, _ in branches.named_children()] == ["wide", "none", "odd"]
    assert torch.equal(made, torch.cat([branches.wide(arrives), arrives, arrives.tanh()], dim=1))


def test_branches_that_end_flat_are_put_behind_each_other_too():
    branches = module({"branches": [["flatten"], [{"max_pool": 2}, "flatten"]]})

    assert branches(image()).shape == (2, 108 + 27)


def test_a_named_group_is_one_child_of_the_network():
    group = module({"group": {"layers": ["relu", "tanh"], "name": "both"}})

    assert type(group) is Group
    assert [name for name, _ in group.named_children()] == ["relu1", "tanh1"]


def test_in_training_auxiliary_heads_answer_with_their_weights():
    network = with_heads()
    arrives = image()

    answer = network.train()(arrives)

    assert isinstance(answer, WithAuxiliary)
    after_conv = network.conv1(arrives)
    late = network.late(after_conv.relu())
    assert [weight for weight, _ in answer.auxiliary] == [0.3, 0.4]
    assert torch.equal(answer.auxiliary[0][1], network.auxiliary1(after_conv))
    assert torch.equal(answer.auxiliary[1][1], late)
    assert torch.equal(answer.logits, network.dense1(after_conv.relu().flatten(1)))


def test_in_evaluation_auxiliary_heads_are_silent():
    network = with_heads()
    arrives = image()

    answer = network.eval()(arrives)

    assert isinstance(answer, torch.Tensor)
    assert torch.equal(answer, network.train()(arrives).logits)


def test_without_auxiliary_heads_training_answers_logits_alone():
    network = with_heads(auxiliary=False)

    assert [name for name, _ in network.named_children()] == ["conv1", "relu1", "flatten1", "dense1"]
    assert not any(isinstance(part, Auxiliary) for part in network.modules())
    assert network.train()(image()).shape == (2, 5)


@pytest.mark.parametrize("head", ["auxiliary1", "late"])
def test_an_auxiliary_head_trains_what_lies_before_it(head):
    network = with_heads()
    answer = network.train()(image())
    which = ["auxiliary1", "late"].index(head)

    answer.auxiliary[which][1].sum().backward()

    assert network.conv1.weight.grad.abs().sum() > 0
    assert getattr(network, head).dense1.weight.grad.abs().sum() > 0
    assert network.dense1.weight.grad is None
