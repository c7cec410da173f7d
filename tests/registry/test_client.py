"""The registry says what there is, and what to do where it is not."""

import shutil
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from convoy.core.errors import RequestError
from convoy.registry import artifacts
from convoy.registry.artifacts import Gone
from convoy.registry.client import CANDIDATE, CHAMPION, Registry, RegistryError
from convoy.registry.refusal import account
from proxy import Proxy
from registry_project import Shop, write_proven


def test_nothing_is_known_of_a_model_that_is_not_registered_yet(shop: Shop) -> None:
    registry = shop.registry
    assert registry.alias(CHAMPION) is None
    assert registry.versions() == []
    assert registry.by_sha256("a" * 64) is None
    with pytest.raises(RequestError, match=r"convoy has no version 1; there are: none"):
        registry.version("1")


@pytest.mark.parametrize("backend", ["shop", "served_shop"])
def test_versions_are_found_by_number_alias_and_bytes(backend: str, request: pytest.FixtureRequest) -> None:
    shop = request.getfixturevalue(backend)
    first, second = shop.versions(2)
    registry = shop.registry
    registry.point(CANDIDATE, second)
    assert registry.alias(CANDIDATE) == second
    assert registry.alias(CHAMPION) is None
    assert registry.versions() == [first, second]
    assert registry.by_sha256(first.sha256) == first
    registry.tag(first, {"gate.verdict": "keep"})
    assert registry.version("1").tags["gate.verdict"] == "keep"
    assert str(second) == f"{registry.model}/2"


def test_ten_versions_are_in_the_order_of_their_numbers(shop: Shop) -> None:
    assert [one.number for one in [shop.versions(11), shop.registry.versions()][1]][-2:] == ["10", "11"]


def test_deleting_a_version_takes_its_alias_away(shop: Shop) -> None:
    [only] = shop.versions(1)
    shop.registry.point(CHAMPION, only)
    shop.client.delete_model_version("convoy", "1")
    assert shop.registry.alias(CHAMPION) is None


def test_an_alias_that_points_nowhere_is_named_with_its_repair(shop: Shop) -> None:
    [only] = shop.versions(1)
    for alias, remedy in ((CHAMPION, "convoy rollback --to VERSION"), (CANDIDATE, "convoy register")):
        shop.registry.point(alias, only)
        shop.point_nowhere(alias)
        with pytest.raises(
            RegistryError,
            match=rf"the alias {alias} of convoy at sqlite:.* points to version 99, .* there are: 1. .*{remedy}",
        ):
            shop.registry.alias(alias)


def test_a_registry_that_does_not_answer_is_named_with_what_to_do(served_shop: Shop, through: Proxy) -> None:
    through.refuse()
    with pytest.raises(
        RegistryError,
        match=rf"{through.uri} did not answer when asked to read the registered model .*\nStart its server",
    ):
        served_shop.registry.alias(CHAMPION)


def test_an_account_without_permission_is_named_with_what_to_ask_for(
    served_shop: Shop, through: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    [only] = served_shop.versions(1)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    through.forbid("registered-models/alias")
    with pytest.raises(RegistryError) as refused:
        served_shop.registry.point(CHAMPION, only)
    said = str(refused.value)
    assert f"the account `anna` may not move the alias champion to {only} at {through.uri}" in said
    assert (
        f"Ask whoever runs the server for the permission EDIT on the registered model `{only.model}`" in said
    )
    assert "geheim" not in said


def test_an_account_that_the_server_does_not_know_is_told_how_to_name_one(
    served_shop: Shop, through: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    through.forbid("registered-models/get", 401)
    with pytest.raises(
        RegistryError,
        match=r"does not let somebody without an account .* in, .*\nAn account is named by MLFLOW_",
    ):
        served_shop.registry.alias(CHAMPION)


def test_a_store_file_that_may_not_be_written_is_said(shop: Shop) -> None:
    said = str(shop.registry.failure("move it", MlflowException("attempt to write a readonly database")))
    assert said.startswith("this user may not move it in sqlite:///")
    assert "give you the right to write it and its folder" in said


def test_a_refusal_is_told_from_silence(shop: Shop) -> None:
    refused = MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)
    assert f"{shop.registry.address} refused to move it: " in str(shop.registry.failure("move it", refused))


def test_an_account_is_named_by_what_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert account("http://host").startswith("somebody without an account")
    assert account("http://otto:secret@host") == "the account `otto`"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    assert account("http://host") == "the account of MLFLOW_TRACKING_TOKEN"


@pytest.mark.parametrize("backend", ["shop", "served_shop"])
def test_a_version_is_fetched_byte_for_byte_with_what_is_kept_beside_it(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shop = request.getfixturevalue(backend)
    [only] = shop.versions(1)
    folder = artifacts.fetch(shop.registry, only, tmp_path / "here")
    made = shop.folder / "made" / only.run_id
    for name in ("model.onnx", "verification.json", "model_card.md", "images.parquet"):
        assert (folder / name).read_bytes() == (made / name).read_bytes()


def test_the_workspace_s_file_is_taken_where_it_is_the_same(
    served_shop: Shop, through: Proxy, tmp_path: Path
) -> None:
    [only] = served_shop.versions(1)
    registry = served_shop.registry
    shutil.copytree(served_shop.folder / "made" / only.run_id, served_shop.deploy)
    through.refuse()
    assert (artifacts.fetch(registry, only, tmp_path / "here") / "images.parquet").exists()
    (served_shop.deploy / "verification.json").write_text("{")
    with pytest.raises(RegistryError, match=r"did not answer when asked to say where"):
        artifacts.fetch(registry, only, tmp_path / "there")


def test_a_file_that_is_gone_or_changed_is_told_from_a_store_that_does_not_answer(
    shop: Shop, tmp_path: Path
) -> None:
    first, second, third = shop.versions(3)
    shop.lose(shop.client.get_run(first.mlflow_run_id))
    with pytest.raises(Gone, match=r"model.onnx of convoy/1 is not in the store any more"):
        artifacts.fetch(shop.registry, first, tmp_path / "1")
    shop.stored(shop.client.get_run(second.mlflow_run_id)).write_bytes(b"other")
    with pytest.raises(Gone, match=r"model.onnx of convoy/2 has other bytes in the store .* instead of"):
        artifacts.fetch(shop.registry, second, tmp_path / "2")
    stored = shop.stored(shop.client.get_run(third.mlflow_run_id))
    stored.unlink()
    stored.symlink_to("nowhere")
    with pytest.raises(Gone, match=r"model.onnx of convoy/3 "):
        artifacts.fetch(shop.registry, third, tmp_path / "3")
    stranger = shop.client.create_model_version("convoy", (tmp_path / "x").as_uri())
    with pytest.raises(Gone, match=r"convoy/4 was not registered by Convoy: it has no sha256"):
        artifacts.fetch(shop.registry, shop.registry.version(str(stranger.version)), tmp_path / "4")


def test_a_file_that_a_server_lists_but_does_not_have_is_told_from_one_that_it_does_not_give(
    served_shop: Shop, through: Proxy, tmp_path: Path
) -> None:
    [only] = served_shop.versions(1)
    registry = served_shop.registry
    through.forbid("artifacts/model/model.onnx", 404)
    with pytest.raises(Gone, match=r"model.onnx of .* is listed in the store, but is not there"):
        artifacts.fetch(registry, only, tmp_path / "1")
    through.forbid("artifacts/model/model.onnx", 503)
    with pytest.raises(RegistryError, match=r"did not answer when asked to read model.onnx of"):
        artifacts.fetch(registry, only, tmp_path / "2")
    through.forbid("artifacts/model/model.onnx", 403)
    with pytest.raises(RegistryError, match=r"somebody without an account .* may not read model.onnx of"):
        artifacts.fetch(registry, only, tmp_path / "3")


def test_a_store_of_another_mlflow_is_refused(shop: Shop) -> None:
    (shop.folder / "mlflow.db").write_text("no database at all, but long enough for one" * 10)
    with pytest.raises(RequestError, match=r"mlflow.db is no database"):
        Registry.open()


def test_a_folder_holds_a_model_only_with_the_proof_of_its_bytes(tmp_path: Path) -> None:
    sha256 = write_proven(tmp_path / "deploy", "run-1")
    assert artifacts.holds(tmp_path / "deploy", sha256)
    assert not artifacts.holds(tmp_path / "deploy", "0" * 64)
    (tmp_path / "deploy/verification.json").write_text('{"model": []}')
    assert not artifacts.holds(tmp_path / "deploy", sha256)
    (tmp_path / "deploy/verification.json").unlink()
    assert not artifacts.holds(tmp_path / "deploy", sha256)
