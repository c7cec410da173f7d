"""The shipped recipes are complete and valid; applying changes params.yaml wholly or not at all."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convoy import preflight
from convoy.cli import app
from convoy.core import yaml
from convoy.core.dataset import Dataset
from convoy.core.errors import NetworkError, RequestError
from convoy.models import spec
from convoy.recipes import recipe
from convoy.training.fit import fit
from convoy.training.settings import TrainParams
from squares import write_small_images

ROOT = Path(__file__).parents[2]

ALWAYS = {
    "data.image_px",
    "data.fit",
    "data.crop_share",
    "data.store_px",
    "network.name",
    "network.weights",
} | {
    f"train.{key}"
    for key in [
        "epochs",
        "batch_size",
        "accumulate",
        "optimizer",
        "momentum",
        "lr",
        "weight_decay",
        "schedule",
        "warmup",
        "clip_norm",
        "loss",
        "label_smoothing",
        "teacher",
        "class_weights",
        "augment",
        "best",
        "early_stop",
        "ema",
        "tta",
        "precision",
        "progressive.start",
    ]
}
"""Keys that every recipe states, so that nothing is left of a recipe that was applied before it."""

RECIPES = recipe.names(ROOT / "recipes")


def test_the_recipes_that_are_documented_exist():
    assert len(RECIPES) >= 12


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_valid_and_states_all_that_another_could_have_changed(project, name):
    values = recipe.load(name).values()
    preflight.check({key: yaml.inline(value) for key, value in values.items()})
    assert values.keys() >= ALWAYS
    if values["train.optimizer"] == "muon":
        assert {key for key in values if key.startswith("train.muon.")} == {
            f"train.muon.{key}"
            for key in recipe.changes({}) or yaml.read(project / "params.yaml")["train"]["muon"]
        }


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if recipe.load(name, ROOT / "recipes").before == []]
)
def test_a_recipe_that_needs_no_data_or_weights_of_others_applies(project, run, name):
    before = (project / "params.yaml").read_text(encoding="utf-8")
    run("apply", name)
    after = (project / "params.yaml").read_text(encoding="utf-8")
    assert re.findall("#.*", after) == re.findall("#.*", before)
    assert recipe.changes(recipe.load(name).values()) == {}


def test_apply_prints_what_changed_and_a_second_time_that_nothing_did(project, run):
    output = run("apply", "cifar10-2min")
    assert "network.name: convnet → airbench_half" in output
    assert "muon.head_lr: 0.05 → 335.0" in output
    assert "dvc repro" in output
    assert "already" in run("apply", "cifar10-2min")


def test_one_recipe_after_another_leaves_nothing_of_the_first_that_counts(project, run):
    run("apply", "cifar10-2min")
    run("apply", "digits")
    kept = yaml.read(project / "params.yaml")["train"]
    shipped = yaml.read(ROOT / "params.yaml")["train"]
    assert {key for key in kept if kept[key] != shipped[key]} == {
        "muon",  # without effect on sgd
        "progressive",  # `full` has none where all images have their full size from the start
    }
    assert kept["progressive"]["start"] == shipped["progressive"]["start"] == 1.0


def test_pretrained_weights_that_are_not_pinned_are_refused_with_the_command(project, run):
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(NetworkError, match="convoy weights use imagenet --network resnet18"):
        run("apply", "small-photos")
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": {"lr": 1000}}, r"train\.lr is 1000"),
        ({"train": {"lrr": 0.1}}, r"train\.lrr, which params\.yaml does not have; did you mean `train\.lr`"),
        ({"data": {"image_px": 4}}, r"data\.image_px is 4"),
        ({"network": {"name": "nothing"}}, r"no network `nothing`"),
    ],
)
def test_a_recipe_with_an_invalid_value_changes_nothing(project, run, changed, message):
    content = yaml.read(project / "recipes/digits.yaml") | {"params": changed}
    (project / "recipes/mine.yaml").write_text(yaml.dump(content), encoding="utf-8")
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(RequestError, match=message):
        run("apply", "mine")
    assert (project / "params.yaml").read_bytes() == before


def test_a_key_that_params_yaml_lacks_is_named_and_nothing_is_written(project, run):
    text = (project / "params.yaml").read_text(encoding="utf-8").replace("\n  lr: ", "\n  # lr: ")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(
        RequestError, match=r"sets train\.lr, which params\.yaml does not have.*git diff params\.yaml"
    ):
        run("apply", "digits")
    assert (project / "params.yaml").read_text(encoding="utf-8") == text


def test_mode_and_link_of_params_yaml_stay(project, run):
    (project / "params.yaml").rename(project / "mine.yaml")
    (project / "mine.yaml").chmod(0o600)
    (project / "params.yaml").symlink_to("mine.yaml")
    run("apply", "cifar10-2min")
    assert (project / "params.yaml").is_symlink()
    assert (project / "mine.yaml").stat().st_mode & 0o777 == 0o600
    assert "airbench_half" in (project / "mine.yaml").read_text(encoding="utf-8")


def test_a_broken_recipe_is_named_beside_the_others(project):
    (project / "recipes/mine.yaml").write_text("title: [", encoding="utf-8")
    result = CliRunner().invoke(app, ["recipe", "list"])
    assert result.exit_code == 1
    assert "mine.yaml" in result.stderr
    assert "cifar10-2min" in result.stdout


def test_an_unknown_recipe_is_answered_with_the_nearest(project, run):
    with pytest.raises(RequestError, match="did you mean `cifar10-2min`"):
        run("show", "cifar10_2min")


def test_a_file_with_an_unknown_key_is_named(project, run):
    (project / "recipes/mine.yaml").write_text("tittle: x\n", encoding="utf-8")
    with pytest.raises(
        RequestError, match=r"mine\.yaml.*\n(.*\n)*.*unknown key tittle; did you mean `title`"
    ):
        run("show", "mine")


def test_a_folder_without_recipes_is_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"recipes has no recipes\. Change to the repository's root"):
        run("show", "digits")


def test_show_has_the_changes_and_the_commands_in_order(project, run):
    output = run("show", "cifar10-2min")
    assert "train.batch_size: 32 → 500" in output
    order = [
        output.index(line)
        for line in ("convoy data use cifar10", "convoy recipe apply cifar10-2min", "dvc repro")
    ]
    assert order == sorted(order)


def test_list_and_show_print_json_for_programs(project, run):
    assert [each["name"] for each in json.loads(run("list", "--json"))["recipes"]] == RECIPES
    shown = json.loads(run("show", "cifar10-2min", "--json"))
    assert shown["changes"]["train.epochs"]["present"] == 10
    assert shown["params"]["train"]["epochs"] == shown["changes"]["train.epochs"]["recipe"]


def test_a_measured_recipe_states_how_far_it_can_be_trusted(project, run):
    content = yaml.read(project / "recipes/digits.yaml")
    content["measured"] = {
        "accuracy": 0.8764,
        "spread": 0.0021,
        "seeds": 5,
        "train_min": 2.3,
        "hardware": "2 cores",
    }
    content["measured"] |= {"date": "2026-11-28", "torch": "2.14.1"}
    (project / "recipes/mine.yaml").write_text(yaml.dump(content), encoding="utf-8")
    assert "87.6 ± 0.2 % of test images (5 seeds), 2.3 min of training on 2 cores" in run("show", "mine")


@pytest.mark.parametrize("name", ["digits", "cifar10-2min"])
def test_a_recipe_trains(tmp_path, name):
    write_small_images(tmp_path / "dataset", 32)
    chosen = recipe.load(name, ROOT / "recipes")
    content = yaml.replaced(
        yaml.read(ROOT / "params.yaml"), chosen.values() | {"train.epochs": 1, "train.batch_size": 30}
    )
    dataset = Dataset.load(tmp_path / "dataset")
    network = spec.load(content["network"]["name"], ROOT / "networks")
    metrics = fit(dataset, network, TrainParams.model_validate(content["train"]), 1, tmp_path / "model")
    assert 0 <= metrics["best"]["val_accuracy"] <= 1
