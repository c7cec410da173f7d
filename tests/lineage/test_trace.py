"""`convoy trace`: whatever has an identity leads to its run, and the chain says what is there and what is missing."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.core.errors import RequestError
from convoy.core.files import sha256
from convoy.lineage import trace
from convoy.lineage.runs import StoreError
from convoy.tracking.journal import Journal
from small_pipeline import Small, write_onnx

FIRST = "20261123-100000-aaaaaa"
SECOND = "20261123-110000-bbbbbb"
FAILED = "20261124-090000-cccccc"
GONE = "deadbeef" * 5
DATA = "1f" * 32


def told(text: str) -> str:
    asked, places = trace.look(text, Path.cwd())
    return "\n".join(trace.lines(asked, places))


def found(text: str) -> list[str]:
    return [record.run_id for record in trace.look(text, Path.cwd())[0].records]


def chain(text: str) -> dict[str, dict]:
    [run] = trace.as_json(*trace.look(text, Path.cwd()))["runs"]
    return {link["name"]: link for link in run["chain"]}


def mlflow_id(traced: Small, run_id: str) -> str:
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    [run] = client.search_runs(["1"], f"tags.`convoy.run_id` = '{run_id}'")
    return run.info.run_id


@pytest.mark.parametrize(
    "text",
    [
        FIRST,
        "20261123-10",
        "convoy/1",
        "models:/convoy/2",
        "models:/convoy@champion",
        "convoy@champion",
        "champion",
        "b2" * 32,
        "b2b2b2b",
        "a1" * 32,
    ],
)
def test_every_name_of_a_run_leads_to_it(traced: Small, text: str) -> None:
    assert found(text) == [FIRST]


def test_mlflow_s_id_and_its_beginning_lead_to_the_run(traced: Small) -> None:
    number = mlflow_id(traced, FIRST)
    for text in (number, number[:8], f"runs:/{number}", f"runs:/{FIRST}"):
        assert found(text) == [FIRST]


def test_an_experiment_s_name_and_its_lock_lead_to_the_run(traced: Small) -> None:
    assert found("quick-fox") == [SECOND]
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    assert found(client.get_run(mlflow_id(traced, SECOND)).data.tags["convoy.lock"][:9]) == [SECOND]


def test_a_commit_lists_its_runs_newest_first_with_what_differs(traced: Small) -> None:
    commit = traced.git("rev-parse", "HEAD")
    for text in (commit, commit[:7], "main", "HEAD"):
        assert found(text) == [SECOND, FIRST]
    text = told(commit)
    assert "2 runs, newest first" in text
    assert "fit.lr 0.25, experiment quick-fox" in text
    assert "net.name" not in text, "it is the same in both"
    assert "Their data differ" not in text


def test_data_list_their_runs_by_either_hash(traced: Small) -> None:
    assert found(DATA) == found(DATA[:10]) == [SECOND, FIRST]
    [md5] = {link["notes"][0].split()[-1] for link in (chain(FIRST)["data"],)}
    assert found(md5) == found(md5.removesuffix(".dir")) == [SECOND, FIRST]


def test_a_commit_without_runs_says_so_and_where_it_is(traced: Small) -> None:
    text = told("HEAD~1")
    assert "no run is known that was made from it" in text
    assert '"pipeline", in main' in text


def test_the_chain_goes_from_commit_to_version_and_nothing_is_missing(traced: Small) -> None:
    links = chain("champion")
    assert list(links) == [
        "git commit", "data", "params", "convoy run", "MLflow run", "model.onnx", "dvc.lock", "registered", "experiment",
    ]  # fmt: skip
    assert links["git commit"]["value"] == traced.git("rev-parse", "HEAD")
    assert links["git commit"]["notes"] == ['"reproduced"', "in main"]
    assert "in DVC's cache (2 files)" in links["data"]["notes"]
    assert links["convoy run"]["value"] == FIRST
    assert "FINISHED" in links["MLflow run"]["notes"]
    assert links["model.onnx"]["value"] == "b2" * 32
    assert "the workspace's is the same" in links["dvc.lock"]["notes"]
    assert f"committed in {traced.git('rev-parse', '--short', 'HEAD')}" in links["dvc.lock"]["notes"]
    assert links["registered"]["value"] == "convoy/1 (@first), convoy/2 (@champion)"
    assert not any(link["missing"] for link in links.values())
    text = told("champion")
    assert "→ registered" in text
    assert f"convoy trace {FIRST} --restore ../restored" in text


def test_changes_that_were_not_committed_are_named_with_the_place_of_their_diff(traced: Small) -> None:
    notes = chain(SECOND)["git commit"]["notes"]
    assert "files differed from it: what differed is kept with the run: pipeline/workspace.diff" in notes
    assert "no longer in git" in chain(SECOND)["experiment"]["missing"]


def test_a_failed_run_says_what_it_lacks_and_how_to_get_it(traced: Small) -> None:
    text = told(FAILED).split("Missing:")[1]
    assert f"commit {GONE[:10]} is not in this repository; type: git fetch --all --tags" in text
    assert "not in DVC's cache; type: dvc fetch" in text
    assert "no proven model: `export` has not ended in this run" in text
    assert "no final dvc.lock: the run is FAILED" in text


def test_a_commit_that_nothing_holds_is_told_with_the_branch_that_keeps_it(traced: Small) -> None:
    commit = traced.git("rev-parse", "HEAD")
    traced.git("commit", "-q", "--amend", "-m", "amended")
    missing = chain(FIRST)["git commit"]["missing"]
    command = f"git branch keep-{commit[:7]} {commit[:10]}"
    assert "git will remove it" in missing
    assert command in missing
    traced.git(*command.split()[1:])
    assert chain(FIRST)["git commit"]["missing"] is None


def test_data_of_which_the_cache_lacks_a_file_are_missing(traced: Small) -> None:
    [member] = [path for path in traced.folder.glob(".dvc/cache/files/md5/60/*") if path.is_file()]
    member.unlink()
    assert "1 of its 3 objects are not in DVC's cache; type: dvc fetch" in chain(FIRST)["data"]["missing"]


def test_an_onnx_file_leads_to_its_run(traced: Small, model: Path) -> None:
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    client.set_tag(mlflow_id(traced, FIRST), "convoy.onnx_sha256", sha256(model))
    assert found(str(model)) == [FIRST]
    link = chain(str(model))["model.onnx"]
    assert link["value"] == sha256(model)
    assert str(model) in link["notes"]
    assert "→ model.onnx" in told(str(model))


def test_an_onnx_file_that_was_changed_since_its_proof_is_told(traced: Small, model: Path) -> None:
    assert "has other bytes" in chain(str(model))["model.onnx"]["missing"]


def test_an_onnx_file_of_a_run_that_the_store_does_not_have_still_tells_its_identity(
    traced: Small, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    links = chain(str(model))
    assert links["convoy run"]["value"] == FIRST
    assert links["data"]["value"] == DATA
    assert "does not have this run; let MLFLOW_TRACKING_URI name the store" in links["MLflow run"]["missing"]
    assert not (tmp_path / "none.db").exists(), "looking made a store"


def test_an_onnx_file_of_others_and_a_file_that_is_none_are_refused(traced: Small, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\xff no model")
    with pytest.raises(RequestError, match=r"cannot be read as ONNX.*Was it copied whole\?"):
        found(str(tmp_path / "broken.onnx"))
    with pytest.raises(RequestError, match=r"is no ONNX file. Name one, such as build/deploy/model.onnx"):
        found("params.yaml")
    write_onnx(tmp_path / "foreign.onnx", {})
    with pytest.raises(
        RequestError, match=r"was not exported by Convoy: it names no run, and no run has its sha256"
    ):
        found(str(tmp_path / "foreign.onnx"))


def test_an_unknown_id_names_the_nearest(traced: Small) -> None:
    with pytest.raises(
        RequestError, match=rf"nothing is known of `20261123-100000-aaaaab`.*Nearest: {FIRST}"
    ):
        found("20261123-100000-aaaaab")
    with pytest.raises(RequestError, match=r"nothing is known of `quick-fix`.*Nearest: quick-fox"):
        found("quick-fix")
    for text in ("zzz", "no/7"):
        with pytest.raises(RequestError, match=rf"nothing is known of `{text}`.*The latest runs: {FAILED}"):
            found(text)


def test_versions_and_aliases_that_do_not_exist_name_those_that_do(traced: Small) -> None:
    with pytest.raises(RequestError, match=r"model convoy has no version 9; there are: 1, 2"):
        found("convoy/9")
    with pytest.raises(
        RequestError, match=r"model convoy has no alias `champoin`; did you mean `champion`\?"
    ):
        found("convoy@champoin")
    with pytest.raises(RequestError, match=r"no registered model `convoi`; did you mean `convoy`\?"):
        found("models:/convoi/1")


def test_the_beginning_of_several_ids_is_refused_with_their_names(traced: Small) -> None:
    with pytest.raises(
        RequestError, match=rf"`20261123` begins several runs: {SECOND}, {FIRST}. Give more of it"
    ):
        found("20261123")


def test_a_repository_without_runs_says_what_makes_one(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RequestError, match=r"No run is there yet: `dvc repro` makes one"):
        found("20261123-100000-aaaaaa")
    assert not (small.folder / "mlflow.db").exists()


def test_a_store_of_an_older_mlflow_names_the_migration_command(traced: Small) -> None:
    with closing(sqlite3.connect(traced.folder / "mlflow.db")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(RequestError, match=r"older MLflow(.|\n)*mlflow db upgrade sqlite:///"):
        found(FIRST)


def test_a_server_that_does_not_answer_is_named_with_what_to_do(
    traced: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        StoreError, match=r"cannot be asked(.|\n)*let MLFLOW_TRACKING_URI name the store"
    ) as error:
        found(FIRST)
    assert "secret" not in str(error.value)


def test_a_run_that_waits_in_the_outbox_is_found_with_what_it_lacks(
    traced: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = "20261125-080000-dddddd"
    journal = Journal(traced.folder / "outbox" / waiting)
    tags = {
        "convoy.run_id": waiting,
        "convoy.data_hash": DATA,
        "mlflow.source.git.commit": traced.git("rev-parse", "HEAD"),
    }
    journal.append(
        {
            "kind": "open",
            "time_ms": 1_795_100_000_000,
            "name": "two · lr 1",
            "uri": "http://me:secret@far.example",
            "tags": tags,
            "resumed": False,
        }
    )
    journal.append({"kind": "params", "params": {"fit.lr": "1"}})
    journal.append(
        {
            "kind": "points",
            "points": [["val/loss", 2.0, 2, 1], ["val/loss", 1.0, 1, 1], ["test/accuracy", 0.5, 0, 1]],
        }
    )
    journal.append({"kind": "files", "at": journal.keep(traced.folder / "params.yaml"), "folder": "pipeline"})
    journal.append({"kind": "end", "status": "FINISHED", "time_ms": 1_795_100_000_001})
    journal.close()
    assert found("20261125") == [waiting]
    assert found("HEAD") == [waiting, SECOND, FIRST], "with those of the store"
    link = chain(waiting)["MLflow run"]
    assert link["missing"].endswith("to be delivered to http://me:***@far.example; type: convoy sync")
    assert f"outbox/{waiting}" in link["missing"]
    assert chain(waiting)["params"]["value"] == ""
    [record] = trace.look(waiting, Path.cwd())[0].records
    assert record.metrics == {"val/loss": 2.0, "test/accuracy": 0.5}, "of a curve the last point"
    assert record.params == {"fit.lr": "1"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    text = told(waiting)
    assert text.startswith(
        "Only what waits in the outbox is shown: the tracking store http://127.0.0.1:9 cannot be asked"
    )
    assert "two · lr 1" in text
    for unknown in (FIRST, "HEAD~1"):
        with pytest.raises(StoreError, match=r"cannot be asked"):
            found(unknown)
