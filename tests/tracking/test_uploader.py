"""The uploader as a process: it outlives stages, survives kills, and keeps what a store does not take."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from clones import kill_uploaders
from convoy.repo import identity
from convoy.tracking import outbox, stages, store, store_file, uploader
from convoy.tracking.journal import FILE, Journal, Sent
from tracking_store import journal_folder, journal_state, logged, set_revision, stored, wait

DEADLINE_S = 300.0
"""Longest wait for an uploader: on busy cores its low priority makes its start take a minute."""

STAGE = """
import sys, time
from pathlib import Path
from convoy.tracking import outbox, stages
with stages.training("d" * 64) as run:
    for step in range(1, int(sys.argv[1]) + 1):
        run.log_metrics({"step/loss": 1 / step, "step/lr": 0.1}, step)
    run.log_file(Path("params.yaml"), "weights")
    until = time.monotonic() + 60
    while not outbox.is_uploader_running(outbox.folder()):
        assert time.monotonic() < until, "no uploader started"
        time.sleep(0.05)
    run.end("FINISHED")
print(run.reference.run_id)
"""


def left(workplace: Path) -> bool:
    return not outbox.is_uploader_running(workplace / "outbox")


@pytest.mark.usefixtures("real_uploader")
def test_an_uploader_outlives_its_stage_and_temporary_workspace(
    workplace, repository, python, client, tmp_path
):
    workspace = tmp_path / "temporary"
    workspace.mkdir()
    shutil.copy(workplace / "params.yaml", workspace)
    for folder in (workplace, workspace):
        shutil.copytree(repository / "src", folder / "src")
    env = {"DVC_ROOT": str(workplace), "PYTHONPATH": str(workspace / "src")}
    run_id = python("-c", STAGE, "10", cwd=workspace, **env).stdout.split()[-1]
    assert not left(workplace), "the stage waited for its uploader, or its pipes were held open"
    shutil.rmtree(workspace)
    wait(lambda: left(workplace), DEADLINE_S)
    log = (workplace / "outbox/uploader.log").read_text()
    assert "delivered" in log
    assert stored(run_id, client).info.status == "FINISHED", log


@pytest.mark.usefixtures("real_uploader")
def test_an_uploader_that_is_killed_leaves_no_double_and_no_hole(workplace, python, client):
    run_id = python("-c", STAGE, "3000", cwd=workplace).stdout.split()[-1]
    folder = workplace / "outbox" / run_id
    wait(lambda: Sent.load(folder).entries > 0, DEADLINE_S)
    kill_uploaders(workplace)
    assert folder.exists(), "it was done before it was killed"
    outbox.start_uploader(workplace / "outbox")
    wait(lambda: not folder.exists(), DEADLINE_S)
    run = stored(run_id, client)
    assert run.info.status == "FINISHED"
    for name in ("step/loss", "step/lr"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in history] == list(range(1, 3_001))
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.usefixtures("real_uploader")
def test_a_second_uploader_leaves_at_once(workplace, python):
    where = workplace / "outbox"
    where.mkdir()
    with outbox.uploader_lock(where):
        done = python("-X", "importtime", "-m", "convoy.tracking.uploader", cwd=workplace)
    assert "mlflow" not in done.stderr


def test_the_store_of_a_new_repository_is_made_before_its_first_run(workplace, monkeypatch):
    (workplace / "mlflow.db").unlink()
    started: list[tuple[Path, str]] = []
    monkeypatch.setattr(outbox, "start_uploader", lambda *call: started.append(call))
    outbox.prepare_store(workplace / "outbox")
    [(where, owner)] = started
    where.mkdir()
    monkeypatch.setattr(uploader, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(identity, "is_alive", lambda name: name != owner)
    with outbox.uploader_lock(where) as lock:
        uploader.Uploader(where, lock, owner).run()
    assert owner == outbox.writer(), "the uploader waits for the runs of this process"
    store_file.check(store.uri())
    assert store.connect().get_experiment_by_name("convoy") is not None
    assert not list(workplace.glob("mlflow.db.new*"))
    outbox.prepare_store(where)
    assert len(started) == 1, "the store is there"


def failing(monkeypatch: pytest.MonkeyPatch, uri: str = "http://me:s3cret@127.0.0.1:9") -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def test_a_run_that_a_store_refuses_is_kept_and_reported_once(workplace, deliver, monkeypatch, capsys):
    failing(monkeypatch)
    with stages.training("d" * 64) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        deliver()
    with stages.continuing("export", "d" * 64):
        deliver()
    with stages.finishing("export"):
        deliver()
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not synced")]
    run_id = run.reference.run_id
    assert line.startswith("Not synced to http://me:***@127.0.0.1:9: API request")
    assert line.endswith(f"Run {run_id} is kept in outbox/{run_id}; `convoy sync` delivers it.")
    assert "s3cret" not in line + (journal_folder(run) / "sent.json").read_text()
    assert journal_state(run).ended == "FINISHED"


def test_a_store_of_an_older_mlflow_is_left_alone_and_the_command_is_named(workplace, deliver):
    set_revision(workplace / "mlflow.db", "451aebb31d03")
    before = (workplace / "mlflow.db").read_bytes()
    run = logged("kept")
    deliver()
    assert f"mlflow db upgrade sqlite:///{workplace}/mlflow.db" in Sent.load(journal_folder(run)).error
    assert (workplace / "mlflow.db").read_bytes() == before


def test_one_store_that_fails_keeps_no_other_from_its_runs(workplace, client, deliver, monkeypatch):
    failing(monkeypatch)
    refused = logged("refused")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    taken = logged("taken")
    deliver()
    assert store.find(taken.reference.run_id, client)
    assert outbox.journals(workplace / "outbox") == [workplace / journal_folder(refused)]


def test_a_run_that_was_deleted_in_mlflow_is_not_made_again_and_the_reason_is_kept(client, deliver):
    with stages.training("d" * 64) as run:
        deliver()
        client.delete_run(stored(run, client).info.run_id)
        run.log_metrics({"train/loss": 1.0}, 1)
        deliver()
    assert "deleted" in Sent.load(journal_folder(run)).error
    assert store.find(run.reference.run_id, client) is None


@pytest.fixture
def worker(workplace: Path) -> uploader.Uploader:
    """An uploader with the lock of an empty outbox."""
    (workplace / "outbox").mkdir()
    lock = outbox.uploader_lock(workplace / "outbox")
    lock.acquire()
    return uploader.Uploader(workplace / "outbox", lock)


def test_a_store_that_fails_is_paused_longer_each_time_unless_somebody_waits(worker, monkeypatch):
    monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)
    failing(monkeypatch)
    clock = [0]
    monkeypatch.setattr(uploader.time, "monotonic", lambda: 1000.0 + clock[0])
    monkeypatch.setattr("convoy.tracking.mlflow_writer.time.time", lambda: 1e9 + clock[0])
    with stages.training("d" * 64) as run:
        tries = []
        for clock[0] in range(40):
            worker.deliver_due()
            tries.append(Sent.load(journal_folder(run)).tried_ms // 1000 - 10**9)
        assert sorted(set(tries)) == [0, 1, 3, 7, 15, 31]
        (worker.where / "wake").touch()
        clock[0] += 1
        worker.deliver_due()
        assert Sent.load(journal_folder(run)).tried_ms == (10**9 + 40) * 1000


def test_an_uploader_leaves_after_the_last_writer_and_a_failed_try(workplace, worker, monkeypatch):
    failing(monkeypatch)
    with stages.standalone("a", {}) as first, stages.standalone("b", {}) as second:
        worker.deliver_due()
        assert not worker._try_exit(), "somebody still writes"
    worker.deliver_due()
    assert worker._try_exit()
    assert left(workplace), "it let go of its lock"
    assert all(Sent.load(journal_folder(run)).error for run in (first, second))


def test_a_run_that_opens_while_the_uploader_is_about_to_leave_keeps_it(worker):
    worker.deliver_due()
    with stages.training("d" * 64):
        assert not worker._try_exit()


def test_a_journal_that_goes_on_before_it_is_removed_is_kept(worker):
    run = logged("a")
    worker.deliver_due()
    [delivery] = worker._deliveries.values()
    with stages.training("d" * 64, resumed=run.reference.run_id):
        worker._remove(delivery)
    assert (journal_folder(run) / FILE).exists()


def test_an_outbox_that_was_removed_is_not_made_again(workplace, worker):
    with stages.training("d" * 64):
        worker.deliver_due()
    shutil.rmtree(workplace / "outbox")
    worker.deliver_due()
    assert worker._try_exit()
    assert not (workplace / "outbox").exists()


def test_a_journal_whose_first_entry_was_never_written_holds_nothing_up(workplace, worker):
    (workplace / "outbox/a").mkdir()
    (workplace / "outbox/a" / FILE).write_bytes(b'{"kind":"op')
    worker.deliver_due()
    assert worker._try_exit()


def test_waiting_returns_why_a_run_is_not_delivered(workplace, monkeypatch):
    run_id = logged("a").reference.run_id
    [sentence] = outbox.wait_until_uploaded([run_id], workplace / "outbox", None).values()
    assert "the uploader ended early, see outbox/uploader.log" in sentence
    with outbox.uploader_lock(workplace / "outbox"):
        [sentence] = outbox.wait_until_uploaded([run_id], workplace / "outbox", 0.1).values()
    assert "not everything was delivered within 0 s" in sentence
    assert outbox.wait_until_uploaded(["never opened"], workplace / "outbox", None) == {}


def test_an_uploader_that_starts_slowly_is_waited_for_unless_it_ended(workplace, real_uploader, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "start_uploader", lambda *_: None)
        run_id = logged("a").reference.run_id
    started = []

    def start(*_: object) -> "subprocess.Popen[bytes]":
        """Start a process that has not taken its lock yet; the second one dies."""
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        if len(started) == 2:
            threading.Timer(0.3, started[-1].kill).start()
        return started[-1]

    monkeypatch.setattr(outbox, "_start", start)
    [message] = outbox.wait_until_uploaded([run_id], workplace / "outbox", 0.3).values()
    assert "not everything was delivered within 0 s" in message
    [message] = outbox.wait_until_uploaded([run_id], workplace / "outbox", None).values()
    assert "the uploader ended early" in message
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("git")
def test_a_long_wait_shows_how_much_is_delivered(workplace, monkeypatch, capsys):
    run = logged("a")
    size = (journal_folder(run) / FILE).stat().st_size
    monkeypatch.setattr(outbox, "PROGRESS_SECONDS", 0.0)
    with outbox.uploader_lock(workplace / "outbox"):
        outbox.wait_until_uploaded([run.reference.run_id], workplace / "outbox", 0.1)
    assert not capsys.readouterr().out, "a small delivery adds no lines to a log"
    monkeypatch.setattr(outbox, "REPORTED_BYTES", size)
    Sent(entries=1, size=size // 2).save(journal_folder(run))
    with outbox.uploader_lock(workplace / "outbox"):
        outbox.wait_until_uploaded([run.reference.run_id], workplace / "outbox", 0.1)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"upload to MLflow, bytes: {size // 2:,} of {size:,}"


@pytest.mark.usefixtures("git")
def test_an_uploader_that_cannot_be_started_stops_no_stage(workplace, real_uploader, monkeypatch, capsys):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(outbox, "_start", refuse)
    run = logged("a")
    [line] = capsys.readouterr().out.splitlines()
    assert "([Errno 12] Cannot allocate memory). Runs stay in outbox/; run `convoy sync`" in line
    assert journal_state(run).ended == "FINISHED"


def test_a_lock_that_nobody_lets_go_of_stops_no_stage(workplace, monkeypatch, capsys):
    monkeypatch.setattr(outbox, "LOCK_SECONDS", 0.0)
    (workplace / "outbox").mkdir()
    with filelock.FileLock(workplace / "outbox/outbox.lock"), stages.training("d" * 64) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
    assert "is incomplete: The file lock" in capsys.readouterr().err


def test_a_journal_of_another_version_keeps_nobody_from_the_others(workplace, client, deliver):
    foreign = Journal(workplace / "outbox/20200101-000000-abcdef")
    for entry in ({"kind": "open", "uri": store.uri()}, {"kind": "points"}, {"kind": "new"}, {"kind": "end"}):
        foreign.append(entry)
    run = logged("a")
    deliver()
    assert store.find(run.reference.run_id, client)
    assert Sent.load(foreign.folder).error == "KeyError: 'tags'"
