"""`convoy network` as it is typed: what it prints, and its exit codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy import cli
from convoy.models import spec

REPOSITORY = Path(__file__).parents[2]
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path) -> Typed:
    """Run a command in the repository; return its exit code, output and errors."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convoy", "network", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def test_show_prints_a_line_per_layer_and_the_totals(typed):
    code, out, _ = typed("show", "lenet5", "--image-px", "32", "--batch-size", "64")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("lenet5: 32×32 RGB images, 10 classes")
    assert " ".join(lines[3].split()) == "conv1 conv 5 1 0 28×28×6 456 352,800 18.4 KiB 5"
    assert "parameters  62,006" in lines
    assert any("with 64 images per step" in line for line in lines)


def test_the_defaults_of_show_come_from_made_for_or_params_yaml(typed):
    first = [
        typed("show", *words)[1].splitlines()[0]
        for words in (("vgg11",), ("convnet",), ("vgg11", "--image-px", "32", "--classes", "2"))
    ]
    assert first == [
        "vgg11: 224×224 RGB images, 1000 classes (defaults: made_for of the spec)",
        "convnet: 32×32 RGB images, 10 classes (defaults: data.image_px of params.yaml, 10 classes)",
        "vgg11: 32×32 RGB images, 2 classes",
    ]


def test_show_prints_json_for_programs(typed):
    code, out, _ = typed("show", "alexnet", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["name"], found["parameters"], found["macs"]) == ("alexnet", 61_100_840, 714_188_480)
    assert found["layers"][0]["output"] == [55, 55, 64]


def test_show_accepts_torchvisions_classifiers(typed):
    code, out, _ = typed("show", "torchvision:squeezenet1_1", "--classes", "1000", "--units")
    assert code == 0
    assert "parameters  1,235,496" in out


def test_show_accepts_timms_classifiers(typed):
    code, out, _ = typed("show", "timm:resnet18d", "--image-px", "64", "--classes", "1000", "--units")
    assert code == 0
    assert "parameters  11,708,744" in out
    code, _, err = typed("show", "timm:resnet18e")
    assert code == 2
    assert "no network `resnet18e`; did you mean `resnet18` or `resnet18d`" in err


def test_show_draws_a_picture(typed, tmp_path):
    code, out, _ = typed("show", "lenet5", "--picture", str(tmp_path / "lenet5.svg"))
    assert code == 0
    assert out.splitlines()[-1] == f"Picture: {tmp_path / 'lenet5.svg'}"
    assert (tmp_path / "lenet5.svg").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "vgg166"), 2, "there is no network `vgg166` in networks/; did you mean `vgg16`?"),
        (("show", "torchvision:resnet19"), 2, "torchvision has no classifier `resnet19`; did you mean"),
        (("show", "vgg16", "--image-px", "31"), 1, "The smallest that works is 32"),
        (("show", "lenet5", "--picture", "lenet5.pdf"), 2, "lenet5.pdf is not a .png or .svg file"),
        (("show", "lenet5", "--classes", "0"), 2, "--classes"),
        (("show", "lenet5", "--image-px", "0"), 2, "--image-px"),
        (("show", "lenet5", "--batch-size", "0"), 2, "--batch-size"),
    ],
)
def test_an_invalid_request_names_the_remedy(typed, words, code, message):
    left, _, errors = typed(*words)
    assert left == code
    assert message in errors


def test_list_prints_a_line_per_network(typed):
    code, out, _ = typed("list")
    names = [line.split()[0] for line in out.split("\n\n")[0].splitlines()[2:]]
    assert code == 0
    assert names == spec.names(REPOSITORY / "networks")
    assert "googlenet" in out
    assert "13,004,888" in out


def test_list_prints_json_for_programs(typed):
    found = json.loads(typed("list", "--json")[1])["networks"]
    assert [entry["name"] for entry in found] == spec.names(REPOSITORY / "networks")
    assert {entry["name"]: entry["macs"] for entry in found}["lenet5"] == 651_720


@pytest.fixture
def project(tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of a user's own, with one network that git does not track."""
    (tmp_path / "networks").mkdir()
    mine = "layers: [flatten, {dense: classes}]\n"
    (tmp_path / "networks" / "mine.yaml").write_text(mine, encoding="utf-8")
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [("show", "mine"), ("list",)])
def test_a_network_that_git_does_not_track_is_noted(typed, project, words):
    assert "networks/mine.yaml is not tracked by git" in typed(*words)[1]
    subprocess.run(["git", "-C", project, "add", "networks"], check=True)
    assert "not tracked" not in typed(*words)[1]


def test_json_has_no_notes(typed, project):
    assert json.loads(typed("show", "mine", "--json")[1])["name"] == "mine"
    assert len(json.loads(typed("list", "--json")[1])["networks"]) == 1


def test_list_has_a_line_for_a_broken_spec(typed, project):
    (project / "networks" / "broken.yaml").write_text("layers: [convolution]\n", encoding="utf-8")
    code, out, _ = typed("list")
    assert code == 0
    assert "broken: networks/broken.yaml:1, layer 1: unknown layer `convolution`" in out
