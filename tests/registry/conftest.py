"""A repository with a registered model; its store is sqlite, or the tests' server on PostgreSQL."""

import secrets
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.tracking import outbox, store, uploader
from proxy import Proxy
from registry_project import RegistryProject, set_param

OUTER = (
    *("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "CONVOY_REPOSITORY"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"),
)


@pytest.fixture
def project(
    empty_store: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RegistryProject:
    """Work in an empty repository with the shipped params and a store of its own; no uploader starts by itself."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("params.yaml", "data.dvc"):
        shutil.copy(repository / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in OUTER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(outbox, "start_uploader", lambda *_, **__: None)
    return RegistryProject(tmp_path, store.connect())


@pytest.fixture
def server_project(project: RegistryProject, server: str, monkeypatch: pytest.MonkeyPatch) -> RegistryProject:
    """The same on the tests' server, with a registered model of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    set_param(project.folder, "registered_model", f"model-{secrets.token_hex(4)}")
    return RegistryProject(project.folder, MlflowClient(server))


@pytest.fixture
def through(server_project: RegistryProject, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Have Convoy ask the server through a proxy, which the project's own client does not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    return proxy


@pytest.fixture
def delivered(project: RegistryProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what waits delivered by this process: an uploader of its own takes seconds to start."""
    monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)

    def wait_until_uploaded(runs: list[str], where: Path, seconds: float | None) -> dict[str, str]:
        with outbox.uploader_lock(where) as lock:
            worker = uploader.Uploader(where, lock)
            worker.deliver_due()  # delivers
            worker.deliver_due()  # removes what is delivered
        return {}

    monkeypatch.setattr(outbox, "wait_until_uploaded", wait_until_uploaded)
