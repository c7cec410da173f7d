import contextlib
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import exported
from convoy.core.errors import NetworkError
from convoy.export import latency, onnx_graph
from convoy.images.resize import Geometry
from convoy.models import trained
from network_specs import network


@pytest.fixture(scope="module")
def session(built):
    return onnxruntime.InferenceSession(built.unverified, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (12, 12), (37, 53), (200, 31)])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_raw_pixels_of_any_number_and_size_are_predicted_as_by_the_network(built, session, images, size):
    images_u8 = np.random.default_rng(0).integers(0, 256, (images, *size, 3), dtype=np.uint8)
    probabilities, logits = session.run(["probabilities", "logits"], {"image": images_u8})
    packed_u8 = np.stack([Geometry(12, "squash")(image_u8) for image_u8 in images_u8])
    model, _ = trained.load(built.home / "model")
    with torch.inference_mode():
        expected = model(torch.from_numpy(packed_u8).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(probabilities, expected.softmax(dim=1).numpy(), atol=1e-5)


MODERN = [
    {"conv": {"filters": 8, "kernel": 3, "bias": False}},
    {"norm": {"scale": False, "momentum": 0.4, "eps": 1e-12}},
    "gelu",
    {"residual": {"body": [{"group_norm": 2}, {"conv": {"filters": 8, "kernel": 1}}], "drop": 0.5}},
    {"multiply": ["global_avg_pool", {"conv": {"filters": 8, "kernel": 1}}, "sigmoid"]},
    {"multiply": ["global_avg_pool", "flatten", {"dense": 8}, "hardsigmoid"]},
    "layer_norm",
    "global_avg_pool",
    "flatten",
    "layer_norm",
    {"dense": {"units": "classes", "bias": False}},
    {"scale": 0.125},
]


def test_layers_of_modern_networks_are_exported_for_any_number_of_images(built, tmp_path):
    _, facts = trained.load(built.home / "model")
    facts = facts.model_copy(update={"spec": network(*MODERN), "tta": "views"})
    model = trained.make(facts)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.dim() == 1:
                value.uniform_(0.5, 1.5)
        model.network.dense1.weight.mul_(20)
    trained.save(tmp_path / "model", model, facts)
    onnx_graph.build(tmp_path / "model", tmp_path, exported.IDENTITY)
    session = onnxruntime.InferenceSession(tmp_path / "model.unverified.onnx")
    reloaded, _ = trained.load(tmp_path / "model")
    for images in (1, 3):
        images_u8 = np.random.default_rng(0).integers(0, 256, (images, 12, 12, 3), dtype=np.uint8)
        (logits,) = session.run(["logits"], {"image": images_u8})
        with torch.inference_mode():
            expected = reloaded(torch.from_numpy(images_u8).permute(0, 3, 1, 2).float())
        assert expected.std() > 0.01
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_every_dimension_that_may_vary_has_a_name(session):
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["N", "H", "W", 3])
    assert [(out.name, out.shape) for out in session.get_outputs()] == [
        ("probabilities", ["N", 3]),
        ("logits", ["N", 3]),
    ]


def test_the_metadata_hold_contract_and_provenance(session):
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties.pop("convoy.classes")) == ["Bär", "cat|dog", "x"]
    properties = {key: text for key, text in properties.items() if not key.startswith("Image.")}
    assert properties.pop("convoy.input").startswith("uint8 pixels [N, height, width, 3]")
    provenance = {f"convoy.{key}": value for key, value in exported.IDENTITY.items()}
    contract = {"convoy.version": "0.1.0", "convoy.image_px": "12", "convoy.fit": "squash"}
    contract |= {"convoy.background": "white"}
    assert properties == provenance | contract


def test_the_input_is_denoted_an_image_as_onnx_has_it(built):
    model = onnx.load(built.unverified)
    [image] = model.graph.input
    assert image.type.denotation == "IMAGE"
    axes = [dimension.denotation for dimension in image.type.tensor_type.shape.dim]
    assert axes == ["DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL"]
    properties = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("Image.")}
    assert properties == {
        "Image.BitmapPixelFormat": "Rgb8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255",
    }
    for output in model.graph.output:
        assert output.type.denotation == "TENSOR"
        axes = [dimension.denotation for dimension in output.type.tensor_type.shape.dim]
        assert axes == ["DATA_BATCH", "DATA_FEATURE"]


def test_the_file_holds_no_path_of_the_machine_that_exported_it(built):
    content = built.unverified.read_bytes()
    for trace in (b"forward", b"site-packages", str(Path.cwd()).encode(), b".py"):
        assert trace not in content
    model = onnx.load(built.unverified)
    assert {opset.version for opset in model.opset_import} == {20}
    assert model.ir_version == 10


def test_equal_models_give_equal_bytes_and_replace_an_earlier_export(project):
    before = project.unverified.read_bytes()
    for name in ("model.onnx", "verification.json", "model_card.md", "model.unverified.onnx"):
        (project.home / "deploy" / name).write_text("of an earlier export")
    onnx_graph.build(project.home / "model", project.home / "deploy", exported.IDENTITY)
    assert project.unverified.read_bytes() == before
    written = {path.name for path in (project.home / "deploy").iterdir()}
    assert written == {"model.unverified.onnx", latency.EAGER}


class _NotInOnnx(nn.Module):
    def forward(self, pixels):
        return torch.linalg.eigvals(pixels.mean(dim=1)).real[:, :3]


class _ForTwo(nn.Module):
    def forward(self, pixels):
        return pixels.reshape(2, -1)[:, :3]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_NotInOnnx, r"^network miniature cannot be exported to ONNX: .*\. Choose layers"),
        (_ForTwo, r"^network miniature accepts only batches of 2 images.*pytorch#157621"),
    ],
)
def test_a_network_that_cannot_be_exported_is_named(built, tmp_path, monkeypatch, layer, message):
    model, facts = trained.load(built.home / "model")
    model.network = layer()
    monkeypatch.setattr(trained, "load", lambda _: (model, facts))
    with pytest.raises(NetworkError, match=message):
        onnx_graph.build(built.home / "model", tmp_path, exported.IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_a_network_too_large_for_one_file_is_refused(built, tmp_path, monkeypatch):
    size = built.unverified.stat().st_size
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", size - 1)
    with pytest.raises(NetworkError, match=r"network miniature would have .* GB.*network\.name"):
        onnx_graph.build(built.home / "model", tmp_path, exported.IDENTITY)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", size)
    onnx_graph.build(built.home / "model", tmp_path, exported.IDENTITY)
    assert (tmp_path / "model.unverified.onnx").stat().st_size == size


def test_a_graph_without_the_constant_of_the_control_is_refused(built, tmp_path, monkeypatch):
    model, facts = trained.load(built.home / "model")
    monkeypatch.setattr(type(model), "forward", lambda self, pixels: self.network(pixels / 255))
    monkeypatch.setattr(trained, "load", lambda _: (model, facts))
    with pytest.raises(NetworkError, match=r"miniature has no constant deployable\.mean.*trained\.py"):
        onnx_graph.build(built.home / "model", tmp_path, exported.IDENTITY)


@pytest.mark.parametrize("layer", [None, _NotInOnnx])
def test_the_exporters_log_levels_are_restored_after_success_and_failure(built, tmp_path, monkeypatch, layer):
    model, facts = trained.load(built.home / "model")
    model.network = layer() if layer else model.network
    monkeypatch.setattr(trained, "load", lambda _: (model, facts))
    monkeypatch.setattr(logging.getLogger("torch.onnx"), "level", logging.INFO)
    monkeypatch.setattr(logging.getLogger("onnxscript"), "level", logging.DEBUG)
    with contextlib.suppress(NetworkError):
        onnx_graph.build(built.home / "model", tmp_path, exported.IDENTITY)
    assert logging.getLogger("torch.onnx").level == logging.INFO
    assert logging.getLogger("onnxscript").level == logging.DEBUG


def test_opening_the_model_prints_no_warning(built, capfd):
    onnxruntime.InferenceSession(built.unverified, providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
