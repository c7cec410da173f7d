"""Weights that were pinned, read and grafted: what a training starts from, tensor by tensor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from convoy.core import files
from convoy.core.errors import NetworkError, RequestError
from convoy.models import torchvision
from convoy.models.build import build
from convoy.models.spec import Spec
from convoy.models.trained import NormalizedModel
from convoy.training.pretrained import Starting, graft, read
from convoy.training.weight_pins import Pin

PX = 16
LETTERS = list("abcdefg")
SPEC = Spec.model_validate(
    {
        "name": "mine",
        "layers": [
            {"conv": {"filters": 4, "kernel": 3, "bias": False}},
            "norm",
            "relu",
            {"auxiliary": {"weight": 0.3, "layers": ["global_avg_pool", "flatten", {"dense": "classes"}]}},
            {"conv": {"filters": 6, "kernel": 3}},
            "relu",
            "global_avg_pool",
            "flatten",
            {"dense": "classes"},
        ],
    }
)


class Theirs(nn.Module):
    """The network of SPEC as somebody else would write and name it, with seven classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.aux1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, 7)
        for tensor in (self.stem[1].running_mean, self.stem[1].running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(images)))


def starting(network: nn.Module, classes: list[str] | None = None, spec: Spec = SPEC) -> Starting:
    return Starting(
        source="imagenet",
        resolved="imagenet",
        file=Path("weights/x.pth"),
        network=spec.name,
        tensors=dict(network.state_dict()),
        mean=None,
        std=None,
        classes=classes,
    )


def test_another_authors_tensors_give_that_authors_logits() -> None:
    theirs = Theirs().eval()
    ours = build(SPEC, 7, PX).eval()
    images = torch.randn(3, 3, PX, PX)
    assert not torch.allclose(ours(images), theirs(images))
    grafted = graft(ours, starting(theirs, LETTERS), LETTERS)
    assert torch.equal(ours(images), theirs(images))
    assert grafted.reinitialised == ()
    assert grafted.lines() == [
        "taken from imagenet: 10 tensors; the head is kept: the same 7 classes",
        "ignored: aux1.2.weight, aux1.2.bias",
    ]


def test_auxiliary_heads_come_along_to_a_network_that_has_them() -> None:
    theirs = Theirs()
    ours = build(SPEC, 7, PX, auxiliary=True).eval()
    grafted = graft(ours, starting(theirs, LETTERS), LETTERS)
    assert torch.equal(ours.auxiliary1.dense1.weight, theirs.aux1[2].weight)
    assert grafted.ignored == ()
    ours = build(SPEC, 7, PX, auxiliary=True).eval()
    again = graft(ours, starting(build(SPEC, 7, PX, auxiliary=True), LETTERS), LETTERS)
    assert again.taken == grafted.taken
    assert again.reinitialised == ()


def test_auxiliary_heads_of_another_form_start_fresh() -> None:
    theirs = Theirs()
    theirs.aux1[2] = nn.Linear(5, 7)
    ours = build(SPEC, 7, PX, auxiliary=True)
    fresh = ours.auxiliary1.dense1.weight.clone()
    grafted = graft(ours, starting(theirs, LETTERS), LETTERS)
    assert torch.equal(ours.auxiliary1.dense1.weight, fresh)
    assert grafted.reinitialised == ("auxiliary1.dense1.weight", "auxiliary1.dense1.bias")
    assert grafted.ignored == ("aux1.2.weight", "aux1.2.bias")


def test_files_without_the_counters_of_batch_norms_are_whole() -> None:
    old = starting(Theirs(), LETTERS)
    del old.tensors["stem.1.num_batches_tracked"]
    ours = build(SPEC, 7, PX)
    grafted = graft(ours, old, LETTERS)
    assert torch.equal(ours.norm1.running_var, old.tensors["stem.1.running_var"])
    assert grafted.reinitialised == ()


@pytest.mark.parametrize(
    ("known", "wanted", "kept", "why"),
    [
        (LETTERS, LETTERS, True, "kept: the same 7 classes"),
        (None, list("tuvwxyz"), True, "kept: it has 7 classes too, whose names are not known"),
        (None, ["cat", "dog"], False, "new: 2 classes instead of 7"),
        (LETTERS, ["a", "b"], False, "new: 2 classes instead of 7"),
        (LETTERS, list("abcdegf"), False, "new: other classes, such as g instead of f"),
    ],
)
def test_the_head_is_replaced_when_the_classes_differ(
    known: list[str] | None, wanted: list[str], *, kept: bool, why: str
) -> None:
    theirs = Theirs()
    ours = build(SPEC, len(wanted), PX, auxiliary=True)
    fresh = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    grafted = graft(ours, starting(theirs, known), wanted)
    heads = ("auxiliary1.dense1.weight", "auxiliary1.dense1.bias", "dense1.weight", "dense1.bias")
    assert grafted.head == why
    assert set(grafted.reinitialised) == (set() if kept else set(heads))
    assert grafted.ignored == ()
    for name in heads:
        assert torch.equal(ours.state_dict()[name], fresh[name]) is not kept
    assert torch.equal(ours.conv2.bias, theirs.body[0].bias)


def test_a_file_of_another_architecture_is_refused_and_changes_nothing() -> None:
    spec = Spec(name="resnet18", torchvision="resnet18")
    ours = build(spec, 10, 32)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with torch.device("meta"):  # shapes are enough to refuse
        wrong = starting(models.vgg11(weights=None), spec=spec)
        deeper = starting(models.resnet34(weights=None), spec=spec)
    with pytest.raises(
        NetworkError,
        match=r"weights/x\.pth holds another architecture: tensor 1 is features\.0\.weight 64×3×3×3, "
        r"resnet18 wants conv1\.weight 64×3×7×7\. Set network\.name to the network whose weights these are",
    ):
        graft(ours, wrong, LETTERS)
    # A deeper one of the same family has every name and shape of this one, and more.
    with pytest.raises(
        NetworkError, match=r"tensor 26 is layer1\.2\.conv1\.weight 64×64×3×3, resnet18 wants layer2"
    ):
        graft(ours, deeper, LETTERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_torchvisions_own_networks_are_matched_by_name() -> None:
    spec = Spec(name="resnet18", torchvision="resnet18")
    theirs = models.resnet18(weights=None)
    ours = build(spec, 10, 32)
    shuffled = starting(theirs, spec=spec)
    names = sorted(shuffled.tensors)
    shuffled.tensors.update({name: shuffled.tensors.pop(name) for name in names})
    grafted = graft(ours, shuffled, list("abcdefghij"))
    assert len(grafted.taken) == 120
    assert torch.equal(ours.layer4[1].bn2.weight, theirs.layer4[1].bn2.weight)
    assert torch.equal(ours.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    assert grafted.lines() == [
        "taken from imagenet: 120 tensors; the head is new: 10 classes instead of 1000",
        "reinitialised: fc.weight, fc.bias",
    ]


def first_input(network: nn.Module, images: Tensor) -> Tensor:
    """Catch what reaches the first convolution: deep networks with random weights answer alike to any image."""
    caught: list[Tensor] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        network.eval()(images)
    return caught[0]


@pytest.mark.parametrize(("name", "px"), [("googlenet", 48), ("inception_v3", 80)])
def test_the_input_transform_of_torchvisions_weights_comes_as_their_mean_and_std(name: str, px: int) -> None:
    theirs = models.get_model(
        name, weights=None, aux_logits=True, transform_input=True, init_weights=False
    ).eval()
    network = build(Spec(name=name, torchvision=name), 1000, px)
    published = torchvision.pretrained(name)
    grafted = graft(network, starting(theirs, published.classes), published.classes)
    assert {unit.partition(".")[0] for unit in grafted.ignored} <= {"aux1", "aux2", "AuxLogits"}
    pixels = torch.randint(0, 256, (2, 3, px, px)).float()
    preset = models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preset.mean, preset.std))
    wanted = first_input(theirs, (pixels / 255 - mean) / std)
    assert torch.allclose(
        first_input(NormalizedModel(network, published.mean, published.std), pixels), wanted, atol=1e-6
    )
    plain = first_input(NormalizedModel(network, preset.mean, preset.std), pixels)
    assert (plain - wanted).abs().max() > 0.1


def test_published_weights_say_where_they_are_and_what_goes_with_them() -> None:
    found = torchvision.pretrained("resnet18")
    assert found.url.endswith(f"/resnet18-{found.sha256}.pth")
    assert found.mean == [0.485, 0.456, 0.406]
    assert len(found.classes) == 1000
    assert (
        torchvision.pretrained("resnet50", "ResNet50_Weights.IMAGENET1K_V1").url
        != torchvision.pretrained("resnet50").url
    )
    with pytest.raises(
        NetworkError,
        match=r"has no weights `ResNet18_Weights\.V9` for resnet18; did you mean `ResNet18_Weights\.IMAGENET1K_V1`\?"
        " Pin those it has: convoy weights use imagenet",
    ):
        torchvision.pretrained("resnet18", "ResNet18_Weights.V9")
    with pytest.raises(
        RequestError,
        match=r"`twin:` in the spec.*: torchvision has no classifier `resnet19`; did you mean `resnet18`\?",
    ):
        torchvision.pretrained("resnet19")


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pin]:
    """Pin tensors in `weights/` of an empty folder, which becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def pin(asked: str, network: nn.Module, facts: dict[str, Any] | None = None, **more: str) -> Pin:
        file = tmp_path / "weights" / "x" / "weights.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
        if facts:
            files.write_json(file.parent / "model.json", facts)
            more["facts_sha256"] = files.sha256(file.parent / "model.json")
        made = Pin(
            asked=asked,
            **{"resolved": asked, "fetched": asked, "file": "x/weights.pt", "sha256": files.sha256(file)}
            | more,
        )
        files.write_json(tmp_path / "weights" / "x.json", made.model_dump())
        return made

    return pin


def test_none_starts_from_nothing(tmp_path: Path) -> None:
    assert read("none", SPEC, tmp_path / "weights") is None


def test_a_models_folder_brings_its_mean_std_and_classes(pinned: Callable[..., Pin]) -> None:
    theirs = Theirs()
    pin = pinned(
        "models:/convoy@champion",
        theirs,
        {"classes": LETTERS, "mean": [0.1] * 3, "std": [0.2] * 3, "fit": "crop"},
    )
    found = read("models:/convoy@champion", SPEC)
    assert found is not None
    assert (found.mean, found.std, found.classes) == ([0.1] * 3, [0.2] * 3, LETTERS)
    assert list(found.tensors) == list(theirs.state_dict())
    assert found.network == "mine"
    assert found.sha256 == pin.sha256


def test_a_bare_file_says_nothing_of_its_input(pinned: Callable[..., Pin]) -> None:
    pinned("other/w.pth", Theirs())
    found = read("./other/../other/w.pth", SPEC)
    assert found is not None
    assert (found.mean, found.std, found.classes) == (None, None, None)


def test_imagenet_brings_torchvisions_mean_std_and_classes(pinned: Callable[..., Pin]) -> None:
    label = "EfficientNet_V2_L_Weights.IMAGENET1K_V1"
    pinned("imagenet", Theirs(), resolved=label, torchvision="efficientnet_v2_l")
    found = read("imagenet", Spec(name="big", torchvision="efficientnet_v2_l"))
    assert found is not None
    assert (found.mean, found.std) == ([0.5] * 3, [0.5] * 3)
    assert found.classes is not None
    assert found.classes[0] == "tench"


def test_weights_that_nobody_pinned_are_refused_with_the_command_that_does(
    pinned: Callable[..., Pin],
) -> None:
    pinned("imagenet", Theirs(), torchvision="vgg16")
    with pytest.raises(
        NetworkError,
        match=r"network\.weights is `imagenet`, but weights/ has no pin of it for resnet18 \(pinned: imagenet "
        r"\(vgg16\)\)\. Type: convoy weights use imagenet --network mine$",
    ):
        read("imagenet", SPEC.model_copy(update={"twin": "resnet18"}))
    with pytest.raises(
        NetworkError, match=r"no pin of it \(pinned: .*\)\. Type: convoy weights use runs:/12$"
    ):
        read("runs:/12", SPEC)
    Path("weights/x.json").unlink()
    with pytest.raises(NetworkError, match=r"\(pinned: nothing\)"):
        read("runs:/12", SPEC)


def test_imagenet_for_a_network_that_torchvision_does_not_have_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    with pytest.raises(
        RequestError,
        match=r"torchvision has no network of mine's structure.*There are for: .*\bresnet18\b.*, and for any file in "
        r"networks/ with the one line `torchvision: NAME`\. Set network\.name to one of them, or network\.weights to none",
    ):
        read("imagenet", SPEC)


def test_a_file_that_is_not_here_is_refused_with_what_fetches_it(pinned: Callable[..., Pin]) -> None:
    pinned("other/w.pth", Theirs())
    Path("weights/x/weights.pt").unlink()
    with pytest.raises(
        NetworkError,
        match=r"x/weights\.pt, pinned as other/w\.pth, is not here\. `dvc repro` .* `dvc pull -R weights`",
    ):
        read("other/w.pth", SPEC)


@pytest.mark.parametrize("file", ["weights.pt", "model.json"])
def test_a_file_that_changed_since_it_was_pinned_is_refused(pinned: Callable[..., Pin], file: str) -> None:
    facts = {"classes": LETTERS, "mean": [0.1] * 3, "std": [0.2] * 3}
    pin = pinned("./other", Theirs(), facts)
    was = pin.sha256 if file == "weights.pt" else pin.facts_sha256
    path = Path("weights/x") / file
    path.write_bytes(path.read_bytes() + b" ")
    now = files.sha256(path)
    with pytest.raises(
        NetworkError,
        match=rf"weights/x/{file} is not what was pinned as \./other: its sha256 was {str(was)[:16]}…, now it is "
        rf"{now[:16]}…\. If the change is wanted: convoy weights use \./other",
    ):
        read("./other", SPEC)


def test_a_pin_that_is_none_is_refused(pinned: Callable[..., Pin]) -> None:
    pinned("./other", Theirs())
    Path("weights/a.json").write_text(json.dumps({"asked": "imagenet"}))
    with pytest.raises(
        NetworkError, match=r"weights/a\.json is no pin that this version reads(.|\n)*git checkout weights/a"
    ):
        read("./other", SPEC)
    Path("weights/a.json").write_text("<<<<<<< HEAD")
    with pytest.raises(NetworkError, match=r"weights/a\.json is no pin that this version reads"):
        read("./other", SPEC)
