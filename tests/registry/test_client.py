"""The registry says what there is, and what to do where it is not."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from convoy.core.errors import RequestError
from convoy.registry.client import CANDIDATE, CHAMPION, Registry, RegistryError, account
from proxy import Proxy
from registry_project import RegistryProject


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
