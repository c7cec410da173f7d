"""Runs and registered models as sources of weights: resolved, or refused with what exists instead."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.core.errors import NetworkError, RequestError
from convoy.tracking import lookup, store
from tracking_store import uri

FILES = ("weights.pt", "model.json")


@pytest.fixture(scope="module")
def filled(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Make a store with three runs, of which the last lacks a file, and versions of the others; return its folder and runs."""
    folder = tmp_path_factory.mktemp("lookup")
    shutil.copy(empty_store, folder / "mlflow.db")
    client = MlflowClient(uri(folder))
    experiment = client.create_experiment("e", artifact_location=(folder / "a rtifacts").as_uri())
    runs = [client.create_run(experiment, run_name="trained").info.run_id for _ in range(3)]
    for run, file in [(run, file) for run in runs for file in FILES][:-1]:
        (folder / file).write_text(file)
        client.log_artifact(run, str(folder / file), "weights")
    for name in ("convoy", "other"):
        client.create_registered_model(name)
    for run in (*runs[:2], None):
        client.create_model_version("convoy", "somewhere", run)
    client.set_registered_model_alias("convoy", "champion", "1")
    return folder, runs


@pytest.fixture
def runs(filled: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(filled[0]))
    return filled[1]


def test_a_run_leads_to_its_artifacts_and_they_can_be_fetched(filled, runs, tmp_path):
    logged = lookup.find(f"runs:/{runs[0]}", FILES)
    assert logged.resolved == f"runs:/{runs[0]}"
    assert logged.folder == filled[0] / "a rtifacts" / runs[0] / "artifacts" / "weights"
    assert (logged.address, logged.secret) == (str(logged.folder), False)
    logged.download(tmp_path / "out" / "here")
    assert sorted(path.name for path in (tmp_path / "out" / "here").iterdir()) == sorted(FILES)


def test_a_version_and_an_alias_lead_to_the_run_that_made_them(runs):
    champion = lookup.find("models:/convoy@champion", FILES)
    assert (champion.resolved, champion.run) == ("models:/convoy/1", runs[0])
    assert lookup.find("models:/convoy/2", FILES).run == runs[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("runs:/0badc0de", r"has no run `0badc0de`; the latest are: (\w{32} \(trained\)(, )?){3}"),
        ("models:/convoi@champion", r"no registered model `convoi`; did you mean `convoy`\?"),
        ("models:/convoy@champoin", r"convoy has no alias `champoin`; did you mean `champion`\?"),
        ("models:/other@champion", "other has no alias `champion`; it has none"),
        ("models:/convoy/7", "convoy has the versions 1, 2, 3$"),
        ("models:/other/1", "other has the versions none$"),
    ],
)
def test_an_unknown_source_is_refused_with_what_exists(runs, source, message):
    with pytest.raises(RequestError, match=message) as caught:
        lookup.find(source, FILES)
    assert store.uri() in str(caught.value)


def test_lookups_in_an_empty_store_are_refused(client):
    with pytest.raises(RequestError, match="has no run `12`; the latest are: none"):
        lookup.find("runs:/12", FILES)
    with pytest.raises(RequestError, match="has no `models:/convoy/1`: no model is registered there"):
        lookup.find("models:/convoy/1", FILES)


def test_a_run_without_weights_and_a_version_without_a_run_are_refused(runs):
    message = rf"run {runs[2]} has no weights\.pt and model\.json among its artifacts in weights/.* dvc repro --force train"
    with pytest.raises(NetworkError, match=message):
        lookup.find(f"runs:/{runs[2]}", FILES)
    with pytest.raises(NetworkError, match="models:/convoy/3 does not name the run"):
        lookup.find("models:/convoy/3", FILES)


@pytest.mark.parametrize("source", ["runs:/12", "models:/convoy@champion"])
def test_a_server_that_is_down_is_named(monkeypatch, source):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    message = rf"cannot look up {source}: the tracking store http://127\.0\.0\.1:9 does not answer: .*\nStart the tracking server, or set MLFLOW"
    with pytest.raises(NetworkError, match=message):
        lookup.find(source, FILES)


def test_missing_artifacts_are_an_error(client, tmp_path):
    with pytest.raises(NetworkError, match="cannot fetch the artifacts of run 12: "):
        lookup.LoggedWeights("runs:/12", "12", None, "").download(tmp_path / "out")


SERVED = "https://runs.example/api/2.0/mlflow-artifacts/artifacts"


@pytest.mark.parametrize(
    ("scheme", "base", "secret"), [("s3://bucket", "s3://bucket", False), ("mlflow-artifacts:", SERVED, True)]
)
def test_artifacts_elsewhere_have_an_address_without_a_password(monkeypatch, scheme, base, secret):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@runs.example")
    logged = lookup._locate("runs:/12", "12", f"{scheme}/0/12/artifacts")
    assert (logged.folder, logged.secret) == (None, secret)
    assert logged.address == f"{base}/0/12/artifacts/weights"
