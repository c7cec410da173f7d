"""`convoy migrate` copies everything, once; it reports what it could not copy and refuses unusable stores."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from clones import free_port
from convoy import cli
from convoy.core.errors import MigrationError, RequestError
from convoy.tracking import migration_runs
from convoy.tracking.migration import Report, migrate
from tracking_store import ODD, POINTS, by_name, contents, fill, set_revision, uri

FILES = 6  # artifacts that `tracking_store.fill` makes, those of the model included


def sent(report: Report) -> int:
    return sum(count.sent for count in report.counts.values())


def rows(folder: Path) -> dict[str, int]:
    """Count the rows of each table of a database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        names = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: store.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for (name,) in names}  # noqa: S608


def content(client: MlflowClient, experiment: str) -> dict[str, Any]:
    """Return all that must arrive, by MLflow's own client, with names instead of ids and addresses."""
    runs = {name: client.get_run(run.info.run_id) for name, run in by_name(client, experiment).items()}
    parent = runs["parent · ä"].info
    [model] = client.search_logged_models([parent.experiment_id])
    registered = client.get_registered_model(f"{experiment} model")
    versions = client.search_model_versions(f"name = '{experiment} model'")
    found: dict[str, Any] = {
        name: {
            "info": [run.info.status, run.info.start_time, run.info.end_time, run.info.user_id],
            "params": run.data.params,
            "tags": run.data.tags,
            "points": {
                key: sorted(
                    [point.step, point.timestamp, repr(point.value)]
                    for point in client.get_metric_history(run.info.run_id, key)
                )
                for key in run.data.metrics
            },
            "datasets": [
                [entry.dataset.name, entry.dataset.digest, entry.dataset.profile, entry.tags[0].value]
                for entry in run.inputs.dataset_inputs
            ],
            "models": [entry.model_id for entry in run.inputs.model_inputs]
            + [[entry.model_id, entry.step] for entry in run.outputs.model_outputs],
        }
        for name, run in runs.items()
    }
    found["model"] = [model.name, model.status.value, model.source_run_id, model.model_type]
    found["of model"] = [model.params, model.tags]
    found["metrics"] = [[point.key, point.value, point.step, point.run_id] for point in model.metrics]
    found["registered"] = [registered.description, registered.tags]
    found["aliases"] = {alias: str(version) for alias, version in registered.aliases.items()}
    found["versions"] = {
        str(version.version): [version.source, version.run_id, version.tags["of"], version.description]
        for version in versions
    }
    [known_as] = json.loads(model.tags["mlflow.modelVersions"])
    model.tags["mlflow.modelVersions"] = f"{known_as['name']}/{known_as['version']}"
    text = json.dumps(found).replace(parent.artifact_uri, "PARENT'S FILES").replace(model.model_id, "MODEL")
    for name, run in runs.items():
        text = text.replace(run.info.run_id, name)
    return dict(json.loads(text, object_hook=without_origin))


def without_origin(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != migration_runs.ORIGIN}


def assert_carried(source: MlflowClient, target: MlflowClient, experiment: str) -> None:
    carried = content(target, experiment)
    assert carried == content(source, experiment)
    assert {"parent · ä", "failed", "killed", "running", "scheduled"} < set(carried)
    assert [len(carried["parent · ä"]["points"][key]) for key in ("step/loss", "odd")] == [POINTS, len(ODD)]


def test_everything_arrives(old_store, new_store):
    folder, report = new_store
    assert all(count.source == count.target == count.sent for count in report.counts.values()), report.counts
    assert report.counts["metric points"].source == POINTS + len(ODD) + 5
    assert report.wrong == report.notes == []
    assert_carried(MlflowClient(uri(old_store)), MlflowClient(uri(folder)), "convoy")


def test_a_second_migration_adds_nothing(old_store, new_store):
    folder, _ = new_store
    stored = rows(folder)
    assert sent(migrate(uri(folder), uri(old_store))) == 0
    assert rows(folder) == stored


def test_files_arrive_by_their_bytes_and_mlmodel_names_the_new_ids(old_store, new_store):
    folder, _ = new_store
    client = MlflowClient(uri(folder))
    parent = by_name(client)["parent · ä"]
    artifacts = folder / "mlartifacts"
    assert contents(artifacts / parent.info.run_id / "artifacts") == contents(old_store / "made")
    [model] = client.search_logged_models([parent.info.experiment_id])
    there = artifacts / "models" / model.model_id / "artifacts"
    assert (there / "model.onnx").read_bytes() == (old_store / "model/model.onnx").read_bytes()
    assert (there / "MLmodel").read_text().splitlines() == [
        f"run_id: {parent.info.run_id}",
        f"model_id: {model.model_id}",
        f"model_uuid: {'a' * 32}",
    ]


def test_what_a_server_got_before_dying_is_not_sent_again(server, proxy, empty_store, tmp_path, monkeypatch):
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


def test_a_run_that_continued_gets_its_new_points_and_its_end(source_store, target_copy):
    old = MlflowClient(uri(source_store))
    run = by_name(old)["running"].info.run_id
    old.log_batch(run, metrics=[Metric("train/loss", 0.5, 9, 2)])
    old.set_terminated(run, "FINISHED", end_time=7777)
    report = migrate(uri(target_copy), uri(source_store))
    assert report.counts["metric points"].sent == sent(report) == 1
    there = by_name(MlflowClient(uri(target_copy)))["running"]
    assert (there.info.status, there.info.end_time) == ("FINISHED", 7777)
    assert there.data.metrics == {"train/loss": 0.5}


def test_a_run_that_was_delivered_by_its_own_id_is_not_doubled(source_store, target_store):
    there = MlflowClient(uri(target_store))
    known = there.create_run(there.create_experiment("convoy"), tags={"convoy.run_id": "convoy-1"})
    migrate(uri(target_store), uri(source_store))
    assert len(by_name(there)) == 5
    assert by_name(there)["failed"].info.run_id == known.info.run_id


def test_two_stores_migrate_to_a_third_that_notes_taken_numbers(
    target_copy, empty_store, tmp_path, monkeypatch
):
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


@pytest.fixture
def source_moved(source_store, old_store):
    """A copy of the store whose original, where its absolute paths point, is gone."""
    hidden = old_store.rename(old_store.with_name("elsewhere"))
    yield source_store
    hidden.rename(old_store)


def test_a_file_that_is_damaged_in_the_target_is_sent_again(old_store, new_store):
    folder, _ = new_store
    parent = by_name(MlflowClient(uri(folder)))["parent · ä"].info.run_id
    [spoilt] = (folder / "mlartifacts" / parent).rglob("noise.bin")
    right = spoilt.read_bytes()
    spoilt.write_bytes(right[::-1])
    assert not migrate(uri(folder), uri(old_store)).wrong
    assert spoilt.read_bytes() == right


def test_a_file_that_the_target_loses_fails_the_command(old_store, target_store, monkeypatch):
    send = migration_runs._upload

    def lossy(folder: Path, names: list[str], *rest: object) -> None:
        send(folder, [name for name in names if not name.endswith(".html")], *rest)

    monkeypatch.setattr(migration_runs, "_upload", lossy)
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_store), "--from", uri(old_store)])
    assert isinstance(done.exception, MigrationError)
    parent = by_name(MlflowClient(uri(old_store)))["parent · ä"].info.run_id
    lacks = f"lacks 1 of the source's entries:\n  run {parent} (parent · ä): report.html"
    assert lacks in str(done.exception)
    assert "complete: counts" not in done.output


def test_a_version_of_a_deleted_run_is_named_with_what_to_type(source_store, target_copy):
    old = MlflowClient(uri(source_store))
    gone = old.create_run(by_name(old)["failed"].info.experiment_id).info.run_id
    old.create_model_version("convoy model", f"runs:/{gone}/model", gone)
    old.delete_run(gone)
    report = migrate(uri(target_copy), uri(source_store))
    assert report.wrong == [
        f"convoy model/5: its run {gone} is deleted. Restore it (mlflow runs restore --run-id {gone}) or delete the version"
    ]
    assert (report.counts["versions"].source, report.counts["versions"].target) == (4, 3)


def test_a_store_that_was_moved_with_its_files_is_read_where_it_is(source_moved, target_copy):
    report = migrate(uri(target_copy), uri(source_moved))
    assert report.counts["files"].source + report.counts["model files"].source == FILES
    assert not report.notes


def test_missing_files_are_noted(source_moved, target_copy, old_store):
    shutil.rmtree(source_moved / "mlartifacts")
    report = migrate(uri(target_copy), uri(source_moved))
    assert report.counts["files"].source == 0
    assert report.notes == [
        f"experiment {name}: {old_store}/mlartifacts does not exist, so none of its files were copied"
        for name in ("convoy", "convoy empty")
    ]


def test_the_command_prints_a_table_or_json(old_store, target_copy):
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_copy), "--from", uri(old_store)])
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert {"runs 5 5 0", "metric points 2,309 2,309 0"} <= set(lines)
    assert "complete: counts are equal, and so is the sha256 of 6 files (133,141 bytes)" in done.output
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_copy), "--from", uri(old_store), "--json"])
    facts = json.loads(done.stdout)
    assert facts["counts"]["runs"] == {"source": 5, "target": 5, "sent": 0}
    assert facts["target"] == uri(target_copy)


def test_an_experiment_without_runs_and_models_is_carried_too(empty_store, target_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    MlflowClient(uri(tmp_path)).create_experiment("lonely", tags={"why": "planned"})
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_store), "--from", uri(tmp_path)])
    assert "complete: counts are equal, and so is the sha256 of 0 files" in done.output
    assert MlflowClient(uri(target_store)).get_experiment_by_name("lonely").tags["why"] == "planned"


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        (None, "mlflow.db does not exist, so there is nothing to migrate. Change to the repository"),
        ("", "has no experiments: there is nothing to migrate. Name the store that has them: convoy "),
        ("bd07f7e963c5", "(?s)older MLflow: .* have revision bd07f7e963c5.*mlflow db upgrade sqlite:///"),
    ],
)
def test_an_unusable_source_is_refused_and_not_changed(target_store, tmp_path, revision, message):
    if revision is not None:
        shutil.copy(target_store / "mlflow.db", tmp_path)
    if revision:
        set_revision(tmp_path / "mlflow.db", revision)
    before = contents(tmp_path)
    with pytest.raises(RequestError, match=message):
        migrate(uri(target_store), uri(tmp_path))
    assert contents(tmp_path) == before, "a refused store is not changed"


def test_an_unusable_target_is_refused(source_store, old_store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RequestError, match=r"mlflow.db is the source itself. Name another store"):
        migrate(f"sqlite:///{source_store}/../source/mlflow.db", uri(source_store))
    with pytest.raises(RequestError, match=r"postgresql://ada:\*\*\*@host/db is not a valid target"):
        migrate("postgresql://ada:secret@host/db", uri(source_store))
    with pytest.raises(RequestError, match=r"has run \w{32} under the same id .* a copy of its database"):
        migrate(uri(old_store), uri(source_store))
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(MigrationError, match=rf"^{nobody} does not answer: (?s:.*)MLFLOW_TRACKING_USERNAME"):
        migrate(nobody, uri(source_store))
    with pytest.raises(MigrationError, match=rf"^{nobody} does not answer"):
        migrate(uri(tmp_path), nobody)
