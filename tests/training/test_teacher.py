"""Distillation: whom a training learns from, what of it stays as it was, and which teachers are refused."""

import copy
import json

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import interpolate

from convoy.core.errors import NetworkError, RequestError
from convoy.models import trained
from convoy.models.build import build
from convoy.models.trained import ModelFacts
from convoy.training import teacher
from convoy.training.batch import Batch
from convoy.training.fit import fit
from convoy.training.losses import classification_loss, distillation_loss
from convoy.training.teacher import load
from squares import CLASSES

SOURCE = "models:/convoy@champion"


@pytest.fixture
def taught(dataset, stack, pinned):
    """Pin a model of `stack` as the teacher, with other facts if they are given; return it loaded."""

    def make(classes=CLASSES, seed=3, **changes):
        facts = {
            "network": stack.name,
            "spec": stack,
            "classes": CLASSES,
            "image_px": dataset.image_px,
            "fit": "squash",
        }
        facts |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]} | changes
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = trained.make(ModelFacts(**facts))
            for value in model.network.parameters():
                torch.nn.init.normal_(value, std=0.7)
        pinned(
            SOURCE, model.network, ModelFacts(**facts).model_dump(mode="json"), resolved="models:/convoy/3"
        )
        return load(SOURCE, classes)

    return make


def weights(folder):
    return torch.load(folder / "weights.pt")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def batch(dataset):
    rows = torch.arange(6)
    pixels_u8 = torch.from_numpy(dataset.images("train")[:6].copy()).permute(0, 3, 1, 2)
    return Batch(pixels_u8, torch.from_numpy(dataset.labels("train")[:6].copy()), 0, rows.numpy())


def test_the_loss_is_the_weighted_sum_of_labels_and_teacher(classifier, tiny, params, taught, batch):
    module = classifier(tiny, params(teacher_weight=0.3, teacher_temperature=2.0))
    module.model.network.eval()  # without dropout
    module.teacher = taught()
    logits = module.model(batch.pixels_u8.float())
    own = classification_loss(logits, batch.labels, smoothing=0.1)
    from_teacher = distillation_loss(logits, module.teacher.logits(batch.pixels_u8), 2.0)
    assert from_teacher.item() > 0.1
    torch.testing.assert_close(module.training_step(batch, 0), 0.7 * own + 0.3 * from_teacher)


def test_a_teacher_sees_the_pixels_with_its_own_normalisation_without_temperature_and_views(taught, batch):
    made = taught(temperature=3.0, tta="flip")
    model, _ = trained.load(teacher.weight_pins.FOLDER / "x")
    pixels = (batch.pixels_u8.float() / 255 - model.mean) / model.std
    torch.testing.assert_close(made.logits(batch.pixels_u8), model.network(pixels))
    assert not made.logits(batch.pixels_u8).requires_grad


def test_images_are_resized_to_the_side_of_the_teacher(taught, batch):
    made = taught(image_px=6)
    expected = interpolate(batch.pixels_u8.float(), (6, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(made.logits(batch.pixels_u8), made.model(expected))


def test_a_training_learns_from_its_teacher_which_stays_the_same_and_out_of_the_model(
    dataset, tiny, params, taught, tmp_path
):
    made = taught()
    before = copy.deepcopy(made.model.state_dict())
    only = params(epochs=20, teacher_weight=1.0, teacher_temperature=1.0, augment=[], ema=0.5, lr=0.3)
    fit(dataset, tiny, only, 1, tmp_path / "taught", teacher=made)
    fit(dataset, tiny, only, 1, tmp_path / "alone")
    assert equal(before, made.model.state_dict())
    assert copy.deepcopy(made) is made, "as the moving average copies a training"
    assert not made.model.training
    assert weights(tmp_path / "taught").keys() == weights(tmp_path / "alone").keys()
    pixels_u8 = torch.from_numpy(dataset.images("val").copy()).permute(0, 3, 1, 2)
    agreement = []
    for name in ("taught", "alone"):
        model, _ = trained.load(tmp_path / name)
        answers = model(pixels_u8.float()).argmax(1)
        agreement.append(float((answers == made.logits(pixels_u8).argmax(1)).float().mean()))
    assert agreement[0] > agreement[1]
    assert agreement[0] > 0.7


def test_without_a_teacher_its_params_change_nothing(dataset, tiny, params, tmp_path):
    fit(dataset, tiny, params(), 1, tmp_path / "first")
    fit(dataset, tiny, params(teacher_weight=0.9, teacher_temperature=9.0), 1, tmp_path / "second")
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_a_killed_training_resumes_exactly(dataset, tiny, params, taught, killed, resumable):
    taught()
    chosen = params(ema=0.9)
    killed(
        lambda folder, **how: fit(dataset, tiny, chosen, 1, folder, teacher=load(SOURCE, CLASSES), **how), 4
    )
    assert not [name for name in resumable().checkpoint.content["state_dict"] if "teacher" in name]


def test_log_and_tag_name_network_version_and_digest(dataset, tiny, params, taught, out, capsys):
    made = taught()
    assert str(made) == f"stack of models:/convoy/3 (sha256 {made.sha256[:16]})"
    fit(dataset, tiny, params(epochs=1), 1, out, teacher=made)
    assert f"teacher: {made}, weight 0.5, temperature 4" in capsys.readouterr().out


def test_the_digest_covers_weights_and_facts(taught):
    digests = {taught().sha256, taught(seed=4).sha256, taught(mean=[0.1, 0.1, 0.1]).sha256}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["blue", "green", "red", "teal"], r"3 classes .* 4 of the dataset: it lacks teal\. "),
        (["blue", "red", "teal"], r"it lacks teal; only it has green\. "),
        (["blue", "red", "green"], r"another order, first at class 1: green instead of red\. "),
        ([*CLASSES, *"abcdefg"], r"it lacks a, b, c, d, e and 2 more"),
    ],
)
def test_other_classes_are_refused_with_the_difference_and_what_to_do(taught, classes, message):
    with pytest.raises(RequestError, match=rf"train\.teacher {SOURCE} .*{message}"):
        taught(classes)


def test_none_is_no_teacher():
    assert load("none", CLASSES) is None


def test_weights_without_their_facts_are_refused(pinned, stack, dataset):
    pinned("./best.pt", build(stack, 3, dataset.image_px))
    with pytest.raises(RequestError, match=r"best\.pt is a file of weights.*runs:/ID.*train\.teacher: none"):
        load("./best.pt", CLASSES)


def test_a_teacher_that_is_not_pinned_is_named_with_its_key_and_command(pinned, stack, dataset):
    with pytest.raises(NetworkError, match=r"train\.teacher is `runs:/1`.*convoy weights use runs:/1"):
        load("runs:/1", CLASSES)


def test_files_that_were_changed_since_they_were_pinned_are_refused(taught):
    taught()
    path = teacher.weight_pins.FOLDER / "x/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.0, 0.0, 0.0]}))
    with pytest.raises(NetworkError, match=r"model\.json differs .*convoy weights use"):
        load(SOURCE, CLASSES)


def test_facts_that_rebuild_no_network_are_refused(pinned, stack, dataset):
    pinned(
        SOURCE, build(stack, 3, dataset.image_px), {"classes": CLASSES, "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    with pytest.raises(
        NetworkError, match=rf"train\.teacher {SOURCE} are not a model.*weights/x.*\n.*convoy weights use"
    ):
        load(SOURCE, CLASSES)


@pytest.mark.parametrize(
    ("value", "message"), [("imagenet", r"network\.weights: imagenet.*runs:/RUN_ID"), ("run:/1", "runs:")]
)
def test_what_cannot_teach_is_refused_with_params(params, value, message):
    with pytest.raises(ValidationError, match=message):
        params(teacher=value)


@pytest.mark.parametrize(
    "changes", [{"teacher_weight": 0.0}, {"teacher_weight": 1.1}, {"teacher_temperature": 0.5}]
)
def test_values_without_meaning_are_refused(params, changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        params(**changes)


def test_numbers_that_are_not_finite_are_refused_by_name(pinned, stack, dataset, taught):
    facts = taught().facts
    network = trained.make(facts).network
    network.state_dict()["conv2.weight"][0] = float("nan")
    pinned(SOURCE, network, facts.model_dump(mode="json"))
    with pytest.raises(
        NetworkError, match=rf"train\.teacher {SOURCE} .*not finite, first in conv2\.weight.*teacher: none"
    ):
        load(SOURCE, CLASSES)
