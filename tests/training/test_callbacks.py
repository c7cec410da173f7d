import logging
import re
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from convoy.training import callbacks
from convoy.training.fit import fit


def test_a_log_gets_one_plain_line_per_epoch_with_rate_and_time_left(dataset, tiny, params, out, capsys):
    fit(dataset, tiny, params(epochs=3, calibrate=False), 1, out)
    lines = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d{4}"
    epoch = (
        rf"epoch (\d)/3  train loss {number}  val loss {number}  val accuracy {number}  "
        r"[\d,]+ images/s(  ETA [\d,]+ s)?"
    )
    assert lines[0].startswith("train tiny (267 parameters) in float32")
    assert "all 2 blocks (conv1 to dense1)" in lines[2]
    matches = [re.fullmatch(epoch, line) for line in lines[3:]]
    assert [match and match[1] for match in matches] == ["1", "2", "3"]
    assert [bool(match and match[2]) for match in matches] == [True, True, False]


def test_a_terminal_gets_a_bar_below_the_lines(dataset, tiny, params, out, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    fit(dataset, tiny, params(), 1, out)
    printed = capsys.readouterr().out
    assert "train: epoch 2/2, validation" in printed
    assert "━" in printed
    assert "epoch 2/2  train loss" in printed


@pytest.fixture
def until_printed(monkeypatch, capsys):
    """Let a plain line be due after 10 ms, and make a callback's hook wait until one is printed that matches."""
    monkeypatch.setattr(callbacks, "STEADY_SECONDS", 0.01)
    seen = []

    def make(pattern, when=lambda trainer: True):
        def wait(trainer, *_):
            until = time.monotonic() + 30
            while when(trainer) and not re.search(pattern, "".join(seen)):
                assert time.monotonic() < until, (pattern, "".join(seen))
                time.sleep(0.005)
                seen.append(capsys.readouterr().out)

        return wait

    return make


def test_a_log_gets_lines_within_an_epoch_and_its_validation_with_rate_and_time_left(
    dataset, tiny, params, out, on, until_printed
):
    rate = r"[\d,.]+ images/s, ETA \d+ s\n"
    second = until_printed(rf"epoch 2/3: 16 of 48 images, {rate}", lambda trainer: trainer.current_epoch == 1)
    validation = until_printed(rf"epoch 1/3: validation, 12 of 12 images, {rate}")
    stops = [on("on_train_batch_end", second), on("on_validation_batch_end", validation)]
    fit(dataset, tiny, params(epochs=3), 1, out, callbacks=stops)


def test_the_first_step_may_take_long_and_a_resumed_epoch_continues_its_count(
    dataset, tiny, params, out, on, until_printed, resumable
):
    def kill(_trainer, _module, _outputs, batch, *_):
        if batch.step == 1:
            raise InterruptedError

    first = on("on_train_batch_start", until_printed(r"epoch 1/2: 0 of 48 images\n"))
    stops = [first, on("on_train_batch_end", kill)]
    with pytest.raises(InterruptedError):
        fit(dataset, tiny, params(), 1, out, callbacks=stops, resumable=resumable())
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
    again = on("on_train_batch_start", until_printed(r"epoch 1/2: 16 of 48 images\n"))
    fit(dataset, tiny, params(), 1, out, callbacks=[again], resumable=resumable())


def test_the_rate_of_a_resumed_epoch_counts_from_the_start_of_the_process(
    dataset, tiny, params, out, capsys, monkeypatch, resumable, on
):
    # Of a machine that has run for days.
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 1e6)
    monkeypatch.setattr(callbacks, "time", clock)
    batches = []

    def kill(*_):
        batches.append(0)
        if len(batches) == 2:
            raise InterruptedError

    for stops in ([on("on_train_batch_end", kill)], []):
        with suppress(InterruptedError):
            fit(dataset, tiny, params(epochs=1), 1, out, callbacks=stops, resumable=resumable())
    rate = re.search(r"([\d,]+) images/s", capsys.readouterr().out)
    assert rate
    assert int(rate[1].replace(",", "")) > 1


def test_lightning_prints_nothing_about_itself(
    dataset, tiny, params, out, recwarn, monkeypatch, resumable, on
):
    def kill(*_):
        raise InterruptedError

    messages = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    logging.getLogger("pytorch_lightning").addHandler(handler)
    try:
        for callbacks in ([on("on_validation_start", kill)], []):  # the second resumes
            with suppress(InterruptedError):
                fit(dataset, tiny, params(epochs=1), 1, out, callbacks=callbacks, resumable=resumable())
    finally:
        logging.getLogger("pytorch_lightning").removeHandler(handler)

    assert messages == []
    assert [str(warning.message) for warning in recwarn] == []
