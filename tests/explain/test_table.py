"""A network as a table: shapes, parameters, MACs and memory against modules that torch runs; as text and as JSON."""

import json
from collections import OrderedDict
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from convoy.explain.table import amount, as_json, lines, tabulate
from convoy.models import spec
from convoy.models.build import assemble, build_layers
from convoy.models.shapes import infer
from convoy.models.spec import Spec
from network_specs import SHIPPED, made_for, network

NAMES = spec.names(SHIPPED)
TWINS = [name for name in NAMES if spec.load(name, SHIPPED).twin]
END = ["global_avg_pool", "flatten", {"dense": "classes"}]
END_NAMES = ["global_avg_pool1", "flatten1", "dense1"]


def height_width_channels(made):
    shape = tuple(made.shape[1:])
    return (*shape[1:], shape[0]) if len(shape) == 3 else (1, 1, *shape)


def run(whole, px):
    """What each module makes, and the MACs that torch counts, in training mode, where auxiliary heads run."""
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


def every(rows):
    return [inner for row in rows for inner in (row, *every(row.parts))]


@cache
def shipped(name):
    return tabulate(*made_for(name))


@pytest.mark.parametrize("name", [*NAMES, "torchvision"])
def test_the_table_agrees_with_a_forward_pass(name):
    resnet = Spec(name="mine", torchvision="resnet18"), 10, 64
    read, classes, px = resnet if name == "torchvision" else made_for(name)
    table = tabulate(*resnet) if name == "torchvision" else shipped(name)
    whole = assemble(read, classes, px, auxiliary=True)
    made, macs = run(whole, px)
    for row in every(table.rows):
        parameters = sum(value.numel() for value in whole.get_submodule(row.name).parameters())
        assert (row.output, row.total("parameters")) == (made[row.name], parameters), row.name
    in_rows = {row.name for row in table.layers}
    weighty = {key.rpartition(".")[0] for key, _ in whole.named_parameters()}
    # A convolution with uneven padding is two modules.
    assert weighty <= in_rows | {f"{row}.conv" for row in in_rows}
    assert table.total("macs") + table.total("macs", auxiliary=True) == macs


IMAGE, VOLUME = 3 * 12 * 12, 6 * 10 * 10
CONV = {"conv": {"filters": 6, "kernel": 1}}
SAVED = {
    "relu": (["relu"], VOLUME, 5 * 100),
    "sigmoid": (["sigmoid"], VOLUME, 5 * 100),
    "silu": (["silu"], 2 * VOLUME, 5 * 100),
    "tanhshrink": (["tanhshrink"], 2 * VOLUME, 5 * 100),
    "norm": (["norm"], 2 * VOLUME, 5 * 100),
    "norm without scale": ([{"norm": {"scale": False}}], 2 * VOLUME, 5 * 100),
    "group_norm": ([{"group_norm": 3}], 2 * VOLUME + 2 * 3, 5 * 100),
    "layer_norm": (["layer_norm"], 2 * VOLUME + 2 * 100, 5 * 100),
    "scale": ([{"scale": 0.5}], VOLUME, 5 * 100),
    "multiply": ([{"multiply": ["global_avg_pool", CONV, "sigmoid"]}], 2 * VOLUME + 6 + 6, 5 * 100),
    "stochastic depth": ([{"residual": {"body": [CONV, "relu"], "drop": 0.5}}], 3 * VOLUME + 1, 5 * 100),
    "local_response_norm": ([{"local_response_norm": 5}], 4 * VOLUME + 10 * 10 * 10, 5 * 100),
    "max_pool": ([{"max_pool": 2}], VOLUME + 150 + 2 * 150, 5 * 25),
    "avg_pool": ([{"avg_pool": 2}], VOLUME + 150, 5 * 25),
    "adaptive_max_pool": ([{"adaptive_max_pool": 1}], VOLUME + 6 + 2 * 6, 5),
    "global_avg_pool": (["global_avg_pool"], 6, 5),
    "dropout": ([{"dropout": 0.5}], 2 * VOLUME, 5 * 100),
    "dropout of nothing": ([{"dropout": 0.0}], VOLUME, 5 * 100),
    "circular padding": ([{"conv": {"filters": 6, "kernel": 3, "padding": 1, "padding_mode": "circular"}}], 6 * 144 + VOLUME, 5 * 100),
    "uneven padding": ([{"conv": {"filters": 4, "kernel": 3, "stride": 2, "padding": "same"}}], 6 * 121 + 100, 5 * 25),
    "residual": ([{"residual": {"body": [CONV, "relu"]}}], 3 * VOLUME, 5 * 100),
    "branches": ([{"branches": [[{"conv": {"filters": 4, "kernel": 1}}, "silu"], []]}], VOLUME + 400 + 1000, 5 * 100),
    "repeat": ([{"repeat": {"times": 2, "layers": [CONV, "norm", "tanh"]}}], 5 * VOLUME, 5 * 100),
    "auxiliary": ([{"auxiliary": {"weight": 0.3, "layers": END}}], VOLUME + 6, 5 * 100),
}  # fmt: skip
"""Layers between convolutions; floats that backward needs of them, and of the dense layer at the end, by hand.

An index of max pooling counts twice.
"""


@pytest.mark.parametrize("case", SAVED)
def test_a_step_saves_what_backward_needs(case):
    layers, floats, end = SAVED[case]
    around = {"conv": {"filters": 6, "kernel": 3}}, {"conv": {"filters": 5, "kernel": 1}}
    table = tabulate(network(around[0], *layers, around[1], "flatten", {"dense": "classes"}), 10, 12)
    assert table.saved_bytes == 4 * (IMAGE + floats + end)


@pytest.mark.parametrize("name", ["convnet", "googlenet"])
def test_a_real_step_on_the_cpu_saves_as_much_but_for_the_statistics_of_norms(name):
    read = spec.load(name, SHIPPED)
    whole = build_layers(infer(read, 10, 32), auxiliary=True).train()
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = whole(torch.rand(8, 3, 32, 32))
    own = {value.untyped_storage().data_ptr() for value in (*whole.parameters(), *whole.buffers())}
    saved = sum(storage.nbytes() for key, storage in storages.items() if key not in own)
    features = sum(norm.num_features for norm in whole.modules() if isinstance(norm, nn.BatchNorm2d))
    assert output is not None
    assert 8 * tabulate(read, 10, 32).saved_bytes == saved - 2 * 4 * features  # the statistics


def test_layers_that_return_their_input_take_no_memory():
    layers = ({"dropout": 0.0}, "relu", {"dropout": 0.5}, "flatten", {"dense": "classes"})
    rows = tabulate(network(*layers), 4, 2).layers
    assert [row.activation_bytes for row in rows] == [0, 48, 48, 0, 16]


CONVOLUTIONAL = ("convnext_tiny", "densenet121", "efficientnet_b0", "regnet_y_400mf", "resnet18")
FAMILIES = (*CONVOLUTIONAL, "maxvit_t", "swin_v2_t", "vit_b_16")
"""The smallest member of families that differ in kind."""


def of_torchvision(name, classes, px):
    return tabulate(Spec(name=name, torchvision=name), classes, px)


@cache
def rows(name, px):
    return {row.name: row for row in of_torchvision(name, 10, px).layers}


@pytest.mark.parametrize("name", [*TWINS, *(f"torchvision:{name}" for name in FAMILIES)])
def test_totals_are_those_that_torchvision_publishes(name):
    published = name.removeprefix("torchvision:")
    px = 256 if published == "swin_v2_t" else 224
    table = shipped(name) if name in TWINS else of_torchvision(published, 1000, px)
    meta = get_model_weights(published).DEFAULT.meta
    heads = table.total("parameters", auxiliary=True) if published != "googlenet" else 0  # published without
    assert table.total("parameters") + heads == meta["num_params"]
    assert table.total("macs") / 1e9 == pytest.approx(meta["_ops"], abs=0.0006)
    assert table.saved_bytes > 0


def test_convolutions_have_their_windows_and_the_words_of_the_grammar():
    conv = rows("resnet18", 64)["conv1"]
    assert (conv.operation, conv.kernel, conv.stride) == ("conv", (7, 7), (2, 2))
    assert (conv.padding, conv.dilation, conv.groups) == (((3, 3), (3, 3)), (1, 1), 1)
    assert rows("resnet18", 64)["maxpool"].kernel == (3, 3)


def test_channels_that_stand_last_are_still_given_last():
    layers = rows("swin_t", 224)
    assert layers["features.0.0"].output == (56, 56, 96)
    assert layers["features.1.0.norm1"].output == (56, 56, 96)
    assert layers["features.2.reduction"].output == (28, 28, 192)
    assert layers["avgpool"].output == (1, 1, 768)
    windows = "blocks.1.layers.0.layers.window_attention"
    layers = rows("maxvit_t", 224)
    assert layers[f"{windows}.partition_op"].output == (16, 49, 128)  # windows, places in a window, channels
    assert layers[f"{windows}.mlp_layer.1"].output == (16, 49, 512)
    assert layers[f"{windows}.departition_op"].output == (28, 28, 128)


def test_weights_that_no_module_of_their_own_holds_have_a_row():
    layers = rows("vit_b_16", 32)
    assert (layers["class_token"].operation, layers["class_token"].parameters) == ("parameter", 768)
    assert layers["encoder"].parameters == 5 * 768  # where each of four patches and the token stands


def test_a_module_that_is_called_again_counts_its_weights_once(monkeypatch):
    conv = nn.Conv2d(3, 3, 1, device="meta")
    twice = nn.Sequential(OrderedDict(one=nn.Sequential(conv, conv), head=nn.Flatten()))
    monkeypatch.setattr("convoy.explain.table.assemble", lambda *_, **__: twice)
    table = of_torchvision("resnet18", 48, 4)
    assert [(row.name, row.parameters, row.macs) for row in table.layers] == [
        ("one.0", 12, 2 * 9 * 16),
        ("one.0", 0, 0),
        ("head", 0, 0),
    ]


def test_a_layer_that_overwrites_its_input_counts_its_output():
    layers = rows("resnet18", 64)
    assert layers["relu"].activation_bytes == layers["conv1"].activation_bytes == 4 * 64 * 32 * 32


SMALL = [
    {"conv": {"filters": 6, "kernel": [3, 1], "stride": 2, "padding": "same", "groups": 3}},
    {"residual": [{"conv": {"filters": 6, "kernel": 3, "padding": 1, "dilation": 1}}, "relu"]},
    {"auxiliary": {"weight": 0.3, "layers": END}},
    *END,
]
READS = """\
layer               operation        kernel  stride    pad  output  params   MACs   memory  sees
────────────────────────────────────────────────────────────────────────────────────────────────
conv1               conv, groups 3      3×1       2  0+1×0   4×4×6      24    288    384 B   3×1
residual1           Σ add                                    4×4×6     330  5,184  1.1 KiB   7×5
  body.conv1        conv                  3       1      1   4×4×6     330  5,184    384 B   7×5
  body.relu1        relu                                     4×4×6                   384 B   7×5
auxiliary1          Σ auxiliary                              1×1×4      28     24     40 B   all
  global_avg_pool1  global_avg_pool                          1×1×6                    24 B   all
  flatten1          flatten                                  1×1×6                           all
  dense1            dense                                    1×1×4      28     24     16 B   all
global_avg_pool1    global_avg_pool                          1×1×6                    24 B   all
flatten1            flatten                                  1×1×6                           all
dense1              dense                                    1×1×4      28     24     16 B   all
────────────────────────────────────────────────────────────────────────────────────────────────
parameters  382 (410 in training, with the auxiliary heads)
MACs        5,496 per image (5,520 in training)
memory      1.5 KiB per image, if nothing were freed
training    about 13.0 KiB with 5 images per step:
            4.8 KiB for weights, gradients and momentum; 8.2 KiB saved for backward
            (estimated for SGD in float32; the workspace of single operations comes on top)
"""


def small(*layers):
    return tabulate(network(*layers), 4, 8)


def test_the_table_reads_like_this():
    text = lines(small(*SMALL), 5, units=False)
    assert text[: len(READS.splitlines())] == READS.splitlines()
    legend = text[len(READS.splitlines()) + 1 :]
    assert {line.split(":")[0] for line in legend} == {"MACs", "memory", "sees", "Σ"}


def test_units_alone_leave_out_what_is_inside():
    text = lines(small(*SMALL), 5, units=True)
    assert any(line.startswith("residual1 ") for line in text)
    assert not any("body.conv1" in line for line in text)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_network_fits_into_120_columns(name):
    assert max(map(len, lines(shipped(name), 32, units=False))) <= 120


def test_json_has_every_layer_with_its_facts():
    content = json.loads(json.dumps(as_json(small(*SMALL), 5)))
    padded, conv = 3 * 9 * 8, 4 * 4 * 6  # numbers that backward needs
    kept = 4 * (padded + 2 * conv + 6 + 6)
    assert content["layers"][0] == {
        "name": "conv1",
        "operation": "conv",
        "kernel": [3, 1],
        "stride": [2, 2],
        "padding": [[0, 1], [0, 0]],
        "dilation": [1, 1],
        "groups": 3,
        "output": [4, 4, 6],
        "parameters": 24,
        "macs": 288,
        "receptive_field": [3, 1],
        "activation_bytes": 384,
        "auxiliary": False,
    }
    assert [row["name"] for row in content["layers"]] == [
        *("conv1", "residual1.body.conv1", "residual1.body.relu1", "residual1"),
        *(f"auxiliary1.{name}" for name in END_NAMES),
        *END_NAMES,
    ]
    last = content.pop("layers")[-1]
    assert (last["output"], last["receptive_field"]) == ([1, 1, 4], None)
    assert content == {
        "name": "mine",
        "image_px": 8,
        "classes": 4,
        "parameters": 24 + 330 + 28,
        "auxiliary_parameters": 28,
        "macs": 288 + 5184 + 24,
        "auxiliary_macs": 24,
        "activation_bytes": 4 * (4 * conv + 6 + 4),
        "kept_bytes_per_image": kept,
        "batch_size": 5,
        "training_memory_bytes": 12 * 410 + 5 * kept,
    }


def test_bytes_have_three_digits():
    sizes = {0: "0 B", 999: "999 B", 1024: "1.0 KiB", 150_000: "146 KiB", 73_355_264: "70.0 MiB"}
    sizes[2**40] = "1,024 GiB"
    assert {size: amount(size) for size in sizes} == sizes


def test_a_table_without_fields_has_no_column_of_them():
    flat = small("flatten", {"dense": "classes"})
    assert lines(flat, 5, units=False)[0].split()[-1] == "memory"
    assert not any(line.startswith("sees") for line in lines(flat, 5, units=False))


def test_a_unit_that_holds_one_other_is_one_line_with_it():
    text = lines(small({"group": [{"residual": ["relu"]}]}, *END), 5, units=False)
    assert [line.split()[0] for line in text[2:4]] == ["group1.residual1", "body.relu1"]


def test_the_last_convolution_of_vgg16_sees_196_pixels_and_its_last_pooling_212():
    rows = shipped("vgg16").layers
    assert [row.receptive_field for row in rows if row.operation == "conv"][-1] == (196, 196)
    assert [row.receptive_field for row in rows if row.operation == "max_pool"][-1] == (212, 212)


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
    "multiply": [
        conv(3, 3),
        {"multiply": [conv(5, 3, padding="same"), "sigmoid"]},
        "layer_norm",
        {"scale": 2},
    ],
}


@pytest.mark.parametrize("case", SEEING)
def test_a_receptive_field_is_the_region_whose_gradients_are_not_zero(case):
    px = 32
    read = network(*SEEING[case], *END)
    table = tabulate(read, 4, px)
    seen = table.rows[len(SEEING[case]) - 1].receptive_field
    whole = build_layers(infer(read, 4, px), auxiliary=False)
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


def test_squeeze_and_excitation_sees_the_whole_image_and_costs_its_layers_and_its_output():
    gate = ["global_avg_pool", conv(1, 2), "relu", conv(1, 3), "sigmoid"]
    unit = tabulate(network({"multiply": gate}, *END), 4, 8).rows[0]
    assert (unit.operation, unit.receptive_field, unit.output) == ("multiply", None, (8, 8, 3))
    assert (unit.total("parameters"), unit.total("macs")) == (8 + 9, 6 + 6)
    assert [part.name for part in unit.parts][:2] == ["multiply1.global_avg_pool1", "multiply1.conv1"]
    assert unit.activation_bytes == 4 * 8 * 8 * 3


def test_behind_flatten_and_global_pooling_the_whole_image_is_seen():
    rows = tabulate(network({"conv": {"filters": 2, "kernel": 3}}, *END), 4, 8).layers
    assert [row.receptive_field for row in rows] == [(3, 3), None, None, None]
    assert tabulate(network("flatten", {"dense": "classes"}), 4, 8).layers[0].receptive_field is None
