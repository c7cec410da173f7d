"""A database file of another MLflow is left alone, and the way on is named."""

import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.tracking import store


def database(path: Path, revision: str) -> str:
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        made.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    return f"sqlite:///{path}"


def test_a_store_of_an_older_mlflow_is_refused_with_the_command_that_brings_it_up_to_date(
    tmp_path: Path,
) -> None:
    uri = database(tmp_path / "mlflow.db", "451aebb31d03")  # of MLflow 1.0
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(RequestError) as caught:
        store.check_schema(uri)
    assert str(caught.value).startswith(f"{tmp_path}/mlflow.db was written by an older MLflow")
    assert str(caught.value).endswith(
        f"\n  cp {tmp_path}/mlflow.db {tmp_path}/mlflow.db.before\n  mlflow db upgrade {uri}"
    )
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_store_of_a_newer_mlflow_is_refused_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=rf"newer MLflow .*{version('mlflow')} has no revision 0fedcba98765"
    ):
        store.check_schema(database(tmp_path / "mlflow.db", "0fedcba98765"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 200)
    with pytest.raises(RequestError, match=r"mlflow.db is not a database .* Move it away"):
        store.check_schema(f"sqlite:///{tmp_path}/mlflow.db")


def test_stores_that_mlflow_will_make_or_that_are_elsewhere_pass(tmp_path: Path) -> None:
    store.check_schema(f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "empty.db").touch()
    store.check_schema(f"sqlite:///{tmp_path}/empty.db")
    store.check_schema("http://tracking.example:5000")
    store.check_schema("postgresql://convoy@/mlflow")


def test_the_latest_revision_is_that_of_a_new_store(workplace: Path) -> None:
    uri = f"sqlite:///{workplace}/mlflow.db"
    store.check_schema(uri)
    with closing(sqlite3.connect(workplace / "mlflow.db")) as made, made:
        [[revision]] = made.execute("SELECT version_num FROM alembic_version")
        made.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(RequestError, match=f"needs {revision}"):
        store.check_schema(uri)
