import numpy as np
import pytest
import torch

from convoy.core import files
from convoy.core.errors import VerificationError
from convoy.export import latency


def test_single_images_and_batches_are_timed_as_often_as_configured():
    seen = []
    figures = latency.time_calls(lambda images_u8: seen.append(images_u8.shape), 12, 64)
    assert seen.count((1, 12, 12, 3)) == latency.WARM_UP + 64
    assert seen.count((latency.BATCH, 12, 12, 3)) == latency.WARM_UP + 3
    assert figures["latency_ms_p95"] >= figures["latency_ms_p50"] > 0
    assert figures["images_per_second"] > 0


def test_figures_are_milliseconds_and_images_per_second(monkeypatch):
    clock = iter(np.arange(1000) * 0.004)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    figures = latency.time_calls(lambda _: None, 8, 10)
    assert figures["latency_ms_p50"] == pytest.approx(4.0)
    assert figures["latency_ms_p95"] == pytest.approx(4.0)
    assert figures["images_per_second"] == pytest.approx(latency.BATCH / 0.004)


def test_a_timing_process_that_fails_is_reported_with_its_last_lines(tmp_path):
    with pytest.raises(
        VerificationError,
        match=r"timing of .*gone\.onnx failed with exit code 1:\n[^$]*does not exist",
    ):
        latency.measure(tmp_path / "gone.onnx", 12, 10)


def test_eager_torch_is_timed_on_a_single_thread_and_gets_its_threads_back(built, tmp_path, monkeypatch):
    def time_calls(predict, image_px, runs):
        assert torch.get_num_threads() == 1
        probabilities = predict(np.zeros((2, image_px, image_px, 3), np.uint8))
        return {"sums": probabilities.sum(axis=1).tolist(), "runs": runs}

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(latency, "time_calls", time_calls)
    try:
        latency.measure_eager(built.home / "model", tmp_path, 7)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert files.read_json(tmp_path / latency.EAGER) == {"sums": pytest.approx([1, 1]), "runs": 7}
