"""What each stage writes onto a disk that takes no more: a known fault, and nothing half-written in place of a result."""

import resource
from contextlib import contextmanager

import pytest

from convoy.core import files
from convoy.core.errors import fault
from convoy.data.prepare import prepare
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams
from convoy.export import image_index, latency, onnx_graph
from convoy.models import trained
from convoy.training.checkpoints import DirectIO
from deliveries import data_params
from exported import IDENTITY, PX

DATA = data_params(image_px=PX, splits={"val": 0.2, "test": 0.4}, max_quarantined=0.0)


@contextmanager
def file_size(most):
    """Have the system refuse files of more bytes, as a full disk does; also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "packing": lambda home, out: prepare(home / "data", DATA, out / "dataset"),
    "weights": lambda home, out: trained.save(out, *trained.load(home / "model")),
    "checkpoint": lambda home, out: DirectIO().save_checkpoint(
        trained.load(home / "model")[0].state_dict(), out / "step.ckpt"
    ),
    "evaluation": lambda home, out: evaluate(
        home / "dataset",
        home / "model",
        EvaluateParams(batch_size=16, worst_images=2, feature_classes=0),
        out,
    ),
    "graph": lambda home, out: onnx_graph.build(home / "model", out, IDENTITY),
    "index of images": lambda home, out: image_index.write(home / "dataset/manifest.parquet", out / "images"),
    "latency": lambda home, out: latency.measure_eager(home / "model", out, 1),
    "metrics": lambda home, out: files.write_json(out / "metrics.json", {"loss": [0.5] * 100}),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_a_fault_with_its_remedy(what, built, tmp_path, capsys):
    with pytest.raises((OSError, RuntimeError)) as caught, file_size(100):
        WRITERS[what](built.home, tmp_path)
    message = str(fault(caught.value))
    assert "File too large" in message
    assert "Free space, then type the command again: df -h" in message
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert left == [], "scratch files stay"
    assert not (tmp_path / "dataset").exists(), "a dataset is whole or absent"
