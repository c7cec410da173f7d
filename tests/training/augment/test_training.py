"""Augmentation within a training."""

import pytest

from convoy.core.errors import RequestError
from convoy.training.fit import fit


def test_a_killed_training_sees_the_same_augmented_images_and_mixed_labels(dataset, tiny, params, killed):
    policy = [{"resized_crop": {"scale": [0.3, 1.0]}}, "flip", "color_jitter"]
    policy += ["rotate", "rand_augment", "erase", "mixup", "cutmix"]
    killed(lambda folder, **how: fit(dataset, tiny, params(augment=policy), 1, folder, **how), 4)


def test_the_policy_is_printed_with_all_arguments(dataset, tiny, params, tmp_path, capsys):
    fit(dataset, tiny, params(epochs=1, augment=["flip"]), 1, tmp_path / "model")
    assert "augment: [{flip: {axis: horizontal, p: 0.5}}]" in capsys.readouterr().out


def test_a_policy_that_cannot_apply_is_refused_before_the_first_step(dataset, tiny, params, tmp_path):
    with pytest.raises(RequestError, match=r"shift\.pixels is 8.*8 px"):
        fit(dataset, tiny, params(augment=[{"shift": {"pixels": 8}}]), 1, tmp_path / "model")
    assert not (tmp_path / "model").exists()
