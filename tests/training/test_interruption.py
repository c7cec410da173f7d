import os
import signal

import pytest
import pytorch_lightning as pl

from convoy.training.fit import fit


def test_ctrl_c_reaches_the_caller(dataset, tiny, params, out):
    class Press(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(dataset, tiny, params(), 1, out, callbacks=[Press()])

    assert signal.getsignal(signal.SIGINT) is handler
    assert not (out / "weights.pt").exists()


def test_sigterm_reaches_the_caller_as_what_its_handler_raises(dataset, tiny, params, out):
    class StopError(BaseException):
        pass

    def stop(number, frame):
        raise StopError

    class Terminate(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(StopError):
            fit(dataset, tiny, params(), 1, out, callbacks=[Terminate()])
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_without_a_handler_reaches_the_caller_as_an_exit(dataset, tiny, params, out):
    class Terminate(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(dataset, tiny, params(), 1, out, callbacks=[Terminate()])


def test_an_error_in_a_callback_reaches_the_caller(dataset, tiny, params, out):
    class Fail(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fit(dataset, tiny, params(), 1, out, callbacks=[Fail()])
