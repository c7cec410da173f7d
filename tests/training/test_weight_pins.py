"""Sources of starting weights by their spelling, and the pins of the bytes that they stood for."""

import json
from pathlib import Path

import pytest
from torch import nn

from convoy.core import files, params, yaml
from convoy.core.errors import NetworkError, RequestError
from convoy.models.spec import Spec
from convoy.training import weight_pins
from convoy.training.settings import NetworkParams
from convoy.training.weight_pins import canonical, find, kind

SPEC = Spec.model_validate({"name": "mine", "layers": ["flatten", {"dense": "classes"}]})
FACTS = {"classes": ["a", "b"], "mean": [0.1] * 3, "std": [0.2] * 3}


def test_sources_are_classified_by_their_spelling():
    sources = {
        "none": "none",
        "imagenet": "imagenet",
        "runs:/0a1b": "run",
        **dict.fromkeys(["models:/convoy@champion", "models:/my model/12"], "model"),
        **dict.fromkeys(["https://example.com/w.pth", "s3://bucket/w.pth"], "url"),
        **dict.fromkeys(["best.ckpt", "./mine", "~/mine", "../other/build/model"], "path"),
    }
    assert {source: kind(source) for source in sources} == sources


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("imagnet", r"did you mean `imagenet`.*\./imagnet"),
        ("None", "did you mean `none`"),
        ("", "there are: imagenet, none"),
        ("run:/12", "did you mean `runs:`.*none, imagenet, PATH"),
        ("runs:/", "runs:/RUN_ID, models:/NAME@ALIAS"),
        ("runs:/12/model", "runs:/RUN_ID"),
        ("models:/convoy", "models:/NAME@ALIAS"),
        ("models:/convoy/latest", "models:/NAME@ALIAS"),
    ],
)
def test_any_other_spelling_is_refused_with_the_nearest_form(source, hint):
    with pytest.raises(RequestError, match=rf"^`{source}`.*{hint}"):
        kind(source)


def test_a_misspelt_source_is_refused_when_params_are_read():
    with pytest.raises(RequestError, match=r"network\.weights is 'imagnet': .*did you mean `imagenet`"):
        params.check("network", NetworkParams, {"name": "lenet5", "weights": "imagnet"})
    with pytest.raises(RequestError, match=r"network\.weights is None: input should be a valid string"):
        params.check("network", NetworkParams, {"name": "lenet5", "weights": None})
    assert params.check("network", NetworkParams, {"name": "lenet5", "weights": "none"}).weights == "none"


def test_a_path_has_one_spelling_however_it_was_typed(tmp_path, monkeypatch):
    root = (tmp_path / "root").resolve()
    (root / "sub").mkdir(parents=True)
    monkeypatch.chdir(root)
    assert canonical("sub/../sub/w.pth", root) == "sub/w.pth"
    assert canonical(str(root / "sub" / "w.pth"), root) == "sub/w.pth"
    assert canonical("./sub", root) == "./sub"
    assert canonical("../w.pth", root) == str(tmp_path.resolve() / "w.pth")
    assert canonical("models:/convoy@champion", root) == "models:/convoy@champion"


def test_a_pin_is_the_meta_of_its_dvc_file(pinned):
    pin = pinned("./other", nn.Linear(3, 2), FACTS)
    content = yaml.read(Path("weights/x.dvc"))
    assert content["outs"][0]["path"] == "x"
    assert content["meta"]["convoy"]["sha256"] == {
        f"x/{name}": files.sha256(Path("weights/x") / name) for name in ("weights.pt", "model.json")
    }
    Path("weights/theirs.dvc").write_text("outs:\n- path: theirs\nmeta: {owner: me}\n")  # no pin
    assert weight_pins.read_all(Path("weights")) == {Path("weights/x.dvc"): pin}
    assert find("./other", SPEC) == pin
    assert pin.verify(Path("weights")) == Path("weights/x/weights.pt")


@pytest.mark.parametrize("facts", [None, FACTS])
def test_the_pin_of_an_earlier_version_is_read(pinned, facts):
    pin = pinned("imagenet", nn.Linear(3, 2), facts, torchvision="resnet18", resolved="V1")
    Path("weights/x.dvc").write_text("outs: []\n")
    earlier = {"asked": "imagenet", "resolved": "V1", "fetched": "https://x.org", "torchvision": "resnet18"}
    earlier |= {"file": "x/weights.pt", "sha256": pin.sha256["x/weights.pt"]}
    if facts:
        earlier["facts_sha256"] = pin.sha256["x/model.json"]
    files.write_json(Path("weights/x.json"), earlier)
    assert find("imagenet", SPEC.model_copy(update={"twin": "resnet18"})) == pin


def test_a_source_without_a_pin_is_refused_with_the_command_that_pins_it(pinned):
    pinned("imagenet", nn.Linear(3, 2), torchvision="vgg16")
    command = "convoy weights use imagenet --network mine$"
    with pytest.raises(NetworkError, match=rf"for resnet18 \(pinned: imagenet \(vgg16\)\).*{command}"):
        find("imagenet", SPEC.model_copy(update={"twin": "resnet18"}))
    with pytest.raises(NetworkError, match=r"convoy weights use runs:/12$"):
        find("runs:/12", SPEC)
    Path("weights/x.dvc").unlink()
    with pytest.raises(NetworkError, match=r"pinned: nothing"):
        find("runs:/12", SPEC)


def test_imagenet_for_a_network_that_torchvision_does_not_have_is_refused(repository, monkeypatch):
    monkeypatch.chdir(repository)
    remedy = r"\bresnet18\b.*`torchvision: NAME`.*network\.name.*network\.weights to none"
    with pytest.raises(RequestError, match=f"structure of mine.*{remedy}"):
        find("imagenet", SPEC)


def test_a_missing_file_is_refused_with_the_commands_that_fetch_it(pinned):
    pin = pinned("other/w.pth", nn.Linear(3, 2))
    Path("weights/x/weights.pt").unlink()
    message = r"x/weights\.pt, pinned for other/w\.pth.*`dvc repro`.*`dvc pull -R weights`"
    with pytest.raises(NetworkError, match=message):
        pin.verify(Path("weights"))


@pytest.mark.parametrize("file", ["weights.pt", "model.json"])
def test_a_file_that_changed_since_it_was_pinned_is_refused(pinned, file):
    pin = pinned("./other", nn.Linear(3, 2), FACTS)
    path = Path("weights/x") / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(NetworkError, match=r"convoy weights use \./other$") as caught:
        pin.verify(Path("weights"))
    for fact in (f"weights/x/{file}", pin.sha256[f"x/{file}"][:16], files.sha256(path)[:16]):
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({"asked": "imagenet"})),
        ("a.json", "<<<<<<< HEAD"),
        ("a.dvc", "<<<<<<< HEAD"),
        ("a.dvc", "meta: {convoy: {source: imagenet}}"),
        ("a.dvc", "meta: 3"),
    ],
)
def test_an_invalid_pin_is_refused(pinned, name, text):
    pinned("./other", nn.Linear(3, 2))
    Path("weights", name).write_text(text)
    message = rf"weights/{name} is not a valid pin(.|\n)*git checkout weights/{name}"
    with pytest.raises(NetworkError, match=message):
        find("./other", SPEC)
