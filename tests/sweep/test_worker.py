"""Trials train with their values and report each epoch; their workers share the cores and are replaced when they die."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

import sweep_workers
from convoy.core.errors import TrainingError
from convoy.sweep import worker
from convoy.sweep.results import Results
from convoy.sweep.study import JOURNAL, Request, read_trials, recover
from convoy.sweep.worker import WorkerDied, Workers
from convoy.tracking import outbox
from convoy.tracking.run import Reference

PARENT = Reference("parent", "parent")
VALUES = {"train.lr": 0.1, "train.batch_size": 16}


@pytest.fixture(autouse=True)
def no_uploader(project) -> Iterator[None]:
    """Hold the uploader's lock, so that no worker starts one."""
    outbox.folder().mkdir()
    with outbox.uploader_lock(outbox.folder()):
        yield


# Trials in this process


def test_an_interrupted_sweep_tries_what_an_unbroken_one_tries(project):
    unbroken = project.optimize(4)
    assert unbroken.count("complete", "pruned") == 4
    assert unbroken.rows[0].values == VALUES
    (Request.read().folder / JOURNAL).unlink()
    project.optimize(2)
    study = project.study()
    # Its process is killed.
    study.ask({dimension.key: dimension.distribution for dimension in Request.read().space})
    assert recover(study) == [2]
    again = project.optimize(4)
    results = [[(row.values, row.value) for row in results.rows] for results in (again, unbroken)]
    assert results[0] == results[1]
    assert [row.number for row in again.rows] == [0, 1, 3, 4]
    assert [trial.state.name for trial in read_trials(Request.read())].count("FAIL") == 1


def bad_trial(project, *, warmup: int, completed: int) -> Results:
    """Train a trial that learns nothing, the last one, after some complete trials of three epochs."""
    space = ("train.lr: {low: 0.0000001, high: 0.5, log: true}", "train.batch_size: [8, 16]")
    project.space(*space, warmup=warmup)
    study = project.study()
    for number in range(completed - 1):  # beside the baseline
        loss = 0.1 + number / 100
        params = {"train.lr": 0.1 + loss, "train.batch_size": "16"}
        curve = dict.fromkeys((1, 2, 3), loss)
        project.add(study, params, value=loss, intermediate_values=curve)
    study.enqueue_trial({"train.lr": 0.0000001, "train.batch_size": "16"})
    return project.optimize(completed + 1)


def test_a_trial_that_is_worse_than_the_median_is_pruned_after_the_warm_up(project):
    results = bad_trial(project, warmup=2, completed=5)
    assert results.rows[0].state == "complete", "the baseline is never pruned"
    pruned = results.rows[-1]
    assert (pruned.state, pruned.epochs, pruned.of) == ("pruned", 2, 3)
    assert pruned.value > 0.14
    assert results.best.value == 0.1
    entries = project.journal(read_trials(Request.read())[-1].user_attrs["run"])
    assert {"kind": "tags", "tags": {"convoy.trial_state": "pruned"}} in entries
    assert entries[-1]["status"] == "FINISHED"
    assert not list(Request.read().folder.glob("out-*"))


@pytest.mark.parametrize(
    ("warmup", "completed"), [(3, 5), (2, 4)], ids=["last epoch", "too few completed trials"]
)
def test_nothing_is_pruned(project, warmup, completed):
    assert bad_trial(project, warmup=warmup, completed=completed).rows[-1].state == "complete"


def test_a_trial_that_cannot_be_trained_fails_with_its_reason_and_the_sweep_goes_on(project):
    project.network("large", "conv: {filters: 8, kernel: 11}", "flatten", "dense: classes")
    project.space("network.name: [tiny, large]")
    results = project.optimize(2)
    assert [row.state for row in results.rows] == ["complete", "failed"]
    assert "large does not take images of 8 px" in results.rows[1].reason
    assert "NetworkError" in (Request.read().folder / "trial-0001.log").read_text(encoding="utf-8")
    assert project.journal(read_trials(Request.read())[1].user_attrs["run"])[-1]["status"] == "FAILED"


def test_a_loss_that_is_no_number_fails_the_trial(project):
    project.space("train.lr: [0.1, 100.0]", "train.weight_decay: [0.0, 1.0]")
    project.set(network__name="plain", train__epochs=40, train__lr=100.0, train__weight_decay=1.0)
    project.network("plain", "flatten", "dense: 64", "relu", "dense: 64", "relu", "dense: classes")
    [row] = project.optimize(1).rows
    assert row.state == "failed"
    assert row.reason.startswith("the loss became ")


def test_the_run_of_a_trial_has_what_the_trial_varied_its_epochs_and_its_value(project):
    results = project.optimize(1)
    entries = project.journal(read_trials(Request.read())[0].user_attrs["run"])
    opened = entries[0]
    assert opened["name"] == "trial 0 · lr 0.1 · batch_size 16"
    assert opened["parent"] == "parent"
    [params] = [entry["params"] for entry in entries if entry["kind"] == "params"]
    assert params == {"network.name": "tiny", "train.lr": "0.1", "train.batch_size": "16"}
    points = [point for entry in entries if entry["kind"] == "points" for point in entry["points"]]
    curve = {step: value for name, value, step, _ in points if name == "val/loss" and step}
    assert curve == read_trials(Request.read())[0].intermediate_values
    [value] = [value for name, value, *_ in points if name == "sweep/value"]
    assert value == results.rows[0].value == min(curve.values())


def test_trials_stop_when_the_dataset_is_another(project, in_process_workers):
    workers = in_process_workers(Request.read())
    facts = project.folder / "build/dataset/dataset.json"
    facts.write_text(facts.read_text().replace("0" * 64, "1" * 64))
    workers.request.save()
    changed = r"build/dataset changed during the sweep\. Run `convoy sweep` again"
    with pytest.raises(TrainingError, match=changed):
        workers.train(0, VALUES, Reports())


# Trials in processes of their own


class Reports:
    """Record what a worker reports."""

    def __init__(self, act: Callable[[int, float], bool] = lambda *_: False) -> None:
        self.attributes: dict[str, Any] = {}
        self.act = act

    def started(self, attributes: Mapping[str, Any]) -> None:
        self.attributes |= attributes

    def report(self, epoch: int, value: float) -> bool:
        return self.act(epoch, value)


def wait_for(find: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if result := find():
            return result
        time.sleep(0.02)
    raise AssertionError("timed out after two minutes")


def training(request: Request) -> FrozenTrial | None:
    """Find a trial in the middle of its training."""
    trials = [trial for trial in read_trials(request) if trial.state == TrialState.RUNNING]
    return next((trial for trial in trials if trial.intermediate_values), None)


def complete(request: Request) -> dict[int, float]:
    trials = [trial for trial in read_trials(request) if trial.state == TrialState.COMPLETE]
    return {trial.number: trial.value for trial in trials}


def in_training(request: Request, act: Callable[[FrozenTrial], object]) -> threading.Thread:
    """Do something in a thread once a trial trains."""
    thread = threading.Thread(target=lambda: act(wait_for(lambda: training(request))))
    thread.start()
    return thread


def params_of_retries(request: Request, number: int) -> list[dict[str, Any]]:
    trials = read_trials(request)
    return [trial.params for trial in trials if trial.system_attrs.get("failed_trial") == number]


def test_two_workers_share_a_study_and_one_that_is_killed_is_replaced(project, capsys):
    project.set(train__epochs=15)
    request = Request.read()
    killed: list[FrozenTrial] = []

    def kill(trial: FrozenTrial) -> None:
        killed.append(trial)
        os.kill(trial.user_attrs["worker"], signal.SIGKILL)

    thread = in_training(request, kill)
    results = project.optimize(4, Workers(request, PARENT, 2))
    thread.join()
    [lost], trials = killed, read_trials(request)
    assert [row.state for row in results.rows] == ["complete"] * 4
    assert len({tuple(row.values.items()) for row in results.rows}) == 4
    assert len(trials) == 5
    assert trials[lost.number].state == TrialState.FAIL
    assert params_of_retries(request, lost.number) == [lost.params]
    assert f"a worker died of SIGKILL: trial {lost.number} is tried again" in capsys.readouterr().out


def test_a_sweep_that_is_killed_leaves_no_worker_and_is_continued(project):
    project.set(train__epochs=15)
    request = Request.read()
    # Its process is forked from one that has imported torch.
    sweep = multiprocessing.get_context("forkserver").Process(target=sweep_workers.sweep)
    sweep.start()
    wait_for(lambda: complete(request) or sweep.exitcode is not None)
    assert sweep.exitcode is None
    lost = wait_for(lambda: training(request))
    sweep.kill()
    sweep.join()
    before = complete(request)
    wait_for(lambda: not psutil.pid_exists(lost.user_attrs["worker"]))
    assert recover(project.study()) == [lost.number]
    rows = project.optimize(3).rows
    assert len({tuple(row.values.items()) for row in rows}) == len(rows) == 3
    assert {row.number: row.value for row in rows if row.number in before} == before
    assert params_of_retries(request, lost.number) == [lost.params]


def test_ctrl_c_stops_the_workers_and_keeps_their_values(project, capfd):
    project.set(train__epochs=1000)
    request, before = Request.read(), signal.getsignal(signal.SIGINT)
    workers = Workers(request, PARENT, 2)
    thread = in_training(request, lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        project.optimize(4, workers)
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before
    assert workers._processes == set()
    trials = read_trials(request)
    states = [trial.state.name for trial in trials if trial.state != TrialState.WAITING]
    assert states == ["FAIL"] * (len(trials) // 2)
    pids = [trial.user_attrs["worker"] for trial in trials if "worker" in trial.user_attrs]
    assert not any(map(psutil.pid_exists, pids))
    assert "Ctrl-C again kills them" in capfd.readouterr().err


def test_a_worker_that_ignores_sigterm_is_killed(project, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE_S", 0.2)
    monkeypatch.setattr(worker, "work", sweep_workers.work)
    with Workers(Request.read(), PARENT, 1) as workers:

        def stop() -> None:
            wait_for((project.folder / sweep_workers.IGNORES).exists)
            workers.stop(KeyboardInterrupt())

        threading.Thread(target=stop).start()
        with pytest.raises(KeyboardInterrupt):
            workers.train(sweep_workers.ENDINGS.index(sweep_workers.ignoring_sigterm), {}, Reports())


def test_a_trial_reports_each_epoch_and_can_be_pruned(project):
    request = Request.read()
    epochs = []

    def act(epoch: int, _: float) -> bool:
        epochs.append(epoch)
        os.kill(reports.attributes["worker"], signal.SIGINT)  # as a terminal's Ctrl-C does
        return epoch == 2

    reports = Reports(act)
    with Workers(request, PARENT, 1) as workers:
        outcome = workers.train(0, VALUES, reports)
    assert (outcome.state, epochs, reports.attributes["epochs"]) == ("pruned", [1, 2], 3)
    assert set(reports.attributes) == {"run", "epochs", "worker"}


@pytest.mark.parametrize(
    ("ending", "error", "text"),
    [
        (sweep_workers.data_changed, TrainingError, "the dataset changed"),
        (sweep_workers.disk_full, OSError, "No space left on device"),
        (sweep_workers.bug, TrainingError, "(?s)exit code 1: .*AssertionError: a bug"),
        (sweep_workers.killed, WorkerDied, "SIGKILL"),
    ],
)
def test_a_worker_that_ends_without_a_result_is_explained(project, monkeypatch, ending, error, text):
    monkeypatch.setattr(worker, "work", sweep_workers.work)
    with Workers(Request.read(), PARENT, 1) as workers, pytest.raises(error, match=text):
        workers.train(sweep_workers.ENDINGS.index(ending), {}, Reports())


def test_a_worker_that_cannot_start_is_explained(project, monkeypatch):
    monkeypatch.setattr(worker, "work", sweep_workers.cannot_start)
    with Workers(Request.read(), PARENT, 1) as workers, pytest.raises(TrainingError, match="could not start"):
        workers.train(0, VALUES, Reports())


def test_workers_stop_when_the_code_is_another(project):
    request = Request.read()
    Path("dvc.yaml").write_text("stages: {train: {deps: [params.yaml, src/x.py]}}", encoding="utf-8")
    Path("src").mkdir()
    Path("src/x.py").touch()
    with Workers(request, PARENT, 1) as workers, pytest.raises(TrainingError, match="code changed during"):
        workers.train(0, {}, Reports())


@pytest.mark.parametrize(
    ("cores", "workers", "limit", "threads"),
    [(8, 2, "", 4), (8, 3, "", 2), (2, 4, "", 1), (8, 2, "1", 1), (8, 2, "64", 4)],
)
def test_workers_share_the_cores(monkeypatch, cores, workers, limit, threads):
    monkeypatch.setattr(worker, "usable_cpus", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert worker._threads(workers) == threads
