import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.core.errors import RequestError
from convoy.explain import position
from convoy.explain.position import CNN, DENSE, Effect, Result, points
from convoy.models.build import build
from convoy.models.spec import Spec
from squares import write_packed

PX = 16
DIGITS = Path(__file__).parents[2] / position.DIGITS
SPLITS = {"train": [0, 6], "val": [6, 10], "test": [10, 14]}


@pytest.fixture(scope="module")
def sheets():
    return position.digits(file=DIGITS, seed=5)


@pytest.fixture
def folder(tmp_path):
    """Noise of 16 px in two classes; test images, and only they, are white."""
    images_u8 = np.random.default_rng(0).integers(1, 200, size=(14, PX, PX, 3), dtype=np.uint8)
    images_u8[10:] = 255
    write_packed(tmp_path, images_u8, np.arange(14) % 2, SPLITS, ["a", "b"])
    return tmp_path


def spec(name):
    return Spec.model_validate({"name": name, "layers": position.NETWORKS[name]})


def test_the_order_has_every_pixel_once_and_moves_most(sheets):
    pixels = torch.arange(sheets.px**2)
    assert torch.equal(sheets.order.sort().values, pixels)
    assert (sheets.order != pixels).float().mean() > 0.9


def test_every_image_and_channel_is_shuffled_alike(sheets):
    numbered = torch.arange(sheets.px**2).view(1, 1, sheets.px, sheets.px).expand(4, 3, -1, -1)
    shuffled = position.shuffle(numbered, sheets.order)
    assert shuffled.shape == numbered.shape
    assert (shuffled.flatten(2) == sheets.order).all()


def test_a_dense_network_with_weights_shuffled_alike_answers_the_same_and_a_cnn_has_none_to_shuffle(sheets):
    pixels = sheets.test_u8[:32].float()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        dense, cnn = (build(spec(name), 10, sheets.px).eval() for name in (DENSE, CNN))
        before, before_cnn = dense(pixels), cnn(pixels)
        weights = dense.dense1.weight
        weights.copy_(weights.view(-1, 3, sheets.px**2)[:, :, sheets.order].flatten(1))
        shuffled = position.shuffle(pixels, sheets.order)
        assert torch.allclose(dense(shuffled), before, atol=1e-3)
        assert not torch.allclose(dense(pixels), before, atol=1)
        assert not torch.allclose(cnn(shuffled), before_cnn, atol=1)
        assert cnn.dense1.in_features == 64  # the mean of each map


def test_images_are_moved_on_their_sheets_and_keep_every_pixel(sheets):
    assert sheets.train_u8.shape == (500, 3, 14, 14)
    assert sheets.test_u8.shape == (1500, 3, 14, 14)
    assert not sheets.train_u8[:, :, :3].any()
    assert not sheets.train_u8[:, :, :, -3:].any()
    reached = sheets.test_u8.amax(dim=(0, 1)).any(dim=1)
    assert (reached[0], reached[1], reached[-2]) == (False, True, True)
    # 1,297 images make 1,500 sheets: an image on two of them keeps all its pixels on both.
    first, again = sheets.test_u8[:203], sheets.test_u8[1297:]
    assert torch.equal(first.flatten(1).sort().values, again.flatten(1).sort().values)
    assert not torch.equal(first, again)


def test_measured_images_were_not_trained_on(sheets):
    learnt, measured = (
        {tuple(pixels.sort().values.tolist()) for pixels in sheets_u8.flatten(1)}
        for sheets_u8 in (sheets.train_u8, sheets.test_u8)
    )
    assert len(learnt) == 500
    assert len(measured) == 1297
    assert not learnt & measured


def test_a_seed_decides_images_and_order(sheets):
    same, other = position.digits(file=DIGITS, seed=5), position.digits(file=DIGITS, seed=6)
    for name in ("train_u8", "test_u8", "test_labels", "order"):
        assert torch.equal(getattr(same, name), getattr(sheets, name))
        assert not torch.equal(getattr(other, name), getattr(sheets, name))


def test_a_packed_dataset_is_shrunk_and_its_test_images_stay_unseen(folder):
    sheets = position.packed(folder, seed=1)
    assert (sheets.classes, sheets.image_px, sheets.shift, sheets.px) == (2, 12, 3, 20)
    assert sheets.source == f"6 train images of {folder} for training, 4 val images for measuring"
    assert sheets.train_u8.shape == (6, 3, 20, 20)
    assert sheets.test_u8.shape == (1500, 3, 20, 20)
    assert sheets.train_u8[:, :, 4:16, 4:16].all()
    assert sheets.test_u8.max() < 255
    assert sheets.test_labels[:8].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]


def test_missing_samples_are_refused_with_the_alternative(tmp_path):
    with pytest.raises(RequestError, match=r"digits\.zip does not exist in .*--dataset build/dataset"):
        position.digits(1, tmp_path / "digits.zip")


def test_the_digits_are_those_of_the_archive(sheets):
    with zipfile.ZipFile(DIGITS) as archive:
        first = np.asarray(Image.open(io.BytesIO(archive.read("0/0000.png"))))
    assert sheets.classes == 10
    images = torch.cat([sheets.train_u8, sheets.test_u8])
    labels = torch.cat([sheets.train_labels, sheets.test_labels])
    ink = images.flatten(1).sort().values
    expected = torch.from_numpy(np.repeat(first.flatten(), 3)).sort().values
    same = (ink[:, -len(expected) :] == expected).all(dim=1)
    assert same.any()
    assert set(labels[same].tolist()) == {0}


def test_a_training_learns_and_repeats_itself_and_leaves_torch_as_it_was(sheets, monkeypatch):
    monkeypatch.setattr(position, "EPOCHS", 6)
    state = torch.get_rng_state()
    once, again = (position.train(spec(DENSE), sheets, 3, shuffled=True) for _ in range(2))
    assert once == again
    assert 0.4 < once < 1
    assert torch.equal(torch.get_rng_state(), state)


def test_images_move_before_the_shuffle(sheets, monkeypatch):
    monkeypatch.setattr(position, "EPOCHS", 1)
    seen = []
    shuffle = position.shuffle
    monkeypatch.setattr(
        position, "shuffle", lambda pixels, *how: seen.append(pixels) or shuffle(pixels, *how)
    )
    position.train(spec(DENSE), sheets, 3, shuffled=True)
    *moved, measured = seen
    assert sum(len(batch) for batch in moved) == 500
    assert torch.equal(measured, sheets.test_u8)
    reached = torch.cat(moved).amax(dim=(0, 1)).any(dim=1)
    assert (reached[0], reached[1], reached[-2]) == (False, True, True)


def test_both_networks_train_on_the_same_seeds_in_place_and_shuffled(sheets, monkeypatch):
    calls = []

    def train(spec, given, seed, *, shuffled):
        assert given is sheets
        assert torch.get_num_threads() == 1
        calls.append((spec.name, shuffled, seed))
        return (len(calls) - 1) / 100

    monkeypatch.setattr(position, "train", train)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        accuracies = list(position.trainings(sheets, 4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert calls == [(name, shuffled, seed) for name in (CNN, DENSE) for shuffled in (False, True) for seed in (4, 5, 6)]  # fmt: skip
    result = position.conclude(accuracies, sheets, 4)
    assert result.seeds == (4, 5, 6)
    assert result.cnn == Effect((0.0, 0.01, 0.02), (0.03, 0.04, 0.05), 1 / 1500)
    assert result.dense == Effect((0.06, 0.07, 0.08), (0.09, 0.1, 0.11), 1 / 1500)


@pytest.mark.slow
def test_a_shuffle_of_the_pixels_hurts_the_cnn_and_leaves_the_dense_network_as_it_was():
    sheets = position.digits(file=DIGITS, seed=1)
    result = position.conclude(list(position.trainings(sheets, 1)), sheets, 1)
    assert result.cnn.loss > 3 * result.cnn.spread
    assert abs(result.dense.loss) <= 3 * result.dense.spread
    assert result.holds
    assert min(result.cnn.in_place) > 0.95  # a CNN that never learnt could not lose
    assert min(result.dense.in_place) > 0.85


HURT = Effect((0.97, 0.98, 0.99), (0.80, 0.81, 0.81), 0.001)
UNCHANGED = Effect((0.90, 0.91, 0.92), (0.91, 0.90, 0.91), 0.001)
BETTER = Effect((0.90, 0.90, 0.91), (0.96, 0.96, 0.96), 0.001)
WORSE = Effect((0.96, 0.96, 0.96), (0.90, 0.90, 0.91), 0.001)


def report(result):
    return " ".join(" ".join(position.report(result)).split())


def test_loss_is_the_difference_of_means_and_spread_the_larger_range_of_seeds():
    assert HURT.loss == pytest.approx(0.98 - 2.42 / 3)
    assert HURT.spread == pytest.approx(0.02)
    assert HURT.bound == pytest.approx(0.06)
    assert Effect((0.5, 0.5, 0.5), (0.1, 0.4, 0.3), 0.001).spread == pytest.approx(0.3)


def test_the_spread_is_at_least_one_image():
    pair = Effect((0.5, 0.5, 0.5), (0.51, 0.51, 0.51), 0.004)
    assert pair.spread == 0.004
    assert Result(HURT, pair, (1, 2, 3)).dense_is_unchanged


@pytest.mark.parametrize(
    ("cnn", "dense", "holds", "lines"),
    [
        (HURT, UNCHANGED, True, ["CNN: loss of 17.3 points, more than the bound of 6.0", "Dense network: loss of 0.3 points, not more than the bound of 6.0"]),
        (UNCHANGED, UNCHANGED, False, ["CNN: loss of 0.3 points, not more than the bound of 6.0"]),
        (BETTER, UNCHANGED, False, ["CNN: gain of 5.7 points, not more than"]),
        (HURT, WORSE, False, ["Dense network: loss of 5.7 points, more than the bound of 3.0"]),
        (HURT, BETTER, False, ["Dense network: gain of 5.7 points, more than the bound of 3.0"]),
    ],
    ids=["as expected", "CNN unchanged", "CNN gains", "dense loses", "dense gains"],
)  # fmt: skip
def test_the_effect_holds_only_if_the_cnn_loses_and_the_dense_network_does_not_change(
    cnn, dense, holds, lines
):
    result = Result(cnn, dense, (1, 2, 3))
    assert result.holds is holds
    assert result.cnn_is_hurt is (cnn is HURT)
    assert result.dense_is_unchanged is (dense is UNCHANGED)
    assert all(line in report(result) for line in lines)
    assert ("Another --seed" in report(result)) is not holds


def test_the_table_has_mean_and_seeds_of_every_arm():
    lines = position.report(Result(HURT, UNCHANGED, (7, 8, 9)))
    assert lines[0].split() == ["in", "place", "shuffled", "loss", "3", "×", "spread"]
    assert lines[1].split() == ["CNN", "98.0", "(97.0", "98.0", "99.0)", "80.7", "(80.0", "81.0", "81.0)", "17.3", "6.0"]  # fmt: skip
    assert lines[2].split() == ["dense", "network", "91.0", "(90.0", "91.0", "92.0)", "90.7", "(91.0", "90.0", "91.0)", "0.3", "6.0"]  # fmt: skip
    assert "mean over the seeds 7, 8, 9" in " ".join(lines)


def test_json_has_the_numbers_and_what_follows():
    content = Result(HURT, UNCHANGED, (1, 2, 3)).as_json()
    assert (content["seeds"], content["holds"]) == ([1, 2, 3], True)
    assert (content["cnn"]["in_place"], content["cnn"]["shuffled"]) == (HURT.in_place, HURT.shuffled)
    assert content["cnn"]["loss"] > content["spreads"] * content["cnn"]["spread"]
    assert content["cnn"]["is_hurt"] is content["dense"]["is_as_it_was"] is True


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert points(-0.0002) == "0.0"
    assert points(-0.0123) == "-1.2"


@pytest.mark.filterwarnings("error")
def test_the_picture_depends_on_the_accuracies_only(sheets, tmp_path):
    for name, accuracy in (("a", 0.8), ("b", 0.8), ("c", 0.3)):
        result = Result(Effect((0.97, 0.98, 0.99), (accuracy,) * 3, 0.001), UNCHANGED, (1, 2, 3))
        position.draw(sheets, result, tmp_path / f"{name}.png")
    assert np.asarray(Image.open(tmp_path / "a.png").convert("L"))[0, 0] == 255
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
