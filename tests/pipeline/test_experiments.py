"""Experiments, in the workspace and queued, stand side by side in the one store."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from clones import Clone, artifacts, runs

pytestmark = pytest.mark.pipeline

QUICK = ("-S", "train.epochs=1", "-S", "export.latency_runs=10", "-S", "network.name=lenet5")


def test_queued_experiments_run_the_code_they_were_queued_with_and_compare_in_one_store(
    finished: tuple[Clone, str], tmp_path: Path
) -> None:
    clone = finished[0].copy(tmp_path / "clone")
    clone.edit(
        "pipelines/train.py", '    """Run the stage."""', '    """Run the stage."""\n    print("as queued")'
    )
    for lr in ("0.02", "0.03"):
        clone.run("dvc", "exp", "run", "--queue", "--name", f"lr-{lr}", *QUICK, "-S", f"train.lr={lr}")
    clone.edit("pipelines/train.py", 'print("as queued")', 'raise SystemExit("edited after queueing")')
    clone.run("dvc", "exp", "run", "--run-all")
    assert not list((clone.folder / ".dvc/tmp/exps").glob("tmp*")), "DVC kept its temporary workspace"
    second, first, _ = runs(clone)
    assert (first.data.params["train.lr"], second.data.params["train.lr"]) == ("0.02", "0.03")
    for run in (first, second):
        assert run.info.status == "FINISHED"
        assert {"train/loss", "val/accuracy", "test/accuracy", "deploy/accuracy"} <= set(run.data.metrics)
        assert {"evaluation/report.html", "deploy/verification.json"} <= artifacts(clone, run)
        assert run.data.tags["convoy.dvc_experiment"] == f"lr-{run.data.params['train.lr']}"
    clone.run("convoy", "sync", PYTHONPATH=str(clone.folder / "src"))
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    for run in (first, second):
        assert "convoy.lock" in client.get_run(run.info.run_id).data.tags
        assert "pipeline/dvc.lock" in artifacts(clone, run)
    table = clone.run("dvc", "exp", "show", "--csv", "--only-changed")
    assert str(first.data.metrics["deploy/accuracy"]) in table
