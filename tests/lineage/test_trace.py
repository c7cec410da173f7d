"""`convoy trace`: ids, versions, files and names lead to their run, and the chain lists what is there and what is missing."""

import hashlib
from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.core.files import sha256
from convoy.lineage import trace
from convoy.lineage.runs import StoreError
from convoy.tracking.journal import Journal
from small_pipeline import FAILED, FIRST, SECOND, write_onnx
from tracking_store import set_revision

GONE = "deadbeef" * 5
DATA = "1f" * 32


def render(text: str) -> str:
    return "\n".join(trace.lines(*trace.look(text, Path.cwd())))


def run_ids(text: str) -> list[str]:
    return [record.run_id for record in trace.look(text, Path.cwd())[0].records]


def chain(text: str) -> dict[str, dict]:
    [run] = trace.as_json(*trace.look(text, Path.cwd()))["runs"]
    return {link["name"]: link for link in run["chain"]}


NAMES = (
    FIRST, "20261123-10", "convoy/1", "models:/convoy/2", "models:/convoy@champion", "convoy@champion", "champion",
    "b2" * 32, "b2b2b2b", "a1" * 32,
)  # fmt: skip


@pytest.mark.parametrize("text", NAMES)
def test_every_name_of_a_run_leads_to_it(shared, text):
    assert run_ids(text) == [FIRST]


def test_ids_of_mlflow_experiments_and_hashes_of_locks_lead_to_the_run(shared):
    mlflow_id = shared.run(FIRST).info.run_id
    for text in (mlflow_id, mlflow_id[:8], f"runs:/{mlflow_id}", f"runs:/{FIRST}"):
        assert run_ids(text) == [FIRST]
    assert run_ids("quick-fox") == [SECOND]
    assert run_ids(shared.run(SECOND).data.tags["convoy.lock"][:9]) == [SECOND]


def test_a_commit_lists_its_runs_newest_first_with_what_differs(shared):
    commit = shared.git("rev-parse", "HEAD")
    for text in (commit, commit[:7], "main", "HEAD"):
        assert run_ids(text) == [SECOND, FIRST]
    text = render(commit)
    assert "fit.lr 0.25, experiment quick-fox" in text
    assert "net.name" not in text, "it is the same in both"
    assert "not comparable" not in text


def test_data_list_their_runs_by_either_hash(shared):
    assert run_ids(DATA) == run_ids(DATA[:10]) == [SECOND, FIRST]
    md5 = chain(FIRST)["data"]["notes"][0].split()[-1]
    assert run_ids(md5) == run_ids(md5.removesuffix(".dir")) == [SECOND, FIRST]


def test_a_commit_without_runs_is_described(shared):
    text = render("HEAD~1")
    assert "no runs" in text
    assert '"pipeline", in main' in text


def test_the_chain_goes_from_commit_to_version_and_nothing_is_missing(shared):
    links = chain("champion")
    assert list(links) == [
        "git commit", "data", "params", "convoy run", "MLflow run", "model.onnx", "dvc.lock", "registered", "experiment",
    ]  # fmt: skip
    assert links["git commit"]["value"] == shared.git("rev-parse", "HEAD")
    assert links["git commit"]["notes"] == ['"reproduced"', "in main"]
    assert "in DVC's cache (2 files)" in links["data"]["notes"]
    assert links["convoy run"]["value"] == FIRST
    assert "FINISHED" in links["MLflow run"]["notes"]
    assert links["model.onnx"]["value"] == "b2" * 32
    assert "same as in the workspace" in links["dvc.lock"]["notes"]
    assert f"committed in {shared.git('rev-parse', '--short', 'HEAD')}" in links["dvc.lock"]["notes"]
    assert links["registered"]["value"] == "convoy/1 (@first), convoy/2 (@champion)"
    assert not any(link["missing"] for link in links.values())
    text = render("champion")
    assert "→ registered" in text
    assert f"convoy trace {FIRST} --restore ../restored" in text


def test_uncommitted_changes_are_named_with_the_artifact_that_holds_them(shared):
    links = chain(SECOND)
    assert any("pipeline/workspace.diff" in note for note in links["git commit"]["notes"])
    assert "no longer in git" in links["experiment"]["missing"]


def test_the_command_that_restores_a_run_has_the_option_that_uncommitted_code_requires(traced, tmp_path):
    traced.set_tags(SECOND, {"convoy.onnx_sha256": "d4" * 32})
    traced.store.delete_tag(traced.run(SECOND).info.run_id, "convoy.dvc_experiment")
    command = f"convoy trace {SECOND} --restore ../restored --trust-run-code"
    assert command in render(SECOND).splitlines()[-2]
    assert "without it" in render(SECOND).splitlines()[-1]
    traced.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    (tmp_path / "workspace.diff").write_text(traced.git("diff") + "\n")
    traced.store.log_artifact(traced.run(FIRST).info.run_id, str(tmp_path / "workspace.diff"), "pipeline")
    assert render(FIRST).endswith(f"convoy trace {FIRST} --restore ../restored"), "values need no trust"


def test_a_failed_run_lists_what_is_missing_and_how_to_get_it(shared):
    links = chain(FAILED)
    assert GONE[:10] in links["git commit"]["missing"]
    assert "git fetch --all --tags" in links["git commit"]["missing"]
    assert "dvc fetch" in links["data"]["missing"]
    assert "no verified model" in links["model.onnx"]["missing"]
    assert "FAILED" in links["dvc.lock"]["missing"]
    assert links["data"]["missing"] in render(FAILED).split("Missing:")[1]


def test_files_that_the_run_does_not_record_are_named(traced):
    traced.set_tags(FIRST, {"convoy.new_files": "notes.txt, .env"})
    assert any(note.endswith("not stored: notes.txt, .env") for note in chain(FIRST)["git commit"]["notes"])


def test_a_commit_that_no_branch_contains_comes_with_the_command_that_keeps_it(traced):
    commit = traced.git("rev-parse", "HEAD")
    traced.git("commit", "-q", "--amend", "-m", "amended")
    command = f"git branch keep-{commit[:7]} {commit[:10]}"
    assert command in chain(FIRST)["git commit"]["missing"]
    traced.git(*command.split()[1:])
    assert chain(FIRST)["git commit"]["missing"] is None


def test_data_whose_cache_lacks_a_file_are_missing(traced):
    [member] = [path for path in traced.folder.glob(".dvc/cache/files/md5/60/*") if path.is_file()]
    member.unlink()
    assert "1 of its 3 objects" in chain(FIRST)["data"]["missing"]


def test_an_onnx_file_leads_to_its_run(traced, model):
    traced.set_tags(FIRST, {"convoy.onnx_sha256": sha256(model)})
    assert run_ids(str(model)) == [FIRST]
    link = chain(str(model))["model.onnx"]
    assert link["value"] == sha256(model)
    assert str(model) in link["notes"]
    assert "→ model.onnx" in render(str(model))


def test_an_onnx_file_that_was_changed_since_its_verification_is_reported(shared, model):
    assert sha256(model) in chain(str(model))["model.onnx"]["missing"]


def test_an_onnx_file_of_a_run_that_the_store_lacks_has_its_identity(shared, model, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    links = chain(str(model))
    assert links["convoy run"]["value"] == FIRST
    assert links["data"]["value"] == DATA
    assert "MLFLOW_TRACKING_URI" in links["MLflow run"]["missing"]
    assert not (tmp_path / "none.db").exists(), "looking made a store"


def test_files_that_are_not_models_of_convoy_are_refused(shared, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\xff no model")
    write_onnx(tmp_path / "foreign.onnx", {})
    for path, reason in (
        (tmp_path / "broken.onnx", "cannot be read as ONNX"),
        ("params.yaml", r"not an ONNX file.*build/deploy/model.onnx"),
        (tmp_path / "foreign.onnx", f"not exported by Convoy.*{sha256(tmp_path / 'foreign.onnx')}"),
    ):
        with pytest.raises(RequestError, match=reason):
            run_ids(str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("20261123-100000-aaaaab", rf"`20261123-100000-aaaaab` not found.*Nearest: {FIRST}"),
        ("quick-fix", "Nearest: quick-fox"),
        ("zzz", f"`zzz` not found.*latest runs: {FAILED}"),
        ("no/7", f"`no/7` not found.*latest runs: {FAILED}"),
        ("convoy/9", "no version 9; its versions: 1, 2"),
        ("convoy@champoin", r"no alias `champoin`; did you mean `champion`\?"),
        ("models:/convoi/1", r"`convoi` not found.*did you mean `convoy`\?"),
        ("20261123", f"several runs: {SECOND}, {FIRST}"),
    ],
)
def test_an_unknown_or_ambiguous_name_lists_the_nearest(shared, text, reason):
    with pytest.raises(RequestError, match=reason):
        run_ids(text)


def test_a_repository_without_runs_names_the_command_that_makes_one(reproduced, monkeypatch):
    monkeypatch.chdir(reproduced.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RequestError, match="`dvc repro`"):
        run_ids("20261123-100000-aaaaaa")
    assert not (reproduced.folder / "mlflow.db").exists()


def test_a_run_whose_lock_is_known_here_gets_it_before_it_is_shown(traced):
    lock = (traced.folder / "dvc.lock").read_bytes()
    head = traced.git("rev-parse", "HEAD")
    traced.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/slow-lr", head)
    traced.set_tags(FIRST, {"convoy.dvc_experiment": "slow-lr"})
    traced.store.delete_tag(traced.run(FIRST).info.run_id, "convoy.lock")
    params = (traced.folder / "params.yaml").read_text()
    tracking = "tracking: {experiment: convoy, step_interval: 1, registered_model: convoy}\n"
    traced.write("params.yaml", params + tracking)
    assert "Nothing is missing." in render("slow-lr")
    assert traced.run(FIRST).data.tags["convoy.lock"] == hashlib.sha256(lock).hexdigest()


def test_a_store_of_an_older_mlflow_names_the_migration_command(traced):
    set_revision(traced.folder / "mlflow.db", "451aebb31d03")
    with pytest.raises(RequestError, match=r"older MLflow(.|\n)*mlflow db upgrade sqlite:///"):
        run_ids(FIRST)


def test_a_run_that_waits_in_the_outbox_is_found_with_what_is_missing(traced, monkeypatch):
    waiting = "20261125-080000-dddddd"
    journal = Journal(traced.folder / "outbox" / waiting)
    tags = {"convoy.run_id": waiting, "mlflow.source.git.commit": traced.git("rev-parse", "HEAD")}
    opened = {"name": "two · lr 1", "uri": "http://me:secret@far.example", "tags": tags, "resumed": False}
    journal.append({"kind": "open", "time_ms": 1_795_100_000_000, **opened})
    journal.append({"kind": "params", "params": {"fit.lr": "1"}})
    points = [["val/loss", 2.0, 2, 1], ["val/loss", 1.0, 1, 1], ["test/accuracy", 0.5, 0, 1]]
    journal.append({"kind": "points", "points": points})
    copied = journal.copy_in(traced.folder / "params.yaml")
    journal.append({"kind": "files", "at": copied, "folder": "pipeline"})
    journal.append({"kind": "end", "status": "FINISHED", "time_ms": 1_795_100_000_001})
    journal.close()
    assert run_ids("20261125") == [waiting]
    assert run_ids("HEAD") == [waiting, SECOND, FIRST], "with those of the store"
    missing = chain(waiting)["MLflow run"]["missing"]
    assert "http://me:***@far.example; type: convoy sync" in missing
    assert f"outbox/{waiting}" in missing
    assert chain(waiting)["params"]["value"] == ""
    match, sources = trace.look(waiting, Path.cwd())
    [record] = match.records
    assert record.metrics == {"val/loss": 2.0, "test/accuracy": 0.5}, "of a curve the last point"
    assert record.params == {"fit.lr": "1"}
    assert sources.records.artifacts(record, "pipeline") == {"pipeline/params.yaml"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    error = trace.look(waiting, Path.cwd())[1].store_error
    assert "http://me:***@127.0.0.1:9 does not answer" in error
    assert "secret" not in error
    assert "two · lr 1" in render(waiting)
    for unknown in (FIRST, "HEAD~1"):
        with pytest.raises(StoreError, match=r":9 does not answer(.|\n)*MLFLOW_TRACKING_URI"):
            run_ids(unknown)
