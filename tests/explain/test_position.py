import json

import numpy as np
import pytest
import torch

from convoy.core.errors import DataError
from convoy.explain import position
from convoy.explain.position_verdict import CNN, DENSE
from convoy.models.build import build
from convoy.models.spec import Spec

PX = 16
SPLITS = {"train": [0, 6], "val": [6, 10], "test": [10, 14]}


@pytest.fixture
def sheets():
    return position.digits(seed=5)


@pytest.fixture
def folder(tmp_path):
    """Noise of 16 px in two classes; test images, and only they, are white."""
    images_u8 = np.random.default_rng(0).integers(1, 200, size=(14, PX, PX, 3), dtype=np.uint8)
    images_u8[10:] = 255
    np.save(tmp_path / "images.npy", images_u8)
    np.save(tmp_path / "labels.npy", np.arange(14, dtype=np.int64) % 2)
    facts = {"classes": ["a", "b"], "image_px": PX, "fit": "squash", "splits": SPLITS, "hash": "0" * 64,
             "counts": {split: {"a": 1, "b": 1} for split in SPLITS}, "mean": [0.4] * 3, "std": [0.2] * 3}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    return tmp_path


def spec(name):
    return Spec.model_validate({"name": name, "layers": position.NETWORKS[name]})


def test_the_order_names_every_place_once_and_moves_most(sheets):
    places = torch.arange(sheets.px**2)
    assert torch.equal(sheets.order.sort().values, places)
    assert (sheets.order != places).float().mean() > 0.9


def test_every_image_and_channel_is_shuffled_alike(sheets):
    numbered = torch.arange(sheets.px**2).view(1, 1, sheets.px, sheets.px).expand(4, 3, -1, -1)
    shuffled = position.shuffle(numbered, sheets.order)
    assert shuffled.shape == numbered.shape
    assert (shuffled.flatten(2) == sheets.order).all()


def test_a_shuffle_loses_nothing(sheets):
    shuffled_u8 = position.shuffle(sheets.measured_u8, sheets.order)
    assert not torch.equal(shuffled_u8, sheets.measured_u8)
    assert torch.equal(position.shuffle(shuffled_u8, sheets.order.argsort()), sheets.measured_u8)


def test_a_dense_network_whose_weights_are_shuffled_along_answers_the_same_and_a_cnn_has_none_to_shuffle(
    sheets,
):
    pixels = sheets.measured_u8[:32].float()
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
    assert sheets.learnt_u8.shape == (500, 3, 14, 14)
    assert sheets.measured_u8.shape == (1500, 3, 14, 14)
    assert not sheets.learnt_u8[:, :, :3].any()
    assert not sheets.learnt_u8[:, :, :, -3:].any()
    reached = sheets.measured_u8.amax(dim=(0, 1))
    assert not reached[0].any()
    assert reached[1].any()
    assert reached[-2].any()
    # 1,297 images take 1,500 turns: those that have two keep all their pixels at either place.
    first, again = sheets.measured_u8[:203], sheets.measured_u8[1297:]
    assert torch.equal(first.flatten(1).sort().values, again.flatten(1).sort().values)
    assert not torch.equal(first, again)


def test_what_is_measured_was_not_learnt_from(sheets):
    learnt, measured = (
        {tuple(one.sort().values.tolist()) for one in sheets_u8.flatten(1)}
        for sheets_u8 in (sheets.learnt_u8, sheets.measured_u8)
    )
    assert len(learnt) == 500
    assert len(measured) == 1297
    assert not learnt & measured


def test_a_seed_decides_images_and_order(sheets):
    same, other = position.digits(seed=5), position.digits(seed=6)
    for name in ("learnt_u8", "measured_u8", "measured_labels", "order"):
        assert torch.equal(getattr(same, name), getattr(sheets, name))
        assert not torch.equal(getattr(other, name), getattr(sheets, name))


def test_a_packed_dataset_is_shrunk_and_its_test_images_stay_unseen(folder):
    sheets = position.packed(folder, seed=1)
    assert (sheets.classes, sheets.image_px, sheets.shift, sheets.px) == (2, 12, 3, 20)
    assert sheets.source == f"6 train images of {folder}, 4 val images to measure on"
    assert sheets.learnt_u8.shape == (6, 3, 20, 20)
    assert sheets.measured_u8.shape == (1500, 3, 20, 20)
    assert sheets.learnt_u8[:, :, 4:16, 4:16].all()
    assert sheets.measured_u8.max() < 255
    assert sheets.measured_labels[:8].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no packed dataset: it has no dataset\.json\. Make it with"):
        position.packed(tmp_path, seed=1)


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
        position, "shuffle", lambda pixels, order: seen.append(pixels) or shuffle(pixels, order)
    )
    position.train(spec(DENSE), sheets, 3, shuffled=True)
    *moved, measured = seen
    assert sum(len(batch) for batch in moved) == 500
    assert torch.equal(measured, sheets.measured_u8)
    corners = torch.cat(moved).amax(dim=(0, 1))
    assert not corners[0].any()
    assert corners[1].any()
    assert corners[-2].any()


def test_both_networks_train_on_the_same_seeds_in_place_and_shuffled(sheets, monkeypatch):
    accuracies = iter(range(12))
    asked = []

    def train(spec, given, seed, *, shuffled):
        assert given is sheets
        assert torch.get_num_threads() == 1
        asked.append((spec.name, shuffled, seed))
        return next(accuracies) / 100

    monkeypatch.setattr(position, "train", train)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        done = list(position.trainings(sheets, 4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert asked == [(name, shuffled, seed) for name in (CNN, DENSE) for shuffled in (False, True) for seed in (4, 5, 6)]  # fmt: skip
    verdict = position.conclude(done, sheets, 4)
    assert verdict.seeds == (4, 5, 6)
    assert verdict.cnn.in_place == (0.0, 0.01, 0.02)
    assert verdict.cnn.shuffled == (0.03, 0.04, 0.05)
    assert verdict.dense.in_place == (0.06, 0.07, 0.08)
    assert verdict.dense.shuffled == (0.09, 0.1, 0.11)
    assert verdict.cnn.step == 1 / 1500


@pytest.mark.slow
def test_a_shuffle_of_the_pixels_hurts_the_cnn_and_leaves_the_dense_network_as_it_was():
    sheets = position.digits(seed=1)
    verdict = position.conclude(list(position.trainings(sheets, 1)), sheets, 1)
    assert verdict.cnn.loss > 3 * verdict.cnn.spread
    assert abs(verdict.dense.loss) <= 3 * verdict.dense.spread
    assert verdict.holds
    assert min(verdict.cnn.in_place) > 0.95  # a CNN that never learnt could not lose
    assert min(verdict.dense.in_place) > 0.85
