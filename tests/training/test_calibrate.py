import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from convoy.core.dataset import Dataset
from convoy.evaluation.calibration import calibration_error
from convoy.models import trained
from convoy.training.calibrate import BOUNDS, LEAST_IMAGES, calibrate, mean_loss
from convoy.training.fit import fit
from squares import write_packed


def drawn(images, classes, scale, seed=0):
    """Draw logits, and labels from the probabilities that they would state at temperature `scale`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (images, classes))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return (logits * scale).astype(np.float32), labels


def right_and_sure(logits, labels):
    shares = torch.from_numpy(logits).softmax(1).numpy()
    return shares.max(axis=1), shares.argmax(axis=1) == labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_a_scale_and_with_it_the_calibration_error(scale):
    logits, labels = drawn(4000, 5, scale)
    found = calibrate(logits, labels)
    assert found.temperature == pytest.approx(scale, rel=0.05)
    other, after = drawn(4000, 5, scale, seed=1)
    assert calibration_error(*right_and_sure(other / found.temperature, after)) < 0.03
    if scale != 1:
        assert calibration_error(*right_and_sure(other, after)) > 0.1
        assert found.loss < found.loss_before


def test_the_temperature_is_the_minimum_of_the_loss_towards_uncertain_targets():
    logits, labels = drawn(300, 4, 3.0)
    target = np.full(logits.shape, 1 / 302 / 3)
    target[np.arange(300), labels] = 301 / 302

    def loss(log_temperature):
        scores = torch.from_numpy(logits).double() / np.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(target)))

    expected = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    assert calibrate(logits, labels).temperature == pytest.approx(expected, rel=1e-3)


def test_probabilities_stay_below_certainty_where_every_image_is_right():
    labels = np.arange(200) % 4
    logits = np.eye(4, dtype=np.float32)[labels] * 3
    found = calibrate(logits, labels)
    assert BOUNDS[0] < found.temperature < 1
    sure, _ = right_and_sure(logits / found.temperature, labels)
    assert sure == pytest.approx(np.full(200, 201 / 202))


@pytest.mark.parametrize(("scale", "bound"), [(1e-6, BOUNDS[0]), (1e6, BOUNDS[1])])
def test_the_temperature_has_bounds(scale, bound):
    logits, labels = drawn(200, 3, scale)
    assert calibrate(logits, labels).temperature == bound


def test_few_images_or_logits_that_are_not_finite_leave_the_temperature_at_1_with_the_reason():
    logits, labels = drawn(LEAST_IMAGES, 3, 4.0)
    assert calibrate(logits, labels).temperature > 2
    few = calibrate(logits[1:], labels[1:])
    assert (few.temperature, few.line(49)) == (
        1.0,
        f"temperature: 1, since 49 validation images are too few to fit it; {LEAST_IMAGES} would do",
    )
    logits[7, 1] = np.inf
    infinite = calibrate(logits, labels)
    assert infinite.temperature == 1.0
    assert "not finite" in infinite.line(50)


@pytest.fixture
def noisy(tmp_path):
    """A dataset of 60 validation images in which a third of the labels is wrong."""
    random = np.random.default_rng(0)
    labels = np.arange(180) % 3
    images_u8 = random.integers(0, 160, size=(180, 8, 8, 3), dtype=np.uint8)
    images_u8[np.arange(180), :, :, 2 - labels] += 60
    wrong = random.random(180) < 0.3
    labels[wrong] = random.integers(0, 3, wrong.sum())
    splits = {"train": [0, 60], "val": [60, 120], "test": [120, 180]}
    write_packed(tmp_path / "noisy", images_u8, labels, splits, ["blue", "green", "red"])
    return Dataset.load(tmp_path / "noisy")


def test_the_saved_model_is_measured_with_its_views(noisy, tiny, params, tmp_path):
    plain = fit(noisy, tiny, params(epochs=2, augment=["flip"]), 1, tmp_path / "plain")
    metrics = fit(noisy, tiny, params(epochs=2, augment=["flip"], tta="views"), 1, tmp_path / "views")
    assert (tmp_path / "plain/weights.pt").read_bytes() == (tmp_path / "views/weights.pt").read_bytes()
    model, facts = trained.load(tmp_path / "views")
    logits = trained.predict_logits(model, noisy.images("val"), 16)
    labels = noisy.labels("val")
    assert facts.tta == "views"
    assert metrics["best"]["val_loss"] != plain["best"]["val_loss"]
    assert metrics["best"]["val_loss"] == pytest.approx(
        mean_loss(logits * facts.temperature, labels), rel=1e-4
    )
    assert metrics["best"]["val_accuracy"] == (logits.argmax(1) == labels).mean()
    assert metrics["val"] == plain["val"]


def test_a_training_fits_the_temperature_of_its_best_weights_and_changes_no_class(
    noisy, tiny, params, tmp_path, capsys
):
    plain = fit(noisy, tiny, params(epochs=8, calibrate=False), 1, tmp_path / "plain")
    printed = capsys.readouterr().out
    metrics = fit(noisy, tiny, params(epochs=8), 1, tmp_path / "fitted")
    assert "temperature: " not in printed
    assert "fitted on 60 validation images" in capsys.readouterr().out
    assert (tmp_path / "plain/weights.pt").read_bytes() == (tmp_path / "fitted/weights.pt").read_bytes()

    (before, _), (after, facts) = trained.load(tmp_path / "plain"), trained.load(tmp_path / "fitted")
    images_u8 = noisy.images("test")
    was, logits = (trained.predict_logits(model, images_u8, 16) for model in (before, after))
    expected = calibrate(trained.predict_logits(before, noisy.images("val"), 16), noisy.labels("val"))
    assert plain["best"]["temperature"] == 1.0
    assert metrics["best"]["temperature"] == facts.temperature == pytest.approx(expected.temperature)
    assert abs(facts.temperature - 1) > 0.05
    assert metrics["best"]["val_loss"] == plain["best"]["val_loss"] == pytest.approx(expected.loss_before)
    np.testing.assert_allclose(logits * facts.temperature, was, rtol=1e-5)
    assert np.array_equal(logits.argmax(1), was.argmax(1))
