"""A run of the real pipeline is traced, restored elsewhere and trained again to the same bits."""

import json

import pytest
from mlflow.tracking import MlflowClient

from clones import Clone, runs

pytestmark = pytest.mark.pipeline

QUEUED = "lr-0.02"
"""The experiment of `compared` that was queued with uncommitted changes."""


def convoy(clone: Clone, *words: str, fails: bool = False) -> str:
    return clone.run("convoy", *words, fails=fails, PYTHONPATH=str(clone.folder / "src"))


def test_a_queued_experiment_with_uncommitted_changes_is_restored_and_verified(compared, tmp_path):
    clone = compared.copy(tmp_path / "clone")
    run = runs(clone)[1]
    assert run.data.tags["mlflow.source.git.commit"] == clone.run("git", "rev-parse", "HEAD").strip(), (
        "HEAD of a queued experiment is the commit that it was queued on"
    )
    assert run.data.tags["convoy.git_dirty"] == "true"
    text = convoy(clone, "trace", QUEUED)
    assert "→ experiment" in text
    assert "stored with the run, pipeline/workspace.diff" in text
    # The experiment's own commit goes: the restored state must not need it.
    clone.run("dvc", "exp", "remove", QUEUED)
    text = convoy(
        clone,
        "trace",
        run.data.tags["convoy.run_id"],
        "--restore",
        "../again",
        "--verify",
        "--trust-run-code",
    )
    assert "`dvc repro` has nothing to do" in text
    assert "as queued" in text, "it trained with the code of then"
    assert "weights  bit-identical" in text
    assert "metrics  equal" in text
    again = Clone(tmp_path / "again")
    assert json.loads(again.run("dvc", "status", "--json").splitlines()[-1]) == {}
    assert "Running stage" not in again.run("dvc", "repro")
    assert "name: lenet5" in (again.folder / "params.yaml").read_text(encoding="utf-8")
    assert len(runs(clone)) == 3, "the second training is the restored clone's own"


def test_the_verified_model_leads_to_a_chain_in_which_nothing_is_missing(finished):
    clone, _ = finished
    answer = json.loads(convoy(clone, "trace", "build/deploy/model.onnx", "--json"))
    [run] = answer["runs"]
    links = {link["name"]: link for link in run["chain"]}
    assert not [link["missing"] for link in links.values() if link["missing"]]
    assert links["git commit"]["value"] == clone.run("git", "rev-parse", "HEAD~1").strip()
    assert "in DVC's cache (1 file)" in links["data"]["notes"]
    [stored] = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db").search_runs(["1"])
    assert links["MLflow run"]["value"] == stored.info.run_id
    assert links["dvc.lock"]["value"] == stored.data.tags["convoy.lock"]


def test_why_names_the_param_and_the_file_of_the_real_pipeline(clone):
    assert "Nothing to do" in convoy(clone, "why")
    clone.set_param("train.lr", "0.02")
    with (clone.folder / "src/convoy/evaluation/evaluate.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    text = convoy(clone, "why")
    assert "train.lr  0.03 → 0.02" in text
    assert "+1 -0 lines: git diff HEAD -- src/convoy/evaluation/evaluate.py" in text
    assert text.splitlines()[-1] == "`dvc repro` would run train and evaluate and perhaps run export."
    stages = json.loads(convoy(clone, "why", "--json"))["stages"]
    listed = set(json.loads(clone.run("dvc", "status", "--json")))
    assert {one["stage"] for one in stages if one["changes"]} == listed == {"train", "evaluate"}
