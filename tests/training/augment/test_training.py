"""Augmentation within a training."""

from contextlib import suppress

import pytest

from convoy.core.errors import RequestError
from convoy.training.fit import fit


class Kill(BaseException):
    """The end of a process."""


def test_a_killed_training_sees_the_same_augmented_images_and_mixed_labels(
    dataset, tiny, params, tmp_path, on, resumable
):
    policy = [{"resized_crop": {"scale": [0.3, 1.0]}}, "flip", "color_jitter"]
    policy += ["rotate", "rand_augment", "erase", "mixup", "cutmix"]

    def train(name, *callbacks):
        how = {"callbacks": callbacks, "resumable": resumable(folder=f"{name}-checkpoints")}
        fit(dataset, tiny, params(augment=policy), 1, tmp_path / name, **how)
        return (tmp_path / name / "weights.pt").read_bytes()

    def kill(trainer, *_):
        if trainer.global_step == 4:
            raise Kill

    whole = train("whole")
    with suppress(Kill):
        train("killed", on("on_train_batch_start", kill))
    assert not (tmp_path / "killed" / "weights.pt").exists()
    assert train("killed") == whole


def test_the_policy_is_printed_with_all_arguments(dataset, tiny, params, tmp_path, capsys):
    fit(dataset, tiny, params(epochs=1, augment=["flip"]), 1, tmp_path / "model")
    assert "augment: [{flip: {axis: horizontal, p: 0.5}}]" in capsys.readouterr().out


def test_a_policy_that_cannot_apply_is_refused_before_the_first_step(dataset, tiny, params, tmp_path):
    with pytest.raises(RequestError, match=r"shift\.pixels is 8.*8 px"):
        fit(dataset, tiny, params(augment=[{"shift": {"pixels": 8}}]), 1, tmp_path / "model")
    assert not (tmp_path / "model").exists()
