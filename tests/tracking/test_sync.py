"""`convoy sync`: what was kept is delivered, dead runs are ended, and finished runs get their final dvc.lock."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convoy import cli
from convoy.core import pipeline, yaml
from convoy.repo import identity
from convoy.tracking import outbox, stages, store, sync
from tracking_store import logged, set_revision, stored, trained


def lock_export() -> None:
    """Write a dvc.lock that records the export of the workspace."""
    md5 = hashlib.md5(sync.EXPORTED.read_bytes(), usedforsecurity=False).hexdigest()
    outs = [{"path": sync.EXPORTED.as_posix(), "md5": md5}]
    pipeline.LOCK.write_text(yaml.dump({"stages": {"export": {"outs": outs}}}))


def test_a_lock_is_final_if_it_records_the_export_in_the_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not sync._workspace_lock_is_final()
    sync.EXPORTED.parent.mkdir(parents=True)
    sync.EXPORTED.write_text('{"run_id": "a"}')
    lock_export()
    assert sync._workspace_lock_is_final()
    sync.EXPORTED.write_text('{"run_id": "b"}')
    assert not sync._workspace_lock_is_final()


def finished_run() -> str:
    """Run what a pipeline tracks, and lock it as DVC does."""
    trained()
    with stages.continuing("export", "d" * 64):
        pass
    with stages.finishing("export") as run:
        pass
    lock_export()
    return run.reference.run_id


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, uploader_thread: None) -> Iterator[Callable[[], None]]:
    """Let no uploader start until the test calls this."""
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "start_uploader", lambda *_: None)
        patch.setattr(outbox, "WAIT_SECONDS", 0.0)
        yield patch.undo


def test_a_run_that_was_kept_is_delivered_and_gets_its_lock(workplace, client, kept):
    run_id = finished_run()
    kept()
    done = sync.sync()
    assert done == sync.Synced(delivered=[run_id], completed=[stages.run_name("train")])
    assert done.lines() == [f"delivered: {run_id}", f"completed with dvc.lock: {stages.run_name('train')}"]
    run = stored(run_id, client)
    lock = (workplace / "dvc.lock").read_bytes()
    assert run.data.tags["convoy.lock"] == hashlib.sha256(lock).hexdigest()
    assert Path(run.info.artifact_uri.removeprefix("file://"), "pipeline/dvc.lock").read_bytes() == lock
    assert sync.sync() == sync.Synced(), "a second time there is nothing to do"


def test_dead_runs_are_ended_here_and_in_the_store(client, kept, monkeypatch):
    between = trained()
    lost = client.create_run(
        store.experiment(client, "convoy").experiment_id,
        tags={"convoy.run_id": "lost", "convoy.host": identity.host(), "convoy.owner": "999999:1.00"},
    )
    kept()
    monkeypatch.setattr(identity, "is_alive", lambda owner: False)
    done = sync.sync()
    assert between.reference.run_id in done.ended
    assert done.delivered == [between.reference.run_id]
    assert stored(between, client).info.status == "FINISHED"
    assert client.get_run(lost.info.run_id).info.status == "KILLED"


def test_the_command_exits_with_1_while_a_store_refuses(workplace, empty_store, kept, monkeypatch, capsys):
    server = workplace / "server"
    server.write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}/mlflow.db")
    run = logged("kept")
    run_id = run.reference.run_id
    kept()
    monkeypatch.setattr(sys, "argv", ["convoy", "sync"])
    with pytest.raises(SystemExit) as refused:
        cli.main()
    assert refused.value.code == 1
    reason = capsys.readouterr().err
    assert f"ERROR: Not synced to sqlite:///{server}/mlflow.db: " in reason
    assert f"kept in outbox/{run_id}; `convoy sync` delivers it." in reason
    server.unlink()
    server.mkdir()
    shutil.copy(empty_store, server / "mlflow.db")
    back = CliRunner().invoke(cli.app, ["sync", "--json"])
    assert json.loads(back.stdout) == {"delivered": [run_id], "ended": [], "completed": [], "failed": {}}
    assert not sync.sync().lines()


def test_a_store_that_does_not_answer_is_the_reason_where_there_is_nothing_to_deliver(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    [(address, reason)] = sync.sync().failed.items()
    assert address == "http://me:***@127.0.0.1:9"
    assert re.match(rf"{re.escape(address)} failed: .*Nothing is lost; run `convoy sync`", reason)


def test_a_store_of_an_older_mlflow_is_the_reason_and_is_not_changed(workplace):
    set_revision(workplace / "mlflow.db", "451aebb31d03")  # of MLflow 1.0
    before = (workplace / "mlflow.db").read_bytes()
    [reason] = sync.sync().failed.values()
    assert f"cp {workplace}/mlflow.db" in reason
    assert (workplace / "mlflow.db").read_bytes() == before
