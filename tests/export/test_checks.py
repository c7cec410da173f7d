"""Each check is given a graph with exactly the fault that it is there to find."""

import numpy as np
import onnx
import pytest

from convoy.core.errors import DataError, VerificationError
from convoy.export import checks
from convoy.export.measured import Measured
from convoy.export.onnx_model import OnnxModel
from convoy.export.settings import ExportParams
from convoy.images.resize import Geometry

LIMITS = ExportParams(max_label_flips=0, max_probability_gap=1e-4, latency_runs=10)
GEOMETRY = Geometry(12, "squash")


@pytest.fixture(scope="module")
def served(built):
    return OnnxModel(built.unproven)


@pytest.fixture(scope="module")
def measured(built):
    return Measured.load(built.home / "evaluation")


@pytest.fixture(scope="module")
def sample(built, served, measured):
    return checks.from_files(served, built.home / "data", measured, GEOMETRY, LIMITS)[2]


def test_the_sample_holds_test_images_as_they_were_packed(built, sample, measured):
    images_u8 = np.load(built.home / "dataset" / "images.npy")[-len(measured.paths) :]
    assert len(sample.places) == len(measured.paths)
    assert np.array_equal(sample.squares_u8, images_u8[sample.places])


def test_the_sample_stays_bounded(built, served, measured, monkeypatch):
    monkeypatch.setattr(checks, "SAMPLE_BYTES", 5 * 12 * 12 * 3)
    comparison, _, sample = checks.from_files(served, built.home / "data", measured, GEOMETRY, LIMITS)
    assert sample.places.tolist() == [0, 1, 2, 3, 4]
    assert comparison.images == len(measured.paths)


def test_a_file_that_decoded_when_it_was_prepared_and_no_longer_does_is_named(
    built, served, measured, monkeypatch
):
    def decode(content):
        raise DataError("cannot be decoded: this Pillow is older")

    monkeypatch.setattr(checks, "decode", decode)
    with pytest.raises(
        VerificationError, match=r"\.png was prepared, and now it cannot be decoded: this Pillow"
    ):
        checks.from_files(served, built.home / "data", measured, GEOMETRY, LIMITS)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_graph_that_errs_in_batches_of_one_size_is_caught(served, measured, sample, size):
    biggest = min(size, len(sample.places))

    def errs(images_u8):
        found = served(images_u8)
        if len(images_u8) == biggest:
            found = found[:, ::-1]
        return found

    within = {one.name: one.within for one in checks.in_batches(errs, measured, sample, LIMITS)}
    assert within[f"batches of {size}"] is False
    assert all(checks.in_batches(served, measured, sample, LIMITS)[n].within for n in range(4))


def test_a_graph_that_resizes_otherwise_is_caught_by_odd_sizes(built):
    graph = onnx.load(built.unproven)
    (resize,) = [node for node in graph.graph.node if node.op_type == "Resize"]
    (outside,) = [attribute for attribute in resize.attribute if attribute.name == "exclude_outside"]
    outside.i = 0  # onnxruntime's default
    assert not checks.odd_sizes(OnnxModel(graph.SerializeToString()), GEOMETRY, LIMITS).within


def test_a_faithful_graph_passes_odd_sizes(served):
    comparison = checks.odd_sizes(served, GEOMETRY, LIMITS)
    assert comparison.within
    assert comparison.images == 14


def test_a_graph_whose_mean_cannot_be_found_has_no_control(built, measured, sample, tmp_path):
    graph = onnx.load(built.unproven)
    for node in graph.graph.node:
        node.input[:] = ["renamed" if name == "deployable.mean" else name for name in node.input]
    (mean,) = [one for one in graph.graph.initializer if one.name == "deployable.mean"]
    mean.name = "renamed"
    onnx.save(graph, tmp_path / "renamed.onnx")
    with pytest.raises(VerificationError, match=r"no constant deployable\.mean.*dvc repro --force export"):
        checks.negative_control(tmp_path / "renamed.onnx", measured, sample, LIMITS)


def test_a_control_that_needs_a_larger_shift_says_which_one_was_noticed(built, measured, sample):
    loose = LIMITS.model_copy(update={"max_label_flips": 1000})
    sharp, _ = checks.negative_control(built.unproven, measured, sample, loose)
    blunt, caught = checks.negative_control(
        built.unproven, measured, sample, loose.model_copy(update={"max_probability_gap": 0.1})
    )
    assert sharp == pytest.approx(1 / 255)
    assert blunt > sharp
    assert caught.gap > 0.1
