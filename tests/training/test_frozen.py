import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from convoy.core.errors import TrainingError
from convoy.training.fit import fit
from convoy.training.frozen import FrozenProof, sha256


class Nudge(pl.Callback):
    """Change a tensor a little, once, in an epoch."""

    def __init__(self, name, epoch=0):
        self.name, self.epoch = name, epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 0):
            tensor = pl_module.model.network.state_dict()[self.name]
            tensor.add_(1e-6 if tensor.is_floating_point() else 1)


class StopAfter(pl.Callback):
    """Let a training end with an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


class FollowImages(pl.Callback):
    """Let one norm's statistics follow the images, as a network that switches its own modes would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.model.network.norm2.train()


@pytest.fixture
def transfer(dataset, stack, params, out, starting):
    """Train `stack` from starting weights for three epochs; keywords are those of `train.transfer`."""

    def run(*callbacks, epochs=3, **plan):
        chosen = params(epochs=epochs, transfer=plan)
        return fit(dataset, stack, chosen, 1, out, callbacks=callbacks, starting=starting(stack))

    return run


def said(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen:")]


@pytest.mark.parametrize(
    ("plan", "count"),
    [
        ({"freeze": 1}, 4),  # conv1 and norm1, weight and bias each
        ({"freeze": 2, "release": 1}, 8),
        ({"batch_norm": "frozen"}, 15),  # three norms of five tensors
        ({"freeze": 3, "release": 2, "batch_norm": "frozen"}, 21),  # and three convolutions
    ],
)
def test_what_was_frozen_is_proven_to_be_unchanged_in_one_line(transfer, capsys, plan, count):
    transfer(**plan)

    (line,) = said(capsys)
    assert re.fullmatch(rf"frozen: {count} tensors unchanged while they were \(sha256 [0-9a-f]{{12}}\)", line)


def test_where_nothing_is_frozen_nothing_is_said(transfer, capsys):
    transfer(lr_factor=0.5)

    assert said(capsys) == []


def test_a_frozen_weight_that_moved_fails_the_training_by_name(transfer, out):
    with pytest.raises(TrainingError, match=r"^1 frozen tensors moved: residual1\.body\.conv1\.weight\."):
        transfer(Nudge("residual1.body.conv1.weight", epoch=2), freeze=2)
    assert not (out / "weights.pt").exists()


def test_a_weight_that_moved_before_its_release_is_found_at_the_release(transfer):
    seen = []

    class Count(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(trainer.current_epoch)

    with pytest.raises(TrainingError, match=r"moved: norm1\.weight\."):
        transfer(Nudge("norm1.weight"), Count(), freeze=1, release=1)
    assert seen == [0]


def test_a_weight_may_move_once_it_is_released(transfer, capsys):
    transfer(Nudge("norm1.weight", epoch=1), freeze=1, release=1)

    assert said(capsys)[0].startswith("frozen: 4 tensors")


def test_frozen_statistics_that_followed_the_images_fail_the_training_by_name(transfer):
    names = ["norm2.num_batches_tracked", "norm2.running_mean", "norm2.running_var"]
    with pytest.raises(
        TrainingError, match=rf"^3 frozen tensors moved: {', '.join(names)}\..*batch_norm to adapt"
    ):
        transfer(FollowImages(), epochs=1, batch_norm="frozen")


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked", "weight"])
def test_every_part_of_a_frozen_norm_is_watched_also_in_a_released_block(transfer, name):
    with pytest.raises(TrainingError, match=rf"^1 frozen tensors moved: norm1\.{name}\."):
        transfer(Nudge(f"norm1.{name}", epoch=2), freeze=1, release=1, batch_norm="frozen")


def test_with_adapt_statistics_may_follow_the_images(transfer, capsys):
    transfer(FollowImages(), freeze=3)

    assert said(capsys)[0].startswith("frozen: 12 tensors")


def test_a_resumed_training_proves_what_the_checkpoint_brought(
    stack, params, classifier, train, tmp_path, capsys
):
    chosen = params(epochs=3, transfer={"freeze": 2, "release": 1})
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="last", enable_version_counter=False)
    train(classifier(stack, chosen), StopAfter(0), keeper)

    other = classifier(stack, chosen, seed=2)
    before = other.model.network.conv1.weight.clone()
    train(other, FrozenProof(other), resume=tmp_path / "last.ckpt")

    assert not torch.equal(other.model.network.conv1.weight, before)
    assert said(capsys)[0].startswith("frozen: 4 tensors")  # the other block was released before
    another = classifier(stack, chosen, seed=2)
    with pytest.raises(TrainingError, match=r"moved: conv1\.weight\."):
        train(another, FrozenProof(another), Nudge("conv1.weight", epoch=1), resume=tmp_path / "last.ckpt")


def test_the_same_weights_have_the_same_hash_and_others_another(transfer, capsys):
    lines = []
    for plan in ({"freeze": 1}, {"freeze": 1, "lr_factor": 0.1}, {"freeze": 2}):
        transfer(**plan, epochs=1)
        lines += said(capsys)

    assert lines[0] == lines[1] != lines[2]


def test_a_hash_depends_on_the_values_and_not_on_their_order_in_memory():
    values = torch.arange(48, dtype=torch.float32).reshape(2, 3, 2, 4)

    assert sha256(values) == sha256(values.contiguous(memory_format=torch.channels_last))
    assert sha256(values) != sha256(values + 1)
    assert sha256(values) != sha256(torch.where(values == 47, 47.00001, values))
    assert sha256(torch.tensor(3)) != sha256(torch.tensor(4))
    assert len(sha256(values.bfloat16())) == 64
