"""`convoy explain`, as typed: output, files, exit codes and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from typer.testing import CliRunner

from convoy.commands.explain import CONVOLUTION, POSITION, explain
from convoy.core import files
from convoy.core.errors import DataError, NetworkError, RequestError
from convoy.explain import position as experiment
from convoy.explain.convolution import NAMED
from convoy.models import trained
from network_specs import network


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `convoy explain` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(explain, words, catch_exceptions=True)


def test_a_convolution_needs_no_arguments(run):
    done = run("convolution")
    assert done.exit_code == 0
    assert "row 2, column 2:  0·(-1) + 0·0 + 1·1 + 0·(-1) + 1·0 + 1·1 + 0·(-1) + 0·0 + 1·1 = 3" in done.stdout
    assert done.stdout.endswith(f"Picture: {CONVOLUTION}\n")
    assert CONVOLUTION.read_bytes().startswith(b"\x89PNG")


def test_a_convolution_as_json_is_one_object_and_no_file(run):
    done = run("convolution", "1 2 3; 4 5 6; 7 8 10", "--filter", "-1 0; 0 1", "--padding", "1", "--padding-mode", "replicate",
                  "--stride", "2", "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert found["operation"] == "cross-correlation"
    assert found["image"] == {"source": "typed", "shape": [3, 3, 1]}
    assert found["filters"] == [{"name": "typed", "weights": [[[-1], [0]], [[0], [1]]]}]
    assert (found["padding"], found["padding_mode"], found["stride"]) == (1, "replicate", 2)
    assert found["activation"] == {"shape": [2, 2, 1], "values": [[[0], [1]], [[3], [5]]]}
    assert found["relu"]["shape"] == [2, 2, 1]
    assert found["max_pool"] == {"shape": [1, 1, 1], "values": [[[5]]]}
    assert found["largest"] == {"value": 5, "row": 2, "column": 2, "filter": 1}
    assert not CONVOLUTION.exists()


def test_each_filter_makes_one_map_and_a_picture_is_drawn_on_request_with_json_too(run, tmp_path):
    done = run("convolution", "--filter", "edge", "--filter", "blur", "--json", "--picture", "mine.svg")
    assert json.loads(done.stdout)["activation"]["shape"] == [5, 5, 2]
    assert (tmp_path / "mine.svg").exists()


@pytest.mark.parametrize("background", ["white", "black", "#4080ff"])
def test_transparent_pixels_of_a_convolution_have_the_background_of_the_dataset(run, background):
    Image.new("RGBA", (4, 4)).save("clear.png")
    files.write_json(Path("build/dataset/dataset.json"), {"background": background})
    done = run("convolution", "clear.png", "--filter", "1", "--json")
    colour = ImageColor.getrgb(background)
    expected = sum(colour) if len(set(colour)) > 1 else colour[0]
    assert json.loads(done.stdout)["activation"]["values"][0][0] == [expected]


def test_the_help_names_every_filter_and_has_an_example(run):
    text = " ".join(run("convolution", "--help").stdout.replace("│", " ").split())
    assert f"or a name: {', '.join(NAMED)}." in text
    assert 'Example: convoy explain convolution "0 1 0;' in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0 1; 2"], "ragged"),
        (["--filter", "nonsense"], "There is no filter"),
        (["--padding", "999999"], "The padding is 999999"),
        (["--picture", "out.gif"], "is not a .png or .svg file"),
        (["no.jpg"], "no.jpg cannot be read"),
    ],
)
def test_an_invalid_convolution_is_refused_and_draws_nothing(run, tmp_path, words, message):
    done = run("convolution", *words)
    assert isinstance(done.exception, RequestError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_convolution_needs_no_torch(python):
    code = "import sys; sys.modules['torch'] = None; from convoy.commands.explain import explain; explain()"
    found = json.loads(python("-c", code, "convolution", "--json").stdout)
    assert found["activation"]["shape"] == [5, 5, 1]


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
        spec=network(*layers),
        classes=["cat", "dog", "bird"],
        image_px=16,
        fit="crop",
        crop_share=0.75,
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
def here(folder, run, tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build/model").symlink_to(folder / "build/model")
    (tmp_path / "photo.png").symlink_to(folder / "photo.png")
    return tmp_path


def test_the_page_is_written_and_its_path_printed(here, run):
    done = run("features", "photo.png")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny predicts ")
    assert lines[1].startswith("low     conv1 16×16×4: strongest channels ")
    assert lines[2].startswith("high    conv2 8×8×6: strongest channels ")
    assert lines[-1] == "Page: build/explain/features.html"
    assert "What tiny sees in photo.png" in (here / "build/explain/features.html").read_text(encoding="utf-8")


def test_features_as_json_have_the_content_of_the_page_and_write_none(here, run):
    found = json.loads(run("features", "photo.png", "--json").stdout)
    assert not (here / "build/explain/features.html").exists()
    assert found["page"] is None
    assert {entry["class"] for entry in found["predictions"]} == {"cat", "dog", "bird"}
    probabilities = [entry["probability"] for entry in found["predictions"]]
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    assert found["filters"] == {"layer": "conv1", "count": 4, "shape": [3, 3, 3]}
    low, high = found["layers"]
    assert (low["depth"], low["layer"], low["volume"]) == ("low", "conv1", [16, 16, 4])
    assert (high["operations"], high["volume"]) == (["Conv2d", "ReLU"], [8, 8, 6])
    strengths = [channel["strength"] for channel in high["channels"]]
    assert len(strengths) == 6
    assert strengths == sorted(strengths, reverse=True)


def test_features_as_json_write_the_page_on_request(here, run):
    done = run("features", "photo.png", "--json", "--out", "new/page.html")
    assert json.loads(done.stdout)["page"] == "new/page.html"
    assert (here / "new" / "page.html").is_file()


def test_the_image_reaches_the_network_as_it_is_served(here, run):
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = np.asarray(Image.open("photo.png"))[:16, :16]
    Image.fromarray(wide).save("wide.png")
    square = wide[:, 12:28].copy()
    Image.fromarray(square).save("square.png")
    square[:2] = square[:, 14:] = 255
    Image.fromarray(square).save("framed.png")
    wide, square, framed = (
        json.loads(run("features", f"{name}.png", "--json").stdout) for name in ("wide", "square", "framed")
    )
    assert wide["predictions"] == square["predictions"]  # fit: crop
    assert framed["predictions"] == square["predictions"]  # crop_share: 0.75, 12 of 16 pixels


def test_a_network_without_convolutions_has_no_features(here, run):
    save(here / "dense", ["flatten", {"dense": "classes"}])
    assert "It has no convolution" in run("features", "photo.png", "--model", "dense").stdout
    found = json.loads(run("features", "photo.png", "--model", "dense", "--json").stdout)
    assert (found["filters"], found["layers"]) == (None, [])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["none.png"], RequestError, r"none\.png cannot be read: No such file.*Name an image file"),
        (["broken.png"], DataError, r"broken\.png is not an image.*Name another image"),
        (["photo.png", "--model", "none"], NetworkError, r"model\.json does not exist.*dvc repro train"),
        (["photo.png", "--out", "photo.png"], RequestError, r"\.png is not an \.html.*--out photo\.html"),
        (["photo.png", "--out", "broken.png/a.html"], RequestError, r"a\.html cannot be written: .*--out"),
    ],
)
def test_invalid_features_are_refused_with_the_remedy(here, run, words, error, message):
    (here / "broken.png").write_text("no image")
    with pytest.raises(error, match=message):
        CliRunner().invoke(explain, ["features", *words], catch_exceptions=False)


@pytest.fixture
def cnn_loses(monkeypatch, run, repository, tmp_path):
    """Replace trainings: the CNN loses the given accuracy, the dense network nothing; with the sample digits."""

    (tmp_path / "samples").symlink_to(repository / "samples")

    def lose(loss):
        def train(spec, sheets, seed, *, shuffled):
            return 0.9 + seed / 1000 - loss * (shuffled and spec.name == experiment.CNN)

        monkeypatch.setattr(experiment, "train", train)

    return lose


def test_the_experiment_needs_no_arguments(run, cnn_loses):
    cnn_loses(0.2)
    done = run("position")
    text = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert "500 of the 1,797 UCI digits for training, the other 1,297 for measuring" in text
    assert "Each of 8×8 px lies on a black sheet of 14×14, up to 2 px off the middle" in text
    assert "the 196 pixels are shuffled, by the same shuffle for every sheet" in text
    assert "CNN 90.2 (90.1 90.2 90.3) 70.2 (70.1 70.2 70.3) 20.0 0.6" in text
    assert "CNN: loss of 20.0 points, more than the bound of 0.6." in text
    assert "The position of pixels matters to the CNN" in text
    assert "Why: a filter sees a pixel together with its neighbours" in text
    assert done.stdout.endswith(f"Picture: {POSITION}\n")
    assert POSITION.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_the_effect_exits_1(run, cnn_loses):
    cnn_loses(0.005)
    done = run("position", "--picture", "other.svg")
    text = " ".join(done.stdout.split())
    assert done.exit_code == 1
    assert "This run does not show the expected effect." in text
    assert "Picture: other.svg" in text


def test_the_experiment_as_json_is_one_object_and_no_file(run, cnn_loses, tmp_path):
    cnn_loses(0.2)
    done = run("position", "--json", "--seed", "7")
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["data"]["learnt"] == 500
    assert found["data"]["sheet_px"] == 14
    assert found["seeds"] == [7, 8, 9]
    assert found["cnn"]["in_place"] == pytest.approx([0.907, 0.908, 0.909])
    assert found["holds"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_json_is_drawn_on_request_and_exits_1_too(run, cnn_loses, tmp_path):
    cnn_loses(0.0)
    done = run("position", "--json", "--picture", "position.png")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["cnn"]["is_hurt"] is False
    assert {path.name for path in tmp_path.iterdir()} == {"samples", "position.png"}


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--picture", "position.jpg"], RequestError, r"Try --picture position\.png$"),  # before training
        (["--dataset", "nothing"], DataError, r"^nothing is not a packed dataset"),
        ([], RequestError, r"--dataset build/dataset"),  # outside a repository
    ],
)
def test_an_experiment_that_cannot_run_is_refused_with_the_remedy(run, words, error, message):
    with pytest.raises(error, match=message):
        CliRunner().invoke(explain, ["position", *words], catch_exceptions=False)


def test_a_negative_seed_is_exit_2(run):
    assert run("position", "--seed", "-1").exit_code == 2
