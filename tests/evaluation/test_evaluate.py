import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from convoy.core import files
from convoy.core.errors import DataError, NetworkError
from convoy.evaluation import report
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams

PARAMS = EvaluateParams(batch_size=16, worst_images=3, feature_classes=2)


@pytest.fixture(scope="module")
def found(measured_things, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    metrics = evaluate(measured_things / "dataset", measured_things / "model", PARAMS, out)
    return out, metrics


@pytest.fixture
def copied(measured_things, tmp_path):
    return shutil.copytree(measured_things, tmp_path / "copy")


def test_accuracy_and_its_interval_are_measured_on_the_test_split(found):
    _, metrics = found
    assert metrics["test"]["images"] == 40
    assert metrics["test"]["accuracy"] == 0.9
    assert metrics["test"]["accuracy_low"] == pytest.approx(0.7695, abs=5e-4)
    assert metrics["test"]["accuracy_high"] == pytest.approx(0.9604, abs=5e-4)


def test_every_prediction_names_the_file_that_its_row_came_from(found):
    table = pq.read_table(found[0] / "predictions.parquet").to_pylist()
    assert [line["row"] for line in table] == list(range(40))
    assert [line["path"] for line in table] == [f"class/{row:02}.png" for row in range(12, 52)]
    assert [line["sha256"] for line in table] == [f"{row:064x}" for row in range(12, 52)]
    first = table[0]
    assert (first["label"], first["predicted"]) == ("light & grey", "<b>dark</b>")
    assert sum(first["probabilities"]) == pytest.approx(1)
    assert first["probabilities"][0] > 0.5


def test_the_confusion_plot_has_a_line_per_image(found):
    lines = (found[0] / "confusion.csv").read_text().splitlines()
    assert lines[0] == "actual,predicted"
    assert len(lines) == 41
    assert lines.count("light & grey,<b>dark</b>") == 1
    assert lines.count("<b>dark</b>,light & grey") == 3


def test_the_summary_says_what_was_measured_on_which_data(found):
    summary = files.read_json(found[0] / "summary.json")
    assert summary["network"] == "thinking_by_brightness"
    assert summary["data_hash"] == "0" * 64
    assert sum(summary["counts"]["test"].values()) == 40
    per_class = summary["test"].pop("per_class")
    assert set(per_class) == set(summary["classes"])
    assert summary["test"] == found[1]["test"]


def test_the_report_needs_nothing_beside_itself(found):
    page = (found[0] / "report.html").read_text(encoding="utf-8")
    assert "90.00" in page
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in page
    assert "<script" not in page


def test_class_names_are_text_in_the_report_and_never_markup(found):
    page = (found[0] / "report.html").read_text(encoding="utf-8")
    assert "<b>dark</b>" not in page
    assert "&lt;b&gt;dark&lt;/b&gt;" in page


def test_the_report_shows_the_most_confident_mistakes_first_and_no_more_than_asked(found, measured_things):
    page = (found[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 3
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.6, 0.4]], np.float32)
    images_u8 = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.array([1, 0, 1, 1])
    mistakes = report.most_confident_mistakes(images_u8, labels, probabilities, "wxyz", ["a", "b"], most=2)
    assert [mistake.path for mistake in mistakes] == ["w", "x"]
    assert mistakes[1].predicted == "b"
    assert mistakes[1].probability == pytest.approx(0.8)
    assert mistakes[1].probability_of_actual == pytest.approx(0.2)


def test_features_are_drawn_for_the_first_test_image_of_each_class_in_the_order_of_the_classes(found):
    page = (found[0] / "features.html").read_text(encoding="utf-8")
    assert re.findall(r'title="(.*?)"', page) == ["class/13.png", "class/12.png"]
    assert page.index("class/13.png") > page.index("<h2>&lt;b&gt;dark&lt;/b&gt;</h2>")
    assert "the first test image of 2 of 2 classes" in page


@pytest.mark.parametrize(("classes", "paths"), [(1, ["class/13.png"]), (0, None)])
def test_features_are_drawn_for_no_more_classes_than_asked(measured_things, tmp_path, classes, paths):
    params = PARAMS.model_copy(update={"feature_classes": classes})
    evaluate(measured_things / "dataset", measured_things / "model", params, tmp_path)
    page = tmp_path / "features.html"
    assert page.exists() == (paths is not None)
    if paths:
        assert re.findall(r'title="(.*?)"', page.read_text(encoding="utf-8")) == paths


def test_a_network_that_answers_with_nan_is_refused_by_name_before_anything_is_written(copied, tmp_path):
    weights = copied / "model" / "weights.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({name: tensor * float("nan") for name, tensor in state.items()}, weights)
    with pytest.raises(
        NetworkError,
        match=r"network thinking_by_brightness answers with NaN for 40 of 40 .* class/12\.png.*train\.lr",
    ):
        evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_classes_is_refused(copied, tmp_path):
    content = files.read_json(copied / "model" / "model.json")
    files.write_json(copied / "model" / "model.json", content | {"classes": ["cat", "dog"]})
    with pytest.raises(NetworkError, match=r"trained for the classes cat, dog; .*dvc repro train"):
        evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")


def test_a_test_image_that_the_manifest_does_not_name_is_an_error(copied, tmp_path):
    manifest = copied / "dataset" / "manifest.parquet"
    table = pq.read_table(manifest)
    pq.write_table(table.filter(np.array(table.column("row")) != 20), manifest)
    with pytest.raises(DataError, match=r"no delivered file for row 20 .*dvc repro --force prepare"):
        evaluate(copied / "dataset", copied / "model", PARAMS, tmp_path / "out")
