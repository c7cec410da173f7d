"""A repository with a registered model whose versions are real, small ONNX files, made without a training; and a store in memory."""

import re
import secrets
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities.paged_list import PagedList
from mlflow.tracking import MlflowClient

import fixed_models
from convoy.core import contract, files, yaml
from convoy.registry.client import Registry
from convoy.repo import dvc
from convoy.repo.identity import mint_run_id
from convoy.tracking import mlflow_writer, store

CLASSES = ["Bär", "cat", "x"]
COMMIT = "c0ffee" + "0" * 34


def write_verified(folder, run_id, *, accuracy=0.9, classes=CLASSES, params_hash="e" * 64, split="test"):
    """Write what `export` leaves in build/deploy: a model with its verification, card and images; return its sha256."""
    identity = {"run_id": run_id, "git_commit": COMMIT, "data_hash": "d" * 64, "params_hash": params_hash}
    path = fixed_models.write_onnx(folder / "model.onnx", classes, classes, identity=identity)
    sha256 = files.sha256(path)
    verification = {
        "model": {"file": "model.onnx", "sha256": sha256, "version": "0.1.0", "identity": identity},
        "split": split,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
        "checks": [{"check": "whole", "label_flips": 0}],
    }
    files.write_json(folder / "verification.json", verification)
    files.write_text(
        folder / "model_card.md",
        f"---\nlibrary_name: onnx\n---\n# Card of {run_id}\n\n- accuracy {accuracy}\n",
    )
    (folder / "images.parquet").write_bytes(b"images of " + run_id.encode())
    (folder / "baseline.json").write_bytes(b"baseline of " + run_id.encode())
    for name in (*contract.COPIES, contract.BOM, contract.SIGNATURE):
        (folder / name).write_bytes(f"{name} of {run_id}".encode())
    (folder / "golden").mkdir(exist_ok=True)
    (folder / "golden/00.png").write_bytes(b"image of " + run_id.encode())
    return sha256


def write_under_test(folder, model):
    """Write the files of a model of `gate_project`."""
    folder.mkdir(parents=True)
    shutil.copy(model.onnx, folder / "model.onnx")
    files.write_json(folder / "verification.json", model.verification)
    table = model.images.table.items()
    images = [{"pixels": pixels, "label": label, "split": split} for pixels, (label, split) in table]
    pq.write_table(pa.Table.from_pylist(images), folder / "images.parquet")


def set_params(folder, section, values):
    """Change values of a section of params.yaml."""
    path = folder / "params.yaml"
    content = yaml.load(path.read_text(encoding="utf-8"))
    content[section].update(values)
    path.write_text(yaml.dump(content), encoding="utf-8")


class Mortal:
    """A client whose store dies: after `left` calls it does another without answering it, then refuses all."""

    def __init__(self, client):
        self._client = client
        self.revive()

    def revive(self):
        self.left, self.dead = None, False

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*words, **named):
            if self.dead:
                raise MlflowException("connection refused")
            done = method(*words, **named)
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    self.dead = True
                    raise MlflowException("connection lost")
            return done

        return call


class MemoryClient:
    """The part of MLflow's client that Convoy's registry uses, in memory; searches return pages of two."""

    tracking_uri = "memory"
    page = 2

    def __init__(self, folder=Path()):
        self.folder = folder
        self.aliases: dict[str, str] = {}
        self.experiments: dict[str, SimpleNamespace] = {}
        self.runs: list[SimpleNamespace] = []
        self.versions: dict[str, SimpleNamespace] = {}
        self._lock = RLock()

    def get_registered_model(self, name):
        return SimpleNamespace(name=name, aliases=dict(self.aliases), tags={})

    def set_registered_model_alias(self, _, alias, number):
        self.aliases[alias] = number

    def create_model_version(self, name, source, run_id="", tags=()):
        number = str(len(self.versions) + 1)
        facts = {"name": name, "version": number, "source": source, "run_id": run_id, "tags": dict(tags)}
        self.versions[number] = SimpleNamespace(**facts, creation_timestamp=int(number))
        return self.versions[number]

    def get_model_version(self, _, number):
        if number not in self.versions:
            raise MlflowException("no such version", error_code=RESOURCE_DOES_NOT_EXIST)
        return self.versions[number]

    def get_model_version_download_uri(self, _, number):
        return str(self.versions[number].source)

    def set_model_version_tag(self, _, number, key, text):
        self.versions[number].tags[key] = text

    def search_model_versions(self, _, page_token=None):
        return self._paged(list(self.versions.values())[::-1], page_token)

    def delete_model_version(self, _, number):
        del self.versions[number]

    def log_artifacts(self, number, folder, name):
        shutil.copytree(folder, self.folder / number / name)

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def get_experiment(self, number):
        return next(made for made in self.experiments.values() if made.experiment_id == number)

    def create_experiment(self, name, artifact_location, tags):
        with self._lock:
            if name in self.experiments:
                raise MlflowException("exists")
            number = str(len(self.experiments) + 1)
            self.experiments[name] = SimpleNamespace(
                experiment_id=number, name=name, lifecycle_stage="active", tags=dict(tags)
            )
            return number

    def create_run(self, _, start_time=0, tags=(), run_name=""):
        with self._lock:
            number = f"run-{len(self.runs) + 1:03}"
            info = {"run_id": number, "run_name": run_name, "status": "RUNNING", "start_time": start_time}
            run = SimpleNamespace(
                info=SimpleNamespace(**info, artifact_uri=(self.folder / number).as_uri()),
                data=SimpleNamespace(tags=dict(tags)),
            )
            self.runs.append(run)
            return run

    def get_run(self, number):
        return next(run for run in self.runs if run.info.run_id == number)

    def set_tag(self, number, key, text):
        self.get_run(number).data.tags[key] = text

    def set_terminated(self, number, status="FINISHED"):
        self.get_run(number).info.status = status

    def search_runs(self, _, query, page_token=None, order_by=()):
        assert order_by == ["attributes.start_time ASC"]
        model = re.search(r"tags.`convoy.model` = '([^']*)'", query)
        status = re.search(r"attributes.status = '(\w+)'", query)
        assert model
        with self._lock:
            runs = [
                run
                for run in sorted(self.runs, key=lambda run: run.info.start_time)
                if run.data.tags.get("convoy.model") == model[1]
                and (not status or run.info.status == status[1])
            ]
        return self._paged(runs, page_token)

    def _paged(self, results, page_token):
        end = int(page_token or 0) + self.page
        return PagedList(results[end - self.page : end], str(end) if end < len(results) else None)


@dataclass
class RegistryProject:
    """A repository, the client of its store, and versions made without a training."""

    folder: Path
    client: MlflowClient

    @property
    def registry(self):
        return Registry.open()

    @property
    def deploy(self):
        return self.folder / "build/deploy"

    def version(self, model=None, alias="", *, files=True):
        """Make a version whose files, by default made up, lie among the artifacts of a run of its own."""
        run_id, registry = mint_run_id(), self.registry
        registry.create()
        experiment = store.experiment(self.client, "made").experiment_id
        run = self.client.create_run(experiment, tags={"convoy.run_id": run_id})
        sha256, accuracy = secrets.token_hex(32), 0.9
        folder = self.folder / "made" / run_id
        if model:
            sha256, accuracy = model.sha256, model.recorded_accuracy
            write_under_test(folder, model)
        elif files:
            sha256 = write_verified(folder, run_id)
        if folder.exists():
            self.client.log_artifacts(run.info.run_id, str(folder), "model")
        tags = {"convoy.onnx_sha256": sha256, "convoy.run_id": run_id, "convoy.accuracy": str(accuracy)}
        made = self.client.create_model_version(
            registry.model, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags
        )
        version = registry.version(str(made.version))
        if alias:
            registry.point(alias, version)
        return version

    def versions(self, count, *, files=True):
        return [self.version(files=files) for _ in range(count)]

    def champion(self):
        """Number of the champion, read without the proxy."""
        return str(self.client.get_registered_model(self.registry.model).aliases.get("champion", ""))

    def export(self, run_id="", **facts):
        """Leave a verified model in build/deploy, as `dvc repro` does; return the id of its run, which no store has."""
        run_id = run_id or mint_run_id()
        write_verified(self.deploy, run_id, **facts)
        self.lock()
        files.write_json(self.folder / "build/runs/export.json", {"run_id": run_id, "training": run_id})
        files.write_json(self.folder / "build/metrics/export.json", {"deploy": {"accuracy": 0.9}})
        return run_id

    def lock(self, data=""):
        """Let dvc.lock record what is in build/, and the md5 of the data that it was made of."""
        outs = [self.folder / "build" / name for name in ("deploy", "dataset")]
        recorded = [
            {"path": f"build/{out.name}", "md5": dvc.content_md5(out)} for out in outs if out.exists()
        ]
        deps = [{"path": "data", "md5": data}] if data else []
        settings = {"params.yaml": {"network": {"name": "lenet5"}}}
        stages = {"export": {"cmd": "true", "deps": deps, "params": settings, "outs": recorded}}
        (self.folder / "dvc.lock").write_text(
            yaml.dump({"schema": "2.0", "stages": stages}), encoding="utf-8"
        )

    def train(self, **facts):
        """Leave a verified model in build/deploy, and its finished run with the model in the store."""
        run_id = self.export(**facts)
        experiment = store.experiment(self.client, "convoy").experiment_id
        sha256 = files.sha256(self.deploy / "model.onnx")
        tags = {
            "convoy.run_id": run_id,
            "convoy.onnx_sha256": sha256,
            "convoy.data_md5": "f" * 32 + ".dir",
            "mlflow.source.git.commit": COMMIT,
        }
        run = self.client.create_run(experiment, run_name="trained", tags=tags)
        mlflow_writer.log_model(self.client, self.client.get_run(run.info.run_id), self.deploy, sha256, [])
        self.client.set_terminated(run.info.run_id)
        return self.client.get_run(run.info.run_id)

    def model_of(self, run):
        """Find the only model that a run logged."""
        [model] = self.client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
        return model

    def stored(self, version):
        """Locate a version's file on the disk, where the store is local."""
        uri = self.client.get_model_version_download_uri(version.model, version.number)
        return Path(uri.removeprefix("file://")) / "model.onnx"

    def point_nowhere(self, alias):
        """Let an alias point to version 99, as only the database can: MLflow takes a deleted version's aliases away."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database, database:
            database.execute("UPDATE registered_model_aliases SET version = 99 WHERE alias = ?", (alias,))

    def entries(self):
        """List the runs of the promotion log, oldest first: name, status, tags."""
        experiment = self.client.get_experiment_by_name("convoy promotions")
        if experiment is None:
            return []
        query, order = f"tags.`convoy.model` = '{self.registry.model}'", ["attributes.start_time ASC"]
        ids, search = [experiment.experiment_id], self.client.search_runs
        runs = store.all_pages(lambda token: search(ids, query, page_token=token, order_by=order))
        return [(str(run.info.run_name), run.info.status, run.data.tags) for run in runs]
