"""Runs arrive whole at a real MLflow server on PostgreSQL, whatever it does meanwhile."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.tracking import outbox, stages, sync
from convoy.tracking.journal import Sent
from proxy import Proxy
from tracking_store import assert_whole, journal_folder, stored, wait, write_run

POINTS = 2000

WRITER = """
import sys
from convoy.tracking import outbox, stages
outbox.start_uploader = lambda *_: None
outbox.WAIT_SECONDS = 0
with stages.standalone(sys.argv[1], {}) as run:
    for step in range(1, 301):
        run.log_metrics({"step/loss": 1 / step, "step/lr": float(sys.argv[2])}, step)
    print(run.reference.run_id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def client(server: str) -> MlflowClient:
    """A client of the server itself, past the proxy."""
    return MlflowClient(server)


@pytest.fixture
def through(proxy: Proxy, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Have the runs of this test tracked through the proxy."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return proxy


@pytest.mark.usefixtures("uploader_thread")
def test_a_run_that_its_server_leaves_in_the_middle_arrives_whole(through, client, workplace, capsys):
    def die() -> None:
        wait(lambda: any("log-batch" in call for call in through.calls))
        through.refuse()

    run = write_run(workplace, POINTS, between=die)
    run_id = run.reference.run_id
    [line] = [text for text in capsys.readouterr().out.splitlines() if text.startswith("Not synced to ")]
    assert line.endswith(f"Run {run_id} is kept in outbox/{run_id}; `convoy sync` delivers it.")
    through.accept()
    assert sync.sync().delivered == [run_id]
    assert not outbox.journals(workplace / "outbox")
    assert_whole(client, run, workplace, POINTS)


def test_a_server_that_dies_after_what_it_did_makes_no_double_and_no_hole(
    through, client, workplace, deliver
):
    run = write_run(workplace, POINTS)
    for call in ("runs/create", "log-batch", "log-inputs", "runs/outputs"):
        through.accept()
        through.die_at(call)
        deliver()
        assert call in through.calls[-1]
    deaths = 0
    while outbox.journals(workplace / "outbox"):
        deaths += 1
        through.accept()
        through.die_after(2 * deaths)
        deliver()
        assert deaths < 30
    assert_whole(client, run, workplace, POINTS)


@pytest.mark.usefixtures("uploader_thread")
def test_a_slow_server_slows_no_writer_and_gets_everything(through, client, workplace):
    through.delay_s = 0.2
    with stages.standalone("slow", {}) as run:
        for step in range(1, 301):
            run.log_metrics({"step/loss": 1 / step}, step)
            run.set_tags({"last": str(step)})
        answered = len(through.calls)
    assert answered < 100, "600 things were written while the server took that many calls"
    assert not outbox.wait_until_uploaded([run.reference.run_id], workplace / "outbox", None)
    found = stored(run, client)
    assert (found.info.status, found.data.tags["last"]) == ("FINISHED", "300")
    assert len(client.get_metric_history(found.info.run_id, "step/loss")) == 300
    assert len(through.calls) < 60, "what was written together is sent together"


@pytest.mark.usefixtures("uploader_thread")
def test_two_runs_of_two_processes_at_once_arrive_apart(through, client, workplace, start_python):
    writers = [start_python("-c", WRITER, *words) for words in (("first", "0.1"), ("second", "0.2"))]
    ids = [writer.stdout.readline().strip() for writer in writers]
    for writer in writers:
        writer.communicate("\n")
        assert writer.returncode == 0
    assert not outbox.wait_until_uploaded(ids, workplace / "outbox", None)
    for run_id, name, lr in zip(ids, ("first", "second"), (0.1, 0.2), strict=True):
        found = stored(run_id, client)
        assert (found.info.run_name, found.info.status) == (name, "FINISHED")
        rates = client.get_metric_history(found.info.run_id, "step/lr")
        assert [(point.step, point.value) for point in rates] == [(step, lr) for step in range(1, 301)]


def test_a_server_that_points_at_a_path_of_this_machine_gets_everything_but_files(
    server, client, workplace, deliver, monkeypatch, tmp_path_factory
):
    trap = tmp_path_factory.mktemp("home")
    params = workplace / "params.yaml"
    params.write_text(params.read_text().replace("experiment: convoy", "experiment: a trap"))
    client.create_experiment("a trap", artifact_location=trap.as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    run = write_run(workplace)
    for _ in range(2):  # the second time with nothing new
        deliver()
        assert not list(trap.iterdir())
    found = stored(run, client)
    assert (found.info.status, found.data.metrics["train/loss"]) == ("FINISHED", 1 / 39)
    assert {"train.lr", "export.latency_runs"} <= set(found.data.params)
    error = Sent.load(journal_folder(run)).error
    for fact in (trap.as_uri(), "--serve-artifacts", "tracking.experiment"):
        assert fact in error
    assert not client.search_logged_models([found.info.experiment_id])
