"""The documented CIFAR-10 experiment, from the archive to the verified model, by the README's commands."""

import json
import os

import pytest

from clones import clone_working_tree

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


@pytest.mark.skipif("CONVOY_CIFAR10" not in os.environ, reason="CONVOY_CIFAR10 names no archive")
def test_the_documented_experiment_reaches_its_accuracy_without_a_label_flip(tmp_path):
    clone = clone_working_tree(tmp_path / "clone")
    clone.env["OMP_NUM_THREADS"] = str(os.cpu_count())  # alone on the machine, unlike the other tests
    clone.env["PYTHONPATH"] = str(clone.folder / "src")
    clone.run("convoy", "data", "use", os.environ["CONVOY_CIFAR10"])
    clone.run("convoy", "recipe", "apply", "cifar10-4min")
    clone.run("dvc", "repro")
    deploy = json.loads((clone.folder / "build/metrics/export.json").read_text())["deploy"]
    test = json.loads((clone.folder / "build/metrics/evaluate.json").read_text())["test"]
    assert test["images"] == 10_000
    assert deploy["accuracy"] == test["accuracy"] >= 0.89
    assert deploy["label_flips"] == 0
