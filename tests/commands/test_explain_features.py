"""`convoy explain features`: what it prints and writes, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from convoy.commands.explain_features import features
from convoy.core.errors import DataError, NetworkError, RequestError
from convoy.models import trained
from convoy.models.spec import Spec

app = typer.Typer()
app.command()(features)

LAYERS = [
    {"conv": {"filters": 4, "kernel": 3, "padding": "same"}},
    "relu",
    {"max_pool": 2},
    {"conv": {"filters": 6, "kernel": 3, "padding": "same"}},
    "relu",
    "global_avg_pool",
    "flatten",
    {"dense": "classes"},
]


def save(folder, layers):
    torch.manual_seed(0)
    facts = trained.ModelFacts(
        network="tiny",
        spec=Spec.model_validate({"name": "tiny", "layers": layers}),
        classes=["cat", "dog", "bird"],
        image_px=16,
        fit="crop",
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.1],
    )
    trained.save(folder, trained.make(facts), facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    save(folder / "build" / "model", LAYERS)
    image_u8 = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image_u8).save(folder / "photo.png")
    return folder


@pytest.fixture
def here(folder, monkeypatch, tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build/model").symlink_to(folder / "build/model")
    (tmp_path / "photo.png").symlink_to(folder / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, words)


def test_the_page_is_written_and_its_place_is_printed(here):
    done = run("photo.png")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny says ")
    assert lines[1].startswith("low     conv1 16×16×4: strongest channels ")
    assert lines[2].startswith("high    conv2 8×8×6: strongest channels ")
    assert lines[-1] == "Page: build/explain/features.html"
    assert "What tiny sees in photo.png" in (here / "build/explain/features.html").read_text(encoding="utf-8")


def test_json_holds_what_the_page_shows_and_writes_none_unasked(here):
    told = json.loads(run("photo.png", "--json").stdout)
    assert not (here / "build/explain/features.html").exists()
    assert told["page"] is None
    assert {one["class"] for one in told["predictions"]} == {"cat", "dog", "bird"}
    probabilities = [one["probability"] for one in told["predictions"]]
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    assert told["filters"] == {"layer": "conv1", "count": 4, "shape": [3, 3, 3]}
    low, high = told["layers"]
    assert (low["depth"], low["layer"], low["volume"]) == ("low", "conv1", [16, 16, 4])
    assert (high["operations"], high["volume"]) == (["Conv2d", "ReLU"], [8, 8, 6])
    strengths = [one["strength"] for one in high["channels"]]
    assert len(strengths) == 6
    assert strengths == sorted(strengths, reverse=True)


def test_json_writes_the_page_where_one_is_asked_for(here):
    assert json.loads(run("photo.png", "--json", "--out", "new/page.html").stdout)["page"] == "new/page.html"
    assert (here / "new" / "page.html").is_file()


def test_the_image_reaches_the_network_as_it_is_served(here):
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = np.asarray(Image.open("photo.png"))[:16, :16]
    Image.fromarray(wide).save("wide.png")
    Image.fromarray(wide[:, 12:28]).save("square.png")
    in_the_middle, square = (json.loads(run(f"{name}.png", "--json").stdout) for name in ("wide", "square"))
    assert in_the_middle["predictions"] == square["predictions"]  # fit: crop


def test_a_network_without_convolutions_is_said_to_have_none(here):
    save(here / "dense", ["flatten", {"dense": "classes"}])
    assert "It has no convolution" in run("photo.png", "--model", "dense").stdout
    told = json.loads(run("photo.png", "--model", "dense", "--json").stdout)
    assert (told["filters"], told["layers"]) == (None, [])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["none.png"], RequestError, r"none\.png cannot be read: No such file.*Name an image file"),
        (["broken.png"], DataError, r"broken\.png is no image of a format.*Name another image"),
        (["photo.png", "--model", "none"], NetworkError, r"model\.json does not exist.*dvc repro train"),
        (
            ["photo.png", "--out", "photo.png"],
            RequestError,
            r"photo\.png is no \.html file.*--out photo\.html",
        ),
        (
            ["photo.png", "--out", "broken.png/a.html"],
            RequestError,
            r"broken\.png/a\.html cannot be written: .*--out",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(here, words, error, message):
    (here / "broken.png").write_text("no image")
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_help_teaches_with_an_example():
    assert "Example: convoy explain features photo.jpg" in run("--help").stdout


def test_importing_the_command_does_not_import_torch(repository):
    code = (
        "import sys, convoy.commands.explain_features; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(repository / "src")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "False"]
