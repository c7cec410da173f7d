"""Runs for tests: a small store with one of everything that MLflow keeps, and a run as a pipeline writes it."""

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import entities
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

import fixed_models
from convoy.core import files
from convoy.tracking import journal, outbox, stages, uploader
from convoy.tracking.migration import Report, migrate
from convoy.tracking.run import Run

POINTS = 2300  # of one curve: more than MLflow takes or gives at once
ODD = (math.nan, math.inf, -math.inf, 0.1 + 0.2)
OUTER = (
    *("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "CONVOY_REPOSITORY"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"),
)


@pytest.fixture
def workspace(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the shipped params; no uploader starts by itself."""
    for name in ("params.yaml", "data.dvc"):
        shutil.copy(repository / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in OUTER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(outbox, "start_uploader", lambda *_, **__: None)
    return tmp_path


@pytest.fixture(scope="session")
def old_store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store. Read only: a test that changes something takes `source_store`."""
    folder = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri(folder))
        fill(folder, empty_store)
    return folder


@pytest.fixture
def source_store(old_store: Path, tmp_path: Path) -> Path:
    """A copy of the store, in which MLflow's absolute paths are those of the original."""
    return Path(shutil.copytree(old_store, tmp_path / "source"))


@pytest.fixture
def target_store(empty_store: Path, tmp_path: Path) -> Path:
    """A folder with an empty store."""
    (tmp_path / "target").mkdir()
    shutil.copy(empty_store, tmp_path / "target/mlflow.db")
    return tmp_path / "target"


@pytest.fixture(scope="session")
def new_store(
    old_store: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Report]:
    """A folder with what `convoy migrate` made of the store, and what it reported. Read only, likewise."""
    folder = tmp_path_factory.mktemp("new")
    shutil.copy(empty_store, folder / "mlflow.db")
    before = contents(old_store)
    report = migrate(uri(folder), uri(old_store))
    assert contents(old_store) == before, "the source stays as it was"
    return folder, report


@pytest.fixture
def target_copy(new_store: tuple[Path, Report], tmp_path: Path) -> Path:
    """A folder with a copy of the migrated database, whose files are those of the original."""
    (tmp_path / "target").mkdir()
    shutil.copy(new_store[0] / "mlflow.db", tmp_path / "target/mlflow.db")
    return tmp_path / "target"


@pytest.fixture
def python(repository: Path) -> Callable[..., Any]:
    """Run a Python program with Convoy's code, in the current folder unless another is given."""

    def run(*words: str, cwd: Path | None = None, check: bool = True, **env: str) -> Any:
        env = {**os.environ, "PYTHONPATH": str(repository / "src"), **env}
        options: dict[str, Any] = {"env": env, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, *words], cwd=cwd, check=check, **options)

    return run


def set_revision(database: Path, revision: str) -> str:
    """Let a store look as if another MLflow wrote it; return the revision that it had."""
    with closing(sqlite3.connect(database)) as tables, tables:
        [[before]] = tables.execute("SELECT version_num FROM alembic_version").fetchall()
        tables.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    return str(before)


def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def start_python(repository: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start a Python program with Convoy's code, in the current folder, with pipes for input and output."""
    options = {"env": {**os.environ, "PYTHONPATH": str(repository / "src")}, "text": True}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return lambda *words: subprocess.Popen([sys.executable, *words], **options, **pipes)


def deliver_once(folder: Path) -> None:
    """Go round once in this process, as a new uploader does after the last one was killed."""
    with outbox.uploader_lock(folder) as lock:
        worker = uploader.Uploader(folder, lock)
        worker.deliver_due()  # delivers
        worker.deliver_due()  # removes what is delivered


def trained(resumed: str | None = None) -> Run:
    """Pass through a `train` stage that logs nothing."""
    with stages.training("d" * 64, resumed) as run:
        return run


def logged(name: str) -> Run:
    """Log an empty run of no stage."""
    with stages.standalone(name, {}) as run:
        pass
    return run


def journal_folder(run: Run) -> Path:
    return Path("outbox") / run.reference.run_id


def journal_state(run: Run) -> journal.State:
    return journal.state(journal_folder(run))


def stored(run: Run | str, client: MlflowClient) -> entities.Run:
    """Return what the store has of a run, by Convoy's id; a second one would be a double."""
    run_id = run if isinstance(run, str) else run.reference.run_id
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    [found] = client.search_runs(experiments, f"tags.`convoy.run_id` = '{run_id}'")
    return client.get_run(found.info.run_id)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def download(client: MlflowClient, run: entities.Run, path: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        return contents(Path(client.download_artifacts(run.info.run_id, path, scratch)))


def assert_whole(client: MlflowClient, run: Run, folder: Path, points: int) -> entities.Run:
    """Compare what a store has of a run with what `write_run` wrote: nothing lacks, nothing is there twice."""
    found = stored(run, client)
    assert (found.info.status, found.info.run_name) == ("FINISHED", stages.run_name())
    assert {"train.lr", "export.latency_runs"} <= set(found.data.params)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted(
        [(point.key, point.value, point.step, point.timestamp) for point in history], key=lambda each: each[2]
    ) == curve(1, points + 1)
    assert [entry.dataset.digest for entry in found.inputs.dataset_inputs] == ["d" * 32]
    fetched = download(client, found, "")
    report = {f"evaluation/{path}": content for path, content in contents(folder / "evaluation").items()}
    assert {path: fetched[path] for path in fetched if path.startswith("evaluation/")} == report
    assert {"pipeline/params.yaml", "pipeline/data.dvc", "report.html"} <= set(fetched)
    [model] = client.search_logged_models(
        [found.info.experiment_id], f"source_run_id = '{found.info.run_id}'"
    )
    assert [output.model_id for output in found.outputs.model_outputs] == [model.model_id]
    logged = download(client, found, "model")
    assert logged["model.onnx"] == (folder / "model.onnx").read_bytes()
    assert found.data.tags["convoy.onnx_sha256"] == files.sha256(folder / "model.onnx")
    assert logged["images.parquet"] == b"images", "what belongs to the model is beside it"
    assert b"image" in logged["MLmodel"]
    return found


def curve(start: int, stop: int) -> list[tuple[str, float, int, int]]:
    return [("train/loss", 1 / step, step, 1000 + step) for step in range(start, stop)]


def write_run(folder: Path, points: int = 39, between: Callable[[], None] = lambda: None) -> Run:
    """Write a run as a pipeline does, with something of every kind; `between` happens in its middle."""
    dataset, report = folder / "build/dataset", folder / "evaluation"
    for path, content in {
        dataset / "dataset.json": '{"hash": "d"}',
        report / "report.html": "<p>ä</p>",
        report / "inner/picture.svg": "<svg/>",
        report / "empty.txt": "",
        folder / "images.parquet": "images",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    with stages.training("d" * 64) as run:
        run.log_dataset("d" * 64, dataset)
        run.log_points(curve(1, points // 2))
        between()
        run.log_points(curve(points // 4, points + 1))  # as a training that resumes from a checkpoint
        run.log_result({"best": {"epoch": points}, "train": {"loss": 1 / points}})
    with stages.continuing("export", "d" * 64):
        pass
    model = fixed_models.write_onnx(folder / "model.onnx", ["a", "b"], ["a"])
    # The producer's name at the end: MLflow would write it where it belongs.
    model.write_bytes(model.read_bytes() + b"\x12\x07by hand")
    with stages.finishing("export") as last:
        last.log_file(report, "evaluation")
        last.log_file(report / "report.html")
        last.log_onnx(model, folder / "images.parquet")
    return run


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def by_name(client: MlflowClient, experiment: str = "convoy") -> dict[str, entities.Run]:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {str(run.info.run_name): run for run in client.search_runs([found.experiment_id])}


def fill(folder: Path, tables: Path, experiment: str = "convoy") -> MlflowClient:
    """Make `folder/mlflow.db`, from one that has MLflow's tables, and `folder/mlartifacts`; give its client."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(tables, folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    where = (folder / "mlartifacts").as_uri()
    trainings = client.create_experiment(experiment, where, {"mlflow.experimentKind": "custom"})
    client.create_experiment(f"{experiment} empty", where)
    parent = _training(client, trainings, folder)
    model = _model(client, trainings, parent, folder)
    for number, status in enumerate(("FAILED", "KILLED", "RUNNING", "SCHEDULED"), start=1):
        run = client.create_run(trainings, start_time=2000 + number, run_name=status.lower())
        client.log_batch(
            run.info.run_id,
            tags=[
                entities.RunTag("mlflow.parentRunId", parent),
                entities.RunTag("convoy.run_id", f"{experiment}-{number}"),
            ],
            metrics=[entities.Metric("train/loss", 1.0 / number, 5, 1)],
        )
        if status in ("FAILED", "KILLED"):
            client.set_terminated(run.info.run_id, status, end_time=3000 + number)
        elif status == "SCHEDULED":
            client.update_run(run.info.run_id, status=status)
            client.log_inputs(run.info.run_id, models=[entities.LoggedModelInput(model)])
    deleted = client.create_run(trainings, start_time=1, run_name="deleted")
    client.delete_run(deleted.info.run_id)
    _register(client, parent, model, name=f"{experiment} model")
    return client


def _training(client: MlflowClient, experiment: str, folder: Path) -> str:
    """Log a run without Convoy's tags, as `mlflow` itself does."""
    run = client.create_run(
        experiment, start_time=1000, tags={"mlflow.user": "ada"}, run_name="parent · ä"
    ).info
    many = [entities.Param(f"section.key{n}", "v" * 500 + str(n)) for n in range(120)]
    client.log_batch(run.run_id, params=many)
    curve = [entities.Metric("step/loss", 1 / (n + 1), 1000 + n, n) for n in range(POINTS)]
    odd = [entities.Metric("odd", value, 7, step) for step, value in enumerate(ODD)]
    for points in (curve[:1000], curve[1000:2000], curve[2000:], odd):
        client.log_batch(run.run_id, metrics=points)
    client.set_tag(run.run_id, "mlflow.note.content", f"# a note on {run.run_id}")
    facts = entities.Dataset("dataset", "0123456789", "local", "somewhere", profile='{"images": 9}')
    context = entities.InputTag("mlflow.data.context", "training")
    client.log_inputs(run.run_id, [entities.DatasetInput(facts, [context])])
    made = folder / "made"
    for name, content in {
        "report.html": b"<p>\xc3\xa4</p>",
        "deep/er/noise.bin": bytes(range(256)) * 500,
        "deep/empty": b"",
        "plots/mit leerzeichen ä.txt": b"x",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    client.log_artifacts(run.run_id, str(made))
    client.set_terminated(run.run_id, "FINISHED", end_time=9000)
    return str(run.run_id)


def _model(client: MlflowClient, experiment: str, run: str, folder: Path) -> str:
    """Log a model the way that MLflow does: files, `MLmodel` with ids, tied to the run."""
    model = client.create_logged_model(experiment, "model", run, {"kind": "onnx"}, {"opset": "20"}, "cnn")
    written = folder / "model"
    written.mkdir()
    (written / "MLmodel").write_text(f"run_id: {run}\nmodel_id: {model.model_id}\nmodel_uuid: {'a' * 32}\n")
    (written / "model.onnx").write_bytes(b"\x08onnx" * 1000)
    get_artifact_repository(model.artifact_location).log_artifacts(str(written))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [entities.LoggedModelOutput(model.model_id, 3)])
    client.log_metric(run, "test/accuracy", 0.9, timestamp=11, step=3, model_id=model.model_id)
    return str(model.model_id)


def _register(client: MlflowClient, run: str, model: str, name: str) -> None:
    """Register four versions: of the logged model, one that is deleted, by run, by absolute path."""
    client.create_registered_model(name, {"team": "vision"}, "what it is for")
    folder = client.get_run(run).info.artifact_uri
    for source, of in (
        (f"models:/{model}", model),
        (f"runs:/{run}/deep", None),
        (f"runs:/{run}/deep", None),
        (f"{folder}/deep", None),
    ):
        made = client.create_model_version(name, source, run, {"of": run}, description="told", model_id=of)
        if of:
            client.set_logged_model_tags(
                of, {"mlflow.modelVersions": f'[{{"name": "{name}", "version": "{made.version}"}}]'}
            )
    client.delete_model_version(name, "2")
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "candidate", "4")
