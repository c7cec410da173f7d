"""`convoy sync`: what was kept is delivered, dead runs are ended, and finished runs get their final dvc.lock."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.core import yaml
from convoy.repo import identity
from convoy.tracking import outbox, stages, store, sync
from tracking_store import stored


def lock_export(digest: str) -> None:
    """Write a dvc.lock that records an export with the reference of this hash."""
    outs = [{"path": sync.EXPORTED.as_posix(), "md5": digest}]
    sync.LOCK.write_text(yaml.dump({"stages": {"export": {"outs": outs}}}))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("final", [True, False, None])
def test_a_lock_is_final_if_it_records_the_export_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, final: bool | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if final is not None:
        sync.EXPORTED.parent.mkdir(parents=True)
        sync.EXPORTED.write_text('{"run_id": "a"}')
        lock_export(md5(sync.EXPORTED) if final else "0" * 32)
    assert sync._workspace_lock_is_final() is bool(final)


def finished_run() -> str:
    """Run what a pipeline tracks, and lock it as DVC does."""
    with stages.training("d" * 64):
        pass
    with stages.continuing("export", "d" * 64):
        pass
    with stages.finishing("export") as run:
        pass
    lock_export(md5(sync.EXPORTED))
    return run.reference.run_id


@pytest.mark.usefixtures("workplace")
def test_a_run_that_was_kept_is_delivered_and_gets_its_lock(
    workplace: Path, client: MlflowClient, real_uploader: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "start_uploader", lambda *_: None)
        patch.setattr(outbox, "WAIT_SECONDS", 0.0)
        run_id = finished_run()
    done = sync.sync()
    assert done == sync.Synced(delivered=[run_id], completed=[stages.run_name("train")])
    assert done.lines() == [f"delivered: {run_id}", f"completed with dvc.lock: {stages.run_name('train')}"]
    found = stored(run_id, client)
    lock = (workplace / "dvc.lock").read_bytes()
    assert found.data.tags["convoy.lock"] == hashlib.sha256(lock).hexdigest()
    assert Path(found.info.artifact_uri.removeprefix("file://"), "pipeline/dvc.lock").read_bytes() == lock
    assert sync.sync() == sync.Synced(), "a second time there is nothing to do"


def test_dead_runs_are_ended_here_and_in_the_store(
    workplace: Path, client: MlflowClient, real_uploader: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "start_uploader", lambda *_: None)
        with stages.training("d" * 64) as between:
            pass
        experiment = store.experiment(client, "convoy").experiment_id
        lost = client.create_run(
            experiment,
            tags={"convoy.run_id": "lost", "convoy.host": identity.host(), "convoy.owner": "999999:1.00"},
            run_name="journal lost",
        )
    real = identity.is_alive
    mine = {identity.process_tags()["convoy.owner"], outbox.writer()}
    monkeypatch.setattr(identity, "is_alive", lambda owner: owner not in mine and real(owner))
    done = sync.sync()
    assert between.reference.run_id in done.ended
    assert done.delivered == [between.reference.run_id]
    assert stored(between, client).info.status == "FINISHED"
    assert client.get_run(lost.info.run_id).info.status == "KILLED"


def test_the_command_exits_with_1_and_the_reason_while_a_store_refuses_and_with_0_once_it_is_back(
    workplace: Path,
    python: Callable[..., "subprocess.CompletedProcess[str]"],
    empty_store: Path,
    real_uploader: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = workplace / "server"
    server.write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}/mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "start_uploader", lambda *_: None)
        with stages.standalone("kept", {}) as run:
            pass
    run_id = run.reference.run_id
    command = ("-c", "from convoy.cli import main; main()", "sync")
    refused = python(*command, check=False)
    assert refused.returncode == 1
    assert f"ERROR: Not synced to sqlite:///{server}/mlflow.db: " in refused.stderr
    assert f"kept in outbox/{run_id}; `convoy sync` delivers it." in refused.stderr
    server.unlink()
    server.mkdir()
    shutil.copy(empty_store, server / "mlflow.db")
    back = python(*command, "--json", check=False)
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout) == {"delivered": [run_id], "ended": [], "completed": [], "failed": {}}
    assert not sync.sync().lines()


def test_a_store_that_does_not_answer_is_the_reason_where_there_is_nothing_to_deliver(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    done = sync.sync()
    with pytest.raises(
        sync.SyncError,
        match=r"^http://me:\*\*\*@127\.0\.0\.1:9 failed: .*Nothing is lost; run `convoy sync`",
    ):
        sync.require(done)
