"""What the store has once a journal is delivered, and that a second delivery changes nothing."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from convoy.core import params, yaml
from convoy.tracking import mlflow_writer, outbox, stages, store
from convoy.tracking.journal import Sent
from convoy.tracking.mlflow_writer import usable_name
from convoy.tracking.run import Run, now_ms
from tracking_store import assert_whole, contents, journal_folder, stored, trained, wait, write_run

ORDER = {
    "runs": "run_uuid",
    "metrics": "key, step, timestamp, value",
    "params": "key",
    "(SELECT * FROM tags WHERE key <> 'convoy.heartbeat')": "key",
}


def rows(workplace: Path) -> dict[str, list[Any]]:
    """Everything that a delivery could double, without the time of the last heartbeat."""
    with closing(sqlite3.connect(workplace / "mlflow.db")) as database:
        return {
            table: database.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()  # noqa: S608
            for table, order in ORDER.items()
        } | {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
            for table in ("inputs", "datasets", "logged_models", "logged_model_metrics", "latest_metrics")
        }


def artifacts(run: StoredRun) -> dict[str, bytes]:
    return contents(Path(run.info.artifact_uri.removeprefix("file://")))


def steps(run: Run, client: MlflowClient, name: str = "train/loss") -> list[tuple[int, float]]:
    """List the points of a curve."""
    history = client.get_metric_history(stored(run, client).info.run_id, name)
    return [(point.step, point.value) for point in history]


def test_a_run_arrives_with_params_points_files_model_and_status(workplace, client, deliver):
    began = now_ms()
    run = write_run(workplace)
    ended = now_ms()
    deliver()
    found = assert_whole(client, run, workplace, 39)
    assert began <= found.info.start_time < found.info.end_time <= ended, "times of the run, not of delivery"
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert found.data.metrics["best/epoch"] == 39
    model = client.get_logged_model(found.outputs.model_outputs[0].model_id)
    assert {metric.key for metric in model.metrics or []} == {"best/epoch"}, "no point of a curve is a result"
    assert not outbox.journals(workplace / "outbox"), "what is delivered is removed"


@pytest.mark.parametrize("note", ["lost", "behind"])
def test_a_second_delivery_changes_nothing(workplace, client, deliver, monkeypatch, note):
    run = write_run(workplace)
    monkeypatch.setattr("convoy.tracking.uploader.Uploader._remove", lambda *_: None)
    deliver()
    before, kept = rows(workplace), artifacts(stored(run, client))
    if note == "lost":
        (journal_folder(run) / "sent.json").unlink()
    else:
        Sent(entries=1, mlflow_run_id=stored(run, client).info.run_id).save(journal_folder(run))
    deliver()
    assert rows(workplace) == before
    assert artifacts(stored(run, client)) == kept


@pytest.mark.parametrize(
    "name",
    [
        *("create_run", "log_batch", "log_artifact", "log_inputs", "create_logged_model", "log_outputs"),
        *("log_artifacts", "finalize_logged_model", "set_terminated", "search_runs", "get_run"),
    ],
)
def test_where_a_delivery_breaks_off_the_next_makes_it_whole(workplace, client, deliver, monkeypatch, name):
    run = write_run(workplace)
    place = LocalArtifactRepository if name.startswith("log_artifact") else MlflowClient
    real = getattr(place, name)
    calls = 0

    def breaking(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Do the work of the first call and lose its answer; lose the question of the third."""
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MlflowException("broken off before")
        answer = real(self, *args, **kwargs)
        if calls == 1:
            raise MlflowException("broken off after")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(place, name, breaking)
        for _ in range(3):
            deliver()
    deliver()
    assert calls
    assert_whole(client, run, workplace, 39)
    assert rows(workplace)["datasets"] == [(1,)]
    assert not outbox.journals(workplace / "outbox")


def test_files_that_a_store_has_no_place_for_are_sent_once_it_has(workplace, client, deliver, monkeypatch):
    run = write_run(workplace)
    with monkeypatch.context() as patch:
        patch.setattr(
            store, "artifacts", lambda *_: (_ for _ in ()).throw(store.LocalArtifactsError("no place"))
        )
        for _ in range(2):
            deliver()
    found = stored(run, client)
    assert (found.info.status, artifacts(found)) == ("FINISHED", {})
    assert Sent.load(journal_folder(run)).error == "no place"
    before = rows(workplace)["metrics"]
    deliver()
    assert_whole(client, run, workplace, 39)
    assert rows(workplace)["metrics"] == before
    assert not outbox.journals(workplace / "outbox")


@pytest.mark.parametrize(
    ("location", "local"),
    [
        *(("/home/me", True), ("file:///home/me", True), ("FILE:///home/me", True), ("mlruns", True)),
        *(
            ("runs:/1/x", True),
            ("models:/m-1", True),
            ("mlflow-artifacts:/1", False),
            ("s3://bucket/1", False),
        ),
    ],
)
def test_a_server_may_not_have_files_written_on_this_machine(location, local, monkeypatch):
    opened = "mlflow.store.artifact.artifact_repository_registry.get_artifact_repository"
    monkeypatch.setattr(opened, lambda uri, **_: uri)
    assert store.artifacts("sqlite:////mlflow.db", location) == location
    if local:
        with pytest.raises(store.LocalArtifactsError, match=re.escape(location)):
            store.artifacts("https://mlflow.example", location)
    else:
        assert store.artifacts("https://mlflow.example", location) == location


def test_what_is_tried_again_does_not_pile_up(client, monkeypatch):
    with stages.standalone("a", {}) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
    sent = mlflow_writer.Delivery(journal_folder(run))
    sent.read_new()
    sizes: list[int] = []

    def refuse(self: MlflowClient, run_id: str, **values: Any) -> None:
        sizes.append(len(values["metrics"]))
        raise MlflowException("not now")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        for _ in range(3):
            with pytest.raises(MlflowException):
                sent.deliver()
    assert sizes == [1, 1, 1]
    sent.deliver()
    assert stored(run, client).data.metrics == {"train/loss": 1.0}


def test_what_is_written_after_a_read_is_sent_after_the_next(client):
    with stages.standalone("a", {}) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        delivery = mlflow_writer.Delivery(journal_folder(run))
        delivery.read_new()
        run.log_metrics({"train/loss": 0.5}, 2)
        for points in ([(1, 1.0)], [(1, 1.0), (2, 0.5)]):
            delivery.deliver()
            assert steps(run, client) == points
            delivery.read_new()


EARLIER = """\
{"kind":"open","time_ms":5,"uri":"%s","experiment":"convoy","name":"old","tags":{"convoy.run_id":"20260101-000000-abcdef","convoy.host":"gone","convoy.owner":"1:2.00","convoy.stage":"train running"},"writer":"1:2.00","resumed":false,"parent":"","offered":""}
{"kind":"params","params":{"train.lr":"0.03"}}
{"kind":"points","points":[["val/loss",1.5,1,7]]}
{"kind":"files","at":"files/0a1b","folder":"weights"}
{"kind":"system","on":true}
{"kind":"system","on":false}
{"kind":"points","points":[["best/epoch",1.0,0,8]],"result":true}
{"kind":"end","status":"FINISHED","time_ms":9}
"""
"""A journal as version 0.1 wrote it."""


def test_a_journal_of_an_earlier_version_is_delivered(workplace, client, deliver):
    folder = workplace / "outbox/20260101-000000-abcdef"
    (folder / "files/0a1b").mkdir(parents=True)
    (folder / "files/0a1b/model.json").write_text("{}")
    (folder / "journal.jsonl").write_text(EARLIER % store.uri())
    (folder / "said").touch()
    (workplace / "outbox/courier.lock").touch()
    deliver()
    assert not folder.exists()
    found = store.find(folder.name, client)
    assert found
    assert (found.info.status, found.info.start_time, found.info.end_time) == ("FINISHED", 5, 9)
    assert found.data.params == {"train.lr": "0.03"}
    assert found.data.metrics == {"val/loss": 1.5, "best/epoch": 1.0}
    assert artifacts(found) == {"weights/model.json": b"{}"}


def test_the_machine_is_sampled_while_the_run_requests_it(client, monkeypatch):
    monkeypatch.setattr(mlflow_writer, "SAMPLE_SECONDS", 0.05)

    def sampled_again() -> bool:
        delivery.deliver()
        return delivery._monitor is not first and "system/" in str(stored(run, client).data.metrics)

    with stages.training("d" * 64) as run:
        delivery = mlflow_writer.Delivery(journal_folder(run))
        with run.system_metrics():
            delivery.read_new()
            delivery.deliver()
            first = delivery._monitor
            assert first
            first.finish()  # as MLflow's monitor does when the store fails to answer once
            wait(sampled_again)
        delivery.read_new()
        delivery.deliver()
        assert delivery._monitor is None


def test_many_points_take_few_calls(client, deliver, monkeypatch):
    with stages.standalone("many", {}) as run:
        for step in range(1, 1501):
            run.log_metrics({"step/loss": 1.0, "step/lr": 0.1}, step)
    sizes: list[int] = []
    real = MlflowClient.log_batch

    def count(self: MlflowClient, run_id: str, **values: Any) -> Any:
        sizes.append(len(values.get("metrics", ())))
        return real(self, run_id, **values)

    monkeypatch.setattr(MlflowClient, "log_batch", count)
    deliver()
    assert sorted(size for size in sizes if size) == [1000, 1000, 1000]
    assert len(steps(run, client, "step/lr")) == 1500


def test_a_run_that_mlflow_opened_is_joined_and_what_was_typed_there_stays(client, deliver, monkeypatch):
    opened = client.create_run("0").info.run_id
    used = str(yaml.read(params.PARAMS_FILE)["train"]["lr"])
    client.log_param(opened, "train.lr", f"{used}0")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    run = trained()
    another = trained()
    deliver()
    found = client.get_run(opened)
    assert found.data.tags["convoy.run_id"] == run.reference.run_id
    assert found.info.run_name == stages.run_name()
    assert found.data.params["train.lr"] == f"{used}0"
    assert found.data.tags["param.train.lr"] == used
    assert stored(another, client).info.run_id != opened


@pytest.mark.parametrize("offered", ["of another store", "another's", "deleted"])
def test_a_run_that_cannot_be_joined_is_not(client, deliver, monkeypatch, offered):
    opened = client.create_run("0", tags={"convoy.run_id": "x"} if offered == "another's" else {}).info.run_id
    if offered == "deleted":
        client.delete_run(opened)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32 if offered == "of another store" else opened)
    run = trained()
    deliver()
    assert stored(run, client).info.run_id != opened


def test_a_training_that_goes_on_is_running_again_without_double_or_hole(client, deliver, monkeypatch):
    with stages.training("d" * 64) as run:
        run.log_points([("train/loss", 1.0, 1, 11), ("train/loss", 0.9, 2, 12)])
        run.end("KILLED")
    deliver()
    assert stored(run, client).info.status == "KILLED"
    assert not outbox.journals(Path("outbox"))
    offered = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", offered)
    with stages.training("d" * 64, resumed=run.reference.run_id) as again:
        # Computed anew from an older checkpoint: the second point is in the store already.
        again.log_points([("train/loss", 0.8, 2, 99), ("train/loss", 0.7, 3, 100)])
        again.log_result({"train": {"loss": 0.7, "seconds": 5.0}})
    deliver()
    found = stored(again, client)
    assert found.info.status == "RUNNING"
    assert steps(run, client) == [(1, 1.0), (2, 0.9), (3, 0.7)]
    assert found.data.metrics["train/seconds"] == 5.0
    assert client.get_run(offered).data.tags["convoy.continues"] == run.reference.run_id
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_a_training_that_goes_on_is_created_if_the_store_never_had_it(client, deliver):
    with stages.training("d" * 64, resumed="20260101-000000-abcdef") as run:
        run.log_points([("train/loss", 0.7, 3, 100)])
    deliver()
    found = stored(run, client)
    assert found.data.tags["convoy.run_id"] == "20260101-000000-abcdef"
    assert found.data.metrics["train/loss"] == 0.7


def test_a_scheduled_run_waits_as_such(client, deliver):
    with stages.training("d" * 64) as run:
        run.end("SCHEDULED")
    deliver()
    assert stored(run, client).info.status == "SCHEDULED"


@pytest.mark.parametrize("lost", [False, True])
def test_a_trial_waits_for_its_sweep_and_is_delivered_alone_if_that_is_lost(client, deliver, lost):
    with stages.standalone("sweep", {}) as sweep, stages.standalone("trial 0", {}, sweep.reference) as trial:
        pass
    sent = mlflow_writer.Delivery(journal_folder(trial))
    sent.read_new()
    with pytest.raises(store.ParentNotStored):
        sent.deliver()
    if lost:
        journal_folder(sweep).rename("lost")
    deliver()
    parent = None if lost else stored(sweep, client).info.run_id
    assert stored(trial, client).data.tags.get("mlflow.parentRunId") == parent


ODD = ("learning rate (max)", "a/../b", "/absolute", "../up", "", "ü/ß", "n" * 300, "a,b", "a;b")


def test_params_of_every_kind_arrive_and_none_throws(client, deliver):
    long = "x" * (MAX_PARAM_VAL_LENGTH + 1)
    most = "y" * MAX_PARAM_VAL_LENGTH
    with stages.standalone("odd", {"convoy.long": "t" * (MAX_TAG_VAL_LENGTH + 1)}) as run:
        run.log_params({"same": 0.02, "changed": 0.02, "nested": {"list": [1, 2], "none": None}})
        run.log_params({"same": 0.02, "changed": "0.020", "long": long, "most": most})
        run.log_params({name: number for number, name in enumerate(ODD)})
        run.log_params({f"p{number}": number for number in range(250)})
        run.log_metrics({"acc (top-1)": 0.5, "nan": float("nan"), "inf": float("inf")})
    deliver()
    found = stored(run, client)
    logged = found.data.params
    assert (logged["same"], logged["changed"], logged["nested.list"]) == ("0.02", "0.02", "[1, 2]")
    assert found.data.tags["param.changed"] == "0.020"
    assert logged["most"] == most
    assert "long" not in logged
    assert found.data.tags["param.long"] == f"{len(long):,} characters, in params/long.txt"
    kept = artifacts(found)
    assert kept["params/long.txt"].decode() == long
    assert len(kept["tags/convoy.long.txt"]) == MAX_TAG_VAL_LENGTH + 1
    assert [logged[usable_name(name)] for name in ODD] == [str(number) for number in range(len(ODD))]
    assert logged["p249"] == "249"
    assert found.data.metrics[usable_name("acc (top-1)")] == 0.5
    assert found.info.status == "FINISHED"


def test_a_store_with_other_limits_refuses_one_param_and_gets_the_rest(client, deliver, monkeypatch):
    real = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, **values: Any) -> Any:
        if any(len(param.value) > 500 for param in values.get("params", ())):
            raise MlflowException("too long", error_code=1000)
        return real(self, run_id, **values)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with stages.standalone("old server", {}) as run:
        run.log_params({"short": 1, "long": "x" * 501})
    deliver()
    data = stored(run, client).data
    assert data.params == {"short": "1"}
    assert data.tags["param.long"] == "501 characters, in params/long.txt"


def test_odd_names_become_different_usable_names():
    usable = [usable_name(name) for name in ODD]
    assert [usable_name(name) for name in usable] == usable
    assert len(set(usable)) == len(ODD)


@pytest.mark.parametrize("name", ["train.lr", "val/loss", "a b", "a:b", "klasse/ö"])
def test_a_usable_name_stays(name):
    assert usable_name(name) == name
