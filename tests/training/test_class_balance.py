import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

from convoy.core import params as reading
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError
from convoy.models import trained
from convoy.models.trained import ModelFacts
from convoy.training.batch import Batch
from convoy.training.class_balance import balanced_order, effect, weights
from convoy.training.data import DataModule
from convoy.training.fit import fit
from convoy.training.module import Classifier
from convoy.training.settings import TrainParams
from squares import CLASSES, PX, write_packed

IMAGES = [30, 10, 2]


@pytest.fixture(scope="session")
def imbalanced(tmp_path_factory):
    """Noise of which blue is 15 times as frequent as red, which val and test lack."""
    folder = tmp_path_factory.mktemp("imbalanced")
    labels = np.concatenate([np.repeat([0, 1, 2], IMAGES), np.repeat([0, 1], [8, 4])])
    images_u8 = np.random.default_rng(0).integers(0, 256, (len(labels), PX, PX, 3), dtype=np.uint8)
    write_packed(folder, images_u8, labels, {"train": [0, 42], "val": [42, 54], "test": [42, 54]}, CLASSES)
    return Dataset.load(folder)


def test_weights_are_those_computed_by_hand():
    images = np.array([30, 10, 2])
    assert weights(images, "none") is None
    assert weights(images, "balanced") == pytest.approx([42 / 90, 42 / 30, 42 / 6])
    # Effective numbers of 1000, 100 and 10 images with beta 0.999: 632.3, 95.21 and 9.955.
    images = np.array([1000, 100, 10])
    expected = np.array([1 / 632.30457, 1 / 95.20785, 1 / 9.9551197])
    assert weights(images, "effective") == pytest.approx(
        expected * 1110 / (images * expected).sum(), rel=1e-6
    )


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=50), st.sampled_from(["balanced", "effective"]))
def test_the_mean_weight_of_an_image_is_one_and_rarer_classes_weigh_more(images, kind):
    images = np.array(images)
    found = weights(images, kind)
    assert (found * images).sum() == pytest.approx(images.sum())
    order = np.argsort(images)
    assert (np.diff(found[order]) <= 1e-9).all()
    if kind == "balanced":
        assert found * images == pytest.approx(np.full(len(images), images.sum() / len(images)))


@given(st.lists(st.integers(0, 40), min_size=2, max_size=9).filter(sum), st.integers(0, 99))
def test_the_balanced_sampler_draws_every_class_alike_and_no_image_twice_before_all_others(images, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(images)), images))
    order = balanced_order(labels, np.random.default_rng(seed))
    assert len(order) == len(labels)
    of_class = [(labels[order] == k).sum() for k, number in enumerate(images) if number]
    assert max(of_class) - min(of_class) <= 1
    times = np.bincount(order, minlength=len(labels))
    for k in range(len(images)):
        own = times[labels == k]
        assert own.size == 0 or own.max() - own.min() <= 1


def test_the_balanced_sampler_shows_other_images_of_a_frequent_class_in_another_epoch(imbalanced, params):
    data = DataModule(imbalanced, params(sampler="balanced"), seed=1)
    data.trainer = type("Trainer", (), {"current_epoch": 0})()
    first = data._order(imbalanced.labels("train"))
    assert np.array_equal(first, data._order(imbalanced.labels("train")))
    data.trainer.current_epoch = 1
    assert set(first) != set(data._order(imbalanced.labels("train")))
    batches = list(data.train_batches())
    assert len(batches) == 3
    assert torch.bincount(torch.cat([batch.labels for batch in batches])).tolist() == [14, 14, 14]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_batch_is_the_mean_of_weighted_losses(imbalanced, tiny, params, smoothing):
    facts = ModelFacts(
        network="tiny",
        spec=tiny,
        **{k: getattr(imbalanced, k) for k in ("classes", "image_px", "fit", "mean", "std")},
    )
    chosen = params(class_weights="balanced", label_smoothing=smoothing)
    factors = weights(np.array(IMAGES), "balanced")
    classifier = Classifier(trained.make(facts, auxiliary=True), chosen, facts, 3, factors).eval()
    pixels_u8 = torch.from_numpy(imbalanced.images("train")[[0, 30, 40, 41]].copy()).permute(0, 3, 1, 2)
    batch = Batch(pixels_u8, torch.tensor([0, 1, 2, 2]), 0, np.arange(4))
    logp = log_softmax(classifier.model(pixels_u8.float()), dim=1)
    own = -logp[range(4), batch.labels]
    each = (1 - smoothing) * own - smoothing * logp.mean(dim=1)
    expected = (each * torch.tensor([42 / 90, 42 / 30, 7.0, 7.0])).sum() / 4
    torch.testing.assert_close(classifier.training_step(batch, 0), expected)
    classifier.validation_step(batch)
    torch.testing.assert_close(classifier.val_sums.compute()["loss"], own.mean())
    assert not [name for name in classifier.state_dict() if "class_weights" in name], (
        "no checkpoint holds them"
    )


@pytest.mark.parametrize("change", [{"sampler": "balanced"}, {"class_weights": "effective"}])
def test_a_training_killed_within_an_epoch_ends_with_identical_weights(
    imbalanced, tiny, params, tmp_path, killed, change
):
    weights = killed(lambda folder, **how: fit(imbalanced, tiny, params(**change), 1, folder, **how), 5)
    plain = tmp_path / "plain"
    fit(imbalanced, tiny, params(), 1, plain)
    assert (plain / "weights.pt").read_bytes() != weights


def test_the_effect_on_each_class_is_printed_once_before_the_first_step(
    imbalanced, tiny, params, tmp_path, capsys
):
    fit(imbalanced, tiny, params(epochs=1, class_weights="balanced"), 1, tmp_path / "model")
    output = capsys.readouterr().out
    assert output.count("class weights (balanced)") == 1
    assert output.index("class weights") < output.index("epoch 1/1")
    rows = [line.split() for line in output[output.index("class weights") :].splitlines()[1:5]]
    assert rows == [
        ["class", "images", "weight"],
        ["red", "2", "7"],
        ["green", "10", "1.4"],
        ["blue", "30", "0.467"],
    ]


def test_the_effect_of_the_sampler_is_the_draws_and_of_many_classes_the_extremes_are_shown(params):
    labels = np.repeat(np.arange(100), np.arange(1, 101))
    lines = effect([f"c{k}" for k in range(100)], labels, params(sampler="balanced")).splitlines()
    assert "50.5 images of every class" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["c0", "c1", "c2", "and", "c97", "c98", "c99"]
    assert lines[2].split() == ["c0", "1", "50.5"]
    assert lines[-1].split() == ["c99", "100", "0.505"]
    assert len(lines) <= 10
    assert "beta 0.999" in effect(["a", "b"], np.array([0, 1, 1]), params(class_weights="effective"))
    assert effect(["a", "b"], np.array([0, 1, 1]), params()) == ""


def test_correcting_twice_is_refused_with_both_remedies(params):
    twice = params().model_dump() | {"class_weights": "balanced", "sampler": "balanced"}
    with pytest.raises(
        RequestError, match=r"(?s)class_weights: balanced.*class_weights: none or sampler: shuffle"
    ):
        reading.check("train", TrainParams, twice)
