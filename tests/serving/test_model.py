"""Which model is served: files, versions and runs, and what is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fixed_models
from convoy.core import files
from convoy.core.errors import RequestError, VerificationError
from convoy.registry.client import RegistryError
from convoy.registry.register import VerifiedModel
from convoy.serving import model as served_model
from convoy.serving.model import default_source, open_model
from convoy.tracking import store
from registry_project import CLASSES, MemoryClient, RegistryProject, write_verified


@pytest.fixture
def project(workspace, monkeypatch):
    """A repository whose store is in memory."""
    client = MemoryClient(workspace / "stored")
    monkeypatch.setattr(store, "connect", lambda *_: client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://memory.example")
    return RegistryProject(workspace, client)


def write_golden(folder, number=1, probability=0.9):
    """Write a golden image and the probability that the model must answer."""
    content = fixed_models.png(number)
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    (folder / "golden/00.png").write_bytes(content)
    rest = (1 - probability) / 2
    probabilities = [rest, rest, rest]
    probabilities[number] = probability
    image = {
        "file": "00.png",
        "sha256": files.sha256(folder / "golden/00.png"),
        "probabilities": probabilities,
    }
    facts = {"classes": CLASSES, "max_probability_gap": 1e-4, "background": "white", "images": [image]}
    files.write_json(folder / "golden/golden.json", facts)


def test_a_file_is_served_as_what_it_states(tmp_path):
    sha256 = write_verified(tmp_path / "deploy", "run-7")
    path = tmp_path / "deploy/model.onnx"
    served = open_model(str(path))
    assert (served.name, served.version, served.run_id, served.sha256) == (str(path), "", "run-7", sha256)
    assert served.folder == path.parent
    probabilities = served.predict([fixed_models.image_u8(2), np.zeros((3, 5, 3), np.uint8)])
    assert CLASSES[probabilities[0].argmax()] == "x"


def test_a_service_opens_a_fast_model_once_more_without_threads(tmp_path, monkeypatch):
    write_verified(tmp_path / "deploy", "run-7")
    path = str(tmp_path / "deploy/model.onnx")
    assert open_model(path).single is None, "nobody shares it"
    served = open_model(path, shared=True, threads=2)
    assert served.single is not None
    image_u8 = fixed_models.image_u8(2)
    np.testing.assert_array_equal(served.predict_single([image_u8]), served.predict([image_u8]))
    monkeypatch.setattr(served_model, "_fastest_ms", lambda _: 1.1)
    assert open_model(path, shared=True).single is None


@pytest.mark.parametrize("name", ["no.onnx", "folder", "empty.onnx"])
def test_what_is_no_model_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.onnx").touch()
    with pytest.raises((RequestError, VerificationError), match=name):
        open_model(str(tmp_path / name))


def test_a_file_that_is_not_the_verified_one_is_refused(tmp_path):
    write_verified(tmp_path, "run-7")
    fixed_models.write_onnx(tmp_path / "model.onnx", CLASSES, ["cat"])
    with pytest.raises(
        VerificationError, match=r"verification\.json describes.*dvc checkout --force"
    ) as caught:
        open_model(str(tmp_path / "model.onnx"))
    assert files.sha256(tmp_path / "model.onnx")[:12] in str(caught.value)
    shutil.copy(tmp_path / "model.onnx", tmp_path / "other.onnx")  # the verification does not describe it
    open_model(str(tmp_path / "other.onnx"))


def test_golden_images_decide_whether_a_file_is_served(tmp_path):
    write_verified(tmp_path, "run-7")
    write_golden(tmp_path)
    open_model(str(tmp_path / "model.onnx"))
    write_golden(tmp_path, probability=0.7)
    with pytest.raises(VerificationError, match=r"1 of 1 golden images.*00\.png"):
        open_model(str(tmp_path / "model.onnx"))


def test_a_provider_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    write_verified(tmp_path, "run-7")
    with pytest.raises(RequestError, match=r"serve\.providers is TPU.*CPUExecutionProvider"):
        open_model(str(tmp_path / "model.onnx"), providers="TPU")
    assert open_model(str(tmp_path / "model.onnx")).model.providers == ("CPUExecutionProvider",)


def test_a_provider_that_answers_differently_is_not_used(tmp_path, monkeypatch, caplog):
    write_verified(tmp_path, "run-7")
    monkeypatch.setattr(served_model, "AUTO", ("AzureExecutionProvider", "CPUExecutionProvider"))
    available = ["AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(served_model.onnxruntime, "get_available_providers", lambda: available)

    def differs(*_):
        raise VerificationError("its probabilities differ from the CPU's by up to 0.5")

    monkeypatch.setattr(served_model, "_compare_with_cpu", differs)
    assert open_model(str(tmp_path / "model.onnx")).model.providers == ("CPUExecutionProvider",)
    assert "AzureExecutionProvider is not used: its probabilities differ" in caplog.text


def test_the_champion_and_a_version_come_from_the_registry_once(project, monkeypatch):
    first = project.version(alias="champion")
    second = project.version()
    served = open_model("champion")
    assert (served.name, served.version, served.sha256) == (str(first), "1", first.sha256)
    assert (served.folder / "model_card.md").is_file()
    assert open_model("2").sha256 == second.sha256
    shutil.rmtree(project.client.folder, ignore_errors=True)
    shutil.rmtree(project.folder / "made")
    monkeypatch.setattr("convoy.registry.client.ModelArtifacts.of", None)
    assert open_model("champion").sha256 == first.sha256  # from the cache


@pytest.mark.parametrize("where", ["fetched", "workspace"])
def test_the_model_of_a_run_is_served(project, monkeypatch, where):
    asked = []

    def of_run(registry, query, folder):
        asked.append((registry.model, query))
        target = folder if where == "fetched" else project.deploy
        write_verified(target, "run-7")
        return VerifiedModel.read(target), "convnet"

    monkeypatch.setattr("convoy.registry.register.of_run", of_run)
    served = open_model("runs:/run-7")
    assert asked == [("convoy", "run-7")]
    assert (served.name, served.version, served.run_id) == ("runs:/run-7", "", "run-7")
    inside = served_model.CACHE / served.sha256 if where == "fetched" else project.deploy
    assert served.folder.resolve() == inside.resolve()
    assert (inside / "verification.json").is_file()


def test_a_cached_model_that_was_changed_is_fetched_again(project):
    version = project.version(alias="champion")
    folder = open_model("champion").folder
    (folder / "model.onnx").write_bytes(b"other")
    assert open_model("champion").sha256 == version.sha256


def test_a_version_that_answers_other_than_its_golden_images_is_refused(project):
    version = project.version(alias="champion")
    folder = open_model("champion").folder
    write_golden(folder, probability=0.5)
    with pytest.raises(VerificationError, match=f"{version} does not answer 1 of 1 golden images"):
        open_model("champion")


def test_what_the_registry_does_not_have_is_named(project):
    with pytest.raises(RequestError, match=r"no champion.*convoy promote"):
        open_model("champion")
    project.version()
    with pytest.raises(RequestError, match=r"no version 7; versions: 1"):
        open_model("7")
    lost = project.version(alias="champion", files=False)
    with pytest.raises(RegistryError, match=f"{lost}.*convoy serve --model VERSION"):
        open_model("champion")


def test_the_cache_keeps_the_models_that_were_used_last(project, tmp_path):
    versions = project.versions(7)
    for version in versions:
        open_model(version.number, cache=tmp_path / "cache")
    assert {folder.name for folder in (tmp_path / "cache").iterdir()} == {
        version.sha256 for version in versions[2:]
    }


def test_without_a_model_that_is_named_the_champion_is_served_if_there_is_one(project, monkeypatch):
    assert default_source() == "build/deploy/model.onnx"
    project.version(alias="champion")
    assert default_source() == "champion"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert default_source() == "build/deploy/model.onnx"  # the repository has no store


FILE_ALONE = """
import json, sys
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from convoy.serving.server import serve_params
create_app(open_model(sys.argv[1]), serve_params())
print(json.dumps([name for name in ("torch", "mlflow", "dvc", "pandas", "matplotlib", "scipy") if name in sys.modules]))
"""


def test_a_file_is_served_without_torch_and_mlflow(tmp_path):
    write_verified(tmp_path, "run-7")
    command = [sys.executable, "-c", FILE_ALONE, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == []
