"""The small pipeline with a tracking store in which three runs of it are written by hand."""

import shutil
from pathlib import Path

import pytest

from convoy.core.files import sha256
from convoy.repo import dvc
from small_pipeline import FAILED, FIRST, SECOND, Small, write_onnx

GONE = "deadbeef" * 5
DATA = "1f" * 32
OTHER_DATA = "2e" * 32


@pytest.fixture(scope="session")
def recorded(reproduced: Small, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A copy with a store of three runs: a clean one, one with uncommitted changes, one that failed. Read only."""
    small = reproduced.copy(tmp_path_factory.mktemp("recorded") / "repository")
    folder = small.folder
    shutil.copy(empty_store, folder / "mlflow.db")
    client = small.store
    experiment = client.create_experiment("convoy", artifact_location=(folder.parent / "artifacts").as_uri())
    everywhere = {
        "mlflow.source.git.commit": small.git("rev-parse", "HEAD"),
        "convoy.git_dirty": "false",
        "convoy.data_hash": DATA,
        "convoy.data_md5": dvc.required_outputs(folder)["data"],
        "convoy.host": "here",
        "convoy.version": "0.1.0",
    }

    def add(run_id: str, started: int, rate: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
        """Record a run; one that did not fail has the files of the pipeline."""
        tags = everywhere | {"convoy.run_id": run_id, "convoy.training": run_id} | tags
        run = client.create_run(experiment, started, tags, run_name=f"one · lr {rate}").info.run_id
        for metric, value in metrics.items():
            client.log_metric(run, metric, value)
        for key, value in {"net.name": "one", "fit.lr": rate}.items():
            client.log_param(run, key, value)
        client.set_terminated(run, "FAILED" if run_id == FAILED else "FINISHED")
        if run_id != FAILED:
            for name in ("params.yaml", "dvc.yaml", "data.dvc", "dvc.lock"):
                client.log_artifact(run, str(folder / name), "pipeline")
            client.set_tag(run, "convoy.lock", sha256(folder / "dvc.lock"))

    tags = {"convoy.params_hash": "a1" * 32, "convoy.onnx_sha256": "b2" * 32}
    add(FIRST, 1_795_000_000_000, "0.5", {"test/accuracy": 0.9, "system/cpu": 7.0}, tags)
    first = small.run(FIRST).info.run_id
    client.create_registered_model("convoy")
    for number, alias in (("1", "first"), ("2", "champion")):
        client.create_model_version("convoy", f"runs:/{first}/model", first)
        client.set_registered_model_alias("convoy", alias, number)
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    small.edit("train.sh", "cat build", "cat -u build")
    small.write("note.txt", "new\n")
    small.repro()
    tags = {"convoy.params_hash": "c3" * 32, "convoy.git_dirty": "true", "convoy.dvc_experiment": "quick-fox"}
    add(SECOND, 1_795_000_100_000, "0.25", {"test/accuracy": 0.8, "test/loss": 0.3}, tags)
    small.git("add", "--intent-to-add", "note.txt")
    diff = folder.parent / "workspace.diff"
    diff.write_text(
        small.git("diff", "--binary", "HEAD", "--", ".", ":(exclude)dvc.lock") + "\n", encoding="utf-8"
    )
    client.log_artifact(small.run(SECOND).info.run_id, str(diff), "pipeline")
    small.git("reset", "-q", "--hard")
    small.remove("note.txt")
    small.dvc("checkout", "--force")
    tags = {
        "mlflow.source.git.commit": GONE,
        "convoy.data_hash": OTHER_DATA,
        "convoy.data_md5": "f" * 32 + ".dir",
    }
    add(FAILED, 1_795_000_200_000, "0.5", {}, tags)
    return small


@pytest.fixture
def traced(recorded: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """A copy of the repository with the store, as the current folder."""
    return enter(recorded.copy(tmp_path / "traced"), monkeypatch)


@pytest.fixture
def shared(recorded: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    """The repository with the store, as the current folder, for tests that only read it."""
    return enter(recorded, monkeypatch)


def enter(repository: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(repository.folder)
    return repository


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file whose metadata name the first run."""
    identity = {"run_id": FIRST, "git_commit": "0" * 40, "data_hash": DATA, "params_hash": "a1" * 32}
    write_onnx(tmp_path / "model.onnx", identity)
    return tmp_path / "model.onnx"
