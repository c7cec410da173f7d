"""Starting weights: files as others write them, tensor by tensor onto a network, and pinned ones."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convoy.core.errors import NetworkError
from convoy.models.build import build
from convoy.models.spec import Spec
from convoy.training import pretrained
from convoy.training.pretrained import (
    MisfitError,
    StartingWeights,
    WeightFacts,
    graft,
    last_layer,
    pair,
    read_file,
)

TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3), "conv1.bias": torch.ones(2)}
FACTS = {"classes": ["a"], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}


@pytest.fixture
def write(tmp_path):
    def save(content, **how):
        torch.save(content, tmp_path / "w.pth", **how)
        return tmp_path / "w.pth"

    return save


def prefixed(*prefixes):
    return {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model": TENSORS, "epoch": 3},
        {"model_state_dict": TENSORS},
        prefixed("module."),
        {"state_dict": prefixed("model.network.")},
        {"state_dict": prefixed("model._orig_mod.")},
        {"state_dict": prefixed("_orig_mod.module.")},
        TENSORS | {"epoch": 3},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_found_wherever_checkpoints_keep_them(write, content, *, zipped):
    tensors, facts = read_file(write(content, _use_new_zipfile_serialization=zipped))
    assert list(tensors) == list(TENSORS)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert facts is None


def test_a_checkpoint_of_convoys_brings_its_facts_and_only_its_network(write):
    state = prefixed("model.network.") | {"val_accuracy.tp": torch.zeros(1)}
    tensors, facts = read_file(write({"state_dict": state, "convoy": json.dumps(FACTS | {"fit": "crop"})}))
    assert list(tensors) == list(TENSORS)
    assert facts == WeightFacts(**FACTS)


def test_names_that_only_some_tensors_begin_with_are_kept(write):
    mixed = {"model.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert list(read_file(write(mixed))[0]) == list(mixed)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [(Bomb(), r"posix\.mkdir"), ({"hyper": argparse.Namespace()}, r"argparse\.Namespace")],
)
def test_pickled_code_is_refused_by_name_and_never_runs(write, monkeypatch, content, named, *, zipped):
    path = write({"conv1.weight": torch.zeros(1), "x": content}, _use_new_zipfile_serialization=zipped)
    monkeypatch.chdir(path.parent)
    message = rf"w\.pth holds pickled code \({named}\).*torch\.save\(network\.state_dict"
    with pytest.raises(NetworkError, match=message):
        read_file(path)
    assert not (path.parent / "exploded").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(NetworkError, match=r"w\.pkl holds a pickle of more than tensors.*weights_only"):
        read_file(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"<html>404</html>", bytes(range(1, 200))])
def test_a_file_that_is_not_one_of_weights_is_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"w\.pth is not a file of weights"):
        read_file(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_safetensors_file_is_read_whatever_its_name(tmp_path, suffix):
    tensors = {"head.weight": torch.rand(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)}
    path = tmp_path / f"w.{suffix}"
    save_file({f"model.{name}": value for name, value in tensors.items()}, path, metadata={"format": "pt"})
    read, facts = read_file(path)
    assert facts is None
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:40],
        lambda content: content.replace(b"F32", b"F99"),
        lambda content: content.replace(b'"shape":[2,3]', b'"shape":[9,9]'),
    ],
)
def test_a_damaged_safetensors_file_is_refused_with_the_remedy(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.rand(2, 3)}, path)
    content = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"w\.safetensors is (damaged|not a file of weights)(.|\n)*"):
        read_file(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(write, share, *, zipped):
    path = write({"w": torch.zeros(5000)}, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(NetworkError, match=r"w\.pth is damaged .*: .+\n.*convoy weights use SOURCE"):
        read_file(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 3, "state_dict": {}}, r"holds no tensors \(its keys: epoch, state_dict\)"),
        ({}, r"holds no tensors \(its keys: none\)"),
        ({str(n): n for n in range(9)}, r"its keys: 0, 1, 2, 3, 4, …\)"),
        (torch.zeros(3), r"holds a Tensor, not tensors by name"),
    ],
)
def test_a_file_without_tensors_by_name_is_refused(write, content, reason):
    with pytest.raises(NetworkError, match=reason + r".*torch\.save\(network\.state_dict"):
        read_file(write(content))


@pytest.mark.parametrize("text", ["{", '{"classes": ["a"]}'])
def test_facts_that_cannot_be_read_are_refused(write, text):
    with pytest.raises(NetworkError, match=r"w\.pth does not hold classes, mean and std"):
        read_file(write({"state_dict": TENSORS, "convoy": text}))


def zeros(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_equal_names_win_over_order_and_others_are_paired_in_order():
    own = zeros(a__weight=(2, 2), b__weight=(2, 2))
    same, others = (zeros(**{f"{x}__weight": (2, 2), f"{y}__weight": (2, 2)}) for x, y in ("ba", "yx"))
    assert pair(own, same, []) == {"a.weight": "a.weight", "b.weight": "b.weight"}
    assert pair(own, others, []) == {"a.weight": "y.weight", "b.weight": "x.weight"}


@pytest.mark.parametrize(
    ("own", "given", "misfit"),
    [
        ({"n.weight": 4, "n.bias": 4}, {"b.bias": 4, "b.weight": 4}, ("tensor 1 is b.bias 4", "n.weight 4")),
        ({"a.weight": 5}, {"x.weight": 4}, ("tensor 1 is x.weight 4", "a.weight 5")),
        ({"a.weight": 1, "b.weight": 1}, {"x.weight": 1}, ("tensor 2 is missing", "b.weight 1")),
        ({"a.weight": 1}, {"a.weight": 1, "y.weight": 1}, ("tensor 2 is y.weight 1", "nothing more")),
    ],
)
def test_the_first_tensor_that_does_not_fit_in_kind_or_shape_is_named(own, given, misfit):
    tensors = ({name: torch.zeros(size) for name, size in sizes.items()} for sizes in (own, given))
    with pytest.raises(MisfitError) as caught:
        pair(*tensors, [])
    assert caught.value.args == misfit


def test_the_width_of_a_head_may_differ_and_nothing_else_of_it():
    own = zeros(a__weight=(4, 3), fc__weight=(10, 4), fc__bias=(10,))
    given = zeros(x__weight=(4, 3), y__weight=(7, 4), y__bias=(7,))
    pairs = pair(own, given, ["fc.weight", "fc.bias"])
    assert pairs == {"a.weight": "x.weight", "fc.weight": "y.weight", "fc.bias": "y.bias"}
    with pytest.raises(MisfitError, match=r"y\.weight 7×5"):
        pair(own, given | {"y.weight": torch.zeros(7, 5)}, ["fc.weight", "fc.bias"])


def test_the_counters_of_batch_norms_come_along_where_a_file_has_them():
    own = zeros(n__running_mean=(3,), n__num_batches_tracked=())
    old = zeros(bn__running_mean=(3,))
    new = zeros(bn__running_mean=(3,), bn__num_batches_tracked=())
    assert pair(own, old, []) == {"n.running_mean": "bn.running_mean"}
    assert pair(own, new, [])["n.num_batches_tracked"] == "bn.num_batches_tracked"


def test_the_head_is_the_last_layer_with_a_matrix_of_weights():
    tensors = zeros(a__weight=(4, 3), fc__weight=(10, 4), fc__bias=(10,), n__weight=(10,))
    assert last_layer(tensors) == ["fc.weight", "fc.bias"]


def test_auxiliary_heads_are_recognised_by_their_names():
    names = ["aux1.conv.weight", "aux.fc.bias", "AuxLogits.fc.weight", "auxiliary2.dense1.bias"]
    assert all(map(pretrained.AUXILIARY.match, names))


def test_a_layer_that_is_only_named_like_an_auxiliary_head_is_copied():
    network = nn.Sequential()
    network.aux = nn.Linear(3, 3)
    network.auxiliary_like = nn.Linear(3, 7)
    grafted = graft(network, starting(network, LETTERS), LETTERS)
    assert grafted.taken == ("aux.weight", "aux.bias", "auxiliary_like.weight", "auxiliary_like.bias")


PX = 16
LETTERS = list("abcdefg")
END = ["global_avg_pool", "flatten", {"dense": "classes"}]
START = [{"conv": {"filters": 4, "kernel": 3, "bias": False}}, "norm", "relu"]
AUXILIARY = {"auxiliary": {"weight": 0.3, "layers": END}}
LAYERS = [*START, AUXILIARY, {"conv": {"filters": 6, "kernel": 3}}, "relu", *END]
SPEC = Spec.model_validate({"name": "mine", "layers": LAYERS})


class Theirs(nn.Module):
    """The network of SPEC as somebody else would write and name it, with seven classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.aux1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, 7)
        for tensor in (self.stem[1].running_mean, self.stem[1].running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, images):
        return self.fc(self.body(self.stem(images)))


def starting(network, classes=None):
    facts = WeightFacts(classes=classes, mean=[0.5] * 3, std=[0.5] * 3) if classes else None
    file = Path("weights/x.pth")
    return StartingWeights("imagenet", "imagenet", file, "mine", dict(network.state_dict()), facts)


def test_tensors_of_another_implementation_give_its_logits():
    theirs = Theirs().eval()
    ours = build(SPEC, 7, PX).eval()
    images = torch.randn(3, 3, PX, PX)
    assert not torch.allclose(ours(images), theirs(images))
    grafted = graft(ours, starting(theirs, LETTERS), LETTERS)
    assert torch.equal(ours(images), theirs(images))
    assert grafted.reinitialised == ()
    first, ignored = grafted.lines()
    assert "imagenet: 10 tensors copied; head kept: the same 7 classes" in first
    assert ignored == "ignored: aux1.2.weight, aux1.2.bias"


def test_auxiliary_heads_come_along_to_a_network_that_has_them():
    theirs = Theirs()
    ours = build(SPEC, 7, PX, auxiliary=True).eval()
    grafted = graft(ours, starting(theirs, LETTERS), LETTERS)
    assert torch.equal(ours.auxiliary1.dense1.weight, theirs.aux1[2].weight)
    assert grafted.ignored == ()
    ours = build(SPEC, 7, PX, auxiliary=True).eval()
    again = graft(ours, starting(build(SPEC, 7, PX, auxiliary=True), LETTERS), LETTERS)
    assert again.taken == grafted.taken
    assert again.reinitialised == ()


def test_auxiliary_heads_of_another_form_start_fresh():
    theirs = Theirs()
    theirs.aux1[2] = nn.Linear(5, 7)
    ours = build(SPEC, 7, PX, auxiliary=True)
    fresh = ours.auxiliary1.dense1.weight.clone()
    grafted = graft(ours, starting(theirs, LETTERS), LETTERS)
    assert torch.equal(ours.auxiliary1.dense1.weight, fresh)
    assert grafted.reinitialised == ("auxiliary1.dense1.weight", "auxiliary1.dense1.bias")
    assert grafted.ignored == ("aux1.2.weight", "aux1.2.bias")


@pytest.mark.parametrize(
    ("known", "classes", "kept", "reason"),
    [
        (LETTERS, LETTERS, True, "kept: the same 7 classes"),
        (None, list("tuvwxyz"), True, "kept: it also has 7 classes, with unknown names"),
        (None, ["cat", "dog"], False, "new: 2 classes instead of 7"),
        (LETTERS, ["a", "b"], False, "new: 2 classes instead of 7"),
        (LETTERS, list("abcdegf"), False, "new: other classes, such as g instead of f"),
    ],
)
def test_the_head_starts_fresh_when_the_classes_differ(known, classes, *, kept, reason):
    theirs = Theirs()
    ours = build(SPEC, len(classes), PX, auxiliary=True)
    fresh = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    grafted = graft(ours, starting(theirs, known), classes)
    heads = ("auxiliary1.dense1.weight", "auxiliary1.dense1.bias", "dense1.weight", "dense1.bias")
    assert grafted.head == reason
    assert set(grafted.reinitialised) == (set() if kept else set(heads))
    assert grafted.ignored == ()
    for name in heads:
        assert torch.equal(ours.state_dict()[name], fresh[name]) is not kept
    assert torch.equal(ours.conv2.bias, theirs.body[0].bias)


def test_a_file_of_another_architecture_is_refused_and_changes_nothing():
    ours, theirs = build(SPEC, 7, PX), Theirs()
    theirs.body[0] = nn.Conv2d(4, 6, 5)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    reason = r"weights/x\.pth holds another architecture: tensor 6 is body\.0\.weight 6×4×5×5, mine needs conv2\.weight"
    with pytest.raises(NetworkError, match=rf"{reason} 6×4×3×3\. Set network\.name"):
        graft(ours, starting(theirs, LETTERS), LETTERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_many_names_are_counted_by_unit():
    names = tuple(f"aux{n}.fc.{k}" for n in (1, 2) for k in "abcd")
    lines = pretrained.Grafted("x", "x", "new", (), names, ("fc.weight", "fc.bias")).lines()
    assert lines[1:] == ["reinitialised: 8 tensors in aux1, aux2", "ignored: fc.weight, fc.bias"]


def test_a_models_folder_brings_its_mean_std_and_classes(pinned):
    theirs = Theirs()
    facts = {"classes": LETTERS, "mean": [0.1] * 3, "std": [0.2] * 3, "fit": "crop"}
    pin = pinned("models:/convoy@champion", theirs, facts)
    loaded = pretrained.load("models:/convoy@champion", SPEC)
    assert loaded.facts == WeightFacts(classes=LETTERS, mean=[0.1] * 3, std=[0.2] * 3)
    assert list(loaded.tensors) == list(theirs.state_dict())
    assert (loaded.network, loaded.sha256) == ("mine", pin.weights_sha256)


def test_a_bare_file_brings_nothing_about_its_input_and_none_starts_from_nothing(pinned):
    pinned("other/w.pth", Theirs())
    assert pretrained.load("./other/../other/w.pth", SPEC).facts is None
    assert pretrained.load("none", SPEC) is None


def test_imagenet_brings_torchvisions_mean_std_and_classes(pinned):
    label = "EfficientNet_V2_L_Weights.IMAGENET1K_V1"
    pinned("imagenet", Theirs(), resolved=label, torchvision="efficientnet_v2_l")
    loaded = pretrained.load("imagenet", Spec(name="big", torchvision="efficientnet_v2_l"))
    assert (loaded.facts.mean, loaded.facts.std) == ([0.5] * 3, [0.5] * 3)
    assert loaded.facts.classes[0] == "tench"
