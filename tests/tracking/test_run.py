"""One run: what is logged, what is left alone, and what a failing store does."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy import identity, params
from convoy.tracking import stages, store
from convoy.tracking.run import Reference, Run, numbers


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's tables once: that takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(
    empty_store: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MlflowClient:
    """Work in an empty repository with the shipped params and a store of its own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    shutil.copy(repository / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return store.connect()


def test_the_default_store_lies_in_the_repository_also_for_a_queued_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert store.uri() == f"sqlite:///{tmp_path}/real/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert store.uri() == "http://127.0.0.1:5001"


def test_a_training_run_stays_open_and_names_itself_by_what_differs(client: MlflowClient) -> None:
    with stages.training("d" * 64) as run:
        pass
    found = client.get_run(run.reference.mlflow_run_id)
    assert found.info.status == "RUNNING"
    train = params.read_yaml(params.PARAMS_FILE)["train"]
    assert found.info.run_name == f"convnet · lr {train['lr']} · {train['epochs']} epochs"
    assert found.data.tags["convoy.run_id"] == found.data.tags["convoy.training"] == run.reference.run_id
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_evaluate_continues_the_open_run_and_export_ends_it(client: MlflowClient) -> None:
    with stages.training("d" * 64):
        pass
    with stages.continuing("evaluate", "d" * 64):
        pass
    with stages.continuing("export", "d" * 64):
        pass
    with stages.finishing("export") as run:
        pass
    assert len(client.search_runs(["1"])) == 1
    found = client.get_run(run.reference.mlflow_run_id)
    assert found.info.status == "FINISHED"
    assert {"train.lr", "evaluate.batch_size", "export.max_label_flips"} <= set(found.data.params)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_stage_that_ends_badly_ends_the_run_as_it_was(
    client: MlflowClient, stage: str, error: BaseException, status: str
) -> None:
    def work() -> None:
        if stage == "train":
            with stages.training("d" * 64):
                raise error
        with stages.training("d" * 64):
            pass
        with stages.continuing(stage, "d" * 64):
            raise error

    with pytest.raises(type(error)):
        work()
    [run] = client.search_runs(["1"])
    assert run.info.status == status


def test_a_stage_after_a_run_that_ended_opens_another_with_the_same_training(client: MlflowClient) -> None:
    with stages.training("d" * 64) as first:
        first.end("FINISHED")
    before = client.get_run(first.reference.mlflow_run_id).data.to_dictionary()
    with stages.continuing("evaluate", "d" * 64) as second:
        pass
    assert second.reference.training == first.reference.run_id
    assert second.reference.mlflow_run_id != first.reference.mlflow_run_id
    assert client.get_run(second.reference.mlflow_run_id).data.params["train.optimizer"] == "sgd"
    assert client.get_run(first.reference.mlflow_run_id).data.to_dictionary() == before


def test_the_second_command_of_export_without_the_first_says_what_to_type(client: MlflowClient) -> None:
    with (
        pytest.raises(Exception, match=r"export\.json is missing.*dvc repro export"),
        stages.finishing("export"),
    ):
        pass


def test_a_run_that_mlflow_opened_is_joined_once(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = client.create_run("0").info.run_id
    used = str(params.read_yaml(params.PARAMS_FILE)["train"]["lr"])
    client.log_param(opened, "train.lr", f"{used}0")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    with stages.training("d" * 64) as run:
        pass
    assert run.reference.mlflow_run_id == opened
    found = client.get_run(opened)
    assert found.data.params["train.lr"] == f"{used}0"
    assert found.data.tags["param.train.lr"] == used
    with stages.training("d" * 64) as another:
        pass
    assert another.reference.mlflow_run_id != opened


def test_a_run_whose_process_is_gone_is_ended_by_the_next(client: MlflowClient) -> None:
    with stages.training("d" * 64) as between:
        pass
    with stages.training("d" * 64) as inside:
        inside.set_tags({"convoy.stage": "train running"})
    inside.set_tags({"convoy.stage": "train running"})
    for run in (between, inside):
        run.set_tags({"convoy.owner": "999999:1.00"})
    with stages.training("d" * 64) as alive:
        pass
    statuses = [client.get_run(run.reference.mlflow_run_id).info.status for run in (between, inside, alive)]
    assert statuses == ["FINISHED", "KILLED", "RUNNING"]


def test_a_process_is_alive_only_if_it_is_the_same_one() -> None:
    owner = identity.process_tags()["convoy.owner"]
    assert identity.is_alive(owner)
    assert not identity.is_alive(f"{owner.partition(':')[0]}:1.00")
    assert not identity.is_alive("")


def test_a_store_that_does_not_answer_is_said_once_and_stops_nothing(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with stages.training("d" * 64) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        with run.system_metrics():
            pass
    assert run.reference.run_id
    assert capsys.readouterr().out.count("Not tracked: http://127.0.0.1:9 answered") == 1


def test_a_store_that_fails_later_is_said_once(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Reference("a", "a", "no-such-run"), "train")
    run.log_metrics({"train/loss": 1.0})
    run.log_metrics({"train/loss": 2.0})
    assert capsys.readouterr().out.count("Tracking stopped:") == 1


def test_metrics_flatten_to_where_and_what() -> None:
    nested = {"test": {"accuracy": 0.5, "passed": True, "note": "x"}}
    assert numbers(nested) == {"test/accuracy": 0.5}


def test_a_result_adds_no_point_to_a_curve(client: MlflowClient) -> None:
    with stages.training("d" * 64) as run:
        run.log_metrics({"val/loss": 2.0}, 1)
        run.log_metrics({"val/loss": 1.0}, 2)
        run.log_result({"val": {"loss": 1.0}, "best": {"epoch": 2}})
    history = client.get_metric_history(run.reference.mlflow_run_id, "val/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert client.get_run(run.reference.mlflow_run_id).data.metrics["best/epoch"] == 2
