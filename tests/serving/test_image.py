"""The image without an engine: its locks in a clean environment, its command, its health check and its stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from clones import free_port
from dockerfiles import only, stages
from registry_project import RegistryProject, set_params

WAIT_S = 30
"""Longest start; a second on an idle machine."""


def environment(repository, lock, folder):
    """Install a lock as the Dockerfile does, into a new environment; return its Python."""
    [line] = only(stages(repository / "Dockerfile")["packages"], "RUN")
    script = line.text.replace("/opt/venv", str(folder)).replace("/requirements.txt", str(repository / lock))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return folder / "bin/python"


@contextmanager
def started(repository, python, work, *words, **env):
    """Run the image's ENTRYPOINT in a folder that has what the image has, without this environment; give its address."""
    service = stages(repository / "Dockerfile")["service"]
    entry = only(service, "ENTRYPOINT")[0].words
    port = free_port()
    entry = [str(python), *entry[1:]]
    entry[entry.index("--host") + 1] = "127.0.0.1"
    entry[entry.index("--port") + 1] = str(port)
    plain = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(work / "src"),
        "HOME": "/nonexistent",
        **env,
    }
    with subprocess.Popen(
        [*entry, *words], cwd=work, env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + WAIT_S
            while not healthy(service, python, port):
                assert process.poll() is None, process.stdout.read().decode()
                assert time.monotonic() < until
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            output = process.stdout.read().decode()
        assert process.wait(timeout=WAIT_S) in {0, -signal.SIGTERM}, output


def healthy(service, python, port):
    """Run the image's HEALTHCHECK."""
    text = re.search(r"CMD (\[.*\])", only(service, "HEALTHCHECK")[0].text)[1]
    _, *words = json.loads(text.replace(":8000", f":{port}"))
    return subprocess.run([python, *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def work(repository, tmp_path):
    """What the image has below /srv/convoy."""
    folder = tmp_path / "convoy"
    folder.mkdir()
    shutil.copy(repository / "params.yaml", folder)
    shutil.copytree(repository / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
def test_the_image_serves_a_file_from_its_own_lock_and_stops_in_good_order(
    repository, work, verified, tmp_path
):
    python = environment(repository, "requirements-serve.txt", tmp_path / "venv")
    shutil.copytree(verified[0].home / "deploy", tmp_path / "deploy")
    shutil.copy(verified[0].home / "dataset/baseline.json", tmp_path / "deploy")
    model = tmp_path / "deploy/model.onnx"
    with started(repository, python, work, "--model", str(model)) as address:
        replay = subprocess.run(
            [
                sys.executable,
                repository / "examples/python/client.py",
                address,
                "--golden",
                model.parent / "golden",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert replay.returncode == 0, replay.stdout + replay.stderr
        for path in ("/", "/page/app.js", "/metrics", "/model"):
            with urllib.request.urlopen(f"{address}{path}") as answer:  # noqa: S310 (http)
                assert answer.status == 200
        with urllib.request.urlopen(f"{address}/drift") as answer:  # noqa: S310 (http)
            assert json.load(answer)["images"] > 0
    packages = {path.name.lower() for path in (tmp_path / "venv").glob("lib/python*/site-packages/*")}
    assert not packages & {"torch", "mlflow", "dvc", "pip", "matplotlib", "pyarrow"}


@pytest.mark.slow
def test_the_image_serves_the_champion_of_a_server_with_mlflows_client_alone(
    repository, work, workspace, server, tmp_path, monkeypatch
):
    python = environment(repository, "requirements-registry.txt", tmp_path / "venv")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    name = f"model-{os.getpid()}-{time.time_ns()}"
    for folder in (workspace, work):
        set_params(folder, "tracking", {"registered_model": name})
    champion = RegistryProject(workspace, MlflowClient(server)).version(alias="champion")
    running = started(repository, python, work, "--model", "champion", MLFLOW_TRACKING_URI=server)
    with running as address, urllib.request.urlopen(f"{address}/model") as answer:  # noqa: S310 (http)
        found = json.load(answer)
    assert (found["version"], found["sha256"]) == (champion.number, champion.sha256)
    packages = {path.name.lower() for path in (tmp_path / "venv").glob("lib/python*/site-packages/*")}
    assert "flask" not in packages
