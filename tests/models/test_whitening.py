"""The whitening first layer: filters from training images; airbench against a transcription of its source."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from convoy.models import spec, whitening
from convoy.models.build import Whitening, build
from convoy.models.trained import NormalizedModel
from convoy.models.whitening import covariance, whiten, whitening_filters
from network_specs import HEAD, SHIPPED, network

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


class _Block(nn.Module):
    def __init__(self, given, filters):
        super().__init__()
        self.conv1 = nn.Conv2d(given, filters, 3, padding="same", bias=False)
        self.norm1 = nn.BatchNorm2d(filters, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding="same", bias=False)
        self.norm2 = nn.BatchNorm2d(filters, eps=1e-12, momentum=0.4)

    def forward(self, volume):
        volume = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(volume), 2)))
        return functional.gelu(self.norm2(self.conv2(volume)))


class _Airbench(nn.Module):
    """What airbench94_muon.py describes, for images of 32 px and 10 classes, at a share of its width."""

    def __init__(self, width):
        super().__init__()
        narrow, wide = int(64 * width), int(256 * width)
        self.whiten = nn.Conv2d(3, 24, 2)
        self.block1, self.block2, self.block3 = _Block(24, narrow), _Block(narrow, wide), _Block(wide, wide)
        self.head = nn.Linear(wide, 10, bias=False)

    def forward(self, image):
        volume = self.block3(self.block2(self.block1(functional.gelu(self.whiten(image)))))
        row = functional.max_pool2d(volume, 3).flatten(1)
        return self.head(row) / row.shape[1]

    def by_names_of_the_spec(self):
        """Its tensors, by the names that the spec's network has for them; a fixed scale of 1 has none."""
        tensors = {"whiten1.weight": self.whiten.weight, "whiten1.bias": self.whiten.bias}
        for block in ("block1", "block2", "block3"):
            part = getattr(self, block)
            for number in "12":
                tensors[f"{block}.conv{number}.weight"] = getattr(part, f"conv{number}").weight
                norm = getattr(part, f"norm{number}").state_dict()
                tensors |= {
                    f"{block}.norm_gelu{number}.norm1.{key}": norm[key] for key in norm if key != "weight"
                }
        return tensors | {"dense1.weight": self.head.weight}


@pytest.mark.parametrize(("name", "width"), [("airbench", 1), ("airbench_half", 0.5)])
def test_airbench_is_its_source(name, width):
    theirs, own = _Airbench(width), build(spec.load(name, SHIPPED), 10, 32)
    tensors = theirs.by_names_of_the_spec()
    for key, value in tensors.items():
        if key.endswith("norm1.bias"):
            nn.init.normal_(value.data)
    own.load_state_dict({key: value.clone() for key, value in tensors.items()})
    scales = sum(norm.weight.numel() for norm in theirs.modules() if isinstance(norm, nn.BatchNorm2d))
    fixed = theirs.whiten.weight.numel() + scales  # their requires_grad is False there
    assert sum(value.numel() for value in own.parameters()) == (
        sum(value.numel() for value in theirs.parameters()) - fixed
    )
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for training in (True, False):  # training changes the running statistics that evaluation then uses
            outputs = [made.train(training)(images) for made in (own, theirs)]
            assert outputs[0].std() > 1e-5
            torch.testing.assert_close(*outputs)
    for key, value in theirs.by_names_of_the_spec().items():
        if "running" in key:
            torch.testing.assert_close(own.state_dict()[key], value)


def test_airbenchs_convolutions_start_as_copies_of_their_input_and_its_head_with_a_deviation_of_1():
    torch.manual_seed(0)
    made = build(spec.load("airbench_half", SHIPPED), 10, 32)
    volume = torch.randn(2, 24, 15, 15)
    passed_on = made.block1.conv1(volume)
    torch.testing.assert_close(passed_on[:, :24], volume)
    assert passed_on.shape[1] == 32
    assert (passed_on[:, 24:].std() > 0.1).all()
    assert torch.equal(made.block3.conv1(torch.ones(1, 128, 3, 3)), torch.ones(1, 128, 3, 3))
    assert made.dense1.weight.std().item() == pytest.approx(1, abs=0.05)


def test_a_convolution_in_groups_starts_as_a_copy_of_its_input_too():
    made = build(
        network({"conv": {"filters": 9, "kernel": 3, "padding": 1, "groups": 3}}, *HEAD, init="dirac"), 2, 6
    )
    image, conv = torch.randn(1, 3, 6, 6), made.conv1
    nn.init.zeros_(conv.bias)
    torch.testing.assert_close(conv(image)[:, ::3], image)
