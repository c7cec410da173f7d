"""The next batch is prepared by a thread, with the same results as in turn; what fails there fails the training."""

import os
import signal
import threading
import traceback

import numpy as np
import pytest
import torch

from convoy.core.errors import TrainingError
from convoy.training import prefetch
from convoy.training.augment.augmenter import Augmenter
from convoy.training.data import DataModule
from convoy.training.fit import fit

POLICY = ["flip", {"resized_crop": {"scale": [0.5, 1.0]}}, "color_jitter", "mixup", "cutmix"]


def threads():
    return {thread.name.partition("_")[0] for thread in threading.enumerate()} & {"prefetch"}


@pytest.fixture
def threaded(monkeypatch):
    """Let the thread prepare batches on a CPU, too."""
    monkeypatch.setattr(prefetch, "THREADED", frozenset({"cpu", "cuda"}))


class Maker:
    """Make numbers from 0 on, and note when each is made and where."""

    def __init__(self, fails_at=None):
        self.made, self.names, self.fails_at = [], set(), fails_at
        self.done = [threading.Event() for _ in range(9)]

    def __iter__(self):
        for number in range(9):
            if number == self.fails_at:
                raise ValueError(f"number {number} is bad")
            self.made.append(number)
            self.names.add(threading.current_thread().name)
            self.done[number].set()
            yield number


def test_the_next_item_and_no_other_is_made_while_one_is_used():
    maker, used = Maker(), []
    for number in prefetch.ahead(maker, 4):
        if number < 3:
            assert maker.done[number + 1].wait(30)
        assert maker.made == list(range(min(number + 2, 4)))
        used.append(number)
    assert used == [0, 1, 2, 3]
    assert maker.names == {"prefetch_0"}
    assert list(prefetch.ahead(Maker(), 0)) == []


def test_the_thread_ends_before_the_last_item_is_used_and_when_the_iterator_is_closed():
    for number in prefetch.ahead(Maker(), 3):
        assert threads() == (set() if number == 2 else {"prefetch"})
    started = prefetch.ahead(Maker(), 3)
    next(started)
    assert threads()
    started.close()
    assert not threads()


def test_an_error_is_raised_where_its_item_was_due_with_the_lines_that_raised_it():
    items = prefetch.ahead(Maker(fails_at=2), 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="number 2 is bad") as caught:
        next(items)
    assert "is bad" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not threads()


def results(folder):
    return [(folder / name).read_bytes() for name in ("weights.pt", "model.json", "history.csv")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="equal to the bit on a CPU; this machine has a GPU")
@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_a_training_with_the_thread_equals_one_without_bit_for_bit(
    dataset, tiny, params, tmp_path, on, threaded, monkeypatch, sampler
):
    alive = []
    look = on("on_train_batch_start", lambda *_: alive.append(threads()))
    chosen = params(epochs=3, augment=POLICY, ema=0.9, sampler=sampler)
    fit(dataset, tiny, chosen, 1, tmp_path / "ahead", callbacks=[look])
    assert alive == [{"prefetch"}, {"prefetch"}, set()] * 3
    monkeypatch.undo()
    fit(dataset, tiny, chosen, 1, tmp_path / "in turn", callbacks=[look])
    assert not any(alive[9:])
    assert results(tmp_path / "ahead") == results(tmp_path / "in turn")


def stopped(*_):
    raise TrainingError("stop")


@pytest.mark.parametrize(
    ("hook", "action", "error"),
    [
        ("on_train_batch_start", stopped, TrainingError),
        ("on_validation_batch_end", stopped, TrainingError),
        ("on_train_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
        ("on_train_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
    ],
)
def test_the_thread_ends_however_a_training_is_stopped(
    dataset, tiny, params, out, on, threaded, hook, action, error
):
    with pytest.raises(error):
        fit(dataset, tiny, params(batch_size=8), 1, out, callbacks=[on(hook, action)])
    assert not threads()


def test_the_thread_ends_with_an_early_stop(dataset, tiny, params, out, threaded):
    metrics = fit(dataset, tiny, params(epochs=20, lr=1e-9, early_stop=1), 1, out)
    assert metrics["train"]["epochs_trained"] < 20
    assert not threads()


def test_what_fails_while_a_batch_is_augmented_fails_the_training(
    dataset, tiny, params, out, threaded, monkeypatch
):
    apply = Augmenter.apply

    def failing(self, batch, epoch):
        if (epoch, batch.step) == (1, 1):
            raise MemoryError("no room for this batch")
        return apply(self, batch, epoch)

    monkeypatch.setattr(Augmenter, "apply", failing)
    with pytest.raises(MemoryError, match="no room for this batch") as caught:
        fit(dataset, tiny, params(), 1, out)
    assert "failing" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not threads()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_batches_on_a_gpu_are_those_of_the_cpu_from_its_memory_and_from_the_hosts(
    dataset, params, monkeypatch, share
):
    monkeypatch.setattr(prefetch, "RESIDENT", share)
    device = torch.device("cuda", 0)
    data = DataModule(dataset, params(batch_size=5), 1)
    images_u8 = prefetch.resident(dataset.images("train"), device)
    assert isinstance(images_u8, np.ndarray) is (share == 0)
    batches = data.train_batches()
    batches.source = images_u8
    moved = list(
        prefetch.on_device(batches, len(batches), device, lambda batch: data.augmenter.apply(batch, 0))
    )
    for batch, expected in zip(moved, data.train_dataloader(), strict=True):
        assert batch.pixels_u8.device == batch.labels.device == device
        assert torch.equal(batch.pixels_u8.cpu(), expected.pixels_u8)
        assert torch.equal(batch.labels.cpu(), expected.labels)
    assert not threads()
