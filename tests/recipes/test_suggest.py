"""What is suggested for a dataset, and that params.yaml takes it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convoy import preflight
from convoy.core import yaml
from convoy.core.errors import DataError, RequestError
from convoy.recipes import recipe, suggest
from convoy.recipes.suggest import Situation
from squares import write_small_images


def situation(**changes):
    usual = {"classes": 10, "train": 50_000, "smallest": 5000, "largest": 5000, "shorter_px": 32}
    usual |= {"symbols": False, "pinned": "", "gpu": "", "cpus": 2}
    return Situation(**usual | changes)


def suggested(monkeypatch, **changes):
    """Suggest for a situation, untimed; check that params.yaml takes the values."""
    monkeypatch.setattr(suggest, "look", lambda folder: situation(**changes))
    monkeypatch.setattr(suggest, "images_per_s", lambda values, seen: 100.0)
    found = suggest.suggest(None)
    preflight.check({key: yaml.inline(value) for key, value in found.values.items()})
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "cifar10-4min"),
        ({"train": 1200, "smallest": 100, "largest": 130}, "digits"),
        ({"shorter_px": 480, "train": 600, "smallest": 60, "largest": 60}, "photos-from-scratch"),
        (
            {"shorter_px": 480, "train": 600, "smallest": 60, "largest": 60, "pinned": "resnet50"},
            "small-photos",
        ),
    ],
)
def test_size_and_number_of_images_choose_the_recipe(project, monkeypatch, changes, expected):
    assert suggested(monkeypatch, **changes).recipe == expected


def test_photos_without_pinned_weights_come_with_the_command_that_pins_them(project, monkeypatch):
    assert "convoy weights use imagenet" in suggested(monkeypatch, shorter_px=480, train=600).reason


def test_the_network_is_that_whose_weights_are_pinned(project, monkeypatch):
    found = suggested(monkeypatch, shorter_px=480, train=600, pinned="resnet50")
    assert found.values["network.name"] == "resnet50"


def test_letters_and_numbers_are_not_mirrored(project, monkeypatch):
    found = suggested(monkeypatch, symbols=True)
    assert "flip" not in str(found.values["train.augment"])
    assert found.values["train.tta"] == "none"
    assert any("mirror" in change.reason for change in found.changes)


@pytest.mark.parametrize("shorter_px", [32, 480])
def test_letters_are_not_mirrored_by_a_recipe_whose_policy_is_a_word(project, monkeypatch, shorter_px):
    found = suggested(monkeypatch, symbols=True, train=600, smallest=60, largest=60, shorter_px=shorter_px)
    assert "flip" not in str(found.values["train.augment"])
    assert all(not isinstance(item, str) or len(item) > 1 for item in found.values["train.augment"])


def test_cifar10_itself_gets_the_measured_recipe_unchanged(project, monkeypatch):
    assert suggested(monkeypatch).changes == ()


def test_smaller_batches_have_smaller_learning_rates(project, monkeypatch):
    photos = recipe.load("photos-from-scratch").values()
    found = suggested(monkeypatch, shorter_px=480, train=120, smallest=60, largest=60, classes=2)
    share = found.values["train.batch_size"] / photos["train.batch_size"]
    assert share < 1
    assert found.values["train.lr"] == pytest.approx(photos["train.lr"] * share, rel=0.05)


def test_few_images_are_shown_more_often(project, monkeypatch):
    usual = recipe.load("digits").values()["train.epochs"]
    found = suggested(monkeypatch, train=40, smallest=20, largest=20, classes=2)
    assert usual < found.values["train.epochs"] <= 100
    assert found.values["train.batch_size"] == 8


def test_imbalanced_classes_are_weighted(project, monkeypatch):
    assert suggested(monkeypatch, smallest=100).values["train.class_weights"] == "effective"
    assert suggested(monkeypatch, smallest=2000).values["train.class_weights"] == "none"


def test_the_minutes_follow_from_the_measured_speed(project, monkeypatch):
    found = suggested(monkeypatch)
    assert found.train_min == pytest.approx(50_000 * found.values["train.epochs"] / 100 / 60)


def prepared(folder):
    """Write a dataset of small images and the columns of its manifest that are read."""
    splits = write_small_images(folder, 32)
    names = [name for name, (start, stop) in splits.items() for _ in range(start, stop)]
    table = {"width": [40] * len(names), "height": [28] * len(names), "split": names}
    pq.write_table(pa.table(table), folder / "manifest.parquet")


def test_a_prepared_dataset_is_looked_at_and_timed(project, run):
    prepared(project / "build/dataset")
    found = json.loads(run("suggest", "--json"))
    assert found["recipe"] == "digits"
    assert found["situation"]["shorter_px"] == 28
    assert found["situation"]["train"] == 30
    assert found["images_per_s"] > 0
    assert found["values"]["network.name"] == "convnet"


def test_what_the_recipe_was_measured_to_reach_is_printed(project, run):
    prepared(project / "build/dataset")
    content = yaml.read(project / "recipes/digits.yaml") | {"measured": "not measured"}
    (project / "recipes/digits.yaml").write_text(yaml.dump(content), encoding="utf-8")
    assert "\nMeasured: not measured\n" in run("suggest")
    assert json.loads(run("suggest", "--json"))["measured"] == "not measured"
    reached = {"accuracy": 0.991, "spread": 0.002, "seeds": 5, "train_min": 0.4, "hardware": "2 cores"}
    content |= {
        "before": ["convoy data use mnist"],
        "measured": reached | {"date": "2026-11-28", "torch": "2.14.1"},
    }
    (project / "recipes/digits.yaml").write_text(yaml.dump(content), encoding="utf-8")
    assert (
        "Measured: 99.1 ± 0.2 % of test images (5 seeds), 0.4 min of training on 2 cores; torch 2.14.1, 2026-11-28 "
        "(on the data of: convoy data use mnist)"
    ) in run("suggest")
    assert json.loads(run("suggest", "--json"))["measured"]["accuracy"] == 0.991


def test_apply_writes_the_values(project, run):
    prepared(project / "build/dataset")
    output = run("suggest", "--apply")
    assert "min of training" in output
    assert yaml.read(project / "params.yaml")["train"]["batch_size"] == 8
    assert "already" in run("suggest", "--apply")


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_a_dataset_without_a_manifest_is_named(project, run, content):
    prepared(project / "build/dataset")
    manifest = project / "build/dataset/manifest.parquet"
    manifest.unlink()
    if content:
        manifest.write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.parquet is missing or damaged.*dvc repro"):
        run("suggest")


def test_data_that_are_not_prepared_yet_are_refused(project, run):
    prepared(project / "build/dataset")
    (project / "data.dvc").write_text(
        f"md5: {'1' * 32}\nfrozen: true\ndeps:\n- path: photos\nouts:\n- md5: {'2' * 32}.dir\n  path: data\n",
        encoding="utf-8",
    )
    lock = f"schema: '2.0'\nstages:\n  prepare:\n    cmd: x\n    deps:\n    - path: data\n      md5: {'3' * 32}.dir\n"
    (project / "dvc.lock").write_text(lock, encoding="utf-8")
    with pytest.raises(
        RequestError, match=r"prepared from other data than data\.dvc imports now.*dvc repro prepare"
    ):
        run("suggest")
    (project / "dvc.lock").write_text(lock.replace("3", "2"), encoding="utf-8")
    assert "min of training" in run("suggest")


def test_a_dataset_that_is_not_prepared_is_named_with_the_command(project, run):
    with pytest.raises(DataError, match="dvc repro prepare"):
        run("suggest")
