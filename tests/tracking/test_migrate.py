"""`convoy migrate` copies everything, once, and reports what it could not copy."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from convoy.core.errors import MigrationError
from convoy.tracking.migration.migrate import migrate
from convoy.tracking.migration.report import Report
from proxy import Proxy
from tracking_store import ODD, POINTS, by_name, fill, hashes, uri


def sent(report: Report) -> int:
    return sum(count.sent for count in report.counts.values())


def rows(folder: Path) -> dict[str, int]:
    """Count the rows of each table of a database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        names = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: store.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for (name,) in names}  # noqa: S608


def assert_carried(source: MlflowClient, target: MlflowClient, experiment: str) -> None:
    """Compare both stores by MLflow's own client, item by item."""
    old, new = by_name(source, experiment), by_name(target, experiment)
    assert set(old) == set(new) == {"parent · ä", "failed", "killed", "running", "scheduled"}
    for name, run in old.items():
        there = new[name]
        for fact in ("status", "start_time", "end_time", "user_id"):
            assert getattr(there.info, fact) == getattr(run.info, fact), (name, fact)
        assert there.data.params == run.data.params
        same = set(run.data.tags) - {"mlflow.parentRunId", "mlflow.note.content"}
        assert {key: there.data.tags[key] for key in same} == {key: run.data.tags[key] for key in same}
        for key in run.data.metrics:
            points = [
                sorted(
                    (one.step, one.timestamp, repr(one.value)) for one in client.get_metric_history(of, key)
                )
                for client, of in ((source, run.info.run_id), (target, there.info.run_id))
            ]
            assert points[0] == points[1]
    parent = new["parent · ä"]
    assert new["failed"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["mlflow.note.content"] == f"# a note on {parent.info.run_id}"
    assert len(target.get_metric_history(parent.info.run_id, "step/loss")) == POINTS
    assert len(target.get_metric_history(parent.info.run_id, "odd")) == len(ODD)
    [data] = parent.inputs.dataset_inputs
    assert (data.dataset.digest, data.dataset.profile, data.tags[0].value) == (
        "0123456789",
        '{"images": 9}',
        "training",
    )
    [model] = target.search_logged_models([parent.info.experiment_id])
    assert (model.source_run_id, model.name, model.status.value) == (parent.info.run_id, "model", "READY")
    assert (model.params, model.tags["kind"], model.model_type) == ({"opset": "20"}, "onnx", "cnn")
    assert [(one.key, one.value, one.run_id) for one in model.metrics] == [
        ("test/accuracy", 0.9, parent.info.run_id)
    ]
    assert [(one.model_id, one.step) for one in parent.outputs.model_outputs] == [(model.model_id, 3)]
    taken = target.get_run(new["scheduled"].info.run_id).inputs.model_inputs
    assert [one.model_id for one in taken] == [model.model_id]
    name = f"{experiment} model"
    registered = target.get_registered_model(name)
    assert (registered.tags, registered.description) == ({"team": "vision"}, "what it is for")
    assert {key: str(one) for key, one in registered.aliases.items()} == {"champion": "1", "candidate": "4"}
    versions = {str(one.version): one for one in target.search_model_versions(f"name = '{name}'")}
    assert {number: one.source for number, one in versions.items()} == {
        "1": f"models:/{model.model_id}",
        "3": f"runs:/{parent.info.run_id}/deep",
        "4": f"{parent.info.artifact_uri}/deep",
    }
    assert {(one.run_id, one.tags["of"], one.description) for one in versions.values()} == {
        (parent.info.run_id, parent.info.run_id, "told")
    }
    [registered_as] = json.loads(model.tags["mlflow.modelVersions"])
    assert (registered_as["name"], str(registered_as["version"])) == (name, "1")


def test_everything_arrives(old_store: Path, new_store: tuple[Path, Report]) -> None:
    folder, report = new_store
    assert all(count.source == count.target == count.sent for count in report.counts.values()), report.counts
    assert report.counts["metric points"].source == POINTS + len(ODD) + 5
    assert report.wrong == report.notes == []
    assert_carried(MlflowClient(uri(old_store)), MlflowClient(uri(folder)), "convoy")


def test_a_second_migration_adds_nothing(old_store: Path, new_store: tuple[Path, Report]) -> None:
    folder, _ = new_store
    stored = rows(folder)
    assert sent(migrate(uri(folder), uri(old_store))) == 0
    assert rows(folder) == stored


def test_files_arrive_by_their_bytes_and_mlmodel_names_the_new_ids(
    old_store: Path, new_store: tuple[Path, Report]
) -> None:
    folder, _ = new_store
    client = MlflowClient(uri(folder))
    parent = by_name(client)["parent · ä"]
    artifacts = folder / "mlartifacts"
    assert hashes(artifacts / parent.info.run_id / "artifacts") == hashes(old_store / "made")
    [model] = client.search_logged_models([parent.info.experiment_id])
    there = artifacts / "models" / model.model_id / "artifacts"
    assert (there / "model.onnx").read_bytes() == (old_store / "model/model.onnx").read_bytes()
    assert (there / "MLmodel").read_text().splitlines() == [
        f"run_id: {parent.info.run_id}",
        f"model_id: {model.model_id}",
        f"model_uuid: {'a' * 32}",
    ]


def test_what_a_server_got_before_it_died_is_not_sent_again(
    server: str, proxy: Proxy, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(tmp_path / "source"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    source = fill(tmp_path / "source", empty_store, "migrated")
    proxy.die_after(45)
    with pytest.raises(MigrationError, match=r"(?s)^stopped: .*run the same command again"):
        migrate(proxy.uri, uri(tmp_path / "source"))
    proxy.accept()
    report = migrate(proxy.uri, uri(tmp_path / "source"))
    assert 0 < report.counts["metric points"].sent < report.counts["metric points"].source
    assert all(count.source == count.target for count in report.counts.values()), report.counts
    assert_carried(source, MlflowClient(server), "migrated")
    assert sent(migrate(server, uri(tmp_path / "source"))) == 0


def test_a_run_that_continued_gets_its_new_points_and_its_end(source_store: Path, target_copy: Path) -> None:
    old = MlflowClient(uri(source_store))
    run = by_name(old)["running"].info.run_id
    old.log_batch(run, metrics=[Metric("train/loss", 0.5, 9, 2)])
    old.set_terminated(run, "FINISHED", end_time=7777)
    report = migrate(uri(target_copy), uri(source_store))
    assert report.counts["metric points"].sent == sent(report) == 1
    there = by_name(MlflowClient(uri(target_copy)))["running"]
    assert (there.info.status, there.info.end_time, there.data.metrics) == (
        "FINISHED",
        7777,
        {"train/loss": 0.5},
    )


def test_a_run_that_was_delivered_by_its_own_id_is_not_doubled(
    source_store: Path, target_store: Path
) -> None:
    there = MlflowClient(uri(target_store))
    known = there.create_run(
        there.create_experiment("convoy"), tags={"convoy.run_id": "convoy-1"}
    ).info.run_id
    migrate(uri(target_store), uri(source_store))
    assert len(by_name(there)) == 5
    assert by_name(there)["failed"].info.run_id == known


def test_two_stores_migrate_to_a_third_with_a_note_of_each_taken_number_and_alias(
    target_copy: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(tmp_path / "other"))
    fill(tmp_path / "other", empty_store)
    report = migrate(uri(target_copy), uri(tmp_path / "other"))
    assert report.counts["runs"].sent == 5
    assert report.counts["aliases"].sent == 0
    assert report.notes == [
        "convoy model/1 is convoy model/5 there: that number is taken",
        "convoy model/3 is convoy model/6 there: that number is taken",
        "convoy model/4 is convoy model/7 there: that number is taken",
        "convoy model@candidate stays at version 4, which the target has given it; in the source it is 4, there 7",
        "convoy model@champion stays at version 1, which the target has given it; in the source it is 1, there 5",
    ]
    assert sent(migrate(uri(target_copy), uri(tmp_path / "other"))) == 0
