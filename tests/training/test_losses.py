import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot
from torchvision.ops import sigmoid_focal_loss

from convoy.training.losses import classification_loss, distillation_loss

WEIGHTS = torch.tensor([0.5, 1.0, 3.0, 2.0])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=generator), torch.randint(0, 4, (20,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_focal_loss_with_gamma_0_and_certain_targets_are_the_cross_entropy(batch, smoothing, weights):
    logits, labels = batch
    each = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    expected = (each if weights is None else each * weights[labels]).mean()
    certain = one_hot(labels, 4).float()
    for targets in (labels, certain):
        for gamma in (None, 0.0):
            loss = classification_loss(
                logits, targets, smoothing=smoothing, class_weights=weights, gamma=gamma
            )
            torch.testing.assert_close(loss, expected)


def test_the_focal_loss_of_two_classes_is_torchvisions():
    scores = torch.linspace(-6, 6, 25)
    labels = torch.arange(25) % 2
    theirs = sigmoid_focal_loss(scores, labels.float(), alpha=-1, gamma=2.0, reduction="mean")
    logits = torch.stack([torch.zeros(25), scores], dim=1)
    torch.testing.assert_close(classification_loss(logits, labels, gamma=2.0), theirs)


@pytest.mark.parametrize("gamma", [None, 1.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_loss_of_a_mixed_image_is_that_of_its_labels_by_their_shares(batch, gamma, weights):
    logits, labels = batch
    other = labels.roll(1)
    mixed = 0.3 * one_hot(labels, 4) + 0.7 * one_hot(other, 4)
    own, theirs, loss = (
        classification_loss(logits, targets, smoothing=0.1, class_weights=weights, gamma=gamma)
        for targets in (labels, other, mixed)
    )
    torch.testing.assert_close(loss, 0.3 * own + 0.7 * theirs)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_certainty_gives_no_gradient_that_is_not_finite(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    classification_loss(logits, torch.tensor([0, 0]), gamma=gamma, smoothing=0.1).backward()
    assert logits.grad.isfinite().all()


def test_distillation_is_the_divergence_of_softened_probabilities_times_the_squared_temperature(batch):
    logits, _ = batch
    teacher = logits.roll(1, 0)
    expected, own = (teacher / 3).softmax(1), (logits / 3).softmax(1)
    divergence = (expected * (expected / own).log()).sum(1).mean() * 9
    torch.testing.assert_close(distillation_loss(logits, teacher, 3.0), divergence)
    assert float(distillation_loss(logits, logits, 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert math.isclose(float(distillation_loss(logits + 5, logits, 3.0)), 0.0, abs_tol=1e-6)
