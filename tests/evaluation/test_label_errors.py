"""Confident learning on planted label errors; and what the evaluation makes of it."""

import csv
import shutil

import numpy as np
import pytest

from convoy.core import files
from convoy.evaluation import label_errors
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def predictions(images, clarity, classes=5, seed=0):
    """True classes, and the probabilities of a calibrated network that sees them in noise."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, images)
    scores = clarity * np.eye(classes)[true] + random.standard_normal((images, classes))
    return true, softmax(clarity * scores)


def flipped(true, share, classes=5, seed=1):
    random = np.random.default_rng(seed)
    wrong = random.random(len(true)) < share
    return np.where(wrong, (true + random.integers(1, classes, len(true))) % classes, true), wrong


def test_flipped_labels_are_found_and_little_else():
    true, probabilities = predictions(4000, clarity=5)
    labels, wrong = flipped(true, 0.05)
    found = label_errors.find(labels, probabilities)
    hits = wrong[found.rows].sum()
    assert found.accuracy == pytest.approx(0.95, abs=0.01)
    assert found.is_meaningful
    assert hits / len(found.rows) > 0.97
    assert hits / wrong.sum() > 0.97
    assert (found.likely == true[found.rows])[wrong[found.rows]].mean() > 0.97


def test_true_labels_of_an_accurate_network_raise_no_alarm():
    true, probabilities = predictions(4000, clarity=5)
    assert len(label_errors.find(true, probabilities).rows) <= 4


def test_the_list_has_the_smallest_normalised_margin_first():
    true, probabilities = predictions(1000, clarity=4)
    found = label_errors.find(flipped(true, 0.1)[0], probabilities)
    assert len(found.margins) > 50
    assert (np.diff(found.margins) >= 0).all()
    assert found.margins.min() < -0.99
    assert found.margins.max() <= 0


def test_the_example_is_decided_by_the_thresholds_of_the_classes():
    """Thresholds are 0.5 for class 0 and 0.8 for class 1: what exceeds the first is less sure than what misses the second."""
    probabilities = np.array([[0.7, 0.3], [0.3, 0.7], [0.1, 0.9], [0.0, 1.0], [0.5, 0.5]], np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    found = label_errors.find(labels, probabilities)
    assert (found.rows.tolist(), found.likely.tolist()) == ([4], [0])
    assert found.margins.tolist() == [0]


def test_a_class_without_images_and_a_uniform_network_raise_no_alarm():
    labels = np.zeros(10, np.int64)
    assert not len(label_errors.find(labels, np.full((10, 3), 1 / 3, np.float32)).rows)
    sure = np.tile(np.array([[0.0, 1.0, 0.0]], np.float32), (10, 1))
    found = label_errors.find(labels, sure)
    assert not len(found.rows)
    assert not found.is_meaningful


def test_planted_errors_are_counted_listed_and_shown_but_not_removed(evaluated):
    out, metrics = evaluated
    assert metrics["labels"] == {"checked": 44, "suspected": 4}
    with (out / "label_errors.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["path"] for line in lines) == [f"class/{row}.png" for row in (12, 13, 15, 17)]
    first = next(line for line in lines if line["path"] == "class/12.png")
    assert (first["split"], first["label"], first["likely"]) == ("test", "light & grey", "<b>dark</b>")
    assert float(first["probability_of_likely"]) > 0.5 > float(first["probability_of_label"])
    page = (out / "report.html").read_text(encoding="utf-8")
    section = page.split("<h2>Suspected label errors</h2>")[1]
    assert "4 of 44 images" in section
    assert section.count("<figure>") == 3  # `worst_images`
    assert "label_errors.csv" in section
    assert metrics["test"]["images"] == 40


def test_of_a_weak_network_no_image_is_shown_and_no_number_recorded(measured_things, tmp_path):
    copy = shutil.copytree(measured_things, tmp_path / "copy")
    labels = np.load(copy / "dataset/labels.npy")
    labels[20:52] = np.random.default_rng(0).integers(0, 2, 32)
    np.save(copy / "dataset/labels.npy", labels)
    params = EvaluateParams(batch_size=16, worst_images=3, feature_classes=0)
    metrics = evaluate(copy / "dataset", copy / "model", params, tmp_path / "out")
    assert metrics["labels"] == {"checked": 44}
    section = (tmp_path / "out/report.html").read_text(encoding="utf-8").split("Suspected label errors")[1]
    assert "Below 85" in section
    assert "<figure>" not in section
    assert files.read_json(tmp_path / "out/summary.json")["test"]["images"] == 40
