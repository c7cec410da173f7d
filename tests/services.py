"""A service in this process whose model answers numbered images with known classes."""

import pytest
from fastapi.testclient import TestClient

import fixed_models
from convoy.core import params as params_file
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from convoy.serving.settings import ServeParams

CLASSES = ["Bär", "cat", "x"]
PREDICTIONS = ["Bär", "cat", "x", "cat"]
CERTAINTY = [0.9, 0.8, 0.7, 0.4]
SHIPPED = params_file.default_at(ServeParams, [])


def serve_params(**changes):
    return ServeParams.model_validate(SHIPPED | changes)


def post(client, content, kind="image/png", query="", **headers):
    return client.post(f"/predict{query}", content=content, headers={"content-type": kind, **headers})


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return open_model(str(fixed_models.write_onnx(path, CLASSES, PREDICTIONS, certainty=CERTAINTY)))


@pytest.fixture
def start(served):
    """Start services with other settings; each is stopped after the test."""
    clients = []

    def started(model=None, *, token="", observers=(), log=None, **changes):
        app = create_app(model or served, serve_params(**changes), token=token, observers=observers, log=log)
        clients.append(TestClient(app, raise_server_exceptions=False))
        return clients[-1].__enter__()

    yield started
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start):
    return start(threads=2)
