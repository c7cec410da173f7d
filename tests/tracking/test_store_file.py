"""The database file of a local store: every fault is named with its remedy before MLflow opens it; paths follow a move."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from convoy import cli
from convoy.core.errors import RequestError
from convoy.lineage.runs import open_records
from convoy.tracking import store, store_file, sync, ui
from convoy.tracking.journal import Sent
from convoy.tracking.store_file import StoreFileError
from tracking_store import deliver_once, journal_folder, logged, set_revision, stored


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold SQLite's lock for a writer, as a database browser does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "LOCKED_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_locked_file_is_named_and_the_run_is_kept(workplace, deliver, caplog):
    run = logged("kept")
    with locked(workplace / "mlflow.db"):
        deliver()
        assert "mlflow.db is locked" in Sent.load(journal_folder(run)).error
        assert "Close it" in Sent.load(journal_folder(run)).error
        [reason] = sync.sync(0.0).failed.values()
        assert "is locked" in reason
        with pytest.raises(StoreFileError, match=r"is locked.*Close it"):
            ui._prepare_store(store.uri())
        with pytest.raises(StoreFileError, match=r"is locked.*Close it"):
            open_records(store.uri(), workplace)
    assert not caplog.records, "MLflow printed a traceback"
    deliver()
    assert stored(run, store.connect()).info.status == "FINISHED"


def test_a_read_only_file_is_named_where_it_must_take_entries(workplace, monkeypatch):
    connect = sqlite3.connect

    def read_only(name: str, *words: float, **options: object) -> sqlite3.Connection:
        return connect(name.replace("mode=rw", "mode=ro"), *words, **options)

    monkeypatch.setattr(store_file.sqlite3, "connect", read_only)  # root may write to every file
    store_file.check(store.uri())
    with pytest.raises(StoreFileError, match=rf"mlflow.db is read-only.*chmod u\+w {workplace}/mlflow.db"):
        store.open_to_write(store.uri())


def test_a_file_that_was_moved_while_it_is_in_use_is_not_called_read_only(tmp_path):
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE entries (x)")
        path.rename(tmp_path / "new.db")
        with pytest.raises(sqlite3.Error) as caught:
            database.execute("INSERT INTO entries VALUES (1)")
    assert "was moved" in str(store_file.fault(caught.value))
    assert "convoy sync --moved" in str(store_file.fault(caught.value))


def test_an_error_of_python_s_own_sqlite_module_has_no_code_and_keeps_its_message(workplace, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.ProgrammingError("the module's own")

    monkeypatch.setattr(store_file.sqlite3, "connect", refuse)
    with pytest.raises(StoreFileError, match=r"mlflow\.db: the module's own"):
        store.open_to_write(store.uri())


def test_a_fault_that_mlflow_meets_later_is_named_without_its_traceback(workplace, client, caplog):
    """Pages of the runs are damaged; SQLite finds that when it reads them."""
    logged_run = client.create_run("0")
    path = workplace / "mlflow.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 4)
        file.write(b"\xff" * (size - 4096 * 4))
    with pytest.raises(Exception, match="malformed") as caught:
        client.get_run(logged_run.info.run_id)
    text = store.failure(caught.value, store.uri())
    assert f"{path} is damaged" in text
    assert f"mv {path} {path}.damaged" in text
    assert "server" not in text
    assert not caplog.records


def test_a_store_is_made_whole_also_without_links_and_while_another_process_makes_it(
    workplace, empty_store, monkeypatch
):
    path = workplace / "mlflow.db"
    path.unlink()
    connect = store.connect

    def quicker(address: str = "") -> MlflowClient:
        shutil.copy(empty_store, address.removeprefix("sqlite:///"))
        return connect(address)

    monkeypatch.setattr(store, "connect", quicker)
    monkeypatch.setattr(store.os, "link", Mock(side_effect=PermissionError(1, "not permitted")))
    store.open_to_write(store.uri()).search_experiments()
    assert [file.name for file in workplace.glob("mlflow.db*")] == ["mlflow.db"]
    path.unlink()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)

    def slower(address: str = "") -> MlflowClient:
        shutil.copy(empty_store, path)  # by the other process
        return connect(address)

    monkeypatch.setattr(store, "connect", slower)
    store.make_file(f"sqlite:///{path}")
    assert path.read_bytes() == empty_store.read_bytes()


@pytest.mark.parametrize("command", ["sync", "ui"])
def test_a_subfolder_gets_no_store_and_the_repository_is_named(workplace, monkeypatch, command):
    (workplace / "docs").mkdir()
    monkeypatch.chdir(workplace / "docs")
    result = CliRunner().invoke(cli.app, [command])
    assert isinstance(result.exception, RequestError)
    assert f"cd {workplace}" in str(result.exception)
    assert not list((workplace / "docs").iterdir())


def test_a_moved_repository_is_detected_and_one_command_repairs_its_paths(
    workplace, client, deliver, monkeypatch, tmp_path_factory
):
    run = logged("before")
    deliver()
    waiting = logged("waits")
    new = tmp_path_factory.mktemp("moved") / "repository"
    shutil.copytree(workplace, new)
    shutil.rmtree(workplace / "mlartifacts")
    monkeypatch.chdir(new)
    deliver_once(new / "outbox")
    error = Sent.load(new / "outbox" / waiting.reference.run_id).error
    assert f"records artifacts in {workplace}/mlartifacts" in error
    assert "convoy sync --moved" in error
    assert not (workplace / "mlartifacts").exists(), "the old folder was made again"
    with pytest.raises(StoreFileError, match="convoy sync --moved"):
        open_records(store.uri(), new)
    monkeypatch.setattr(sync, "sync", sync.Synced)
    result = CliRunner().invoke(cli.app, ["sync", "--moved"], catch_exceptions=False)
    assert f"{workplace}/mlartifacts → {new}/mlartifacts" in result.stdout
    assert (new / "mlflow.db.before").exists()
    deliver_once(new / "outbox")
    for each in (run, waiting):
        found = stored(each, store.connect())
        assert found.info.artifact_uri.startswith((new / "mlartifacts").as_uri())
        assert store.connect().list_artifacts(found.info.run_id, "pipeline")
    assert not store_file.relocate(store.uri()), "a second time there is nothing to do"


def test_what_was_written_to_the_old_place_after_a_move_is_copied(
    workplace, client, deliver, monkeypatch, tmp_path_factory
):
    run = logged("before")
    deliver()
    new = tmp_path_factory.mktemp("moved") / "repository"
    shutil.copytree(workplace, new)
    shutil.rmtree(new / "mlartifacts")
    monkeypatch.chdir(new)
    assert "1 folders of artifacts" in store_file.relocate(store.uri())[-1]
    assert store.connect().list_artifacts(stored(run, store.connect()).info.run_id, "pipeline")


def test_a_link_from_the_old_place_and_another_folder_of_one_s_own_are_left_alone(
    workplace, client, deliver, monkeypatch, tmp_path_factory
):
    logged("before")
    deliver()
    experiment = client.create_experiment("mine", (workplace / "elsewhere").as_uri())
    new = tmp_path_factory.mktemp("moved") / "repository"
    shutil.move(workplace, new)
    workplace.symlink_to(new)
    monkeypatch.chdir(new)
    store_file.check(store.uri(), write=True)
    assert client.get_experiment(experiment)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database" * 200)
    with pytest.raises(StoreFileError, match=r"mlflow.db is not a database .* mv .*mlflow.db.damaged"):
        store_file.check(f"sqlite:///{tmp_path}/mlflow.db")


def test_stores_that_mlflow_will_make_or_that_are_elsewhere_pass(tmp_path):
    store_file.check(f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "empty.db").touch()
    store_file.check(f"sqlite:///{tmp_path}/empty.db")
    store_file.check("http://tracking.example:5000")
    store_file.check("postgresql://convoy@/mlflow")


def test_a_store_of_another_mlflow_is_refused_with_what_to_install_or_to_type(workplace):
    path = workplace / "mlflow.db"
    uri = f"sqlite:///{path}"
    store_file.check(uri)
    needed = set_revision(path, "0fedcba98765")
    with pytest.raises(RequestError, match=rf"newer .*{version('mlflow')} has no revision 0fedcba98765"):
        store_file.check(uri)
    set_revision(path, "451aebb31d03")  # of MLflow 1.0
    before = path.read_bytes()
    older = f"^{path} was written by an older .*needs {needed}"
    commands = f"\n  cp {path} {path}.before\n  mlflow db upgrade {uri}$"
    with pytest.raises(RequestError, match=f"{older}(?s:.*){commands}"):
        store_file.check(uri)
    assert path.read_bytes() == before


def test_a_store_that_cannot_be_created_is_named_before_mlflow_tries_for_a_minute(workplace):
    address = f"sqlite:///{workplace}/missing/mlflow.db"
    store_file.check(address)  # a reader finds no store
    with pytest.raises(StoreFileError, match=rf"cannot be created.*ls -ld {workplace}/missing"):
        store_file.check(address, write=True)
    with pytest.raises(StoreFileError, match=r"is a folder\. Name the file of a store in it: sqlite:///"):
        store_file.check(f"sqlite:///{workplace}")
