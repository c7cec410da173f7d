"""A table as lines and as JSON."""

import json
from pathlib import Path

import pytest

from convoy.explain import network_text
from convoy.explain.table import tabulate
from convoy.models import spec
from convoy.models.spec import Spec

SHIPPED = Path(__file__).parents[2] / "networks"
HEAD = ["global_avg_pool", "flatten", {"dense": "classes"}]
SMALL = [
    {"conv": {"filters": 6, "kernel": [3, 1], "stride": 2, "padding": "same", "groups": 3}},
    {"residual": [{"conv": {"filters": 6, "kernel": 3, "padding": 1, "dilation": 1}}, "relu"]},
    {"auxiliary": {"weight": 0.3, "layers": HEAD}},
    *HEAD,
]
READS = """\
layer               operation        kernel stride   pad  output  parameters   MACs   memory  sees
──────────────────────────────────────────────────────────────────────────────────────────────────
conv1               conv, groups 3      3×1      2 0+1×0   4×4×6          24    288    384 B   3×1
residual1           Σ add                                  4×4×6         330  5,184  1.1 KiB   7×5
  body.conv1        conv                  3      1     1   4×4×6         330  5,184    384 B   7×5
  body.relu1        relu                                   4×4×6                       384 B   7×5
auxiliary1          Σ auxiliary                            1×1×4          28     24     40 B   all
  global_avg_pool1  global_avg_pool                        1×1×6                        24 B   all
  flatten1          flatten                                1×1×6                               all
  dense1            dense                                  1×1×4          28     24     16 B   all
global_avg_pool1    global_avg_pool                        1×1×6                        24 B   all
flatten1            flatten                                1×1×6                               all
dense1              dense                                  1×1×4          28     24     16 B   all
──────────────────────────────────────────────────────────────────────────────────────────────────
parameters  382 (410 in training, with the auxiliary heads)
MACs        5,496 per image (5,520 in training)
memory      1.5 KiB per image, if nothing were freed
training    about 13.0 KiB with 5 images per step:
            4.8 KiB for weights, gradients and momentum; 8.2 KiB kept for backward
            (an estimate for SGD in float32; the workspace of single operations comes on top)

MACs: multiplications with addition, in convolutions and matrix products alone.
memory: what a layer makes, per image in float32; blank where it hands on what it was given.
sees: receptive field in pixels, beyond the image's edge too; all: the whole image.
Σ: parameters, MACs and memory are the sums over what is inside.
"""


def table(*written: object, px: int = 8):
    return tabulate(Spec.model_validate({"name": "mine", "layers": list(written)}), 4, px)


def test_the_table_reads_like_this():
    assert network_text.lines(table(*SMALL), 5, units=False) == READS.splitlines()


def test_units_alone_leave_out_what_is_inside():
    lines = network_text.lines(table(*SMALL), 5, units=True)
    assert any(line.startswith("residual1 ") for line in lines)
    assert not any("body.conv1" in line for line in lines)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_fits_into_120_columns(name):
    read = spec.load(name, SHIPPED)
    px, classes = (read.made_for.image_px, read.made_for.classes) if read.made_for else (32, 10)
    assert max(map(len, network_text.lines(tabulate(read, classes, px), 32, units=False))) <= 120


def test_json_has_every_layer_with_its_facts():
    found = json.loads(json.dumps(network_text.facts(table(*SMALL), 5)))
    padded, conv = 3 * 9 * 8, 4 * 4 * 6  # numbers that backward needs
    kept = 4 * (padded + 2 * conv + 6 + 6)
    assert found["layers"][0] == {
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
    assert [row["name"] for row in found["layers"]] == [
        "conv1",
        "residual1.body.conv1",
        "residual1.body.relu1",
        "residual1",
        "auxiliary1.global_avg_pool1",
        "auxiliary1.flatten1",
        "auxiliary1.dense1",
        "global_avg_pool1",
        "flatten1",
        "dense1",
    ]
    assert found["layers"][-1]["output"] == [1, 1, 4]
    assert found["layers"][-1]["receptive_field"] is None
    del found["layers"]
    assert found == {
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


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KiB"),
        (150_000, "146 KiB"),
        (73_355_264, "70.0 MiB"),
        (2**40, "1,024 GiB"),
    ],
)
def test_bytes_are_written_to_three_digits(size, written):
    assert network_text.amount(size) == written


def test_a_table_without_fields_has_no_column_of_them():
    flat = table("flatten", {"dense": "classes"})
    assert network_text.lines(flat, 5, units=False)[0].split()[-1] == "memory"
    assert not any(line.startswith("sees") for line in network_text.lines(flat, 5, units=False))


def test_a_unit_that_holds_one_other_is_one_line_with_it():
    lines = network_text.lines(table({"group": [{"residual": ["relu"]}]}, *HEAD), 5, units=False)
    assert [line.split()[0] for line in lines[2:4]] == ["group1.residual1", "body.relu1"]
