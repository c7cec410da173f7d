"""Runs and registered models as sources of weights: resolved, or refused with what exists instead."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.core.errors import NetworkError, RequestError
from convoy.tracking import lookup, store

FILES = ("weights.pt", "model.json")


def run(client: MlflowClient, tmp_path: Path, files: tuple[str, ...] = FILES) -> str:
    name = f"e{len(client.search_experiments())}"
    experiment = client.create_experiment(name, artifact_location=(tmp_path / "a rtifacts").as_uri())
    run_id = str(client.create_run(experiment, run_name="first").info.run_id)
    for file in files:
        (tmp_path / file).write_text(file)
        client.log_artifact(run_id, str(tmp_path / file), "weights")
    return run_id


def test_a_run_leads_to_its_artifacts_and_they_can_be_fetched(client: MlflowClient, tmp_path: Path) -> None:
    run_id = run(client, tmp_path)
    found = lookup.find(f"runs:/{run_id}", FILES)
    assert found.resolved == f"runs:/{run_id}"
    assert found.folder == tmp_path / "a rtifacts" / run_id / "artifacts" / "weights"
    assert found.address == str(found.folder)
    found.download(tmp_path / "out" / "here")
    assert sorted(path.name for path in (tmp_path / "out" / "here").iterdir()) == sorted(FILES)


def test_a_version_and_an_alias_lead_to_the_run_that_made_them(client: MlflowClient, tmp_path: Path) -> None:
    client.create_registered_model("convoy")
    runs = [run(client, tmp_path) for _ in range(2)]
    for run_id in runs:
        client.create_model_version("convoy", "somewhere", run_id)
    client.set_registered_model_alias("convoy", "champion", "1")
    champion = lookup.find("models:/convoy@champion", FILES)
    assert (champion.resolved, champion.run) == ("models:/convoy/1", runs[0])
    assert lookup.find("models:/convoy/2", FILES).run == runs[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("runs:/0badc0de", r"has no run `0badc0de`; the latest are: \w{32} \(first\)"),
        ("models:/convoi@champion", r"no registered model `convoi`; did you mean `convoy`\?"),
        ("models:/convoy@champoin", r"convoy has no alias `champoin`; did you mean `champion`\?"),
        ("models:/other@champion", "other has no alias `champion`; it has none"),
        ("models:/convoy/7", "convoy has the versions 1$"),
        ("models:/other/1", "other has the versions none$"),
    ],
)
def test_an_unknown_source_is_refused_with_what_exists(
    client: MlflowClient, tmp_path: Path, source: str, message: str
) -> None:
    run_id = run(client, tmp_path)
    for name in ("convoy", "other"):
        client.create_registered_model(name)
    client.create_model_version("convoy", "somewhere", run_id)
    client.set_registered_model_alias("convoy", "champion", "1")
    with pytest.raises(RequestError, match=message) as caught:
        lookup.find(source, FILES)
    assert store.uri() in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("runs:/12", "has no run `12`; the latest are: none"),
        ("models:/convoy/1", "has no `models:/convoy/1`: no model is registered there"),
    ],
)
def test_lookups_in_an_empty_store_are_refused(client: MlflowClient, source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        lookup.find(source, FILES)


def test_a_run_without_weights_is_refused(client: MlflowClient, tmp_path: Path) -> None:
    run_id = run(client, tmp_path, files=FILES[:1])
    with pytest.raises(
        NetworkError,
        match=rf"run {run_id} has no weights\.pt and model\.json among its artifacts in weights/: it failed before its "
        r"end, or was made before .* dvc repro --force train",
    ):
        lookup.find(f"runs:/{run_id}", FILES)


def test_a_version_without_a_run_is_refused(client: MlflowClient) -> None:
    client.create_registered_model("convoy")
    client.create_model_version("convoy", "somewhere")
    with pytest.raises(NetworkError, match="models:/convoy/1 does not name the run"):
        lookup.find("models:/convoy/1", FILES)


def test_a_server_that_is_down_is_named(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for source in ("runs:/12", "models:/convoy@champion"):
        with pytest.raises(
            NetworkError,
            match=rf"cannot look up {source}: http://127\.0\.0\.1:9 failed: .*\nStart the tracking server, or set "
            "MLFLOW_TRACKING_URI",
        ):
            lookup.find(source, FILES)


def test_missing_artifacts_are_an_error(client: MlflowClient, tmp_path: Path) -> None:
    found = lookup.find(f"runs:/{run(client, tmp_path)}", FILES)
    shutil.rmtree(tmp_path / "a rtifacts")
    with pytest.raises(NetworkError, match=rf"cannot fetch the artifacts of run {found.run}: "):
        found.download(tmp_path / "out")


@pytest.mark.parametrize(
    ("uri", "address", "secret"),
    [
        ("s3://bucket/0/12/artifacts", "s3://bucket/0/12/artifacts/weights", False),
        (
            "mlflow-artifacts:/0/12/artifacts",
            "https://runs.example/api/2.0/mlflow-artifacts/artifacts/0/12/artifacts/weights",
            True,
        ),
    ],
)
def test_artifacts_elsewhere_have_an_address_without_a_password(
    monkeypatch: pytest.MonkeyPatch, uri: str, address: str, *, secret: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@runs.example")
    found = lookup._locate("runs:/12", "12", uri)
    assert (found.folder, found.address, found.secret) == (None, address, secret)
