"""Experiments, in the workspace and queued, stand side by side in the one store."""

import pytest

from clones import artifacts, runs

pytestmark = pytest.mark.pipeline


def test_queued_experiments_run_the_code_they_were_queued_with_and_compare_in_one_store(
    compared,
):
    assert not list((compared.folder / ".dvc/tmp/exps").glob("tmp*")), "DVC kept its temporary workspace"
    table = compared.run("dvc", "exp", "show", "--csv", "--only-changed")
    assert "weight_decay: 5e-05" in (compared.folder / "params.yaml").read_text()
    here, queued, _ = runs(compared)
    for run, lr in ((queued, "0.02"), (here, "0.1")):
        assert run.info.status == "FINISHED"
        assert run.data.params["train.lr"] == lr
        assert float(run.data.params["train.weight_decay"]) == 0.00005
        assert {"train/loss", "val/accuracy", "test/accuracy", "deploy/accuracy"} <= set(run.data.metrics)
        assert {"evaluation/report.html", "deploy/verification.json"} <= artifacts(compared, run)
        assert run.data.tags["convoy.dvc_experiment"] == f"lr-{lr}"
        assert "convoy.lock" in run.data.tags
        assert "pipeline/dvc.lock" in artifacts(compared, run)
        assert str(run.data.metrics["deploy/accuracy"]) in table
