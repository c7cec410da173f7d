"""What `convoy migrate` refuses, repairs and prints."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
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
"""Artifacts that `tracking_store.fill` makes, those of the model included."""


@pytest.fixture
def source_moved(source_store: Path, old_store: Path) -> Iterator[Path]:
    """A copy of the store whose original, where its absolute paths point, is gone."""
    hidden = old_store.rename(old_store.with_name("elsewhere"))
    yield source_store
    hidden.rename(old_store)


def test_a_file_that_is_damaged_in_the_target_is_sent_again(
    old_store: Path, new_store: tuple[Path, Report]
) -> None:
    folder, _ = new_store
    parent = by_name(MlflowClient(uri(folder)))["parent · ä"].info.run_id
    [spoilt] = (folder / "mlartifacts" / parent).rglob("noise.bin")
    right = spoilt.read_bytes()
    spoilt.write_bytes(right[::-1])
    assert not migrate(uri(folder), uri(old_store)).wrong
    assert spoilt.read_bytes() == right


def test_a_file_that_the_target_loses_fails_the_command(
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
    source_moved: Path, target_copy: Path
) -> None:
    report = migrate(uri(target_copy), uri(source_moved))
    assert report.counts["files"].source + report.counts["model files"].source == FILES
    assert not report.notes


def test_missing_files_are_noted(source_moved: Path, target_copy: Path, old_store: Path) -> None:
    shutil.rmtree(source_moved / "mlartifacts")
    report = migrate(uri(target_copy), uri(source_moved))
    assert report.counts["files"].source == 0
    assert report.notes == [
        f"experiment {name}: {old_store}/mlartifacts does not exist, so none of its files were copied"
        for name in ("convoy", "convoy empty")
    ]


def test_the_command_prints_a_table_or_json(old_store: Path, target_copy: Path) -> None:
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_copy), "--from", uri(old_store)])
    assert done.exit_code == 0
    lines = {
        line.rsplit(maxsplit=3)[0]: line.split()[-3:]
        for line in done.output.splitlines()
        if line[-1:].isdigit()
    }
    assert lines["runs"] == ["5", "5", "0"]
    assert lines["metric points"] == ["2,309", "2,309", "0"]
    assert "complete: counts are equal, and so is the sha256 of 6 files (133,141 bytes)" in done.output
    done = CliRunner().invoke(cli.app, ["migrate", uri(target_copy), "--from", uri(old_store), "--json"])
    facts = json.loads(done.stdout)
    assert facts["counts"]["runs"] == {"source": 5, "target": 5, "sent": 0}
    assert facts["target"] == uri(target_copy)


def test_an_experiment_without_runs_and_models_is_carried_too(
    empty_store: Path, target_store: Path, tmp_path: Path
) -> None:
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
        (
            "bd07f7e963c5",
            "(?s)was written by an older MLflow: its tables have revision bd07f7e963c5.*mlflow db upgrade sqlite:///",
        ),
    ],
)
def test_an_unusable_source_is_refused_and_not_changed(
    target_store: Path, tmp_path: Path, revision: str | None, message: str
) -> None:
    if revision is not None:
        shutil.copy(target_store / "mlflow.db", tmp_path)
    if revision:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
            database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
            database.execute("DROP TABLE logged_models")
    before = hashes(tmp_path)
    with pytest.raises(RequestError, match=message):
        migrate(uri(target_store), uri(tmp_path))
    assert hashes(tmp_path) == before, "a refused store is not changed"


def test_an_unusable_target_is_refused(
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
