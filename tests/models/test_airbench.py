"""The shipped airbench networks against a transcription of their source, and the start that they have."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from convoy.models import spec
from convoy.models.build import build
from network_specs import HEAD, SHIPPED, network


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
