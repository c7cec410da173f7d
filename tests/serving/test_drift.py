"""A service measures some of the images that it answers and compares them with its model's baseline."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import fixed_models
from convoy.core import contract
from convoy.data.drift import FEW_IMAGES
from convoy.serving import drift
from convoy.serving.drift import DriftMetrics, DriftWindow
from services import post


@pytest.fixture
def trained(built, tmp_path):
    """A model with a baseline beside it."""
    shutil.copy(built.home / "dataset" / contract.BASELINE, tmp_path)
    return SimpleNamespace(model=SimpleNamespace(classes=("Bär", "cat|dog", "x")), folder=tmp_path)


def observe(window, trained, images):
    probabilities = np.full((len(images), 3), 1 / 3, np.float32)
    window(images, probabilities, [None] * len(images), trained)


def dark(count, px=9):
    return [np.full((px, px, 3), number % 3, np.uint8) for number in range(count)]


def test_images_unlike_those_of_training_show_strong_drift(trained):
    window = DriftWindow(per_second=1e9)
    observe(window, trained, dark(200))
    found = window.compare(trained)
    assert found["images"] == 200
    assert found["drift"] == "strong"
    assert found["statistics"][0]["drift"] == "strong"
    assert {"brightness", "classes"} <= {each["statistic"] for each in found["statistics"]}


def test_images_of_training_show_none(trained, built):
    images = [image_u8 for n in range(3) for image_u8 in built.noisy(n, 40)]
    window = DriftWindow(per_second=1e9)
    observe(window, trained, images)
    strong = [each for each in window.compare(trained)["statistics"] if each["drift"] == "strong"]
    # The files were PNG there, and pixels without a file here; every image is answered with the first class.
    assert {each["statistic"] for each in strong} <= {"file_size", "bytes_per_pixel", "classes"}


def test_the_window_keeps_the_latest_and_a_new_model_starts_an_empty_one(trained):
    window = DriftWindow(window=5, per_second=1e9)
    observe(window, trained, dark(20))
    assert window.compare(trained)["images"] == 5
    other = SimpleNamespace(**vars(trained))
    assert window.compare(other)["images"] == 0
    assert window.compare(other)["drift"] == "undecided"


def test_only_so_many_images_per_second_are_measured(trained, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(drift.time, "monotonic", lambda: clock[0])
    window = DriftWindow(per_second=10)
    observe(window, trained, dark(50))
    assert window.compare(trained)["images"] == 0  # no time has passed
    clock[0] += 0.5
    observe(window, trained, dark(50))
    clock[0] += 60  # a second's allowance is kept, no more
    observe(window, trained, dark(50))
    assert window.compare(trained)["images"] == 15


def test_a_comparison_is_reused_for_a_while(trained, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(drift.time, "monotonic", lambda: clock[0])
    window = DriftWindow(per_second=1000)
    clock[0] += 1
    observe(window, trained, dark(2))
    first = window.compare(trained)
    observe(window, trained, dark(2))
    assert window.compare(trained) is first
    clock[0] += drift.COMPARE_SECONDS
    assert window.compare(trained)["images"] == 4


def test_a_model_without_a_baseline_is_a_problem_that_is_stated(trained):
    (trained.folder / contract.BASELINE).unlink()
    assert contract.BASELINE in DriftWindow().compare(trained)["problem"]
    (trained.folder / contract.BASELINE).write_text("{")
    assert "problem" in DriftWindow().compare(trained)


def test_the_service_shows_the_comparison_and_keeps_uncertain_images(start, tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "PER_SECOND", 1e9)
    client = start(keep_uncertain=str(tmp_path / "kept"), min_confidence=0.75)
    for number in (0, 3):
        assert post(client, fixed_models.png(number)).status_code == 200
    shown = client.get("/drift").json()
    assert contract.BASELINE in shown["problem"]
    assert "convoy_drift_images 0.0" in client.get("/metrics").text
    [kept] = (tmp_path / "kept").rglob("*.png")
    assert kept.parent.name == "cat"
    assert kept.name.startswith("0.400-")
    assert kept.read_bytes() == fixed_models.png(3)


def test_metrics_show_the_psi_of_each_statistic_once_there_are_enough_images(trained):
    window = DriftWindow(per_second=1e9)
    metrics = DriftMetrics(window)
    observe(window, trained, dark(drift.LEAST_IMAGES - 1))
    window.refresh(trained)
    assert [len(metric.samples) for metric in metrics.collect()] == [0, 1]
    observe(window, trained, dark(1))
    window.refresh(trained)
    psi, images = metrics.collect()
    assert {sample.labels["statistic"] for sample in psi.samples} >= {"brightness", "classes"}
    assert images.samples[0].value == drift.LEAST_IMAGES
    assert drift.LEAST_IMAGES == FEW_IMAGES, "what `convoy data drift` calls few"
