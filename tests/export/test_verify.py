"""Verification as a whole, and each of its checks on a graph with exactly the fault that it detects."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from markdown_it import MarkdownIt
from onnx import numpy_helper
from PIL import Image

import exported
from convoy.core import files
from convoy.core.errors import DataError, VerificationError
from convoy.export import card, latency, verify
from convoy.export import comparison as comparisons
from convoy.export.comparison import Comparison, ReferencePredictions
from convoy.export.onnx_model import OnnxModel
from convoy.images.resize import Geometry
from deliveries import ONE_COLOUR
from exported import LIMITS

LOOSE = LIMITS.model_copy(update={"max_label_flips": 1000, "max_probability_gap": 1.0})
GEOMETRY = Geometry(12, "squash")


def verify_in(home, **limits):
    folders = (home / name for name in ("deploy", "data", "dataset", "evaluation"))
    return verify.verify(*folders, LIMITS.model_copy(update=limits))


@pytest.fixture
def error_of(monkeypatch):
    """Verify a project in this process, which has torch, without timing; return the error message, or ""."""
    figures = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "images_per_second": 3.0}
    timed = {"image_px": 12, "runs": 10, "threads": 1, "batch": 32, "onnx": figures, "eager": figures}
    monkeypatch.setattr(latency, "measure", lambda *_: timed)
    monkeypatch.setattr(verify, "_refuse_torch", lambda: None)

    def run(project, error=VerificationError, **limits):
        try:
            verify_in(project.home, **limits)
        except error as caught:
            assert not project.model.exists()
            return str(caught)
        assert project.model.is_file()
        return ""

    return run


@pytest.fixture(scope="module")
def model(built):
    return OnnxModel(built.unverified)


@pytest.fixture(scope="module")
def verification(verified):
    return files.read_json(verified[0].home / "deploy" / "verification.json")


@pytest.fixture(scope="module")
def reference(built):
    return ReferencePredictions.load(built.home / "evaluation")


@pytest.fixture(scope="module")
def sample(built, model, reference):
    return verify.compare_from_files(model, built.home / "data", reference, GEOMETRY, LIMITS)[2]


@pytest.fixture
def predictions(project):
    """The file of measured predictions of a project, to be changed."""
    return project.home / "evaluation" / "predictions.parquet"


def with_shifted_mean(path, shift):
    graph = onnx.load(path)
    (mean,) = [constant for constant in graph.graph.initializer if constant.name == "deployable.mean"]
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(shift), mean.name))
    onnx.save(graph, path)


def test_a_faithful_graph_is_renamed_unchanged_by_a_process_without_torch(built, verified, verification):
    project, outcome = verified
    assert outcome["torch"] is False
    assert verification["torch_imported"] is False
    assert not project.unverified.exists()
    assert project.model.read_bytes() == built.unverified.read_bytes()
    assert verification["model"]["sha256"] == hashlib.sha256(project.model.read_bytes()).hexdigest()
    assert verification["model"]["identity"]["run_id"] == "run-7"


def test_a_process_that_has_imported_torch_is_refused(built):
    assert torch
    with pytest.raises(VerificationError, match=r"torch is imported .*export\.py verify"):
        verify_in(built.home)


def test_the_metrics_cover_the_whole_test_split(verified, verification):
    project, outcome = verified
    deploy = outcome["metrics"]["deploy"]
    summary = files.read_json(project.home / "evaluation" / "summary.json")
    assert deploy["accuracy"] == summary["test"]["accuracy"]
    assert deploy["label_flips"] == 0
    assert 0 <= deploy["max_probability_gap"] < 1e-5
    assert deploy["size_mb"] == project.model.stat().st_size / 1e6
    for kind in ("", "eager_"):
        assert deploy[f"{kind}latency_ms_p95"] >= deploy[f"{kind}latency_ms_p50"] > 0
        assert deploy[f"{kind}images_per_second"] > 0
    assert not (project.home / "deploy" / latency.EAGER).exists()
    checks = verification["checks"]
    assert checks[0]["images"] == summary["test"]["images"] > 20
    assert [check["check"] for check in checks] == [
        "whole test split from delivered files",
        *(f"batches of {size}" for size in (1, 2, 7, 64)),
        "odd image sizes, raw against packed",
    ]


def test_the_control_detects_a_mean_that_is_off_by_one_step_of_a_pixel(verification):
    control = verification["negative_control"]
    assert control["caught"] is True
    assert control["mean_shift"] == pytest.approx(1 / 255)
    assert control["probability_gap"] > control["max_probability_gap"]


def test_the_code_on_the_model_card_runs_and_names_a_class(verified, tmp_path):
    project, _ = verified
    card = (project.home / "deploy" / "model_card.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 18
    shutil.copy(project.model, tmp_path / "model.onnx")
    Image.fromarray(project.noisy(5, 1)[0]).save(tmp_path / "image.png")
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    label, probability = output.rsplit(" ", 1)
    assert label in {"Bär", "cat|dog", "x"}
    assert 1 / 3 <= float(probability) <= 1


def test_the_model_card_keeps_class_names_inside_their_cells(verified):
    card = (verified[0].home / "deploy" / "model_card.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if ">cat" in line]
    assert row.startswith("| <code>cat&#124;dog</code> | ")
    assert row.count("|") == 7


def test_a_class_that_is_only_trained_is_carried_through_and_measured_nowhere(empty):
    noise = {
        name: exported.Project.noisy(n, images)
        for n, (name, images) in enumerate({"a": 30, "b": 30, "rare": 2}.items())
    }
    project = empty.export(noise, rare="train_only")
    assert project.verify()["metrics"]["deploy"]["label_flips"] == 0
    facts = files.read_json(project.home / "dataset" / "dataset.json")
    assert facts["classes"] == ["a", "b", "rare"]
    assert [facts["counts"][split]["rare"] for split in ("train", "val", "test")] == [2, 0, 0]
    test = files.read_json(project.home / "evaluation" / "summary.json")["test"]
    per_class = test["per_class"]
    assert per_class["rare"] == {"precision": None, "recall": None, "f1": None, "images": 0}
    assert test["macro_f1"] == (per_class["a"]["f1"] + per_class["b"]["f1"]) / 2
    report = (project.home / "evaluation" / "report.html").read_text(encoding="utf-8")
    row = report.split('scope="row">rare</th>')[1].split("</tr>")[0]
    assert row.count("\N{EN DASH}") == 3
    assert "meter" not in row
    assert "Macro F1 of 2 classes" in report
    card = (project.home / "deploy" / "model_card.md").read_text(encoding="utf-8")
    assert "| 2 | 0 | 0 | \N{EN DASH} | \N{EN DASH} |" in card
    assert "\N{EN DASH}: not measured" in card


def test_no_class_name_is_markup_on_the_model_card(verified):
    project, _ = verified
    data = ReferencePredictions.load(project.home / "evaluation").summary
    hostile = ("![x](https://evil.example/a.png)", "[y](https://evil.example)", "https://evil.example", "<img src=x onerror=a>",
               "`a`](b)", "a\nb\u202ec")  # fmt: skip
    data["network"] = hostile[0]
    data["classes"] = list(hostile)
    data["counts"] = {split: dict.fromkeys(hostile, 1) for split in data["counts"]}
    data["test"]["per_class"] = dict.fromkeys(hostile, next(iter(data["test"]["per_class"].values())))
    verification = files.read_json(project.home / "deploy" / "verification.json")
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.render(verification, data))
    inner = [child for token in parsed for child in token.children or ()]
    assert not [child for child in inner if child.type in {"image", "link_open"}]
    assert {child.content for child in inner if child.type == "html_inline"} <= {"<code>", "</code>"}
    shown = {child.content for child in inner if child.type == "code_inline"}
    assert {*hostile[:4], r"a\nb<U+202E>c"} <= shown


def test_a_graph_with_other_predictions_is_refused_with_its_worst_image(project, predictions, error_of):
    project.model.write_bytes(b"of an earlier export")
    with_shifted_mean(project.unverified, 0.1)
    message = error_of(project)
    assert "whole test split from delivered files" in message
    assert "export.max_probability_gap is 0.0001" in message
    paths = pq.read_table(predictions).column("path").to_pylist()
    assert message.split("Worst image: ")[1].splitlines()[0] in paths
    assert "  expected " in message
    assert "dvc repro --force evaluate export" in message
    kept = {path.name for path in (project.home / "deploy").iterdir()}
    assert kept == {"model.unverified.onnx", latency.EAGER}


def test_a_flip_is_allowed_only_by_params(project, predictions, error_of):
    table = pq.read_table(predictions).to_pydict()
    # Two classes of the first image change places: one flip, with a gap that the loose limit allows.
    first = table["probabilities"][0]
    order = np.argsort(first)
    first[order[-1]], first[order[-2]] = first[order[-2]], first[order[-1]]
    classes = files.read_json(project.home / "evaluation" / "summary.json")["classes"]
    table["predicted"][0] = classes[int(order[-2])]
    pq.write_table(pa.table(table), predictions)
    message = error_of(project, max_probability_gap=0.999)
    assert "1 of" in message
    assert f"Worst image: {table['path'][0]}" in message
    assert error_of(project, max_label_flips=1, max_probability_gap=0.999) == ""


def test_limits_that_accept_every_graph_are_refused_and_nan_is_refused_by_any(project, error_of):
    everything = {"max_probability_gap": 1.0, "max_label_flips": 1000}
    message = error_of(project, **everything)
    assert "mean is off by 1," in message
    assert "export.max_label_flips: 0" in message
    with_shifted_mean(project.unverified, float("nan"))
    message = error_of(project, **everything)
    assert "largest probability gap is inf" in message
    assert "exported NaN" in message


def test_a_test_image_that_has_changed_is_named(project, predictions, error_of):
    paths = pq.read_table(predictions).column("path").to_pylist()
    Image.new("RGB", (9, 9), "red").save(project.home / "data" / paths[4])
    message = error_of(project, DataError)
    assert f"1 of {len(paths)} images have changed" in message
    assert paths[4] in message


def test_inconsistent_predictions_are_refused(predictions, project, error_of):
    table = pq.read_table(predictions).to_pydict()
    table["predicted"] = ["x"] * len(table["predicted"])
    pq.write_table(pa.table(table), predictions)
    assert re.search(r"predictions\.parquet.*dvc repro --force evaluate", error_of(project), re.DOTALL)


@pytest.mark.parametrize(
    ("file", "command"),
    [("evaluation/summary.json", "dvc repro evaluate"), ("deploy/model.unverified.onnx", "dvc repro export")],
)
def test_missing_inputs_are_named_with_the_command_that_makes_them(project, error_of, file, command):
    (project.home / file).unlink()
    assert re.search(rf"{file} does not exist.*{command}", error_of(project))


def test_a_graph_of_other_classes_is_refused(project, error_of):
    graph = onnx.load(project.unverified)
    (classes,) = [entry for entry in graph.metadata_props if entry.key == "convoy.classes"]
    classes.value = json.dumps(["a", "b", "c"])
    onnx.save(graph, project.unverified)
    assert "has the classes a, b, c;" in error_of(project)


def test_verifying_again_leaves_the_verified_model_alone(project, error_of):
    assert error_of(project) == ""
    with pytest.raises(VerificationError, match=r"model\.unverified\.onnx does not exist"):
        verify_in(project.home)
    assert project.model.is_file()
    assert (project.home / "deploy" / "verification.json").is_file()


GRAYS = [np.full((7 + n % 3, 20, 3), n, np.uint8) for n in range(0, 200, 2)]
"""Statistics without spread, predictions without contrast: the control must still work."""


@pytest.mark.parametrize(
    ("fit", "images"),
    [
        ("letterbox", {"dark": GRAYS[:50], "light": GRAYS[50:]}),
        ("crop", {"a": exported.Project.noisy(0, 15), "b": exported.Project.noisy(1, 15)}),
    ],
)
def test_letterboxed_gray_and_cropped_images_are_verified(empty, error_of, fit, images):
    assert error_of(empty.export(images, fit=fit, checks=ONE_COLOUR)) == ""


def test_a_graph_that_keeps_a_share_of_the_middle_is_verified(empty, error_of):
    images = {name: exported.Project.noisy(seed, 15) for seed, name in enumerate("ab")}
    project = empty.export(images, fit="crop", crop_share=0.75)
    assert json.loads((project.home / "dataset" / "dataset.json").read_text())["crop_share"] == 0.75
    assert error_of(project) == ""
    assert "12 x 12 pixels (crop to the middle 75 % of the shorter side" in (
        project.home / "deploy" / "model_card.md"
    ).read_text(encoding="utf-8")
    assert "75&#8239;% of the shorter side" in (project.home / "evaluation" / "report.html").read_text(
        encoding="utf-8"
    )
    served = onnx.load(project.model)
    assert {entry.key: entry.value for entry in served.metadata_props}["convoy.crop_share"] == "0.75"
    (share,) = [constant for constant in served.graph.initializer if constant.name == "geometry_crop_share"]
    share.CopyFrom(onnx.numpy_helper.from_array(np.array(0.8), share.name))
    onnx.save(served, project.unverified)
    project.model.unlink()
    assert "does not reproduce the measured predictions" in error_of(project)


@pytest.mark.usefixtures("error_of")
def test_what_was_measured_on_validation_images_is_marked(empty):
    images = {name: exported.Project.noisy(seed, 20) for seed, name in enumerate("ab")}
    project = empty.export(images, splits={"val": 0.4, "test": "val"})
    evaluation = project.home / "evaluation"
    summary = files.read_json(evaluation / "summary.json")
    assert summary["split"] == "val"
    assert "test" not in summary
    assert summary["val"]["images"] == sum(summary["counts"]["val"].values()) > 5
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "on the val split" in page
    assert "There are no test images" in page
    deploy = verify_in(project.home)["deploy"]
    assert deploy["accuracy_on_val"] == summary["val"]["accuracy"]
    assert "accuracy" not in deploy
    verification = files.read_json(project.home / "deploy" / "verification.json")
    assert verification["split"] == "val"
    assert verification["checks"][0]["check"] == "whole val split from delivered files"
    card = (project.home / "deploy" / "model_card.md").read_text(encoding="utf-8")
    assert "validation images are classified correctly" in card
    assert "There are no test images" in card
    assert "test images are classified" not in card


def test_transparent_images_are_verified_over_the_background_that_they_were_trained_with(empty, error_of):
    """Noise behind a drawn alpha channel: over another background these are other images."""
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (30, 12, 12, 4), dtype=np.uint8) for name in ("a", "b")}
    project = empty.export(images, background="black")
    graph = onnx.load(project.unverified)
    properties = {entry.key: entry for entry in graph.metadata_props}
    assert properties["convoy.background"].value == "black"
    assert "transparency over black" in properties["convoy.input"].value
    assert error_of(project) == ""
    properties["convoy.background"].value = "white"
    onnx.save(graph, project.unverified)
    assert "does not reproduce the measured predictions" in error_of(project)
    properties["convoy.background"].value = "url(#)"
    onnx.save(graph, project.unverified)
    assert "convoy.background 'url(#)', which is no colour" in error_of(project)


def test_the_sample_holds_test_images_as_they_were_packed(built, sample, reference):
    images_u8 = np.load(built.home / "dataset" / "images" / "test.npy")
    assert sample.paths == reference.paths
    assert np.array_equal(sample.squares_u8, images_u8)
    assert np.array_equal(sample.probabilities, reference.probabilities)


def test_the_sample_stays_bounded(built, model, reference, monkeypatch):
    monkeypatch.setattr(comparisons, "SAMPLE_BYTES", 5 * 12 * 12 * 3)
    comparison, _, sample, _ = verify.compare_from_files(
        model, built.home / "data", reference, GEOMETRY, LIMITS
    )
    assert sample.paths == reference.paths[:5]
    assert comparison.images == len(reference.paths)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_graph_that_is_wrong_in_batches_of_one_size_is_detected(model, sample, size):
    largest = min(size, len(sample.paths))

    def wrong(images_u8):
        probabilities = model(images_u8)
        return probabilities[:, ::-1] if len(images_u8) == largest else probabilities

    checks = verify.compare_batches(wrong, sample, LIMITS)
    assert f"batches of {size}" in [check.name for check in checks if not check.within_limits]
    assert all(check.within_limits for check in verify.compare_batches(model, sample, LIMITS))


def test_a_graph_that_resizes_differently_is_detected_by_odd_sizes(built, model):
    graph = onnx.load(built.unverified)
    (resize,) = [node for node in graph.graph.node if node.op_type == "Resize"]
    (outside,) = [attribute for attribute in resize.attribute if attribute.name == "exclude_outside"]
    outside.i = 0  # onnxruntime's default
    wrong = OnnxModel(graph.SerializeToString())
    assert not verify.compare_odd_sizes(wrong, GEOMETRY, LIMITS).within_limits
    faithful = verify.compare_odd_sizes(model, GEOMETRY, LIMITS)
    assert faithful.within_limits
    assert faithful.images == 14


def test_a_looser_limit_needs_a_larger_shift_to_be_exceeded(built, sample):
    loose = LIMITS.model_copy(update={"max_label_flips": 1000})
    sharp, _ = verify.negative_control(built.unverified, sample, loose)
    looser = loose.model_copy(update={"max_probability_gap": 0.1})
    blunt, detected = verify.negative_control(built.unverified, sample, looser)
    assert sharp == pytest.approx(1 / 255)
    assert blunt > sharp
    assert detected.gap > 0.1


def rows(*probabilities):
    return np.array(probabilities, np.float32)


@pytest.fixture
def comparison():
    return Comparison("all", LIMITS.model_copy(update={"max_probability_gap": 0.01}))


def test_equal_predictions_are_within_the_limits_and_figures_add_up_over_batches(comparison):
    same = rows([0.7, 0.3], [0.1, 0.9])
    comparison.add(["a", "b"], same, same)
    assert comparison.within_limits
    assert (comparison.images, comparison.flips, comparison.gap) == (2, 0, 0.0)
    comparison.add(["c"], rows([0.6, 0.4]), rows([0.4, 0.6]))
    comparison.add(["d", "e"], rows([0.9, 0.1], [0.5, 0.5]), rows([0.4, 0.6], [0.5, 0.5]))
    assert (comparison.images, comparison.flips) == (5, 2)
    assert comparison.gap == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("expected", "actual"), [([0.9, 0.1], [0.8, 0.2]), ([0.501, 0.499], [0.499, 0.501])], ids=["gap", "flip"]
)
def test_a_gap_or_a_flip_alone_exceeds_the_limits(comparison, expected, actual):
    comparison.add(["a"], rows(expected), rows(actual))
    assert not comparison.within_limits


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["expected", "actual", "both"])
def test_nan_and_infinity_exceed_all_limits(number, where):
    comparison = Comparison("all", LOOSE)
    probabilities = {"expected": rows([0.5, 0.5]), "actual": rows([0.5, 0.5])}
    for key in ("expected", "actual") if where == "both" else (where,):
        probabilities[key][0, 1] = number
    with np.errstate(invalid="ignore"):
        comparison.add(["a"], **probabilities)
    assert not comparison.within_limits
    assert "NaN" in comparison.explain(["x", "y"])


def test_the_worst_image_is_a_flip_before_a_larger_gap_across_batches_and_inside_one(comparison):
    batch = ["gap", "flip", "small"]
    expected = rows([0.99, 0.01], [0.51, 0.49], [0.51, 0.49])
    actual = rows([0.60, 0.40], [0.49, 0.51], [0.51, 0.49])
    for n, name in enumerate(batch):
        comparison.add([name], expected[n : n + 1], actual[n : n + 1])
    together = Comparison("all", comparison.limits)
    together.add(batch, expected, actual)
    for check in (comparison, together):
        figures, *worst = check.explain(["cat", "dog"]).splitlines()
        assert "1 of 3 images" in figures
        assert "gap is 0.39" in figures
        assert worst == [
            "Worst image: flip",
            "  expected cat 0.510000, dog 0.490000",
            "  exported dog 0.510000, cat 0.490000",
        ]
