"""A repository with a registered model; its store is sqlite, or the tests' server on PostgreSQL."""

import secrets
import shutil

import pytest
from mlflow.tracking import MlflowClient

from convoy.tracking import outbox, store, uploader
from registry_project import MemoryClient, RegistryProject, set_params
from tracking_store import deliver_once


@pytest.fixture
def project(empty_store, workspace):
    """A repository with an empty store of its own, on sqlite."""
    shutil.copy(empty_store, workspace / "mlflow.db")
    return RegistryProject(workspace, store.connect())


@pytest.fixture
def memory(workspace, monkeypatch):
    """The same with a store in memory, for what Convoy does whatever the store is."""
    client = MemoryClient(workspace / "stored")
    monkeypatch.setattr(store, "connect", lambda *_: client)
    return RegistryProject(workspace, client)


@pytest.fixture
def server_project(workspace, server, monkeypatch):
    """The same on the tests' server, with a registered model of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    set_params(workspace, "tracking", {"registered_model": f"model-{secrets.token_hex(4)}"})
    return RegistryProject(workspace, MlflowClient(server))


@pytest.fixture(params=["project", "server_project"])
def any_project(request):
    """The same test on sqlite and on a server."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def through(server_project, proxy, monkeypatch):
    """Have Convoy reach the server through a proxy, which the project's own client does not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    return proxy


@pytest.fixture
def delivered(project, monkeypatch):
    """Have what waits delivered by this process: an uploader of its own takes seconds to start."""
    monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)

    def wait_until_uploaded(runs, where, seconds):
        deliver_once(where)
        return {}

    monkeypatch.setattr(outbox, "wait_until_uploaded", wait_until_uploaded)
