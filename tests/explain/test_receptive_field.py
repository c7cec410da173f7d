"""Receptive fields, compared with the pixels whose gradients are not zero."""

import pytest
import torch
from torch import nn

from convoy.explain.table import tabulate
from convoy.models import modules, spec
from convoy.models.shapes import infer
from network_specs import SHIPPED, network


def test_the_last_convolution_of_vgg16_sees_196_pixels_and_its_last_pooling_212():
    rows = {row.name: row for row in tabulate(spec.load("vgg16", SHIPPED), 1000, 224).layers}
    assert [row.receptive_field for row in rows.values() if row.operation == "conv"][-1] == (196, 196)
    assert [row.receptive_field for row in rows.values() if row.operation == "max_pool"][-1] == (212, 212)


END = ["global_avg_pool", "flatten", {"dense": "classes"}]


def conv(kernel, filters=2, **more):
    return {"conv": {"filters": filters, "kernel": kernel, **more}}


SEEING = {
    "convolutions": [conv([3, 1], padding="same"), conv(5, stride=2)],
    "dilation": [conv(3, dilation=[2, 3]), conv(2)],
    "pooling": [{"max_pool": {"kernel": 3, "stride": 2}}, {"avg_pool": 2}, conv(3, padding=1)],
    "adaptive pooling": [{"adaptive_avg_pool": [8, 16]}, conv(3)],
    "uneven padding": [conv(3, stride=2, padding="same"), conv(2, padding="same")],
    "residual": [{"residual": [conv(3, 3, padding=1), conv(3, 3, padding=1)]}],
    "residual, apart": [
        {"residual": {"body": [conv(3, 3, stride=2, padding="same")], "shortcut": [conv(2, 3, stride=2)]}}
    ],
    "branches": [{"branches": [[conv(1)], [conv([1, 7], padding=[0, 3])], []]}],
    "repeat": [{"repeat": {"times": 3, "layers": [conv(3, 3), "relu"]}}],
}


@pytest.mark.parametrize("case", SEEING)
def test_a_receptive_field_is_the_region_whose_gradients_are_not_zero(case):
    px = 32
    read = network(*SEEING[case], *END)
    table = tabulate(read, 4, px)
    seen = table.rows[len(SEEING[case]) - 1].receptive_field
    whole = modules.network(infer(read, 4, px), auxiliary=False)
    for value in whole.parameters():
        nn.init.constant_(value, 0.1)
    # Equal values tie in max pooling, which then sends its gradient to one of them.
    images = torch.rand(256, 3, px, px, requires_grad=True)
    made = whole[: len(SEEING[case])](images)
    made[:, :, made.shape[2] // 2, made.shape[3] // 2].sum().backward()
    touched = images.grad.abs().sum(dim=(0, 1)) > 0
    assert seen == tuple(
        int(line.nonzero().max() - line.nonzero().min()) + 1
        for line in (touched.any(dim=1), touched.any(dim=0))
    )


def test_behind_flatten_and_global_pooling_the_whole_image_is_seen():
    rows = tabulate(network({"conv": {"filters": 2, "kernel": 3}}, *END), 4, 8).layers
    assert [row.receptive_field for row in rows] == [(3, 3), None, None, None]
    assert tabulate(network("flatten", {"dense": "classes"}), 4, 8).layers[0].receptive_field is None
