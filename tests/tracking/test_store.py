"""The store: dead runs are ended and no others, and a database file of another MLflow is left alone."""

import os
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from convoy.core.contract import HEARTBEAT
from convoy.core.errors import RequestError
from convoy.repo import identity
from convoy.tracking import outbox, stages, store
from tracking_store import set_revision, stored, trained

GONE = "999999:1.00"
HERE = {"convoy.host": identity.host(), "convoy.owner": GONE}
ELSEWHERE = {"convoy.host": "another", "convoy.owner": GONE}


@pytest.mark.parametrize(
    ("tags", "silent_min", "status"),
    [
        ({**HERE, "convoy.stage": "train running"}, None, "KILLED"),
        ({**HERE}, None, "KILLED"),
        ({**HERE, "convoy.stage": "train done"}, None, "FINISHED"),
        ({**HERE, "convoy.owner": identity.process_tags()["convoy.owner"]}, None, "RUNNING"),
        ({**ELSEWHERE, "convoy.stage": "train running"}, 11, "KILLED"),
        ({**ELSEWHERE, "convoy.stage": "train done"}, 11, "FINISHED"),
        ({**ELSEWHERE, "convoy.stage": "train running"}, 9, "RUNNING"),
        ({**ELSEWHERE, "convoy.stage": "train running"}, None, "RUNNING"),
    ],
)
def test_a_run_is_judged_by_its_process_here_and_by_its_heartbeat_elsewhere(client, tags, silent_min, status):
    if silent_min:  # from now, which may be long after these tests were collected
        last = datetime.now(UTC) - timedelta(minutes=silent_min)
        tags = {**tags, HEARTBEAT: last.isoformat(timespec="seconds")}
    run = client.create_run("0", tags={"convoy.run_id": "a", **tags}, run_name="one")
    ended = store.end_abandoned(client, "0")
    assert client.get_run(run.info.run_id).info.status == status
    assert ended == (["one"] if status != "RUNNING" else [])


def test_runs_that_are_scheduled_or_not_convoys_or_have_a_journal_here_are_left_alone(client):
    scheduled = client.create_run("0", tags={"convoy.run_id": "a", **HERE}).info.run_id
    client.update_run(scheduled, "SCHEDULED")
    foreign = client.create_run("0").info.run_id
    journaled = client.create_run("0", tags={"convoy.run_id": "b", **HERE}).info.run_id
    assert not store.end_abandoned(client, "0", journals={"b"})
    runs = [client.get_run(run).info.status for run in (scheduled, foreign, journaled)]
    assert runs == ["SCHEDULED", "RUNNING", "RUNNING"]


def test_an_uploader_ends_a_killed_run_and_leaves_one_that_may_continue(client, deliver, monkeypatch):
    between = trained()
    with stages.training("d" * 64) as killed:
        killed.close()
    monkeypatch.setattr(identity, "is_alive", lambda owner: False)
    deliver()
    assert [stored(run, client).info.status for run in (between, killed)] == ["RUNNING", "KILLED"]
    with stages.continuing("evaluate", "d" * 64) as later:
        assert later.reference.run_id != killed.reference.run_id


def test_a_heartbeat_is_sent_while_a_run_lives(client, deliver, monkeypatch):
    with stages.training("d" * 64) as run:
        deliver()
        run_id = stored(run, client).info.run_id
        client.set_tag(run_id, HEARTBEAT, "old")
        monkeypatch.setattr("convoy.tracking.mlflow_writer.HEARTBEAT_SECONDS", -1.0)
        deliver()
        heartbeat = client.get_run(run_id).data.tags[HEARTBEAT]
        assert datetime.now(UTC) - datetime.fromisoformat(heartbeat) < timedelta(minutes=1)
    assert outbox.journals(outbox.folder())


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database" * 200)
    with pytest.raises(RequestError, match=r"mlflow.db is not a database .* Move it away"):
        store.check_schema(f"sqlite:///{tmp_path}/mlflow.db")


def test_stores_that_mlflow_will_make_or_that_are_elsewhere_pass(tmp_path):
    store.check_schema(f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "empty.db").touch()
    store.check_schema(f"sqlite:///{tmp_path}/empty.db")
    store.check_schema("http://tracking.example:5000")
    store.check_schema("postgresql://convoy@/mlflow")


def test_a_store_of_another_mlflow_is_refused_with_what_to_install_or_to_type(workplace):
    path = workplace / "mlflow.db"
    uri = f"sqlite:///{path}"
    store.check_schema(uri)
    needed = set_revision(path, "0fedcba98765")
    with pytest.raises(RequestError, match=rf"newer .*{version('mlflow')} has no revision 0fedcba98765"):
        store.check_schema(uri)
    set_revision(path, "451aebb31d03")  # of MLflow 1.0
    before = path.read_bytes()
    older = f"^{path} was written by an older .*needs {needed}"
    commands = f"\n  cp {path} {path}.before\n  mlflow db upgrade {uri}$"
    with pytest.raises(RequestError, match=f"{older}(?s:.*){commands}"):
        store.check_schema(uri)
    assert path.read_bytes() == before


@pytest.mark.parametrize("faster", [False, True], ids=["alone", "another process was faster"])
def test_a_database_is_made_where_the_file_system_has_no_links(tmp_path, monkeypatch, faster):
    path = tmp_path / "mlflow.db"

    class Client:
        def __init__(self, address):
            self.path = Path(address.removeprefix("sqlite:///"))

        def search_experiments(self, max_results):
            self.path.write_text("mine")
            if faster:
                path.write_text("theirs")

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(store, "connect", Client)
    monkeypatch.setattr(os, "link", refuse)
    store.make_file(f"sqlite:///{path}")
    assert path.read_text() == ("theirs" if faster else "mine")
    assert list(tmp_path.iterdir()) == [path]
