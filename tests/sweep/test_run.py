"""`convoy sweep` as it is typed, and its runs in MLflow; trials run in this process."""

import hashlib
import json
import shutil
import threading
import time
from collections import ChainMap
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from convoy import cli
from convoy.core import files, yaml
from convoy.core.console import info
from convoy.core.errors import ConvoyError, DataError, RequestError, TrainingError
from convoy.models import trained
from convoy.models.spec import Spec
from convoy.models.trained import ModelFacts
from convoy.sweep import run
from convoy.sweep.results import plots
from convoy.sweep.study import Request, check_combinations, read_trials
from convoy.tracking import outbox, store, uploader
from convoy.training import weight_pins
from convoy.training.weight_pins import Pin
from squares import CLASSES, PX


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch, in_process_workers: type) -> None:
    def wait_until_uploaded(*_: object) -> dict[str, str]:
        info("upload 3 run(s): 1 of 2 kB of entries")  # as it does where that takes long
        return {}

    monkeypatch.setattr(run, "Workers", in_process_workers)
    # Which takes seconds, and needs a complete trial.
    monkeypatch.setattr(run, "plots", lambda study, *_: [] if study.best_trial else None)
    monkeypatch.setattr(run.outbox, "wait_until_uploaded", wait_until_uploaded)


def convoy(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["sweep", *arguments])


def error_of(kind: type[ConvoyError], *arguments: str) -> str:
    with pytest.raises(kind) as caught:
        typer.main.get_command(cli.app)(["sweep", *arguments], standalone_mode=False)
    return str(caught.value)


def test_each_trial_is_one_line_and_the_best_values_are_a_command(project):
    result = convoy("--trials", "2")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith(("trial 0  ", "trial 1  "))]
    assert len(lines) == 2
    assert "lr 0.1 · batch_size 16  complete" in lines[0]
    assert "train tiny" not in result.output
    best = project.results().best.values
    command = f"dvc exp run -S train.lr={best['train.lr']} -S train.batch_size={best['train.batch_size']}"
    assert command in result.output
    assert "2 of 4 trials are done" in convoy().output


def test_a_baseline_outside_the_space_is_tried_first_and_compared(project):
    project.space("train.lr: [0.000001, 0.000002]")
    result = convoy("--trials", "9")
    results = project.results()
    assert [row.values for row in results.rows[:1]] == [{"train.lr": 0.1}]
    assert len(results.rows) == 3, "the space and the baseline"
    assert results.best == results.baseline == results.rows[0]
    assert "trial 0: lr 0.1 (params.yaml, outside the space): the best of all" in result.output
    assert "all 3 combinations were tried" in result.output
    assert "No trial is better than the baseline" in result.output
    assert "--apply" not in result.output
    assert json.loads(convoy("--trials", "0", "--json").stdout)["baseline"]["values"] == {"train.lr": 0.1}


def test_a_network_outside_the_space_is_a_baseline_too_and_starts_no_other_study(project):
    project.network(
        "wide", "conv: {filters: 9, kernel: 3}", "relu", "global_avg_pool", "flatten", "dense: classes"
    )
    project.network("deep", "flatten", "dense: 8", "relu", "dense: classes")
    project.space("network.name: [tiny, deep]")
    inside = Request.read().name
    project.set(network__name="wide")
    assert Request.read().name == inside
    result = convoy("--trials", "2")
    values = [row.values for row in project.results().rows]
    assert (values[0], len(values)) == ({"network.name": "wide"}, 2)
    assert "network wide, tiny, deep · data 000000000000 (build/dataset: " in result.output


def test_the_best_is_compared_with_the_baseline_and_network_and_data_are_named(project):
    project.set(train__lr=0.000001)
    result = convoy("--trials", "2")
    best, baseline = project.results().best, project.results().baseline
    assert (baseline.number, best.number) == (0, 1)
    assert f"the best is better by {baseline.value - best.value:.4f}" in result.output
    assert "network tiny · data 000000000000 (build/dataset: " in result.output
    [line] = [line for line in result.output.splitlines() if line.endswith("  baseline")]
    assert line.startswith("0 ")


@pytest.mark.parametrize(
    ("loss", "change", "compared"),
    [
        (0.0001, {}, "no trial is better"),
        (99.0, {}, "the best is better by 9"),
        (0.0001, {"network": "other"}, ""),
        (0.0001, {"data": "of other data"}, ""),
        (0.0001, {"metrics": "of another run"}, ""),
    ],
)
def test_the_best_is_compared_with_the_training_that_dvc_lock_records(project, loss, change, compared):
    project.set(train__lr=0.000001)
    own = json.dumps({"best": {"val_loss": loss, "val_accuracy": 0.5}})
    (project.folder / "build/metrics").mkdir()
    (project.folder / "build/metrics/train.json").write_text(own)
    md5 = hashlib.md5(own.encode(), usedforsecurity=False).hexdigest()
    facts = (project.folder / "build/dataset/dataset.json").read_bytes()
    data = hashlib.md5(facts, usedforsecurity=False).hexdigest()
    train = {
        "deps": [{"path": "build/dataset/dataset.json", "md5": change.get("data", data)}],
        "outs": [{"path": "build/metrics/train.json", "md5": change.get("metrics", md5)}],
        "params": {"params.yaml": {"network": {"name": change.get("network", "tiny")}}},
    }
    (project.folder / "dvc.lock").write_text(yaml.dump({"stages": {"train": train}}))
    output = convoy("--trials", "2").output
    line = f"this workspace's own run (dvc.lock, the same data): val/loss {loss:.4f}: {compared}"
    assert (line in output) == bool(compared)
    assert ("Write the best values" in output) == (compared != "no trial is better")
    own = json.loads(convoy("--trials", "0", "--json").stdout)["own_run"]
    assert own == (loss if compared else None)


def test_a_baseline_that_cannot_be_trained_is_no_comparison(project):
    project.network("large", "conv: {filters: 8, kernel: 11}", "flatten", "dense: classes")
    project.space("network.name: [tiny, deep]")
    project.network("deep", "flatten", "dense: 8", "relu", "dense: classes")
    project.set(network__name="large")
    assert "The baseline, trial 0, is failed, so nothing shows" in convoy("--trials", "2").output


def test_no_trials_shows_the_study_and_makes_nothing(project):
    result = convoy("--trials", "0")
    assert result.exit_code == 0
    space = "train.lr 0.01 to 0.5, train.batch_size 8 | 16"
    assert f"no trials yet: {space}. Start: convoy sweep" in result.output
    assert not (project.folder / "sweeps").exists()


def test_standard_output_holds_nothing_but_json(project):
    result = convoy("--trials", "2", "--json")
    content = json.loads(result.stdout)
    assert [trial["state"] for trial in content["trials"]] == ["complete", "complete"]
    assert content["best"] in content["trials"]
    assert (content["metric"], content["direction"]) == ("val/loss", "minimize")
    assert content["trials"][0]["values"] == {"train.lr": 0.1, "train.batch_size": 16}
    assert "trial 0" in result.stderr


def test_the_best_values_are_written_into_params_and_nothing_else(project):
    convoy("--trials", "3")
    best = project.results().best
    before = (project.folder / "params.yaml").read_text(encoding="utf-8")
    assert "dvc repro" in convoy("--trials", "0", "--apply").output
    after = (project.folder / "params.yaml").read_text(encoding="utf-8")
    content = yaml.read(project.folder / "params.yaml")
    assert {key: yaml.get(content, key) for key in best.values} == best.values
    changed = [old for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert all(line.strip().startswith(("lr:", "batch_size:")) for line in changed)
    assert "already holds the values of trial" in convoy("--trials", "0", "--apply").output


def test_nothing_is_applied_where_no_trial_is_complete(project):
    error = error_of(RequestError, "--trials", "0", "--apply")
    assert "no completed trial" in error
    assert "Run some: convoy sweep" in error


def test_the_higher_accuracy_is_better(project):
    project.space("train.lr: [0.1, 0.000001]", metric="val/accuracy")
    convoy("--trials", "2")
    results = project.results()
    assert results.best.values == {"train.lr": 0.1}
    assert results.best.value > results.rows[1].value


def test_a_space_that_was_tried_whole_ends_the_sweep(project):
    project.space("train.batch_size: [8, 16]")
    result = convoy("--trials", "4")
    assert "2 trials: 2 complete, 0 pruned, 0 failed; all 2 combinations were tried" in result.output
    assert "continuing" not in convoy("--trials", "4").output


def test_a_changed_param_begins_a_new_study_and_is_named(project):
    convoy("--trials", "1")
    project.set(train__epochs=2)
    assert "a new study: params changed" in convoy("--trials", "1").output


def test_a_missing_dataset_is_refused_with_the_command_that_makes_it(project):
    shutil.rmtree(project.folder / "build")
    assert "dvc repro prepare" in error_of(DataError)


@pytest.mark.parametrize(
    ("line", "values", "key"),
    [
        ("train.transfer.freeze: {low: 0, high: 1}", "with freeze 1:", "network.weights"),
        ("train.transfer.batch_norm: [adapt, frozen]", "with batch_norm frozen:", "train.transfer.batch_norm"),
        ("train.transfer.release: [0, {conv1: 1}]", "with release {conv1: 1}:", "train.transfer.release"),
    ],
)  # fmt: skip
def test_values_that_exclude_each_other_are_found_before_any_trial(project, line, values, key):
    project.space(line)
    error = error_of(RequestError)
    assert error.startswith("sweep.space")
    assert values in error
    assert key in error
    assert not (project.folder / "sweeps").exists()


def test_more_frozen_blocks_than_a_network_has_are_found_before_any_trial(project):
    project.space("train.transfer.freeze: {low: 0, high: 2}")
    request = Request.read()
    content = request.content | {"network": {"name": "tiny", "weights": "./best.ckpt"}}
    with pytest.raises(RequestError, match=r"with freeze 2: train\.transfer\.freeze: 2 .* 2 blocks of tiny"):
        check_combinations(request.model_copy(update={"content": content}))


def test_a_sweep_whose_trials_all_fail_exits_with_1_and_the_reason(project):
    project.network("large", "conv: {filters: 8, kernel: 11}", "flatten", "dense: classes")
    project.set(network__name="large")
    with pytest.raises(TrainingError, match=r"every trial failed:\nlarge .* 8 px") as caught:
        run.sweep(2, 1, into_params=False, as_json=False)
    assert caught.value.exit_code == 1


def test_a_full_disk_is_reported_and_the_study_is_kept(project, in_process_workers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(in_process_workers, "train", Mock(side_effect=OSError(28, "No space left on device")))
        error = error_of(TrainingError)
    for fact in ("is full", str(project.folder / "sweeps"), "`convoy sweep` continues"):
        assert fact in error
    assert [trial.state.name for trial in project.study().trials] == ["FAIL", "WAITING"]
    convoy("--trials", "1")
    assert project.results().rows[0].values == {"train.lr": 0.1, "train.batch_size": 16}


def test_a_full_disk_stops_the_trials_that_run_beside(project, in_process_workers, monkeypatch):
    both, stopped = threading.Barrier(2, timeout=30), []

    def train(workers, number, *_):
        both.wait()
        if number == 0:
            raise OSError(28, "No space left on device")
        until = time.monotonic() + 10
        while workers.cause is None and time.monotonic() < until:
            time.sleep(0.01)
        stopped.append(workers.cause)
        raise KeyboardInterrupt

    monkeypatch.setattr(in_process_workers, "train", train)
    assert "is full" in error_of(TrainingError, "--workers", "2")
    assert isinstance(stopped[0], OSError)


def test_ctrl_c_exits_with_1_and_keeps_the_values(project, in_process_workers, monkeypatch):
    monkeypatch.setattr(in_process_workers, "train", Mock(side_effect=KeyboardInterrupt))
    result = convoy()
    assert result.exit_code == 1
    assert "`convoy sweep` continues it" in result.stderr
    assert [trial.state.name for trial in project.study().trials] == ["FAIL", "WAITING"]


def test_the_run_of_a_sweep_gathers_its_trials_and_continues_with_them(project):
    convoy("--trials", "2")
    first = project.study().user_attrs["run"]
    convoy("--trials", "5")
    assert project.study().user_attrs["run"] == first
    assert len(list((project.folder / "outbox").glob("*/journal.jsonl"))) == 6
    entries = project.journal(first)
    points = [point for entry in entries if entry["kind"] == "points" for point in entry["points"]]
    last = {name: value for name, value, *_ in points}
    best = project.results().best
    assert last["sweep/best_value"] == best.value
    assert last["sweep/trials"] == 5
    tags = [entry["tags"] for entry in entries if entry["kind"] == "tags"]
    assert {"best.train.lr": yaml.inline(best.values["train.lr"])}.items() <= ChainMap(*tags[::-1]).items()
    logged = [entry for entry in entries if entry["kind"] == "files" and entry["folder"] == "sweep"]
    assert len(logged) == 4, "trials and request, twice"


def test_mlflow_has_a_parent_and_a_child_per_trial_with_the_same_numbers(project, empty_store, monkeypatch):
    shutil.copy(empty_store, project.folder / "mlflow.db")
    monkeypatch.setattr(run, "plots", plots)
    monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)
    project.network("large", "conv: {filters: 8, kernel: 11}", "flatten", "dense: classes")
    project.space("network.name: [tiny, large]", "train.lr: {low: 0.01, high: 0.5, log: true}")
    for target in (2, 4):
        run.sweep(target, 1, into_params=False, as_json=True)
        where = outbox.folder()
        with outbox.uploader_lock(where) as lock:
            delivery = uploader.Uploader(where, lock)
            delivery.deliver_due()
            delivery.deliver_due()
    client = store.connect()
    runs = client.search_runs([client.get_experiment_by_name("convoy").experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.tags["convoy.trial"]): run for run in runs if run is not parent}
    results = project.results()
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    for row in results.rows:
        child = children[row.number]
        assert child.data.tags["convoy.trial_state"] == row.state
        assert child.info.status == ("FAILED" if row.state == "failed" else "FINISHED")
        assert child.data.params == {key: str(value) for key, value in row.values.items()}
        assert child.data.metrics.get("sweep/value") == row.value
    complete = next(row for row in results.rows if row.state == "complete")
    points = client.get_metric_history(children[complete.number].info.run_id, "val/loss")
    trial = read_trials(Request.read())[complete.number]
    assert {point.step: point.value for point in points} == trial.intermediate_values

    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/best_value"] == results.best.value
    assert parent.data.metrics["sweep/trials"] == 4
    assert parent.data.metrics["sweep/failed"] == results.count("failed")
    assert parent.data.tags["best.trial"] == str(results.best.number)
    kept = Path(parent.info.artifact_uri.removeprefix("file://")) / "sweep"
    names = {path.name for path in kept.iterdir()}
    assert names == {"trials.csv", "history.png", "slices.png", "request.json"}
    assert (kept / "trials.csv").read_text(encoding="utf-8") == results.csv()


def test_a_teacher_teaches_trials_and_another_pin_of_it_is_another_study(project):
    def pin(seed):
        torch.manual_seed(seed)
        spec = Spec.model_validate({"name": "big", "layers": ["flatten", {"dense": "classes"}]})
        usual = {"classes": CLASSES, "image_px": PX, "fit": "squash", "mean": [0.5] * 3, "std": [0.25] * 3}
        facts = ModelFacts(network="big", spec=spec, **usual)
        trained.save(Path("weights/big"), trained.make(facts), facts)
        hashes = {
            f"big/{name}": files.sha256(Path("weights/big", name)) for name in ("weights.pt", "model.json")
        }
        Path("weights/big.dvc").write_text("outs:\n- path: big\n", encoding="utf-8")
        weight_pins.write(Path("weights/big.dvc"), Pin(source="runs:/1", resolved="runs:/1", sha256=hashes))

    pin(1)
    alone = Request.read().name
    project.set(train__teacher="runs:/1")
    first = Request.read()
    assert first.name != alone
    project.optimize(1)
    assert "teacher: big of runs:/1" in (first.folder / "trial-0000.log").read_text(encoding="utf-8")
    pin(2)
    assert Request.read().name != first.name
