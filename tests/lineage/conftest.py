"""The small pipeline with a tracking store in which three runs of it are written by hand."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.core.files import sha256
from small_pipeline import FAILED, FIRST, SECOND, Small, write_onnx

GONE = "deadbeef" * 5
DATA = "1f" * 32
OTHER_DATA = "2e" * 32


@pytest.fixture(scope="session")
def recorded(reproduced: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A copy with a store of three runs: a clean one, one with uncommitted changes, one that failed. Read only."""
    folder = tmp_path_factory.mktemp("recorded") / "repository"
    shutil.copytree(reproduced.folder, folder, symlinks=True)
    small = Small(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("convoy", artifact_location=(folder.parent / "artifacts").as_uri())
    commit = small.git("rev-parse", "HEAD")
    md5 = small.git("show", "HEAD:data.dvc").split("outs:")[1].split("md5: ")[1].split()[0]
    tags = {
        "convoy.data_hash": DATA,
        "convoy.data_md5": md5,
        "convoy.host": "here",
        "convoy.version": "0.1.0",
    }

    def add(run_id: str, started: int, name: str, metrics: dict[str, float], **own: str) -> str:
        own_tags = {"convoy.run_id": run_id, "convoy.training": run_id, "convoy.git_dirty": "false", **tags}
        own_tags |= {
            "mlflow.source.git.commit": commit,
            **{key.replace("__", "."): text for key, text in own.items()},
        }
        run = client.create_run(experiment, start_time=started, run_name=name, tags=own_tags)
        for metric, value in metrics.items():
            client.log_metric(run.info.run_id, metric, value)
        for key, value in {"net.name": "one", "fit.lr": "0.25" if "0.25" in name else "0.5"}.items():
            client.log_param(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id, "FAILED" if run_id == FAILED else "FINISHED")
        return run.info.run_id

    def keep(run: str) -> None:
        for name in ("params.yaml", "dvc.yaml", "data.dvc", "dvc.lock"):
            client.log_artifact(run, str(folder / name), "pipeline")
        client.set_tag(run, "convoy.lock", sha256(folder / "dvc.lock"))

    first = add(
        FIRST, 1_795_000_000_000, "one · lr 0.5", {"test/accuracy": 0.9, "system/cpu": 7.0},
        convoy__params_hash="a1" * 32, convoy__onnx_sha256="b2" * 32,
    )  # fmt: skip
    keep(first)
    client.create_registered_model("convoy")
    for run, number in ((first, "1"), (first, "2")):
        client.create_model_version("convoy", f"runs:/{run}/model", run)
        client.set_registered_model_alias("convoy", {"1": "first", "2": "champion"}[number], number)
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    small.edit("train.sh", "cat build", "cat -u build")
    small.write("note.txt", "new\n")
    small.repro()
    second = add(
        SECOND, 1_795_000_100_000, "one · lr 0.25", {"test/accuracy": 0.8, "test/loss": 0.3},
        convoy__params_hash="c3" * 32, convoy__git_dirty="true", convoy__dvc_experiment="quick-fox",
    )  # fmt: skip
    keep(second)
    small.git("add", "--intent-to-add", "note.txt")
    diff = folder.parent / "workspace.diff"
    diff.write_text(
        small.git("diff", "--binary", "HEAD", "--", ".", ":(exclude)dvc.lock") + "\n", encoding="utf-8"
    )
    client.log_artifact(second, str(diff), "pipeline")
    small.git("reset", "-q", "--hard")
    small.remove("note.txt")
    small.dvc("checkout", "--force")
    add(
        FAILED, 1_795_000_200_000, "one · lr 0.5", {},
        mlflow__source__git__commit=GONE, convoy__data_hash=OTHER_DATA, convoy__data_md5="f" * 32 + ".dir",
    )  # fmt: skip
    return small


@pytest.fixture
def traced(recorded: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """A copy of the repository with the store, as the current folder."""
    shutil.copytree(recorded.folder, tmp_path / "traced", symlinks=True)
    return enter(Small(tmp_path / "traced"), monkeypatch)


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
