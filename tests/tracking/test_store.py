"""The store: dead runs are ended and no others, and what was deleted in MLflow is named with the remedy."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from convoy.core.contract import HEARTBEAT
from convoy.repo import identity
from convoy.tracking import outbox, stages, store, sync, ui
from convoy.tracking.journal import Sent
from tracking_store import journal_folder, logged, stored, trained

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


def test_an_experiment_deleted_in_mlflow_is_named_with_the_command_that_restores_it(
    workplace, client, deliver, capsys
):
    first = logged("first")
    deliver()
    number = stored(first, client).info.experiment_id
    client.delete_experiment(number)
    run = logged("second")
    deliver()
    command = f"MLFLOW_TRACKING_URI={store.uri()} mlflow experiments restore --experiment-id {number}"
    assert command in Sent.load(journal_folder(run)).error
    [reason] = sync.sync(0.0).failed.values()
    assert command in reason
    with pytest.raises(store.DeletedError, match=r"tracking\.experiment"):
        ui._prepare_store(store.uri())
    client.restore_experiment(number)
    deliver()
    assert stored(run, client).info.status == stored(first, client).info.status == "FINISHED"


def test_a_run_deleted_in_mlflow_while_it_is_written_is_named_with_the_command(client, deliver):
    with stages.training("d" * 64) as run:
        deliver()
        run_id = stored(run, client).info.run_id
        client.delete_run(run_id)
        run.log_metrics({"val/loss": 1.0}, 1)
        deliver()
        assert f"mlflow runs restore --run-id {run_id}" in Sent.load(journal_folder(run)).error
        client.restore_run(run_id)
        deliver()
    assert stored(run, client).data.metrics["val/loss"] == 1.0


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
