"""INT8 and float16 copies: how INT8 is searched for, what is refused and why, and what a copy is served as."""

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convoy.core import contract, files, params
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError
from convoy.export import copies, latency, quantize, verify
from convoy.export.onnx_model import OnnxModel
from convoy.export.quantize import RECIPES, Recipe
from convoy.export.settings import ExportParams
from convoy.images.resize import Geometry
from convoy.serving.golden import check, of_model, replay
from exported import LIMITS, PX
from fixed_models import image_u8, png

FAST, SLOW = (3.0, 1.0), (1.0, 1.0)
FIGURES = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "images_per_second": 3.0}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Verify here, although this process has torch, and without timing: INT8 counts as three times as fast."""
    timed = {"image_px": PX, "runs": 10, "threads": 1, "batch": 32, "onnx": FIGURES, "eager": FIGURES}
    monkeypatch.setattr(latency, "measure", lambda *_: timed)
    monkeypatch.setattr(verify, "_refuse_torch", lambda: None)
    monkeypatch.setattr(quantize, "time_by_turns", lambda *_: FAST)


def verified_with(project, **changes):
    limits = ExportParams.model_validate(LIMITS.model_dump() | changes)
    metrics = verify.verify(
        *(project.home / name for name in ("deploy", "data", "dataset", "evaluation")), limits
    )
    return metrics["deploy"], files.read_json(project.home / "deploy/verification.json")


def searched(project, max_drop=0.005):
    dataset = Dataset.load(project.home / "dataset")
    return quantize.search(project.unverified, dataset, Geometry(PX, "squash"), max_drop)


def test_the_layers_between_first_and_last_are_quantized_and_nothing_else(built):
    found = searched(built)
    assert found.chosen == RECIPES[0] == Recipe("minmax", per_channel=False, float_ends=False)
    assert (found.speedup, len(found.tried)) == (3.0, 1)
    model = onnx.load_model_from_string(found.graph)
    kinds = [node.op_type for node in model.graph.node]
    assert "QuantizeLinear" in kinds
    filters = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] > 1]
    assert {tensor.data_type for tensor in filters} == {onnx.TensorProto.INT8}
    consumers = {name: node.op_type for node in model.graph.node for name in node.input}
    assert consumers["image"] == "Cast", "pixels are resized and normalised in float32"
    assert kinds[-1] == "Softmax"
    original = OnnxModel(built.unverified).properties
    assert OnnxModel(found.graph).properties == original | {
        "convoy.precision": "int8 (per tensor, minmax, all layers in INT8)"
    }
    [image] = model.graph.input
    assert image.type.denotation == "IMAGE"


def test_the_first_and_the_last_layer_may_stay_in_float32():
    kinds = ("Cast", "Resize", "Sub", "Conv", "Relu", "Conv", "Relu", "Gemm", "Div", "Softmax")
    nodes = [onnx.helper.make_node(kind, ["x"], ["x"], name=f"{n} {kind}") for n, kind in enumerate(kinds)]
    graph = onnx.helper.make_graph(nodes, "chain", [], [])
    names, types = quantize.quantized_layers(graph, float_ends=False)
    assert (names[0], names[-1], types) == ("3 Conv", "7 Gemm", ["Conv", "Gemm", "Relu"])
    names, _ = quantize.quantized_layers(graph, float_ends=True)
    assert names == ["4 Relu", "5 Conv", "6 Relu"]
    two = onnx.helper.make_graph(nodes[:6], "two layers", [], [])
    assert quantize.quantized_layers(two, float_ends=True)[0] == ["3 Conv", "4 Relu", "5 Conv"]


def test_equal_graphs_and_images_give_equal_bytes(built):
    assert searched(built).graph == searched(built).graph


def test_a_graph_that_is_not_faster_is_not_kept_and_the_reason_is_stated(project, monkeypatch, capsys):
    monkeypatch.setattr(quantize, "time_by_turns", lambda *_: SLOW)
    metrics, verification = verified_with(project, int8="auto")
    copy = verification["copies"]["int8"]
    assert (copy["kept"], copy["refused"], copy["tried"]) == (False, "speed", [])
    assert "1.00 times as fast as FP32" in copy["reason"]
    assert "INT8 copy: not kept, since it is 1.00 times" in capsys.readouterr().out
    assert metrics["int8_speedup"] == 1.0
    assert not (project.home / "deploy/model.int8.onnx").exists()
    card = (project.home / "deploy/model_card.md").read_text(encoding="utf-8")
    assert "No INT8 copy, since it is 1.00 times as fast" in card


def test_the_search_goes_on_until_validation_images_lose_little(built, monkeypatch):
    """Later choices are tried where earlier ones lose more than half of the accuracy that may be lost."""
    lost = iter([6, 3, 2, 3])
    labels = Dataset.load(built.home / "dataset").labels("val")
    calls = []

    def answered(model, squares_u8, geometry):
        calls.append(model)
        wrong = next(lost) if len(calls) > 1 else 0
        return np.where(np.arange(len(labels)) < wrong, (labels + 1) % 3, labels)

    monkeypatch.setattr(quantize, "_classes", answered)
    found = searched(built, max_drop=2 * 2 / len(labels))
    assert [each.recipe for each in found.tried] == list(RECIPES[:3])
    assert found.chosen == RECIPES[2] == Recipe("percentile", per_channel=False, float_ends=False)
    assert [each.correct for each in found.tried] == [len(labels) - wrong for wrong in (6, 3, 2)]


def test_a_kept_copy_lies_beside_the_model_with_its_figures(project):
    _, verification = verified_with(project, int8="auto", int8_max_accuracy_drop=0.2)
    copy = verification["copies"]["int8"]
    assert copy["kept"]
    assert copy["accuracy_drop_low"] <= copy["accuracy_drop"] <= copy["accuracy_drop_high"]
    assert copy["images"] == verification["checks"][0]["images"]
    assert 0 < copy["probability_gap"] < 0.5
    assert OnnxModel(project.model).properties.get(contract.PRECISION) is None
    int8 = OnnxModel(project.home / "deploy/model.int8.onnx")
    assert int8.properties[contract.PRECISION].startswith("int8 (per tensor, minmax")
    assert verification["model"]["precision"] == "fp32"
    assert "`model.int8.onnx`: 3.00 times as fast" in (project.home / "deploy/model_card.md").read_text()


def test_served_int8_is_model_onnx_and_every_figure_is_its_own(project):
    int8_bytes = searched(project).graph
    metrics, verification = verified_with(project, int8="auto", int8_max_accuracy_drop=0.2, serve="int8")
    deploy = project.home / "deploy"
    assert project.model.read_bytes() == int8_bytes
    assert not (deploy / "model.int8.onnx").exists()
    assert OnnxModel(deploy / "model.fp32.onnx").properties.get(contract.PRECISION) is None
    assert verification["model"]["sha256"] == files.sha256(project.model)
    assert verification["model"]["precision"] == "int8"
    copy = verification["copies"]["int8"]
    assert verification["accuracy"] == metrics["accuracy"] == copy["accuracy"]
    names = [check["check"] for check in verification["checks"]]
    assert names[0] == "INT8, whole test split from delivered files"
    assert "whole test split from delivered files" in names
    golden = files.read_json(deploy / "golden/golden.json")
    assert golden["max_probability_gap"] == copies.INT8_GOLDEN_GAP
    model = OnnxModel(project.model)
    replayed = replay(of_model(model), deploy / "golden")
    check(replayed, "INT8")
    assert max(image.gap for image in replayed) < 1e-4, "answers of the INT8 graph, not of FP32"


def wrong_graph(path):
    """Shift the mean by half of the range: another image is seen."""
    model = onnx.load(path)
    [mean] = [constant for constant in model.graph.initializer if constant.name == contract.MEAN]
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(0.5), mean.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "refused", "reason"),
    [
        ({"int8_max_accuracy_drop": 0.0}, "accuracy", "int8_max_accuracy_drop allows 0"),
        ({"int8_max_accuracy_drop": 1.0}, "flips", "images change class (at most "),
    ],
)
def test_a_copy_that_sees_other_classes_is_refused(project, monkeypatch, changes, refused, reason):
    found = searched(project)
    bad = quantize.Search(**(vars(found) | {"graph": wrong_graph(project.unverified)}))
    monkeypatch.setattr(quantize, "search", lambda *_: bad)
    if (
        refused == "accuracy" and not changes["int8_max_accuracy_drop"]
    ):  # on noise, half of what is wrong may be right by chance
        monkeypatch.setattr(copies, "gain_interval", lambda *_: (-0.4, -0.1))
        truth = verify.compare_from_files

        def all_right(*words, **named):
            whole, right, *rest = truth(*words, **named)
            return whole, np.ones_like(right), *rest

        monkeypatch.setattr(verify, "compare_from_files", all_right)
    _, verification = verified_with(project, int8="auto", serve="int8", **changes)
    copy = verification["copies"]["int8"]
    assert (copy["kept"], copy["refused"]) == (False, refused)
    assert reason in copy["reason"]
    assert verification["model"]["precision"] == "fp32", "served is what is accurate"
    assert not list((project.home / "deploy").glob("model.*.onnx"))


def test_few_images_cannot_show_that_a_loss_is_small(project):
    _, verification = verified_with(project, int8="auto", int8_max_accuracy_drop=0.005)
    copy = verification["copies"]["int8"]
    assert copy["accuracy_drop"] <= 0.005 < copy["accuracy_drop_high"]
    assert (copy["kept"], copy["refused"]) == (False, "accuracy")
    assert (
        f"on {copy['images']} test images it loses {100 * copy['accuracy_drop']:.2f} points" in copy["reason"]
    )
    assert "allows 0.5, at the upper end of the interval" in copy["reason"]


def test_a_network_that_cannot_be_quantized_is_exported_all_the_same(project, monkeypatch):
    def fails(*_):
        raise ValueError("no such operator\nsecond line")

    monkeypatch.setattr(quantize, "_calibrate", fails)
    _, verification = verified_with(project, int8="auto", serve="int8")
    assert verification["copies"]["int8"] == {
        "kept": False,
        "refused": "error",
        "reason": "onnxruntime cannot quantize this network: no such operator",
    }
    assert project.model.is_file()


def test_float16_keeps_inputs_and_outputs_and_says_that_no_gpu_measured_it(project):
    before = list(sys.path)
    _, verification = verified_with(project, fp16=True)
    copy = verification["copies"]["fp16"]
    assert (copy["kept"], copy["measured_on_gpu"]) == (True, False)
    assert 0 < copy["probability_gap"] <= 0.02
    path = project.home / "deploy/model.fp16.onnx"
    model = OnnxModel(path)
    assert model.properties[contract.PRECISION] == "float16"
    image_u8 = np.zeros((1, 20, 30, 3), np.uint8)
    assert model(image_u8).dtype == np.float32
    kinds = {
        tensor.data_type
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) == 4 and tensor.dims[0] > 1
    }
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert sys.path == before
    card = (project.home / "deploy/model_card.md").read_text(encoding="utf-8")
    assert "Neither speed nor answers were measured on a GPU" in card


def test_a_float16_copy_beyond_its_limits_is_not_written(project, monkeypatch):
    monkeypatch.setattr(copies, "FP16_GAP", 1e-9)
    _, verification = verified_with(project, fp16=True)
    assert verification["copies"]["fp16"]["kept"] is False
    assert not (project.home / "deploy/model.fp16.onnx").exists()


def test_images_of_an_encoded_dataset_calibrate_too(monkeypatch):
    dataset = SimpleNamespace(
        splits={"train": (0, 300)}, store="encoded", folder=None, background="white", images=None
    )
    monkeypatch.setattr(quantize, "Reader", lambda _: {n: png(n) for n in range(300)})
    images = quantize.calibration_images(dataset)
    assert len(images) == 128
    assert np.array_equal(images[-1], image_u8(299))


def test_to_serve_int8_it_must_be_made():
    content = LIMITS.model_dump() | {"serve": "int8"}
    with pytest.raises(RequestError, match=r"Set export\.int8: auto"):
        params.check("export", ExportParams, content)
