"""`convoy register`: a version per verified file, from the workspace or from a run, whatever the store has lost."""

import contextlib
import shutil
from pathlib import Path

import onnx
import pytest

from convoy.core import contract, files, params, yaml
from convoy.core.errors import RequestError
from convoy.registry import register as registration
from convoy.registry.client import CANDIDATE, CHAMPION, ModelArtifacts, Registry, RegistryError, fetch
from convoy.registry.register import VerifiedModel, register
from convoy.tracking import outbox, stages, store
from registry_project import COMMIT, Mortal, write_verified

ROOM = 5000


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def meanwhile(step):
    """Have another process register the same file after this process has looked."""
    calls = iter([True])

    def after(*words):
        if next(calls, False):
            register()
        return step(*words)

    return after


def test_the_workspace_s_model_becomes_a_version_with_its_provenance(any_project, tmp_path, capsys):
    run = any_project.train()
    version = register()
    sha256 = files.sha256(any_project.deploy / "model.onnx")
    assert (version.number, version.sha256, version.mlflow_run_id) == ("1", sha256, run.info.run_id)
    measured = {"accuracy": "0.9", "accuracy_low": "0.85", "accuracy_high": "0.9500000000000001"}
    origin = {"run_id": run.data.tags["convoy.run_id"], "git_commit": COMMIT, "version": "0.1.0"}
    hashes = {"onnx_sha256": sha256, "data_hash": "d" * 64, "params_hash": "e" * 64}
    facts = {"data_md5": f"{'f' * 32}.dir", "classes": '["Bär", "cat", "x"]', "class_count": "3"}
    expected = origin | hashes | facts | measured | {"label_flips": "0"}
    assert version.tags == {f"convoy.{key}": text for key, text in expected.items()}
    assert any_project.registry.aliases() == {CANDIDATE: "1"}
    made = any_project.client.get_model_version(version.model, "1")
    assert made.description.startswith("# Card of ")
    assert made.source == f"models:/{any_project.model_of(run).model_id}"
    assert any_project.client.get_registered_model(version.model).description.startswith("Image classifiers")
    output = capsys.readouterr().out
    assert f"{version} is registered: model.onnx {sha256[:12]} of run {version.run_id}" in output
    assert f"candidate is {version}, accuracy 90.00% (85.00% to 95.00%)" in output
    kept = content(any_project.deploy)
    assert {name.partition("/")[0] for name in kept} >= {"model.onnx", *contract.BESIDE}
    shutil.rmtree(any_project.deploy)
    fetch(any_project.registry, version, tmp_path / "back")
    assert content(tmp_path / "back") == kept


def test_an_accuracy_on_validation_images_is_marked(project, capsys):
    project.train(split="val")
    version = register()
    assert version.tags["convoy.measured_on"] == "val"
    assert "accuracy 90.00% (85.00% to 95.00%) on validation images" in capsys.readouterr().out


def test_a_second_time_registers_nothing_and_moves_the_candidate_back(project, capsys):
    project.train()
    first = register()
    kept = project.folder / "kept"
    shutil.copytree(project.deploy, kept)
    project.train()
    assert register().number == "2"
    shutil.rmtree(project.deploy)
    kept.rename(project.deploy)
    project.lock()
    assert register() == first
    assert project.registry.aliases() == {CANDIDATE: "1"}
    assert len(project.registry.versions()) == 2
    assert "convoy/1 has this file already" in capsys.readouterr().out


def test_a_candidate_that_points_nowhere_is_repaired(project):
    project.train()
    version = register()
    project.point_nowhere(CANDIDATE)
    assert register() == version
    assert project.registry.alias(CANDIDATE) == version


@pytest.mark.parametrize(("owner", "step"), [(registration, "_logged_model"), (Registry, "add")])
def test_a_file_that_another_process_registers_is_not_registered_twice(project, monkeypatch, owner, step):
    project.train()
    monkeypatch.setattr(owner, step, meanwhile(getattr(owner, step)))
    assert register().number == "1"
    assert len(project.registry.versions()) == 1


def test_a_run_is_registered_by_what_trace_takes_for_it(project):
    first, second = project.train(), project.train()
    assert register(first.data.tags["convoy.run_id"]).mlflow_run_id == first.info.run_id
    assert register(f"runs:/{second.info.run_id}").mlflow_run_id == second.info.run_id
    assert register("convoy/1").number == "1"
    assert project.registry.aliases() == {CANDIDATE: "1"}
    version = register(str(project.deploy / "model.onnx"))
    assert version.number == "2"
    assert version.tags["convoy.data_md5"] == "f" * 32 + ".dir"


def test_a_run_that_the_server_has_needs_no_workspace(server_project):
    run = server_project.train()
    sha256 = files.sha256(server_project.deploy / "model.onnx")
    shutil.rmtree(server_project.folder / "build")
    assert register(run.data.tags["convoy.run_id"]).sha256 == sha256


def test_a_run_that_waits_in_the_outbox_is_delivered_first(project, delivered, capsys):
    with stages.standalone("waits", {}) as run:
        project.export(run.reference.run_id)
        run.log_onnx(project.deploy / "model.onnx", *(project.deploy / name for name in contract.BESIDE))
    version = register()
    assert version.run_id == run.reference.run_id
    assert not outbox.journals(project.folder / "outbox")
    assert "again" not in capsys.readouterr().out, "it was delivered, not made again"


def test_a_run_that_is_still_written_is_refused(project):
    with stages.standalone("writes", {}) as run:
        project.export(run.reference.run_id)
        with pytest.raises(RegistryError, match=rf"{run.reference.run_id} is still being written"):
            register()


def test_a_store_that_lost_the_model_gets_a_new_version_of_the_same_file(project, capsys):
    run = project.train()
    first = register()
    project.registry.point(CHAMPION, first)
    lost = project.model_of(run)
    shutil.rmtree(lost.artifact_location.removeprefix("file://"))
    second = register()
    assert (second.number, second.sha256) == ("2", first.sha256)
    assert ModelArtifacts.of(project.registry, second).has_model
    assert project.model_of(run).model_id != lost.model_id, "the lost model is removed"
    output = capsys.readouterr().out
    assert f"has lost the model of run {first.run_id}: logging it again" in output
    assert "it is the same file as convoy/1" in output
    assert "convoy/1 is the champion; to replace it by convoy/2: convoy promote --override" in output
    assert project.registry.aliases() == {CANDIDATE: "2", CHAMPION: "1"}
    assert register() == second


@pytest.mark.parametrize(("same_params", "same_run"), [(True, True), (False, True), (True, False)])
def test_an_emptied_store_gets_the_run_again_from_the_outputs(
    project, delivered, capsys, same_params, same_run
):
    digest = params.digest(yaml.read(project.folder / "params.yaml"))
    run_id = project.export(params_hash=digest if same_params else "e" * 64)
    if not same_run:
        files.write_json(project.folder / "build/runs/export.json", {"run_id": "other", "training": "other"})
    version = register()
    assert f"does not have run {run_id}: recreating it from this workspace" in capsys.readouterr().out
    run = store.find(run_id, project.client)
    assert (run.info.run_id, run.info.status) == (version.mlflow_run_id, "FINISHED")
    assert ("train.lr" in run.data.params) == same_params
    assert run.data.metrics == ({"deploy/accuracy": 0.9} if same_run else {})
    tags = run.data.tags
    assert tags["mlflow.source.git.commit"] == COMMIT
    assert (tags["convoy.data_hash"], tags["convoy.training"]) == ("d" * 64, run_id)
    assert tags["convoy.onnx_sha256"] == version.sha256
    assert ModelArtifacts.of(project.registry, version).has_model


def test_a_store_that_dies_at_any_call_leaves_what_a_second_try_completes(project, monkeypatch):
    mortal = Mortal(project.client)
    monkeypatch.setattr(store, "connect", lambda *_: mortal)
    for deaths in range(30):
        run = project.train()
        mortal.left = deaths
        with contextlib.suppress(RegistryError):
            register()
        died = mortal.dead
        mortal.revive()
        version = register()
        assert version.mlflow_run_id == run.info.run_id
        assert project.registry.alias(CANDIDATE) == version
        assert project.registry.by_sha256(version.sha256) == [version]
        assert project.model_of(run), "logged once"
        if not died:
            break
    assert not died
    assert deaths > 8


def test_a_workspace_without_a_verified_model_is_refused_with_what_to_do(memory):
    with pytest.raises(RequestError, match=r"build/deploy/model.onnx does not exist.*: dvc repro"):
        register()
    memory.export()
    (memory.deploy / "model.onnx").write_bytes(b"changed")
    with pytest.raises(RequestError, match=r"verification.json is not the verification of .*model.onnx"):
        register()
    (memory.deploy / "verification.json").unlink()
    with pytest.raises(RequestError, match=r"build/deploy/verification.json does not exist"):
        register()
    assert memory.client.versions == {}


def test_a_run_without_a_verified_model_is_refused_with_what_to_do(project):
    experiment = project.client.create_experiment("convoy")
    run = project.client.create_run(experiment, tags={"convoy.run_id": "20261123-100000-aaaaaa"})
    project.client.set_terminated(run.info.run_id, "FAILED")
    with pytest.raises(RequestError, match=r"0-aaaaaa has no verified model: it is FAILED, `export` has not"):
        register("20261123-100000-aaaaaa")
    with pytest.raises(RequestError, match=r"`20261123-999999-aaaaaa` not found"):
        register("20261123-999999-aaaaaa")


def test_a_run_whose_model_or_verification_the_store_lost_is_refused_with_what_to_do(project):
    run = project.train()
    shutil.rmtree(project.deploy)
    run_id = run.data.tags["convoy.run_id"]
    lost = project.model_of(run)
    location = Path(lost.artifact_location.removeprefix("file://"))
    (location / "verification.json").unlink()
    with pytest.raises(RequestError, match=r"by an earlier Convoy, which stored no verification"):
        register(run_id)
    shutil.rmtree(location)
    with pytest.raises(RegistryError, match=rf"{run_id} is no longer in the store. .* --restore ../restored"):
        register(run_id)
    project.client.delete_logged_model(lost.model_id)
    with pytest.raises(RegistryError, match=rf"does not have the model of run {run_id}. Restore it"):
        register(run_id)


def test_a_changed_file_does_not_pass_for_what_its_run_verified(project, tmp_path):
    run = project.train()
    model = onnx.load(project.deploy / "model.onnx")
    model.producer_name = "somebody"
    onnx.save(model, tmp_path / "other.onnx")
    remedy = f"To register the latter: convoy register {run.data.tags['convoy.run_id']}"
    with pytest.raises(RequestError, match=rf"other.onnx has other bytes .* {remedy}"):
        register(str(tmp_path / "other.onnx"))


def test_many_classes_and_a_long_card_fit_into_the_columns_of_postgresql(server_project):
    server_project.train(classes=[f"class number {n:04}" for n in range(400)])
    lines = "\n".join(f"| class number {n:04} | 1.00 |" for n in range(400))
    files.write_text(server_project.deploy / "model_card.md", f"# Card\n\n{lines}\n")
    server_project.lock()
    version = register()
    assert version.tags["convoy.class_count"] == "400"
    assert "convoy.classes" not in version.tags
    text = server_project.client.get_model_version(version.model, "1").description
    assert len(text) <= ROOM
    assert text.partition("\n\n(Truncated")[0].endswith("| 1.00 |"), "cut at the end of a line"
    assert text.endswith("The whole card is `model_card.md` beside the model.)")


def test_the_facts_of_a_verified_model_are_read_from_its_files(tmp_path):
    sha256 = write_verified(tmp_path, "run-7", accuracy=0.5)
    read = VerifiedModel.read(tmp_path)
    assert (read.sha256, read.run_id, read.classes) == (sha256, "run-7", ("Bär", "cat", "x"))
    assert read.description() == "# Card of run-7\n\n- accuracy 0.5\n"
    (tmp_path / "model_card.md").unlink()
    assert read.description() == ""
    assert registration.TAG_CHARACTERS == ROOM
