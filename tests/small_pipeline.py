"""A small pipeline that runs in a second, with the parts of the real one: an import, stages, a spec that params name."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from onnx import TensorProto, helper

import dvc_server
from convoy.repo import dvc

FIRST = "20261123-100000-aaaaaa"
SECOND = "20261123-110000-bbbbbb"
FAILED = "20261124-090000-cccccc"
"""Runs that tests/lineage/conftest.py writes into a store."""

FILES = {
    "params.yaml": "pack: {px: 8}\nnet: {name: one}\nfit:\n  lr: 0.5\n  steps: [1, 2]\n",
    "source/a.txt": "a\n",
    "source/b.txt": "b\n",
    "nets/one.yaml": "layers: 1\n",
    "nets/two.yaml": "layers: 2\n",
    "prepare.sh": "mkdir -p build/dataset && cat data/*.txt > build/dataset/all && wc -l < data/a.txt > build/dataset/lines\n",
    "train.sh": "mkdir -p build/model && cat build/dataset/all nets/* params.yaml > build/model/weights\n",
    "evaluate.sh": "wc -c < build/model/weights > build/score\n",
    ".gitignore": "/data\n/build/\n/mlflow.db\n/mlartifacts/\n/outbox/\n",
    "dvc.yaml": """\
stages:
  prepare:
    cmd: sh prepare.sh
    params: [pack]
    deps: [data, prepare.sh]
    outs: [build/dataset]
  train:
    cmd: sh train.sh
    params: [net, fit]
    deps: [build/dataset, "nets/${net.name}.yaml", train.sh]
    outs: [build/model]
  evaluate:
    cmd: sh evaluate.sh
    deps: [build/model, build/dataset, evaluate.sh]
    outs: [build/score]
""",
}


@dataclass
class Small:
    """A repository with the small pipeline in it, or in a subfolder."""

    folder: Path  # of the pipeline

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def dvc(self, *words: str) -> str:
        return dvc.run(self.folder, *words)

    def repro(self) -> str:
        """Run the pipeline; what DVC printed, errors included."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("DVC_")} | {"DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", "repro"]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def init(self) -> None:
        """Make a git repository of the folder."""
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@example.invalid")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def remove(self, name: str) -> None:
        dvc.remove(self.folder / name)

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def set_remote(self, **settings: object) -> None:
        """Write DVC's configuration, as `dvc remote add --default` and `dvc remote modify` do."""
        lines = "".join(f"{name} = {text}\n" for name, text in settings.items())
        self.write(".dvc/config", f"[core]\nremote = store\n['remote \"store\"']\n{lines}")

    def copy(self, folder: Path) -> "Small":
        return Small(shutil.copytree(self.folder, folder, symlinks=True))

    @property
    def store(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def run(self, run_id: str) -> Run:
        """Read a run from the store by Convoy's id."""
        [run] = self.store.search_runs(["1"], f"tags.`convoy.run_id` = '{run_id}'")
        return run

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.store.set_tag(self.run(run_id).info.run_id, key, value)


def create(folder: Path, files: Mapping[str, str], within: str = "") -> Small:
    """Commit a pipeline that imports its data from its folder `source`; nothing has run.

    `within` is the pipeline's folder in a larger repository, such as `ml`.
    """
    small = Small(folder / within)
    for name, text in files.items():
        small.write(name, text)
    Small(folder).init()
    small.dvc("init", "-q", *(["--subdir"] if within else []))
    small.dvc("import-url", "source", "data")
    small.edit("data.dvc", "frozen: true\n", "")
    small.commit("pipeline")
    return small


@pytest.fixture(scope="session", autouse=True)
def forked_dvc() -> Iterator[None]:
    """Run DVC in processes that need not import it."""
    server = dvc_server.Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", server)
        yield
    server.stop()


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The pipeline, run once and committed. Read only."""
    small = create(tmp_path_factory.mktemp("small_pipeline") / "repository", FILES)
    assert "Running stage 'evaluate'" in small.repro()
    small.commit("reproduced")
    return small


@pytest.fixture
def small(reproduced: Small, tmp_path: Path) -> Small:
    """A copy of the pipeline that has run, for a test that changes it."""
    return reproduced.copy(tmp_path / "small_pipeline")


def write_onnx(path: Path, identity: Mapping[str, str]) -> None:
    """Write the smallest ONNX file, with an identity as Convoy writes it; empty for a file of others."""
    node = helper.make_node("Identity", ["image"], ["probabilities"])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "probabilities")
    ]
    model = helper.make_model(helper.make_graph([node], "small", values[:1], values[1:]))
    helper.set_model_props(model, {f"convoy.{key}": text for key, text in identity.items()})
    onnx.save(model, path)
