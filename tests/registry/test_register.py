"""`convoy register`: one version per proven file, from the workspace or from a run, whatever the store has lost."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from convoy.core import files, params, yaml
from convoy.core.errors import RequestError
from convoy.registry import artifacts, proven, remake
from convoy.registry.client import CANDIDATE, CHAMPION, RegistryError
from convoy.registry.proven import Proven
from convoy.registry.register import register
from convoy.tracking import outbox, stages, store
from registry_project import Mortal, Shop, write_proven

ROOM = 5000


def aliases(shop: Shop) -> dict[str, str]:
    return shop.registry.aliases()


def meanwhile(logged: Callable) -> Callable:
    """Have another process register the same file after this one has looked."""
    calls = iter([True])

    def after(*words: object) -> object:
        if next(calls, False):
            register()
        return logged(*words)

    return after


def found(shop: Shop, run_id: str) -> list:
    experiments = [one.experiment_id for one in shop.client.search_experiments()]
    return shop.client.search_runs(experiments, f"tags.`convoy.run_id` = '{run_id}'")


@pytest.mark.parametrize("backend", ["shop", "served_shop"])
def test_the_workspace_s_model_becomes_a_version_with_all_that_is_known_of_it(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = request.getfixturevalue(backend)
    run = shop.train()
    version = register()
    sha256 = files.sha256(shop.deploy / "model.onnx")
    assert (version.number, version.sha256, version.mlflow_run_id) == ("1", sha256, run.info.run_id)
    assert version.tags == {
        "convoy.onnx_sha256": sha256,
        "convoy.run_id": run.data.tags["convoy.run_id"],
        "convoy.git_commit": "c0ffee" + "0" * 34,
        "convoy.data_hash": "d" * 64,
        "convoy.data_md5": "f" * 32 + ".dir",
        "convoy.params_hash": "e" * 64,
        "convoy.version": "0.1.0",
        "convoy.classes": '["Bär", "cat", "x"]',
        "convoy.class_count": "3",
        "convoy.accuracy": "0.9",
        "convoy.accuracy_low": "0.85",
        "convoy.accuracy_high": "0.9500000000000001",
        "convoy.label_flips": "0",
    }
    assert aliases(shop) == {CANDIDATE: "1"}
    made = shop.client.get_model_version(version.model, "1")
    assert made.description.startswith("# Card of ")
    assert made.source == f"models:/{shop.model_of(run).model_id}"
    assert shop.client.get_registered_model(version.model).description.startswith("Image classifiers")
    said = capsys.readouterr().out
    assert f"{version} is registered: model.onnx {sha256[:12]} of run {version.run_id}" in said
    assert f"candidate is {version}, accuracy 90.00% (85.00% to 95.00%)" in said
    kept = {name: (shop.deploy / name).read_bytes() for name in ("model.onnx", *artifacts.BESIDE)}
    shutil.rmtree(shop.deploy)
    folder = artifacts.fetch(shop.registry, version, tmp_path / "back")
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert shop.locks() == {}


def test_a_second_time_registers_nothing_and_moves_the_candidate_back(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.train()
    first = register()
    kept = shop.folder / "kept"
    shutil.copytree(shop.deploy, kept)
    shop.train()
    assert register().number == "2"
    shutil.rmtree(shop.deploy)
    kept.rename(shop.deploy)
    assert register() == first
    assert aliases(shop) == {CANDIDATE: "1"}
    assert [one.number for one in shop.registry.versions()] == ["1", "2"]
    assert "convoy/1 is this file already" in capsys.readouterr().out


def test_a_candidate_that_points_nowhere_is_mended(shop: Shop) -> None:
    shop.train()
    version = register()
    shop.point_nowhere(CANDIDATE)
    assert register() == version
    assert shop.registry.alias(CANDIDATE) == version


def test_a_file_that_another_process_registered_meanwhile_is_not_registered_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.train()
    monkeypatch.setattr(remake, "logged", meanwhile(remake.logged))
    assert register().number == "1"
    assert len(shop.registry.versions()) == 1


def test_a_run_is_registered_by_what_trace_takes_for_it(shop: Shop) -> None:
    first, second = shop.train(), shop.train()
    assert register(first.data.tags["convoy.run_id"]).mlflow_run_id == first.info.run_id
    assert register(f"runs:/{second.info.run_id}").mlflow_run_id == second.info.run_id
    assert register("convoy/1").number == "1"
    assert aliases(shop) == {CANDIDATE: "1"}
    version = register(str(shop.deploy / "model.onnx"))
    assert version.number == "2"
    assert version.tags["convoy.data_md5"] == "f" * 32 + ".dir"


def test_a_run_that_the_server_has_needs_no_workspace(served_shop: Shop) -> None:
    run = served_shop.train()
    sha256 = files.sha256(served_shop.deploy / "model.onnx")
    shutil.rmtree(served_shop.folder / "build")
    assert register(run.data.tags["convoy.run_id"]).sha256 == sha256


def test_a_run_that_waits_in_the_outbox_is_delivered_first(
    shop: Shop, delivered: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with stages.standalone("waits", {}) as run:
        shop.export(run.reference.run_id)
        run.log_onnx(shop.deploy / "model.onnx", *(shop.deploy / name for name in artifacts.BESIDE))
    version = register()
    assert version.run_id == run.reference.run_id
    assert not outbox.journals(shop.folder / "outbox")
    assert "again" not in capsys.readouterr().out, "it was delivered, not made again"


def test_a_run_that_is_still_written_is_refused(shop: Shop) -> None:
    with stages.standalone("writes", {}) as run:
        shop.export(run.reference.run_id)
        with pytest.raises(
            RegistryError,
            match=rf"run {run.reference.run_id} is still being written, .* when `dvc repro` is done",
        ):
            register()


def test_a_store_that_lost_the_model_gets_a_new_version_of_the_same_file(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shop.train()
    first = register()
    shop.registry.point(CHAMPION, first)
    lost = shop.model_of(run)
    shutil.rmtree(lost.artifact_location.removeprefix("file://"))
    second = register()
    assert (second.number, second.sha256) == ("2", first.sha256)
    assert artifacts.has_file(shop.registry, second)
    assert shop.model_of(run).model_id != lost.model_id, "the lost one is removed"
    said = capsys.readouterr().out
    assert f"has lost the model of run {first.run_id}: it is logged again" in said
    assert "it is the same file as convoy/1, which the store has lost" in said
    assert 'convoy/1 is the champion; to let convoy/2 take its place: convoy promote --override "' in said
    assert aliases(shop) == {CANDIDATE: "2", CHAMPION: "1"}
    assert register() == second


@pytest.mark.parametrize("same_params", [True, False])
def test_an_emptied_store_gets_the_run_again_with_what_the_outputs_say(
    shop: Shop, delivered: None, capsys: pytest.CaptureFixture[str], same_params: bool
) -> None:
    digest = params.digest(yaml.read(shop.folder / "params.yaml"))
    run_id = shop.export(params_hash=digest if same_params else "e" * 64)
    version = register()
    assert f"has no run {run_id}: it is made again from this workspace" in capsys.readouterr().out
    [run] = found(shop, run_id)
    assert (run.info.run_id, run.info.status) == (version.mlflow_run_id, "FINISHED")
    assert ("train.lr" in run.data.params) == same_params
    assert run.data.metrics == {"deploy/accuracy": 0.9}
    tags = run.data.tags
    assert tags["mlflow.source.git.commit"] == "c0ffee" + "0" * 34
    assert (tags["convoy.data_hash"], tags["convoy.training"]) == ("d" * 64, run_id)
    assert tags["convoy.onnx_sha256"] == version.sha256
    assert artifacts.has_file(shop.registry, version)


def test_results_of_another_run_are_not_given_to_a_run_that_is_made_again(
    shop: Shop, delivered: None
) -> None:
    run_id = shop.export()
    files.write_json(shop.folder / "build/runs/export.json", {"run_id": "other", "training": "other"})
    register()
    [run] = found(shop, run_id)
    assert run.data.metrics == {}


def test_a_store_that_dies_at_any_call_leaves_what_a_second_try_completes(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal = Mortal(shop.client)
    monkeypatch.setattr(store, "connect", lambda *_: mortal)
    for deaths in range(30):
        run = shop.train()
        mortal.die_after(deaths)
        with contextlib.suppress(RegistryError):
            register()
        died = mortal.dead
        mortal.revive()
        version = register()
        assert version.mlflow_run_id == run.info.run_id
        assert shop.registry.alias(CANDIDATE) == version
        assert len([one for one in shop.registry.versions() if one.sha256 == version.sha256]) == 1
        assert shop.model_of(run), "logged once"
        if not died:
            break
    assert not died
    assert deaths > 12
    assert shop.locks() == {}


def test_a_workspace_without_a_proven_model_says_what_to_type(shop: Shop) -> None:
    with pytest.raises(
        RequestError, match=r"build/deploy/model.onnx does not exist.* dvc repro \(or bring it ba"
    ):
        register()
    shop.export()
    (shop.deploy / "model.onnx").write_bytes(b"changed")
    with pytest.raises(RequestError, match=r"verification.json is not the proof of build/deploy/model.onnx"):
        register()
    (shop.deploy / "verification.json").unlink()
    with pytest.raises(RequestError, match=r"build/deploy/verification.json does not exist"):
        register()
    assert shop.client.search_registered_models() == []


def test_a_run_without_a_proven_model_is_refused_with_what_to_do(shop: Shop) -> None:
    experiment = shop.client.create_experiment("convoy")
    run = shop.client.create_run(experiment, tags={"convoy.run_id": "20261123-100000-aaaaaa"})
    shop.client.set_terminated(run.info.run_id, "FAILED")
    with pytest.raises(
        RequestError,
        match=r"run 20261123-100000-aaaaaa has no proven model: it is FAILED, `export` has not ended",
    ):
        register("20261123-100000-aaaaaa")
    with pytest.raises(RequestError, match=r"nothing is known of `20261123-999999-aaaaaa`"):
        register("20261123-999999-aaaaaa")


def test_a_run_whose_model_the_store_lost_is_refused_with_what_to_do(shop: Shop) -> None:
    run = shop.train()
    shutil.rmtree(shop.deploy)
    run_id = run.data.tags["convoy.run_id"]
    lost = shop.model_of(run)
    shutil.rmtree(lost.artifact_location.removeprefix("file://"))
    with pytest.raises(
        RegistryError,
        match=rf"model.onnx of run {run_id} is not in the store any more. .* --restore ../restored",
    ):
        register(run_id)
    shop.client.delete_logged_model(lost.model_id)
    with pytest.raises(RegistryError, match=rf"has not the model of run {run_id}. Bring it back"):
        register(run_id)


def test_a_run_of_an_earlier_convoy_is_refused_with_what_to_do(shop: Shop) -> None:
    run = shop.train()
    location = Path(shop.model_of(run).artifact_location.removeprefix("file://"))
    (location / "verification.json").unlink()
    shutil.rmtree(shop.deploy)
    with pytest.raises(RequestError, match=r"by an earlier Convoy, which kept no proof beside the model"):
        register(run.data.tags["convoy.run_id"])


def test_a_changed_file_does_not_pass_for_what_its_run_proved(shop: Shop, tmp_path: Path) -> None:
    run = shop.train()
    model = onnx.load(shop.deploy / "model.onnx")
    model.producer_name = "somebody"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(
        RequestError,
        match=rf"other.onnx has other bytes .* To register that one: convoy register {run.data.tags['convoy.run_id']}",
    ):
        register(str(tmp_path / "other.onnx"))


@pytest.mark.parametrize("name", ["DVC_STAGE", "DVC_EXP_NAME"])
def test_an_experiment_registers_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shop.train()
    monkeypatch.setenv(name, "quick-fox")
    with pytest.raises(
        RequestError, match=rf"`convoy register` does not work inside .* \({name} is quick-fox\)"
    ):
        register()
    assert shop.client.search_registered_models() == []


@pytest.mark.parametrize("backend", ["shop", "served_shop"])
def test_many_classes_and_a_long_card_fit_into_every_store(
    backend: str, request: pytest.FixtureRequest
) -> None:
    shop = request.getfixturevalue(backend)
    shop.train(classes=[f"class number {n:04}" for n in range(400)])
    lines = "\n".join(f"| class number {n:04} | 1.00 |" for n in range(400))
    files.write_text(shop.deploy / "model_card.md", f"# Card\n\n{lines}\n")
    version = register()
    assert version.tags["convoy.class_count"] == "400"
    assert "convoy.classes" not in version.tags
    text = shop.client.get_model_version(version.model, "1").description
    assert len(text) <= ROOM
    assert text.partition("\n\n(Cut here")[0].endswith("| 1.00 |"), "cut at the end of a line"
    assert text.endswith("The whole card is `model_card.md` beside the model.)")


def test_the_proof_s_facts_are_read_from_the_files(tmp_path: Path) -> None:
    sha256 = write_proven(tmp_path / "deploy", "run-7", accuracy=0.5)
    read = Proven.read(tmp_path / "deploy")
    assert (read.sha256, read.run_id, read.classes) == (sha256, "run-7", ("Bär", "cat", "x"))
    assert read.accuracy == "50.00% (45.00% to 55.00%)"
    assert read.description() == "# Card of run-7\n\n- accuracy 0.5\n"
    (tmp_path / "deploy/model_card.md").unlink()
    assert read.description() == ""
    assert proven.TAG_CHARACTERS == proven.DESCRIPTION_CHARACTERS == ROOM
