"""What goes wrong is said, recorded as it was, and leaves a repository in which `dvc repro` works."""

import json
import signal
import subprocess
import time
import zipfile

import pytest

from clones import Clone, kill_uploaders, runs, stored_runs
from convoy.tracking import outbox
from convoy.tracking.journal import Sent

pytestmark = pytest.mark.pipeline


def test_a_graph_beyond_the_limits_gets_no_final_name_and_fails_the_run(clone):
    clone.set_param("export.max_probability_gap", "0.0")
    said = clone.run("dvc", "repro", fails=True)
    assert "ERROR in export" in said
    assert "export.max_probability_gap" in said
    assert "`dvc checkout --force` brings them back" in said
    assert not (clone.folder / "build/deploy/model.onnx").exists()
    assert (clone.folder / "build/deploy/model.unverified.onnx").exists()
    assert runs(clone)[0].info.status == "FAILED"
    clone.run("git", "checkout", "params.yaml")
    clone.run("dvc", "checkout", "--force")
    assert (clone.folder / "build/deploy/model.onnx").exists()
    assert "Running stage" not in clone.run("dvc", "repro")


def start_long_training(clone: Clone) -> subprocess.Popen[str]:
    """Start `dvc repro` and return while its training is in the second epoch."""
    clone.set_param("network.name", "lenet5")
    clone.set_param("train.epochs", "500")
    clone.set_param("energy.country", "none")
    process = clone.start("dvc", "repro")
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    return process


def test_ctrl_c_leaves_a_killed_run_and_a_repository_that_works(clone):
    process = start_long_training(clone)
    rest = clone.stop(process, signal.SIGINT)
    assert process.returncode != 0
    assert "train was stopped. `dvc repro` runs it again" in rest
    assert runs(clone)[0].info.status == "KILLED"
    clone.run("git", "checkout", "params.yaml")
    clone.run("dvc", "checkout", "--force")
    assert "Running stage" not in clone.run("dvc", "repro"), "everything came back from the cache"


def test_a_delivery_without_images_keeps_the_earlier_dataset_restorable(clone):
    with zipfile.ZipFile(clone.folder / "samples/digits/digits.zip", "w") as archive:
        archive.writestr("readme.txt", "no images here")
    said = clone.run("dvc", "repro", fails=True)
    assert "ERROR in prepare" in said
    assert "`dvc checkout --force` brings them back" in said
    clone.run("git", "checkout", "samples")
    assert "Running stage" not in clone.run("dvc", "repro"), "everything came back from the cache"


def test_make_repro_refuses_wrong_params_before_anything_runs(clone):
    clone.set_param("train.lr", "0.1", rename="lrr")
    command = clone.start("python", "pipelines/repro.py", PYTHONPATH="src")
    output, _ = command.communicate()
    assert command.returncode == 2
    assert "unknown key train.lrr; did you mean `train.lr`?" in output
    assert "[data]" not in output
    assert (clone.folder / "build/model/weights.pt").exists(), "earlier outputs were touched"


def test_a_stage_that_does_not_exist_is_refused_with_those_that_do(fresh_clone):
    command = fresh_clone.start("python", "pipelines/repro.py", "--until", "deploy", PYTHONPATH="src")
    said, _ = command.communicate()
    assert command.returncode == 2
    assert "--until takes prepare, train, evaluate or export, not deploy" in said


def test_a_tracking_server_that_is_down_stops_nothing(clone):
    clone.set_param("export.latency_runs", "10")
    said = clone.run("dvc", "repro", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert said.count("Not synced to http://127.0.0.1:9: ") == 1
    assert (clone.folder / "build/deploy/model.onnx").exists()
    run_id = json.loads((clone.folder / "build/runs/export.json").read_text())["run_id"]
    assert f"Run {run_id} is kept in outbox/{run_id}; `convoy sync` delivers it." in said
    assert (clone.folder / "outbox" / run_id).is_dir()


def test_a_run_whose_processes_were_killed_is_marked_by_its_uploader_or_by_the_next_command(
    clone,
):
    clone.stop(start_long_training(clone), signal.SIGKILL)
    assert runs(clone)[0].info.status == "KILLED", "its uploader lives in a session of its own"
    clone.set_param("train.lr", "0.02")
    process = start_long_training(clone)
    where = clone.folder / "outbox"
    until = time.monotonic() + 300
    while not any(Sent.load(path).mlflow_run_id for path in outbox.journals(where)):
        assert time.monotonic() < until, (where / "uploader.log").read_text()
        time.sleep(0.1)
    kill_uploaders(clone.folder)
    clone.stop(process, signal.SIGKILL)
    assert stored_runs(clone)[0].info.status == "RUNNING", "nothing could end it yet"
    clone.run("convoy", "sync", PYTHONPATH=str(clone.folder / "src"))
    assert runs(clone)[0].info.status == "KILLED"
