import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest

from convoy.core import files
from convoy.core.errors import DataError, NetworkError
from convoy.core.intervals import wilson
from convoy.evaluation.evaluate import confusion, evaluate, summarise
from convoy.evaluation.settings import EvaluateParams
from convoy.models import trained

PARAMS = EvaluateParams(batch_size=16, worst_images=3, feature_classes=2)


@pytest.fixture
def copied(measured_things, tmp_path):
    return shutil.copytree(measured_things, tmp_path / "copy")


def test_accuracy_and_its_interval_are_measured_on_the_test_split(evaluated):
    _, metrics = evaluated
    assert (metrics["test"]["images"], metrics["test"]["accuracy"]) == (40, 0.9)
    assert metrics["test"]["accuracy_low"] == pytest.approx(0.7695, abs=5e-4)
    assert metrics["test"]["accuracy_high"] == pytest.approx(0.9604, abs=5e-4)


def test_a_temperature_changes_probabilities_and_the_calibration_error_and_no_class(
    evaluated, copied, tmp_path
):
    file = copied / "model" / "model.json"
    files.write_json(file, files.read_json(file) | {"temperature": 3.0})
    metrics = evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")["test"]
    before, after = (
        pq.read_table(folder / "predictions.parquet").to_pydict()
        for folder in (evaluated[0], tmp_path / "out")
    )
    sharp, soft = (np.array(each["probabilities"]) for each in (before, after))
    assert after["predicted"] == before["predicted"]
    assert soft == pytest.approx(
        np.exp(np.log(sharp) / 3) / np.exp(np.log(sharp) / 3).sum(1, keepdims=True), abs=1e-5
    )
    was = evaluated[1]["test"]
    assert was["ece"] == was["ece_uncalibrated"] == pytest.approx(abs(sharp.max(1).mean() - 0.9), abs=1e-5)
    assert metrics["ece_uncalibrated"] == pytest.approx(was["ece"], abs=1e-5)
    assert metrics["ece"] > 0.03 + was["ece"]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{metrics['ece']:.4f}" in report
    assert f"{metrics['ece_uncalibrated']:.4f} before temperature 3" in report
    assert "before temperature" not in (evaluated[0] / "report.html").read_text(encoding="utf-8")


def test_every_prediction_has_the_source_file_of_its_row(evaluated):
    table = pq.read_table(evaluated[0] / "predictions.parquet").to_pylist()
    sources = [(line["row"], line["path"], line["sha256"]) for line in table]
    assert sources == [(row - 12, f"class/{row:02}.png", f"{row:064x}") for row in range(12, 52)]
    first = table[0]
    assert (first["label"], first["predicted"]) == ("light & grey", "<b>dark</b>")
    assert sum(first["probabilities"]) == pytest.approx(1)
    assert first["probabilities"][0] > 0.5


def test_the_confusion_plot_has_a_line_per_image(evaluated):
    lines = (evaluated[0] / "confusion.csv").read_text().splitlines()
    assert lines[0] == "actual,predicted"
    assert len(lines) == 41
    assert lines.count("light & grey,<b>dark</b>") == 1
    assert lines.count("<b>dark</b>,light & grey") == 3


def test_no_class_name_is_a_formula_in_the_confusion_plot(copied, tmp_path):
    dataset, model = copied / "dataset", copied / "model"
    for file in (dataset / "dataset.json", model / "model.json"):
        file.write_text(file.read_text(encoding="utf-8").replace("light & grey", "=1+1"), encoding="utf-8")
    evaluate(dataset, model, PARAMS, tmp_path / "out")
    lines = (tmp_path / "out" / "confusion.csv").read_text(encoding="utf-8").splitlines()
    assert lines.count("'=1+1,<b>dark</b>") == 1


def test_the_summary_names_network_data_and_metrics(evaluated):
    summary = files.read_json(evaluated[0] / "summary.json")
    assert summary["network"] == "brightness"
    assert summary["data_hash"] == "0" * 64
    assert sum(summary["counts"]["test"].values()) == 40
    per_class = summary["test"].pop("per_class")
    assert set(per_class) == set(summary["classes"])
    assert summary["test"] == evaluated[1]["test"]


def test_features_are_drawn_for_the_first_test_image_of_each_class_in_the_order_of_the_classes(evaluated):
    page = (evaluated[0] / "features.html").read_text(encoding="utf-8")
    assert re.findall(r'title="(.*?)"', page) == ["class/13.png", "class/12.png"]
    assert page.index("class/13.png") > page.index("<h2>&lt;b&gt;dark&lt;/b&gt;</h2>")
    assert "the first image that was measured, of 2 of 2 classes" in page


@pytest.mark.parametrize(("classes", "paths"), [(1, ["class/13.png"]), (0, None)])
def test_features_are_drawn_for_no_more_classes_than_configured(measured_things, tmp_path, classes, paths):
    params = PARAMS.model_copy(update={"feature_classes": classes})
    evaluate(measured_things / "dataset", measured_things / "model", params, tmp_path)
    page = tmp_path / "features.html"
    assert page.exists() == (paths is not None)
    if paths:
        assert re.findall(r'title="(.*?)"', page.read_text(encoding="utf-8")) == paths


def test_a_network_that_outputs_nan_is_refused_before_anything_is_written(copied, tmp_path):
    weights = copied / "model" / "weights.pt"
    torch.save({name: value * torch.nan for name, value in torch.load(weights).items()}, weights)
    message = r"network brightness outputs NaN for 40 of 40 .* class/12\.png.*train\.lr"
    with pytest.raises(NetworkError, match=message):
        evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_classes_is_refused(copied, tmp_path):
    content = files.read_json(copied / "model" / "model.json")
    files.write_json(copied / "model" / "model.json", content | {"classes": ["cat", "dog"]})
    with pytest.raises(NetworkError, match=r"trained for the classes cat, dog; .*dvc repro train"):
        evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")


def test_a_test_image_missing_in_the_manifest_is_an_error(copied, tmp_path):
    manifest = copied / "dataset" / "manifest.parquet"
    table = pq.read_table(manifest)
    pq.write_table(table.filter(np.array(table.column("row")) != 20), manifest)
    with pytest.raises(DataError, match=r"for row 20 and 0 other rows .*dvc repro --force prepare"):
        evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (100, 100, 0.9630, 1),
    ],
)
def test_the_interval_is_the_one_of_newcombe_1998_table_1_method_3(correct, images, low, high):
    assert wilson(correct, images) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_interval_is_the_one_of_scipy(confidence):
    for images in (1, 2, 29, 369, 10_000):
        for correct in {0, 1, images // 3, images - 1, images}:
            expected = binomtest(correct, images).proportion_ci(confidence, method="wilson")
            assert wilson(correct, images, confidence) == pytest.approx(
                (expected.low, expected.high), abs=1e-12
            )


@pytest.mark.filterwarnings("error")
def test_figures_equal_those_of_scikit_learn_to_the_last_digit_and_a_class_without_images_has_none():
    """Computed by scikit-learn 1.9's precision_recall_fscore_support and confusion_matrix."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    predicted = np.array([0, 0, 1, 2, 1, 1, 0, 2, 1, 2])
    summary = summarise(confusion(labels, predicted, 5), list("abcde"))
    figures = {
        name: [values[key] for key in ("precision", "recall", "f1", "images")]
        for name, values in summary["per_class"].items()
    }
    assert figures == {
        "a": [0.6666666666666666, 0.5, 0.5714285714285714, 4],
        "b": [0.5, 0.6666666666666666, 0.5714285714285714, 3],
        "c": [0.3333333333333333, 0.5, 0.4, 2],
        "d": [0.0, 0.0, 0.0, 1],
        "e": [None, None, None, 0],
    }
    assert summary["macro_f1"] == 0.3857142857142857
    assert (summary["accuracy"], summary["images"]) == (0.5, 10)
    single = summarise(np.eye(2, dtype=np.int64), ["a", "b"])["per_class"]["a"]
    assert single == {"precision": 1, "recall": 1, "f1": 1, "images": 1}


def test_rows_of_the_confusion_are_actual_and_columns_predicted_whichever_classes_occur():
    counts = confusion(np.array([0, 0, 1]), np.array([0, 2, 1]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.fixture
def model(measured_things):
    return trained.load(measured_things / "model")[0]


def test_without_test_images_the_validation_images_are_measured_under_another_name(copied, tmp_path):
    dataset = copied / "dataset"
    images_u8 = [np.load(dataset / "images" / f"{split}.npy") for split in ("val", "test")]
    np.save(dataset / "images" / "val.npy", np.concatenate(images_u8))
    np.save(dataset / "images" / "test.npy", images_u8[1][:0])
    facts = files.read_json(dataset / "dataset.json")
    facts["splits"] |= {"val": [8, 52], "test": [52, 52]}
    files.write_json(dataset / "dataset.json", facts)
    metrics = evaluate(dataset, copied / "model", PARAMS, tmp_path / "out")
    assert set(metrics) == {"measured_on_val", "labels"}
    assert metrics["measured_on_val"]["images"] == metrics["labels"]["checked"] == 44
    summary = files.read_json(tmp_path / "out" / "summary.json")
    assert (summary["split"], summary["val"]["images"]) == ("val", 44)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "There are no test images" in page
    assert "validation and test split" not in page


@pytest.fixture
def images_u8():
    return np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def test_the_batch_size_changes_no_answer_and_no_image_is_left_out(model, images_u8):
    whole = trained.predict_logits(model, images_u8, 10)
    assert whole.shape == (10, 2)
    assert whole.dtype == np.float32
    for size in (1, 3, 64):
        np.testing.assert_allclose(trained.predict_logits(model, images_u8, size), whole, atol=1e-6)


def test_what_training_computed_in_does_not_reach_the_measurement(model, images_u8):
    expected = trained.predict_logits(model, images_u8, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(trained.predict_logits(model, images_u8, 10), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_processors_answers(model, images_u8, monkeypatch):
    on_gpu = trained.predict_logits(model, images_u8, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    np.testing.assert_allclose(trained.predict_logits(model, images_u8, 4), on_gpu, atol=1e-5)
