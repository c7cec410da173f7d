import pytest
import torch
from torch import nn

from convoy.models.deployable import NormalizedModel


def test_pixels_are_normalised_with_the_statistics_of_each_channel():
    pixels = torch.tensor([255.0, 0.0, 51.0]).view(1, 3, 1, 1)

    normalised = NormalizedModel(nn.Flatten(), mean=[0.5, 0.5, 0.1], std=[0.25, 0.5, 0.2])(pixels)

    assert normalised.tolist()[0] == pytest.approx([2.0, -1.0, 0.5])


def test_a_channel_that_never_varies_stays_finite():
    pixels = torch.full((1, 3, 1, 1), 128.0)

    normalised = NormalizedModel(nn.Flatten(), mean=[128 / 255, 0.0, 0.0], std=[0.0, 1.0, 1.0])(pixels)

    assert normalised.isfinite().all()
    assert normalised[0, 0] == 0


def test_the_statistics_are_no_part_of_the_weights():
    assert not NormalizedModel(nn.Flatten(), [0.5] * 3, [0.5] * 3).state_dict()
