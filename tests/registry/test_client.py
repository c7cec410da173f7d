"""Versions, aliases and files of the registered model; what to do where the registry lacks them or does not answer."""

import shutil
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from convoy.core.errors import RequestError
from convoy.registry import client
from convoy.registry.client import CANDIDATE, CHAMPION, ArtifactMissing, Registry, RegistryError, fetch
from convoy.tracking.store_file import StoreFileError
from registry_project import write_verified


def test_a_model_that_is_not_registered_has_no_versions(project):
    registry = project.registry
    assert registry.alias(CHAMPION) is None
    assert registry.versions() == []
    assert registry.by_sha256("a" * 64) == []
    with pytest.raises(RequestError, match=r"convoy has no version 1; versions: none"):
        registry.version("1")


def test_versions_are_found_by_number_alias_and_bytes(any_project):
    first, second = any_project.versions(2)
    registry = any_project.registry
    registry.point(CANDIDATE, second)
    assert registry.alias(CANDIDATE) == second
    assert registry.alias(CHAMPION) is None
    assert registry.versions() == [first, second]
    assert registry.by_sha256(first.sha256) == [first]
    registry.tag(first, {"gate.verdict": "keep"})
    assert registry.version("1").tags["gate.verdict"] == "keep"
    assert str(second) == f"{registry.model}/2"


def test_versions_are_in_the_order_of_their_numbers(memory):
    made = memory.versions(11, files=False)
    assert memory.registry.versions() == made


def test_an_alias_that_points_nowhere_is_named_with_its_repair(memory):
    memory.version(files=False)
    for alias, remedy in ((CHAMPION, "convoy rollback --to VERSION"), (CANDIDATE, "convoy register")):
        memory.client.aliases[alias] = "99"
        named = rf"the alias {alias} of convoy at memory points to version 99, .*; versions: 1. .*{remedy}"
        with pytest.raises(RegistryError, match=named):
            memory.registry.alias(alias)


def test_a_server_that_does_not_answer_or_refuses_is_named(server_project, through, monkeypatch):
    version = server_project.version(files=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    through.forbid("registered-models/alias")
    act = rf"the account `anna` may not move the alias champion to {version} at {through.uri}"
    with pytest.raises(RegistryError, match=rf"{act}.*\s.*EDIT on .* model `{version.model}`") as refused:
        server_project.registry.point(CHAMPION, version)
    assert "geheim" not in str(refused.value)
    through.forbid("registered-models/get", 401)
    with pytest.raises(RegistryError, match=r"rejects the account `anna`.*\nSet MLFLOW_TRACKING_USERNAME"):
        server_project.registry.alias(CHAMPION)
    through.refuse()
    with pytest.raises(RegistryError, match=rf"{through.uri} did not answer the request to read the regist"):
        server_project.registry.alias(CHAMPION)


@pytest.mark.parametrize(
    ("uri", "code", "message", "facts"),
    [
        ("sqlite:///x.db", codes.INTERNAL_ERROR, "a readonly database", ["this user may not move it", "write access"]),
        ("http://host", codes.UNAUTHENTICATED, "", ["http://host rejects requests", "Set MLFLOW_TRACKING_USERNAME"]),
        ("http://host", codes.PERMISSION_DENIED, "", ["requests without an account", "may not move it", "EDIT"]),
        ("http://host", codes.INVALID_PARAMETER_VALUE, "no such thing", ["http://host refused to move it: no such thing"]),
        ("http://host", codes.INTERNAL_ERROR, "lost", ["http://host did not answer the request to move it", "Start its"]),
    ],
)  # fmt: skip
def test_errors_of_a_store_are_distinguished(uri, code, message, facts, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    registry = Registry(SimpleNamespace(tracking_uri=uri), "convoy")
    text = str(registry.failure("move it", MlflowException(message, error_code=code)))
    assert all(fact in text for fact in facts), text


def test_an_account_is_named_by_its_variable_or_address(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    assert client.account("http://otto:secret@host") == "the account `otto`"
    assert client.account("http://host") == "the account of MLFLOW_TRACKING_TOKEN"


def test_a_store_of_another_mlflow_is_refused(workspace):
    (workspace / "mlflow.db").write_text("no database at all, but long enough" * 10)
    with pytest.raises(StoreFileError, match=r"mlflow.db is not a database"):
        Registry.open()


# Files of a version


def test_a_version_is_fetched_byte_for_byte_with_what_is_kept_beside_it(any_project, tmp_path):
    [only] = any_project.versions(1)
    folder = tmp_path / "here"
    fetch(any_project.registry, only, folder)
    made = any_project.folder / "made" / only.run_id
    for name in ("model.onnx", "verification.json", "model_card.md", "images.parquet", "baseline.json"):
        assert (folder / name).read_bytes() == (made / name).read_bytes()


def test_the_same_file_in_the_workspace_is_copied_instead(memory, tmp_path):
    version = memory.version()
    shutil.copytree(memory.folder / "made" / version.run_id, memory.deploy)
    memory.stored(version).unlink()
    fetch(memory.registry, version, tmp_path / "here")
    assert (tmp_path / "here/images.parquet").exists()
    (memory.deploy / "verification.json").write_text("{")
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/1 is no longer in the store"):
        fetch(memory.registry, version, tmp_path / "there")


def test_a_missing_or_changed_file_is_reported_as_missing(memory, tmp_path):
    first, second = memory.versions(2)
    memory.stored(first).write_bytes(b"other")
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/1 has other bytes in the store .* inst"):
        fetch(memory.registry, first, tmp_path / "1")
    stored = memory.stored(second)
    stored.unlink()
    stored.symlink_to("nowhere")
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/2 "):
        fetch(memory.registry, second, tmp_path / "2")
    memory.client.create_model_version("convoy", (tmp_path / "x").as_uri())
    with pytest.raises(ArtifactMissing, match=r"convoy/3 was not registered by Convoy: it has no sha256"):
        fetch(memory.registry, memory.registry.version("3"), tmp_path / "3")


def test_a_file_that_a_server_lists_is_missing_or_refused(server_project, through, tmp_path):
    [only] = server_project.versions(1)
    for status, error, message in (
        (404, ArtifactMissing, r"model.onnx of .* is listed in the store, but missing"),
        (503, RegistryError, r"did not answer the request to read model.onnx of"),
        (403, RegistryError, r"requests without an account .* may not read model.onnx of"),
    ):
        through.forbid("artifacts/model/model.onnx", status)
        with pytest.raises(error, match=message):
            fetch(server_project.registry, only, tmp_path / str(status))


def test_a_folder_holds_a_model_only_with_the_verification_of_its_bytes(tmp_path):
    sha256 = write_verified(tmp_path, "run-1")
    assert client.is_verified(tmp_path, sha256)
    assert not client.is_verified(tmp_path, "0" * 64)
    (tmp_path / "verification.json").write_text('{"model": []}')
    assert not client.is_verified(tmp_path, sha256)
    (tmp_path / "verification.json").unlink()
    assert not client.is_verified(tmp_path, sha256)
