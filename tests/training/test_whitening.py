"""The whitening first layer: its filters, computed from training images."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from convoy.core.errors import RequestError
from convoy.models.build import Whitening, build
from convoy.models.trained import NormalizedModel
from convoy.training import whitening
from convoy.training.whitening import covariance, whiten, whitening_filters
from network_specs import HEAD, network

MEAN, STD = (0.45, 0.5, 0.4), (0.2, 0.25, 0.3)


def photographs(count=40, px=12):
    """Noise whose neighbouring pixels and channels are correlated, as those of photographs are."""
    random = np.random.default_rng(3)
    coarse = random.normal(120, 60, (count, px // 2, px // 2, 1)).repeat(2, axis=1).repeat(2, axis=2)
    return (coarse + random.normal(0, 15, (count, px, px, 3))).clip(0, 255).astype(np.uint8)


def model(px=12, **arguments):
    chosen = network({"whiten": arguments}, "gelu", *HEAD)
    return NormalizedModel(build(chosen, 3, px), MEAN, STD)


def responses(made, images_u8):
    pixels = torch.from_numpy(images_u8).permute(0, 3, 1, 2).float()
    layer = made.network.whiten1
    return functional.conv2d(made.normalize(pixels), layer.weight).transpose(0, 1).flatten(1)


def test_too_few_patches_are_refused_with_a_convolution_of_the_same_width():
    chosen = network({"whiten": {"kernel": 4}}, "gelu", *HEAD)
    whitening.check(chosen, images=2, image_px=8)  # 50 patches
    with pytest.raises(
        RequestError,
        match=r"whiten of mine computes 48 directions of 4×4 .* 1 training images of 8 px have only 25 .*filters: 96, kernel: 4",
    ):
        whitening.check(chosen, images=1, image_px=8)
    whitening.check(network("relu", *HEAD), images=1, image_px=8)


@pytest.mark.parametrize("kernel", [2, [1, 3]])
def test_responses_to_training_images_are_uncorrelated_with_variance_1_and_each_filter_has_its_negative(
    kernel,
):
    made, images_u8 = model(kernel=kernel, eps=1e-9), photographs()
    before = responses(made, images_u8)
    whiten(made, images_u8)
    after = responses(made, images_u8)
    half = len(after) // 2
    assert torch.equal(made.network.whiten1.weight[:half], -made.network.whiten1.weight[half:])
    second_moments = after[:half] @ after[:half].T / after.shape[1]
    torch.testing.assert_close(second_moments, torch.eye(half), atol=1e-3, rtol=0)
    correlated = before[:half] @ before[:half].T / before.shape[1]
    assert (correlated - torch.eye(half)).abs().max() > 0.5


def test_a_response_that_is_little_more_than_noise_is_kept_small():
    filters = whitening_filters(torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64)), eps=1e-3)
    variances = (filters**2 * torch.tensor([1.0, 1e-6])).sum(dim=1)
    assert min(variances.tolist()) == pytest.approx(1e-6 / (1e-6 + 1e-3))
    assert max(variances.tolist()) == pytest.approx(1 / (1 + 1e-3))


@pytest.mark.parametrize(
    "images_u8", [np.full((5, 12, 12, 3), 7, np.uint8), photographs()[..., :1].repeat(3, axis=3)]
)
def test_constant_and_gray_images_give_finite_filters(images_u8):
    made = model(eps=1e-30)
    whiten(made, images_u8)
    assert made.network.whiten1.weight.isfinite().all()


def test_filters_depend_on_the_images_and_the_normalisation_only(monkeypatch):
    images_u8 = photographs()
    whole = covariance(model(), images_u8, (2, 2))
    torch.manual_seed(5)
    assert torch.equal(covariance(model(), images_u8, (2, 2)), whole)
    monkeypatch.setattr(whitening, "CHUNK_VALUES", 5000)
    torch.testing.assert_close(covariance(model(), images_u8, (2, 2)), whole, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(covariance(model(), 255 - images_u8, (2, 2)), whole)


def test_of_many_or_large_images_some_are_taken_from_the_first_to_the_last(monkeypatch):
    images_u8 = photographs(30)
    monkeypatch.setattr(whitening, "MOST_PIXELS", 10 * 12 * 12)
    expected = covariance(model(), images_u8, (2, 2))
    chosen = np.linspace(0, 29, 10).astype(int)
    assert chosen[[0, -1]].tolist() == [0, 29]
    assert torch.equal(covariance(model(), images_u8[chosen], (2, 2)), expected)


def test_the_filters_are_weights_that_no_optimizer_gets():
    layer = model().network.whiten1
    assert isinstance(layer, Whitening)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert list(layer.state_dict()) == ["bias", "weight"]
    assert layer.weight.shape == (24, 3, 2, 2)
    assert model(bias=False, padding="same").network.state_dict()["whiten1.conv.weight"].shape == (
        24,
        3,
        2,
        2,
    )


def test_a_network_without_the_layer_is_left_as_it_is():
    made = NormalizedModel(build(network(*HEAD), 3, 12), MEAN, STD)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    whiten(made, photographs())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
