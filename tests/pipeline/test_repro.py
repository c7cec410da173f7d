"""`make repro` in a fresh clone, and what `dvc repro` does afterwards."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from mlflow.tracking import MlflowClient

from clones import Clone, artifacts, runs
from convoy.core import yaml
from convoy.core.files import sha256
from convoy.tracking import outbox

pytestmark = pytest.mark.pipeline


def metrics(clone: Clone, stage: str) -> dict:
    return json.loads((clone.folder / "build/metrics" / f"{stage}.json").read_text())


def test_a_fresh_clone_has_a_verified_model_after_one_command(finished):
    clone, said = finished
    verification = json.loads((clone.folder / "build/deploy/verification.json").read_text())
    assert verification["model"]["sha256"] == sha256(clone.folder / "build/deploy/model.onnx")
    deploy = metrics(clone, "export")["deploy"]
    assert deploy["label_flips"] == 0
    assert deploy["accuracy"] == metrics(clone, "evaluate")["test"]["accuracy"] > 0.95
    assert not (clone.folder / "build/deploy/model.unverified.onnx").exists()
    session = onnxruntime.InferenceSession(clone.folder / "build/deploy/model.onnx")
    probabilities = session.run(["probabilities"], {"image": np.zeros((3, 17, 29, 3), np.uint8)})[0]
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    for part in (f"{deploy['accuracy']:.2%}", "0 label flips", "report.html", "model.onnx", "make ui"):
        assert part in said.split("served accuracy")[1] + f"{deploy['accuracy']:.2%}", f"summary lacks {part}"


def test_make_repro_prints_each_stage_with_its_time_and_no_advice_of_dvc(finished):
    _, said = finished
    for stage in ("data", "prepare", "train", "evaluate", "export"):
        assert re.search(rf"^\[{stage}\] \D.*\n(.*\n)*?\[{stage}\] \d+\.\d s$", said, re.MULTILINE), stage
    assert "epoch 1/" in said, "progress of a stage stays visible"
    for text in ("git add", "Running stage", "lock file", "dvc push", "autostage", "bytes:"):
        assert text not in said


def test_the_run_holds_params_metrics_identity_and_files(finished):
    clone, _ = finished
    [run] = runs(clone)
    assert run.info.status == "FINISHED"
    params = yaml.load((clone.folder / "params.yaml").read_text())
    for key, value in (
        ("train.lr", params["train"]["lr"]),
        ("data.splits.val", params["data"]["splits"]["val"]),
    ):
        assert run.data.params[key] == str(value)
    assert {"seed", "network.name", "evaluate.batch_size", "export.max_label_flips"} <= set(run.data.params)
    assert run.data.metrics["test/accuracy"] == metrics(clone, "evaluate")["test"]["accuracy"]
    assert run.data.metrics["deploy/accuracy"] == metrics(clone, "export")["deploy"]["accuracy"]
    assert run.data.metrics["val/accuracy"] == metrics(clone, "train")["val"]["accuracy"]
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    epochs = client.get_metric_history(run.info.run_id, "val/loss")
    assert [point.step for point in epochs] == list(range(1, params["train"]["epochs"] + 1))
    steps = client.get_metric_history(run.info.run_id, "step/loss")
    assert {point.step % params["tracking"]["step_interval"] for point in steps} == {0}
    dataset = json.loads((clone.folder / "build/dataset/dataset.json").read_text())
    tags = run.data.tags
    assert tags["convoy.data_hash"] == dataset["hash"]
    assert len(tags["convoy.params_hash"]) == 64
    assert f"md5: {tags['convoy.data_md5']}" in (clone.folder / "data.dvc").read_text()
    assert tags["convoy.git_dirty"] == "false"
    assert tags["convoy.onnx_sha256"] == sha256(clone.folder / "build/deploy/model.onnx")
    for stage in ("train", "evaluate", "export"):
        reference = json.loads((clone.folder / "build/runs" / f"{stage}.json").read_text())
        assert reference == {"run_id": tags["convoy.run_id"], "training": tags["convoy.training"]}
    assert tags["mlflow.source.git.commit"] == clone.run("git", "rev-parse", "HEAD~1").strip()
    assert run.inputs.dataset_inputs[0].dataset.digest == dataset["hash"][:32]
    found = artifacts(clone, run)
    assert {"curves.png", "network.png", "weights/weights.pt", "weights/model.json"} <= found
    assert {f"pipeline/{name}" for name in ("params.yaml", "dvc.yaml", "data.dvc", "dvc.lock")} <= found
    assert "pipeline/workspace.diff" not in found, "nothing differed from the commit"
    assert not outbox.journals(clone.folder / "outbox"), "everything was delivered by the end of the command"
    assert {
        "evaluation/confusion.png",
        "evaluation/report.html",
        "deploy/verification.json",
        "dataset/report.html",
    } <= found
    lock = Path(run.info.artifact_uri.removeprefix("file://")) / "pipeline/dvc.lock"
    assert lock.read_text() == (clone.folder / "dvc.lock").read_text()


def test_the_logged_model_is_the_verified_file_byte_for_byte(finished):
    clone, _ = finished
    [run] = runs(clone)
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    [output] = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    folder = Path(model.artifact_location.removeprefix("file://"))
    beside = ("verification.json", "model_card.md", "bom.json", "golden/golden.json", "golden/00.png")
    for name in ("model.onnx", *beside, "images.parquet", "baseline.json"):
        assert sha256(folder / name) == sha256(clone.folder / "build/deploy" / name)
    description = yaml.load((folder / "MLmodel").read_text())
    assert "image" in description["signature"]["inputs"]
    assert description["saved_input_example_info"]


def test_the_model_says_which_run_commit_and_data_it_comes_from(finished):
    clone, _ = finished
    [run] = runs(clone)
    session = onnxruntime.InferenceSession(clone.folder / "build/deploy/model.onnx")
    said = session.get_modelmeta().custom_metadata_map
    assert said["convoy.run_id"] == run.data.tags["convoy.run_id"]
    assert said["convoy.git_commit"] == run.data.tags["mlflow.source.git.commit"]
    assert said["convoy.data_hash"] == run.data.tags["convoy.data_hash"]
    assert said["convoy.params_hash"] == run.data.tags["convoy.params_hash"]
    assert json.loads(said["convoy.classes"]) == [str(digit) for digit in range(10)]


def test_a_second_repro_runs_nothing_and_opens_no_run(clone):
    before = len(runs(clone))
    said = clone.run("dvc", "repro")
    assert "Running stage" not in said
    assert "Data and pipelines are up to date" in said
    assert len(runs(clone)) == before


def changed_stages(clone: Clone) -> set[str]:
    """Name the stages whose own dependencies, params or commands changed since dvc.lock."""
    status = json.loads(clone.run("dvc", "status", "--json"))
    return {stage for stage in status if not stage.endswith(".dvc")}


@pytest.mark.parametrize(
    ("name", "value", "stages"),
    [
        ("train.lr", "0.05", {"train"}),
        ("export.latency_runs", "20", {"export"}),
        ("data.image_px", "16", {"prepare"}),
        ("tracking.experiment", "other", set()),
    ],
)
def test_a_param_changes_exactly_the_stages_that_read_it(clone, name, value, stages):
    clone.set_param(name, value)
    assert changed_stages(clone) == stages


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("src/convoy/data/split.py", {"prepare"}),
        ("src/convoy/images/archive.py", {"prepare", "export"}),
        ("src/convoy/images/resize.py", {"prepare", "train", "export"}),
        ("src/convoy/evaluation/evaluate.py", {"evaluate"}),
        ("src/convoy/models/build.py", {"train", "evaluate", "export"}),
        ("src/convoy/tracking/store.py", set()),
        ("networks/convnet.yaml", {"train"}),
    ],
)
def test_an_edit_changes_exactly_the_stages_that_import_the_file(clone, file, stages):
    with (clone.folder / file).open("a") as source:
        source.write("# edited\n")
    assert changed_stages(clone) == stages


def test_a_rerun_of_export_opens_a_run_that_names_the_training_it_reuses(finished, tmp_path):
    clone = finished[0].copy(tmp_path / "clone")
    [first] = runs(clone)
    clone.set_param("export.latency_runs", "20")
    said = clone.run("dvc", "repro")
    assert "Running stage 'export'" in said
    assert "Running stage 'train'" not in said
    second, again = runs(clone)
    assert again.data.to_dictionary() == first.data.to_dictionary(), "a finished run was rewritten"
    assert second.info.status == "FINISHED"
    assert second.data.tags["convoy.training"] == first.data.tags["convoy.run_id"]
    assert second.data.tags["convoy.run_id"] != first.data.tags["convoy.run_id"]
    assert second.data.params == first.data.params | {"export.latency_runs": "20"}
    for name in ("train/loss", "val/accuracy", "test/accuracy"):
        assert second.data.metrics[name] == first.data.metrics[name]
