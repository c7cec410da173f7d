"""What `convoy migrate` refuses, repairs, prints and says."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from clones import free_port
from convoy import cli
from convoy.core.errors import MigrationError, RequestError
from convoy.tracking.migration import artifacts
from convoy.tracking.migration.migrate import migrate
from convoy.tracking.migration.report import Report
from tracking_store import by_name, hashes, uri

FILES = 6
"""Artifacts that `embedded.fill` makes, those of the model included."""


def test_a_file_that_was_spoilt_in_the_target_is_sent_again(
    old_store: Path, new_store: tuple[Path, Report]
) -> None:
    folder, _ = new_store
    parent = by_name(MlflowClient(uri(folder)))["parent · ä"].info.run_id
    [spoilt] = (folder / "mlartifacts" / parent).rglob("noise.bin")
    right = spoilt.read_bytes()
    spoilt.write_bytes(right[::-1])
    assert not migrate(uri(folder), uri(old_store)).wrong
    assert spoilt.read_bytes() == right


def test_what_the_target_does_not_keep_is_named_and_fails(
    old_store: Path, target_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = artifacts._upload

    def lossy(folder: Path, names: list[str], *rest: object) -> None:
        send(folder, [name for name in names if not name.endswith(".html")], *rest)

    monkeypatch.setattr(artifacts, "_upload", lossy)
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_store), "--from", uri(old_store)])
    assert isinstance(done.exception, MigrationError)
    assert (
        f"lacks 1 of the source's entries:\n  run {by_name(MlflowClient(uri(old_store)))['parent · ä'].info.run_id}"
        in str(done.exception)
    )
    assert str(done.exception).splitlines()[1].endswith("(parent · ä): report.html")
    assert "complete: counts" not in done.output


def test_a_version_of_a_deleted_run_is_named_with_what_to_type(source_store: Path, target_copy: Path) -> None:
    old = MlflowClient(uri(source_store))
    gone = old.create_run(by_name(old)["failed"].info.experiment_id).info.run_id
    old.create_model_version("convoy model", f"runs:/{gone}/model", gone)
    old.delete_run(gone)
    report = migrate(uri(target_copy), uri(source_store))
    assert report.wrong == [
        f"convoy model/5: its run {gone} is deleted. Restore it (mlflow runs restore --run-id {gone}) or delete the version"
    ]
    assert (report.counts["versions"].source, report.counts["versions"].target) == (4, 3)


def test_a_store_that_was_moved_with_its_files_is_read_where_it_is(
    source_store: Path, target_copy: Path, old_store: Path
) -> None:
    hidden = old_store.rename(old_store.with_name("elsewhere"))
    try:
        report = migrate(uri(target_copy), uri(source_store))
    finally:
        hidden.rename(old_store)
    assert report.counts["files"].target + report.counts["model files"].target == FILES
    assert not report.notes


def test_files_that_are_gone_are_told(source_store: Path, target_copy: Path, old_store: Path) -> None:
    shutil.rmtree(source_store / "mlartifacts")
    hidden = old_store.rename(old_store.with_name("elsewhere"))
    try:
        report = migrate(uri(target_copy), uri(source_store))
    finally:
        hidden.rename(old_store)
    assert report.counts["files"].source == 0
    assert report.notes == [
        f"experiment {name}: {old_store}/mlartifacts does not exist, so none of its files were copied"
        for name in ("convoy", "convoy empty")
    ]


def test_the_command_prints_a_table_or_json(old_store: Path, target_copy: Path) -> None:
    said = CliRunner().invoke(cli.app, ["migrate", uri(target_copy), "--from", uri(old_store)])
    assert said.exit_code == 0
    lines = {
        line.rsplit(maxsplit=3)[0]: line.split()[-3:]
        for line in said.output.splitlines()
        if line[-1:].isdigit()
    }
    assert lines["runs"] == ["5", "5", "0"]
    assert lines["metric points"] == ["2,309", "2,309", "0"]
    assert "complete: counts are equal, and so is the sha256 of 6 files (133,141 bytes)" in said.output
    said = CliRunner().invoke(cli.app, ["migrate", uri(target_copy), "--from", uri(old_store), "--json"])
    facts = json.loads(said.stdout)
    assert facts["counts"]["runs"] == {"source": 5, "target": 5, "sent": 0}
    assert facts["target"] == uri(target_copy)


def test_an_experiment_without_runs_and_models_is_carried_too(
    empty_store: Path, target_store: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    MlflowClient(uri(tmp_path)).create_experiment("lonely", tags={"why": "planned"})
    said = CliRunner().invoke(cli.app, ["migrate", uri(target_store), "--from", uri(tmp_path)])
    assert "complete: counts are equal, and so is the sha256 of 0 files" in said.output
    found = MlflowClient(uri(target_store)).get_experiment_by_name("lonely")
    assert found
    assert found.tags["why"] == "planned"


def no_source(folder: Path) -> str:
    return uri(folder / "nowhere")


def nothing_in_it(folder: Path) -> str:
    shutil.copy(folder / "target/mlflow.db", folder / "mlflow.db")
    return uri(folder)


def older(folder: Path) -> str:
    shutil.copy(folder / "target/mlflow.db", folder / "mlflow.db")
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
        store.execute("DROP TABLE logged_models")
    return uri(folder)


@pytest.mark.parametrize(
    ("source_of", "said"),
    [
        (
            no_source,
            "nowhere/mlflow.db does not exist, so there is nothing to migrate. Change to the repository",
        ),
        (
            nothing_in_it,
            "has no experiments: there is nothing to migrate. Name the store that has them: convoy ",
        ),
        (
            older,
            "(?s)was written by an older MLflow: its tables have revision bd07f7e963c5.*mlflow db upgrade sqlite:///",
        ),
    ],
)
def test_a_source_that_cannot_be_one_is_refused(
    target_store: Path, tmp_path: Path, source_of: Callable[[Path], str], said: str
) -> None:
    address = source_of(tmp_path)
    before = hashes(tmp_path)
    with pytest.raises(RequestError, match=said):
        migrate(uri(target_store), address)
    assert hashes(tmp_path) == before, "a refused store is not changed"


def test_a_target_that_cannot_be_one_is_refused(
    source_store: Path, old_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RequestError, match=r"mlflow.db is the source itself. Name another store"):
        migrate(f"sqlite:///{source_store}/../source/mlflow.db", uri(source_store))
    with pytest.raises(
        RequestError, match=r"postgresql://ada:\*\*\*@host/db is not a valid target. Use the address of"
    ):
        migrate("postgresql://ada:secret@host/db", uri(source_store))
    with pytest.raises(RequestError, match=r"has run \w{32} under the same id .* a copy of its database"):
        migrate(uri(old_store), uri(source_store))
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(MigrationError, match=rf"^{nobody} does not answer: (?s:.*)MLFLOW_TRACKING_USERNAME"):
        migrate(nobody, uri(source_store))
    with pytest.raises(MigrationError, match=rf"^{nobody} does not answer"):
        migrate(uri(tmp_path), nobody)
