"""The table of one-line specs, watched on the meta device."""

from collections import OrderedDict
from functools import cache

import pytest
import torch
from torch import nn
from torchvision.models import get_model_weights

from convoy.explain import torchvision_table
from convoy.explain.rows import Row, Table
from convoy.explain.table import tabulate
from convoy.models.build import assemble
from convoy.models.spec import Spec

FAMILIES = {
    "alexnet": 224,
    "convnext_tiny": 224,
    "densenet121": 224,
    "efficientnet_b0": 224,
    "maxvit_t": 224,
    "mobilenet_v3_small": 224,
    "regnet_y_400mf": 224,
    "resnet18": 224,
    "shufflenet_v2_x0_5": 224,
    "squeezenet1_0": 224,
    "swin_v2_t": 256,
    "vit_b_16": 224,
}
"""The smallest member of families that differ in kind, and the side of the images that its totals are published for."""


def table(name: str, classes: int, px: int) -> Table:
    return tabulate(Spec(name=name, torchvision=name), classes, px)


@cache
def rows(name: str, px: int) -> dict[str, Row]:
    return {row.name: row for row in table(name, 10, px).layers}


@pytest.mark.parametrize("name", FAMILIES)
def test_totals_are_those_that_torchvision_publishes(name):
    found = table(name, 1000, FAMILIES[name])
    meta = get_model_weights(name).DEFAULT.meta
    assert found.parameters == meta["num_params"]
    assert found.macs / 1e9 == pytest.approx(meta["_ops"], abs=0.0006)
    assert found.kept_bytes > 0


def test_rows_are_those_of_the_modules():
    whole = assemble(Spec(name="resnet18", torchvision="resnet18"), 10, 64)
    made = {}
    for name, inner in whole.named_modules():
        inner.register_forward_hook(lambda _, __, out, name=name: made.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        whole(torch.empty(2, 3, 64, 64, device="meta"))
    for name, row in rows("resnet18", 64).items():
        height, width, channels = row.output
        assert made[name] == ((channels,) if name == "fc" else (channels, height, width))
        assert row.parameters == sum(value.numel() for value in whole.get_submodule(name).parameters())


def test_convolutions_have_their_windows_and_the_words_of_the_grammar():
    conv = rows("resnet18", 64)["conv1"]
    assert (conv.operation, conv.kernel, conv.stride) == ("conv", (7, 7), (2, 2))
    assert (conv.padding, conv.dilation, conv.groups) == (((3, 3), (3, 3)), (1, 1), 1)
    assert rows("resnet18", 64)["maxpool"].kernel == (3, 3)


def test_channels_that_stand_last_are_still_given_last():
    found = rows("swin_t", 224)
    assert found["features.0.0"].output == (56, 56, 96)
    assert found["features.1.0.norm1"].output == (56, 56, 96)
    assert found["features.2.reduction"].output == (28, 28, 192)
    assert found["avgpool"].output == (1, 1, 768)
    windows = "blocks.1.layers.0.layers.window_attention"
    found = rows("maxvit_t", 224)
    assert found[f"{windows}.partition_op"].output == (16, 49, 128)  # windows, places in a window, channels
    assert found[f"{windows}.mlp_layer.1"].output == (16, 49, 512)
    assert found[f"{windows}.departition_op"].output == (28, 28, 128)


def test_weights_that_no_module_of_their_own_holds_have_a_row():
    found = rows("vit_b_16", 32)
    assert (found["class_token"].operation, found["class_token"].parameters) == ("parameter", 768)
    assert found["encoder"].parameters == 5 * 768  # where each of four patches and the token stands


def test_a_module_that_is_called_again_counts_its_weights_once(monkeypatch):
    conv = nn.Conv2d(3, 3, 1, device="meta")
    twice = nn.Sequential(OrderedDict(one=nn.Sequential(conv, conv), head=nn.Flatten()))
    monkeypatch.setattr(torchvision_table, "assemble", lambda *_: twice)
    found = table("resnet18", 48, 4)
    assert [(row.name, row.parameters, row.macs) for row in found.layers] == [
        ("one.0", 12, 2 * 9 * 16),
        ("one.0", 0, 0),
        ("head", 0, 0),
    ]


def test_what_hands_on_its_input_takes_no_memory():
    found = rows("resnet18", 64)
    assert found["relu"].activation_bytes == 0  # in place
    assert found["conv1"].activation_bytes == 4 * 64 * 32 * 32


def test_the_fast_path_of_attention_is_as_it_was():
    assert torch.backends.mha.get_fastpath_enabled()
    table("vit_b_32", 10, 32)
    assert torch.backends.mha.get_fastpath_enabled()
