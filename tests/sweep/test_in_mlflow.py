"""What a real store has of a sweep, in sqlite."""

from pathlib import Path

import pytest

from convoy.sweep import run
from convoy.sweep.study import Request, read_trials
from convoy.tracking import outbox, store, uploader


def test_mlflow_has_a_parent_and_a_child_per_trial_with_the_same_numbers(
    project, in_process_workers: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Workers", in_process_workers)
    monkeypatch.setattr(run.outbox, "wait_until_uploaded", lambda *_: {})
    project.network("large", "conv: {filters: 8, kernel: 11}", "flatten", "dense: classes")
    project.space("network.name: [tiny, large]", "train.lr: {low: 0.01, high: 0.5, log: true}")
    for target in (2, 4):
        run.sweep(target, 1, into_params=False, as_json=True)
        where = outbox.folder()
        with outbox.uploader_lock(where) as lock:
            monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)
            delivery = uploader.Uploader(where, lock)
            delivery.deliver_due()
            delivery.deliver_due()

    client = store.connect()
    [experiment] = [one for one in client.search_experiments() if one.name == "convoy"]
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.tags["convoy.trial"]): run for run in runs if run is not parent}
    results = project.results()
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    for row in results.rows:
        child = children[row.number]
        assert child.data.tags["convoy.trial_state"] == row.state
        assert (
            child.info.status == {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}[row.state]
        )
        assert child.data.params == {key: str(value) for key, value in row.values.items()}
        assert child.data.metrics.get("sweep/value") == row.value
    complete = next(row for row in results.rows if row.state == "complete")
    points = client.get_metric_history(children[complete.number].info.run_id, "val/loss")
    trial = read_trials(Request.read())[complete.number]
    assert {point.step: point.value for point in points} == trial.intermediate_values

    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/best_value"] == results.best.value
    assert parent.data.metrics["sweep/trials"] == 4
    assert parent.data.metrics["sweep/failed"] == results.count("failed")
    assert parent.data.tags["best.trial"] == str(results.best.number)
    kept = Path(parent.info.artifact_uri.removeprefix("file://")) / "sweep"
    names = {path.name for path in kept.iterdir()}
    assert names == {"trials.csv", "history.png", "slices.png", "request.json"}
    assert (kept / "trials.csv").read_text(encoding="utf-8") == results.csv()
