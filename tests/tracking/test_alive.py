"""Runs that nobody writes to any more are ended, and no others."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from mlflow.tracking import MlflowClient

from convoy.core.contract import HEARTBEAT
from convoy.repo import identity
from convoy.tracking import outbox, stages, store

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
def test_a_run_is_judged_by_its_process_here_and_by_its_heartbeat_elsewhere(
    client: MlflowClient, tags: dict[str, str], silent_min: int | None, status: str
) -> None:
    if silent_min:  # from now, which may be long after these tests were collected
        last = datetime.now(UTC) - timedelta(minutes=silent_min)
        tags = {**tags, HEARTBEAT: last.isoformat(timespec="seconds")}
    run = client.create_run("0", tags={"convoy.run_id": "a", **tags}, run_name="one")
    ended = store.end_abandoned(client, "0")
    assert client.get_run(run.info.run_id).info.status == status
    assert ended == (["one"] if status != "RUNNING" else [])


def test_runs_that_are_scheduled_or_not_convoys_are_left_alone(client: MlflowClient) -> None:
    scheduled = client.create_run("0", tags={"convoy.run_id": "a", **HERE}).info.run_id
    client.update_run(scheduled, "SCHEDULED")
    foreign = client.create_run("0").info.run_id
    assert not store.end_abandoned(client, "0")
    assert [client.get_run(run).info.status for run in (scheduled, foreign)] == ["SCHEDULED", "RUNNING"]


def test_a_run_whose_journal_is_here_is_ended_by_what_the_journal_says(client: MlflowClient) -> None:
    run = client.create_run("0", tags={"convoy.run_id": "a", **HERE}).info.run_id
    assert not store.end_abandoned(client, "0", journals={"a"})
    assert client.get_run(run).info.status == "RUNNING"


def test_an_uploader_ends_a_run_that_was_killed_and_leaves_one_that_a_later_stage_may_continue(
    client: MlflowClient, deliver: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stages.training("d" * 64) as between:
        pass
    with stages.training("d" * 64) as killed:
        killed.close()
    monkeypatch.setattr(identity, "is_alive", lambda owner: False)
    deliver()
    found = [store.find(run.reference.run_id, client) for run in (between, killed)]
    assert [run.info.status for run in found if run] == ["RUNNING", "KILLED"]
    with stages.continuing("evaluate", "d" * 64) as later:
        assert later.reference.run_id != killed.reference.run_id


def test_a_heartbeat_is_sent_while_a_run_lives(
    client: MlflowClient, deliver: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stages.training("d" * 64) as run:
        deliver()
        found = store.find(run.reference.run_id, client)
        assert found
        client.set_tag(found.info.run_id, HEARTBEAT, "old")
        monkeypatch.setattr("convoy.tracking.mlflow_writer.HEARTBEAT_SECONDS", -1.0)
        deliver()
        said = client.get_run(found.info.run_id).data.tags[HEARTBEAT]
        assert datetime.now(UTC) - datetime.fromisoformat(said) < timedelta(minutes=1)
    assert outbox.journals(outbox.folder())
