"""Versions, aliases and files of the registered model; what to do where the registry lacks them or does not answer."""

import shutil
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from convoy.core.errors import RequestError
from convoy.registry.client import (
    CANDIDATE,
    CHAMPION,
    ArtifactMissing,
    Registry,
    RegistryError,
    account,
    fetch,
    is_verified,
)
from proxy import Proxy
from registry_project import RegistryProject, write_verified


def test_a_model_that_is_not_registered_has_no_versions(project: RegistryProject) -> None:
    registry = project.registry
    assert registry.alias(CHAMPION) is None
    assert registry.versions() == []
    assert registry.by_sha256("a" * 64) == []
    with pytest.raises(RequestError, match=r"convoy has no version 1; versions: none"):
        registry.version("1")


@pytest.mark.parametrize("backend", ["project", "server_project"])
def test_versions_are_found_by_number_alias_and_bytes(backend: str, request: pytest.FixtureRequest) -> None:
    project = request.getfixturevalue(backend)
    first, second = project.versions(2)
    registry = project.registry
    registry.point(CANDIDATE, second)
    assert registry.alias(CANDIDATE) == second
    assert registry.alias(CHAMPION) is None
    assert registry.versions() == [first, second]
    assert registry.by_sha256(first.sha256) == [first]
    registry.tag(first, {"gate.verdict": "keep"})
    assert registry.version("1").tags["gate.verdict"] == "keep"
    assert str(second) == f"{registry.model}/2"


def test_ten_versions_are_in_the_order_of_their_numbers(project: RegistryProject) -> None:
    assert [one.number for one in [project.versions(11), project.registry.versions()][1]][-2:] == ["10", "11"]


def test_deleting_a_version_takes_its_alias_away(project: RegistryProject) -> None:
    [only] = project.versions(1)
    project.registry.point(CHAMPION, only)
    project.client.delete_model_version("convoy", "1")
    assert project.registry.alias(CHAMPION) is None


def test_an_alias_that_points_nowhere_is_named_with_its_repair(project: RegistryProject) -> None:
    [only] = project.versions(1)
    for alias, remedy in ((CHAMPION, "convoy rollback --to VERSION"), (CANDIDATE, "convoy register")):
        project.registry.point(alias, only)
        project.point_nowhere(alias)
        with pytest.raises(
            RegistryError,
            match=rf"the alias {alias} of convoy at sqlite:.* points to version 99, .*; versions: 1. .*{remedy}",
        ):
            project.registry.alias(alias)


def test_a_registry_that_does_not_answer_is_named_with_what_to_do(
    server_project: RegistryProject, through: Proxy
) -> None:
    through.refuse()
    with pytest.raises(
        RegistryError,
        match=rf"{through.uri} did not answer the request to read the registered model .*\nStart its server",
    ):
        server_project.registry.alias(CHAMPION)


def test_an_account_without_permission_is_named_with_what_to_ask_for(
    server_project: RegistryProject, through: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    [only] = server_project.versions(1)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    through.forbid("registered-models/alias")
    with pytest.raises(RegistryError) as refused:
        server_project.registry.point(CHAMPION, only)
    text = str(refused.value)
    assert f"the account `anna` may not move the alias champion to {only} at {through.uri}" in text
    assert f"the permission EDIT on the registered model `{only.model}`" in text
    assert "geheim" not in text


def test_a_rejected_login_names_the_variables_of_the_account(
    server_project: RegistryProject, through: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    through.forbid("registered-models/get", 401)
    with pytest.raises(
        RegistryError,
        match=r"rejects requests without an account .*\nSet MLFLOW_TRACKING_USERNAME",
    ):
        server_project.registry.alias(CHAMPION)


def test_a_store_file_without_write_permission_is_reported(project: RegistryProject) -> None:
    text = str(project.registry.failure("move it", MlflowException("attempt to write a readonly database")))
    assert text.startswith("this user may not move it in sqlite:///")
    assert "grant write access to it and its folder" in text


def test_a_refusal_is_not_reported_as_a_missing_answer(project: RegistryProject) -> None:
    refused = MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)
    assert f"{project.registry.address} refused to move it: " in str(
        project.registry.failure("move it", refused)
    )


def test_an_account_is_named_by_what_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert account("http://host").startswith("requests without an account")
    assert account("http://otto:secret@host") == "the account `otto`"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    assert account("http://host") == "the account of MLFLOW_TRACKING_TOKEN"


def test_a_store_of_another_mlflow_is_refused(project: RegistryProject) -> None:
    (project.folder / "mlflow.db").write_text("no database at all, but long enough for one" * 10)
    with pytest.raises(RequestError, match=r"mlflow.db is not a database"):
        Registry.open()


# Files of a version


@pytest.mark.parametrize("backend", ["project", "server_project"])
def test_a_version_is_fetched_byte_for_byte_with_what_is_kept_beside_it(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    project = request.getfixturevalue(backend)
    [only] = project.versions(1)
    folder = fetch(project.registry, only, tmp_path / "here")
    made = project.folder / "made" / only.run_id
    for name in ("model.onnx", "verification.json", "model_card.md", "images.parquet"):
        assert (folder / name).read_bytes() == (made / name).read_bytes()


def test_the_same_file_in_the_workspace_is_copied_instead(
    server_project: RegistryProject, through: Proxy, tmp_path: Path
) -> None:
    [only] = server_project.versions(1)
    registry = server_project.registry
    shutil.copytree(server_project.folder / "made" / only.run_id, server_project.deploy)
    through.refuse()
    assert (fetch(registry, only, tmp_path / "here") / "images.parquet").exists()
    (server_project.deploy / "verification.json").write_text("{")
    with pytest.raises(RegistryError, match=r"did not answer the request to locate the files"):
        fetch(registry, only, tmp_path / "there")


def test_a_missing_or_changed_file_is_reported_as_missing(project: RegistryProject, tmp_path: Path) -> None:
    first, second, third = project.versions(3)
    project.stored(first).unlink()
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/1 is no longer in the store"):
        fetch(project.registry, first, tmp_path / "1")
    project.stored(second).write_bytes(b"other")
    with pytest.raises(
        ArtifactMissing, match=r"model.onnx of convoy/2 has other bytes in the store .* instead of"
    ):
        fetch(project.registry, second, tmp_path / "2")
    stored = project.stored(third)
    stored.unlink()
    stored.symlink_to("nowhere")
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/3 "):
        fetch(project.registry, third, tmp_path / "3")
    stranger = project.client.create_model_version("convoy", (tmp_path / "x").as_uri())
    with pytest.raises(ArtifactMissing, match=r"convoy/4 was not registered by Convoy: it has no sha256"):
        fetch(project.registry, project.registry.version(str(stranger.version)), tmp_path / "4")


def test_a_file_that_a_server_lists_but_does_not_have_is_missing_and_one_that_it_refuses_is_an_error(
    server_project: RegistryProject, through: Proxy, tmp_path: Path
) -> None:
    [only] = server_project.versions(1)
    registry = server_project.registry
    through.forbid("artifacts/model/model.onnx", 404)
    with pytest.raises(ArtifactMissing, match=r"model.onnx of .* is listed in the store, but missing"):
        fetch(registry, only, tmp_path / "1")
    through.forbid("artifacts/model/model.onnx", 503)
    with pytest.raises(RegistryError, match=r"did not answer the request to read model.onnx of"):
        fetch(registry, only, tmp_path / "2")
    through.forbid("artifacts/model/model.onnx", 403)
    with pytest.raises(RegistryError, match=r"requests without an account .* may not read model.onnx of"):
        fetch(registry, only, tmp_path / "3")


def test_a_folder_holds_a_model_only_with_the_verification_of_its_bytes(tmp_path: Path) -> None:
    sha256 = write_verified(tmp_path / "deploy", "run-1")
    assert is_verified(tmp_path / "deploy", sha256)
    assert not is_verified(tmp_path / "deploy", "0" * 64)
    (tmp_path / "deploy/verification.json").write_text('{"model": []}')
    assert not is_verified(tmp_path / "deploy", sha256)
    (tmp_path / "deploy/verification.json").unlink()
    assert not is_verified(tmp_path / "deploy", sha256)
