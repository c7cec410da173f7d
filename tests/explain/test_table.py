"""The table, by formulas, against modules that torch runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from convoy.core.errors import NetworkError
from convoy.explain.rows import Row, Table
from convoy.explain.table import tabulate
from convoy.models import modules, spec
from convoy.models.layer_types import ACTIVATIONS
from convoy.models.modules import Network
from convoy.models.shapes import infer
from convoy.models.spec import Spec

SHIPPED = Path(__file__).parents[2] / "networks"
NAMES = spec.names(SHIPPED)
TWINS = [name for name in NAMES if spec.load(name, SHIPPED).twin]


def network(*written: object) -> Spec:
    return Spec.model_validate({"name": "mine", "layers": list(written)})


def published(name: str) -> tuple[Spec, int, int]:
    """A shipped network with the images and classes it was made for, else those of params.yaml and ten."""
    read = spec.load(name, SHIPPED)
    return read, *((read.made_for.classes, read.made_for.image_px) if read.made_for else (10, 32))


def module(read: Spec, classes: int, px: int) -> Network:
    with torch.device("meta"):
        return modules.network(infer(read, classes, px), auxiliary=True)


def height_width_channels(made: torch.Tensor) -> tuple[int, int, int]:
    shape = tuple(made.shape[1:])
    return (*shape[1:], shape[0]) if len(shape) == 3 else (1, 1, *shape)


def run(whole: nn.Module, px: int) -> tuple[dict[str, tuple[int, int, int]], int]:
    """What each module makes, and the MACs that torch counts, in training mode, where auxiliary heads answer."""
    made = {}
    for name, inner in whole.named_modules():
        if name:
            inner.register_forward_hook(
                lambda _, __, out, name=name: made.update({name: height_width_channels(out)})
            )
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        whole.train()(torch.empty(2, 3, px, px, device="meta"))
    return made, counter.get_total_flops() // 2 // 2


def every(rows: tuple[Row, ...]) -> list[Row]:
    return [inner for row in rows for inner in (row, *every(row.parts))]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_every_shipped_network_agrees_with_a_forward_pass(name):
    read, classes, px = published(name)
    table = tabulate(read, classes, px)
    whole = module(read, classes, px)
    made, macs = run(whole, px)
    for row in every(table.rows):
        assert row.output == made[row.name], row.name
        assert row.total("parameters") == sum(
            value.numel() for value in whole.get_submodule(row.name).parameters()
        )
    in_rows = {row.name for row in table.layers}
    weighty = {key.rpartition(".")[0] for key, _ in whole.named_parameters()}
    assert weighty <= in_rows | {
        f"{row}.conv" for row in in_rows
    }  # a convolution with uneven padding is two modules
    assert table.macs + table.auxiliary_macs == macs


@pytest.mark.parametrize("name", TWINS)
def test_shipped_networks_have_the_totals_that_torchvision_publishes(name):
    read, classes, px = published(name)
    table = tabulate(read, classes, px)
    meta = get_model_weights(read.twin).DEFAULT.meta
    assert table.parameters + table.auxiliary_parameters == meta["num_params"] or (
        read.twin == "googlenet" and table.parameters == meta["num_params"]  # published without its heads
    )
    assert table.macs / 1e9 == pytest.approx(meta["_ops"], abs=0.0005)


def test_alexnet_has_its_known_totals():
    table = tabulate(spec.load("alexnet", SHIPPED), 1000, 224)
    assert table.parameters == 61_100_840
    assert table.layers[0].output == (55, 55, 64)
    assert table.layers[0].macs == 55 * 55 * 64 * 11 * 11 * 3


def test_the_last_convolution_of_vgg16_sees_196_pixels_and_its_last_pooling_212():
    rows = {row.name: row for row in tabulate(spec.load("vgg16", SHIPPED), 1000, 224).layers}
    assert [row.receptive_field for row in rows.values() if row.operation == "conv"][-1] == (196, 196)
    assert [row.receptive_field for row in rows.values() if row.operation == "max_pool"][-1] == (212, 212)


END = ["global_avg_pool", "flatten", {"dense": "classes"}]
SEEING = {
    "convolutions": [
        {"conv": {"filters": 2, "kernel": [3, 1], "padding": "same"}},
        {"conv": {"filters": 2, "kernel": 5, "stride": 2}},
    ],
    "dilation": [
        {"conv": {"filters": 2, "kernel": 3, "dilation": [2, 3]}},
        {"conv": {"filters": 2, "kernel": 2}},
    ],
    "pooling": [
        {"max_pool": {"kernel": 3, "stride": 2}},
        {"avg_pool": 2},
        {"conv": {"filters": 2, "kernel": 3, "padding": 1}},
    ],
    "adaptive pooling": [{"adaptive_avg_pool": [8, 16]}, {"conv": {"filters": 2, "kernel": 3}}],
    "uneven padding": [
        {"conv": {"filters": 2, "kernel": 3, "stride": 2, "padding": "same"}},
        {"conv": {"filters": 2, "kernel": 2, "padding": "same"}},
    ],
    "residual": [
        {
            "residual": {
                "body": [
                    {"conv": {"filters": 3, "kernel": 3, "padding": 1}},
                    {"conv": {"filters": 3, "kernel": 3, "padding": 1}},
                ]
            }
        }
    ],
    "residual, apart": [
        {
            "residual": {
                "body": [{"conv": {"filters": 3, "kernel": 3, "stride": 2, "padding": "same"}}],
                "shortcut": [{"conv": {"filters": 3, "kernel": 2, "stride": 2}}],
            }
        }
    ],
    "branches": [
        {
            "branches": [
                [{"conv": {"filters": 2, "kernel": 1}}],
                [{"conv": {"filters": 2, "kernel": [1, 7], "padding": [0, 3]}}],
                [],
            ]
        }
    ],
    "repeat": [{"repeat": {"times": 3, "layers": [{"conv": {"filters": 3, "kernel": 3}}, "relu"]}}],
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


LAYERS = {
    **{word: [word] for word in ACTIVATIONS if word not in {"threshold", "glu"}},
    "threshold": [{"threshold": {"threshold": 0.1, "value": 0.0}}],
    "glu": [{"conv": {"filters": 4, "kernel": 1}}, "glu"],
    "norm": ["norm"],
    "local_response_norm": [{"local_response_norm": 5}],
    "grouped": [{"conv": {"filters": 6, "kernel": [3, 2], "groups": 3, "bias": False, "padding": [1, 0]}}],
    "uneven": [{"conv": {"filters": 6, "kernel": 2, "padding": "same", "padding_mode": "reflect"}}],
    "ceil": [{"max_pool": {"kernel": 3, "stride": 2, "ceil": True}}],
    "adaptive": [{"adaptive_max_pool": 5}],
    "dropout": [{"dropout": 0.5}],
}


@pytest.mark.parametrize("case", LAYERS)
def test_every_kind_of_layer_agrees_with_its_module(case):
    read = network(*LAYERS[case], "flatten", {"dense": {"units": "classes", "bias": False}})
    table = tabulate(read, 4, 11)
    whole = module(read, 4, 11)
    made, macs = run(whole, 11)
    assert {row.name: row.output for row in table.layers} == {
        row.name: made[row.name] for row in table.layers
    }
    assert table.parameters == sum(value.numel() for value in whole.parameters())
    assert table.macs == macs


def test_auxiliary_heads_are_marked_and_counted_apart():
    head = ["global_avg_pool", "flatten", {"dense": "classes"}]
    read = network(
        {"conv": {"filters": 2, "kernel": 3}}, {"auxiliary": {"weight": 0.3, "layers": head}}, *head
    )
    table = tabulate(read, 4, 8)
    assert [row.name for row in table.layers if row.auxiliary] == [
        "auxiliary1.global_avg_pool1",
        "auxiliary1.flatten1",
        "auxiliary1.dense1",
    ]
    assert (table.parameters, table.auxiliary_parameters) == (2 * 27 + 2 + 12, 12)
    assert (table.macs, table.auxiliary_macs) == (6 * 6 * 2 * 27 + 8, 8)


def test_training_memory_is_three_floats_per_weight_and_what_the_images_keep():
    table = tabulate(network({"conv": {"filters": 2, "kernel": 3}}, "relu", *END), 4, 8)
    image, relu, pooled = 3 * 8 * 8, 6 * 6 * 2, 2
    assert table.kept_bytes == 4 * (image + relu + pooled)
    assert table.training_memory_bytes(5) == 12 * table.parameters + 5 * table.kept_bytes


def test_a_uneven_padding_is_listed_side_by_side():
    conv = {"filters": 2, "kernel": [3, 1], "stride": 2, "padding": "same"}
    row = tabulate(network({"conv": conv}, *END), 4, 8).layers[0]
    assert (row.kernel, row.stride, row.padding) == ((3, 1), (2, 2), ((0, 1), (0, 0)))


def test_too_small_images_are_refused_with_the_smallest_that_work():
    with pytest.raises(
        NetworkError, match=r"lenet5 does not take images of 12 px: .*The smallest that works is 16"
    ):
        tabulate(spec.load("lenet5", SHIPPED), 10, 12)


def test_a_network_of_layers_is_tabulated_without_torch():
    code = (
        "import sys; from convoy.models import spec; from convoy.explain.table import tabulate; "
        "assert tabulate(spec.load('vgg16'), 1000, 224).parameters == 138357544; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SHIPPED.parent,
        env={"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_rows_sum_to_the_totals():
    table: Table = tabulate(*published("googlenet"))
    for what in ("parameters", "macs", "activation_bytes"):
        assert sum(row.total(what) for row in table.rows if not row.auxiliary) == getattr(table, what)


def test_what_hands_on_its_input_takes_no_memory():
    rows = tabulate(
        network({"dropout": 0.0}, "relu", {"dropout": 0.5}, "flatten", {"dense": "classes"}), 4, 2
    ).layers
    assert [row.activation_bytes for row in rows] == [0, 48, 48, 0, 16]
