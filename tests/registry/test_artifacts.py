"""A version's files are downloaded byte for byte, or reported as missing."""

import shutil
from pathlib import Path

import pytest

from convoy.registry import artifacts
from convoy.registry.artifacts import ArtifactMissing
from convoy.registry.client import RegistryError
from proxy import Proxy
from registry_project import RegistryProject, write_verified


@pytest.mark.parametrize("backend", ["project", "server_project"])
def test_a_version_is_fetched_byte_for_byte_with_what_is_kept_beside_it(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    project = request.getfixturevalue(backend)
    [only] = project.versions(1)
    folder = artifacts.fetch(project.registry, only, tmp_path / "here")
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
    assert (artifacts.fetch(registry, only, tmp_path / "here") / "images.parquet").exists()
    (server_project.deploy / "verification.json").write_text("{")
    with pytest.raises(RegistryError, match=r"did not answer the request to locate the files"):
        artifacts.fetch(registry, only, tmp_path / "there")


def test_a_missing_or_changed_file_is_reported_as_missing(project: RegistryProject, tmp_path: Path) -> None:
    first, second, third = project.versions(3)
    project.stored(first).unlink()
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/1 is no longer in the store"):
        artifacts.fetch(project.registry, first, tmp_path / "1")
    project.stored(second).write_bytes(b"other")
    with pytest.raises(
        ArtifactMissing, match=r"model.onnx of convoy/2 has other bytes in the store .* instead of"
    ):
        artifacts.fetch(project.registry, second, tmp_path / "2")
    stored = project.stored(third)
    stored.unlink()
    stored.symlink_to("nowhere")
    with pytest.raises(ArtifactMissing, match=r"model.onnx of convoy/3 "):
        artifacts.fetch(project.registry, third, tmp_path / "3")
    stranger = project.client.create_model_version("convoy", (tmp_path / "x").as_uri())
    with pytest.raises(ArtifactMissing, match=r"convoy/4 was not registered by Convoy: it has no sha256"):
        artifacts.fetch(project.registry, project.registry.version(str(stranger.version)), tmp_path / "4")


def test_a_file_that_a_server_lists_but_does_not_have_is_missing_and_one_that_it_refuses_is_an_error(
    server_project: RegistryProject, through: Proxy, tmp_path: Path
) -> None:
    [only] = server_project.versions(1)
    registry = server_project.registry
    through.forbid("artifacts/model/model.onnx", 404)
    with pytest.raises(ArtifactMissing, match=r"model.onnx of .* is listed in the store, but missing"):
        artifacts.fetch(registry, only, tmp_path / "1")
    through.forbid("artifacts/model/model.onnx", 503)
    with pytest.raises(RegistryError, match=r"did not answer the request to read model.onnx of"):
        artifacts.fetch(registry, only, tmp_path / "2")
    through.forbid("artifacts/model/model.onnx", 403)
    with pytest.raises(RegistryError, match=r"requests without an account .* may not read model.onnx of"):
        artifacts.fetch(registry, only, tmp_path / "3")


def test_a_folder_holds_a_model_only_with_the_verification_of_its_bytes(tmp_path: Path) -> None:
    sha256 = write_verified(tmp_path / "deploy", "run-1")
    assert artifacts.is_verified(tmp_path / "deploy", sha256)
    assert not artifacts.is_verified(tmp_path / "deploy", "0" * 64)
    (tmp_path / "deploy/verification.json").write_text('{"model": []}')
    assert not artifacts.is_verified(tmp_path / "deploy", sha256)
    (tmp_path / "deploy/verification.json").unlink()
    assert not artifacts.is_verified(tmp_path / "deploy", sha256)
