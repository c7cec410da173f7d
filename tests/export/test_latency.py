import numpy as np
import pytest

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
    failed = r"timing of .*gone\.onnx \(onnx\) failed with exit code 1:\n[^$]*does not exist"
    with pytest.raises(VerificationError, match=failed):
        latency.measure(tmp_path / "gone.onnx", tmp_path, 12, 10)
