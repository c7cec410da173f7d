"""`mlflow run .` runs the same pipeline inside the run that it opened."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clones import runs, stored_runs
from convoy.tracking import outbox

pytestmark = pytest.mark.pipeline

COMMAND = ("mlflow", "run", ".", "--experiment-name", "convoy")
QUICK = (
    "-P",
    "train.epochs=1",
    "-P",
    "network.name=lenet5",
    "-P",
    "train.lr=0.020",
    "-P",
    "export.latency_runs=10",
    "-P",
    "energy.country=none",
)


@contextmanager
def no_uploader_until(done: Path) -> Iterator[None]:
    """Hold the uploader's lock until a stage has written its metrics: nothing can be delivered before."""
    before = done.stat().st_mtime_ns
    held, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with outbox.uploader_lock(done.parents[2] / "outbox").acquire(timeout=60):
            held.set()
            while not ended.wait(0.1) and (not done.exists() or done.stat().st_mtime_ns == before):
                pass

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        yield
    finally:
        ended.set()
        thread.join()


def test_mlflow_run_trains_inside_the_run_that_it_opened(clone):
    with no_uploader_until(clone.folder / "build/metrics/evaluate.json"):
        said = clone.run(
            *(*COMMAND, "--entry-point", "evaluate", "--env-manager", "local", *QUICK),
            MLFLOW_TRACKING_URI=f"sqlite:///{clone.folder}/mlflow.db",
        )
    delivered = "test/accuracy" in stored_runs(clone)[0].data.metrics
    assert delivered or "within 30 s" in said, "MLflow ends the run after its delivery, or after a warning"
    newest, *earlier = runs(clone)
    assert len(earlier) == 1, "one run, not one of MLflow's and one of Convoy's"
    assert newest.info.status == "FINISHED"
    assert newest.info.run_id in said
    assert newest.data.params["train.epochs"] == "1"
    assert newest.data.params["network.name"] == "lenet5"
    assert newest.data.params["train.lr"] == "0.020", "what was typed stays"
    assert newest.data.tags["param.train.lr"] == "0.02", "what was used is told"
    assert "test/accuracy" in newest.data.metrics


def test_mlflow_run_refuses_a_misspelt_key_before_anything_runs(clone):
    said = clone.run(*COMMAND, "--env-manager", "local", "-P", "train.epoch=1", fails=True)
    assert "unknown key train.epoch; did you mean `train.epochs`?" in said
    assert "[data]" not in said


@pytest.mark.slow
def test_mlflow_run_builds_its_environment_from_the_lock(clone, tmp_path):
    clone.run(
        *COMMAND, "--env-manager", "uv", *QUICK,
        MLFLOW_TRACKING_URI=f"sqlite:///{clone.folder}/mlflow.db", MLFLOW_ENV_ROOT=str(tmp_path / "envs"),
    )  # fmt: skip
    newest = runs(clone)[0]
    assert newest.info.status == "FINISHED"
    assert newest.data.metrics["deploy/label_flips"] == 0
