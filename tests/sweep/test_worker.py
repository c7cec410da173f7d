"""Workers as processes: they share the cores, are replaced when they die, and die with their sweep."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

import convoy
import sweep_workers
from convoy.core.console import ProgressBar
from convoy.core.errors import TrainingError
from convoy.sweep import run, worker
from convoy.sweep.results import Progress
from convoy.sweep.study import Request, open_study, read_trials, recover
from convoy.sweep.worker import WorkerDied, Workers
from convoy.tracking import outbox
from convoy.tracking.run import Reference

PARENT = Reference("parent", "parent")


@pytest.fixture(autouse=True)
def no_uploader(project) -> Iterator[None]:
    """Hold the uploader's lock, so that no worker starts one."""
    outbox.folder().mkdir()
    with outbox.uploader_lock(outbox.folder()):
        yield


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
    for _ in range(6000):
        if result := find():
            return result
        time.sleep(0.02)
    raise AssertionError("timed out after a minute")


def training(request: Request) -> FrozenTrial | None:
    """Find a trial in the middle of its training."""
    trials = [trial for trial in read_trials(request) if trial.state == TrialState.RUNNING]
    return next((trial for trial in trials if trial.intermediate_values), None)


def complete(request: Request) -> dict[int, float]:
    trials = [trial for trial in read_trials(request) if trial.state == TrialState.COMPLETE]
    return {trial.number: trial.value for trial in trials}


def retried(request: Request, lost: FrozenTrial) -> list[FrozenTrial]:
    trials = read_trials(request)
    return [trial for trial in trials if trial.system_attrs.get("failed_trial") == lost.number]


def test_two_workers_share_a_study_and_one_that_is_killed_is_replaced(project, capsys) -> None:
    project.set(train__epochs=25)
    request = Request.read()
    killed: list[FrozenTrial] = []

    def kill() -> None:
        killed.append(wait_for(lambda: training(request)))
        os.kill(killed[0].user_attrs["worker"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    results = project.optimize(4, Workers(request, PARENT, 2))
    thread.join()

    trials = read_trials(request)
    assert [row.state for row in results.rows] == ["complete"] * 4
    assert len({tuple(row.values.items()) for row in results.rows}) == 4
    assert len(trials) == 5
    assert trials[killed[0].number].state == TrialState.FAIL
    assert [trial.params for trial in retried(request, killed[0])] == [killed[0].params]
    assert f"a worker died of SIGKILL: trial {killed[0].number} is tried again" in capsys.readouterr().out


def test_a_sweep_that_is_killed_leaves_no_worker_and_is_continued(project) -> None:
    project.set(train__epochs=25)
    request = Request.read()
    sweep = subprocess.Popen(
        [sys.executable, "-c", "from convoy.cli import main; main()", "sweep", "--trials", "3"],
        env=os.environ | {"PYTHONPATH": str(Path(convoy.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for(lambda: complete(request))
    lost = wait_for(lambda: training(request))
    sweep.kill()
    sweep.communicate()
    before = complete(request)
    wait_for(lambda: not psutil.pid_exists(lost.user_attrs["worker"]))

    assert recover(project.study()) == [lost.number]
    rows = project.optimize(3).rows
    assert len({tuple(row.values.items()) for row in rows}) == len(rows) == 3
    assert {row.number: row.value for row in rows if row.number in before} == before
    assert [trial.params for trial in retried(request, lost)] == [lost.params]


def test_ctrl_c_stops_the_workers_and_keeps_their_values(project, capfd) -> None:
    project.set(train__epochs=1000)
    request = Request.read()

    def interrupt() -> None:
        wait_for(lambda: training(request))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    with (
        ProgressBar("sweep", 4) as bar,
        pytest.raises(KeyboardInterrupt),
        Workers(request, PARENT, 2) as workers,
    ):
        run.optimize(open_study(request), request, 4, workers, Progress(bar, request))
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before
    assert workers._processes == set()
    trials = read_trials(request)
    assert [trial.state.name for trial in trials if trial.state != TrialState.WAITING] == ["FAIL"] * (
        len(trials) // 2
    )
    assert not any(
        psutil.pid_exists(trial.user_attrs["worker"]) for trial in trials if "worker" in trial.user_attrs
    )
    assert "Ctrl-C again kills them" in capfd.readouterr().err


def test_a_worker_that_ignores_sigterm_is_killed(project, monkeypatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE_S", 0.2)
    monkeypatch.setattr(worker, "work", sweep_workers.work)
    with Workers(Request.read(), PARENT, 1) as workers:
        threading.Timer(5.0, workers.stop, [KeyboardInterrupt()]).start()
        with pytest.raises(KeyboardInterrupt):
            workers.train(sweep_workers.ENDINGS.index(sweep_workers.ignoring_sigterm), {}, Reports())


def test_a_trial_reports_each_epoch_and_can_be_pruned(project) -> None:
    request = Request.read()
    epochs = []
    reports = Reports(lambda epoch, _: epochs.append(epoch) or epoch == 2)
    with Workers(request, PARENT, 1) as workers:
        outcome = workers.train(0, {"train.lr": 0.1, "train.batch_size": 16}, reports)
    assert (outcome.state, epochs) == ("pruned", [1, 2])
    assert reports.attributes["epochs"] == 3
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
def test_a_worker_that_ends_without_a_result_is_explained(
    project, monkeypatch, ending: Callable[[], None], error: type[Exception], text: str
) -> None:
    monkeypatch.setattr(worker, "work", sweep_workers.work)
    with Workers(Request.read(), PARENT, 1) as workers, pytest.raises(error, match=text):
        workers.train(sweep_workers.ENDINGS.index(ending), {}, Reports())


def test_workers_stop_when_the_code_is_another(project) -> None:
    request = Request.read()
    (project.folder / "dvc.yaml").write_text(
        "stages: {train: {deps: [params.yaml, src/x.py]}}", encoding="utf-8"
    )
    (project.folder / "src").mkdir()
    (project.folder / "src/x.py").touch()
    with (
        Workers(request, PARENT, 1) as workers,
        pytest.raises(TrainingError, match="code changed during"),
    ):
        workers.train(0, {}, Reports())


@pytest.mark.parametrize(
    ("cores", "workers", "limit", "threads"),
    [(8, 2, "", 4), (8, 3, "", 2), (2, 4, "", 1), (8, 2, "1", 1), (8, 2, "64", 4)],
)
def test_workers_share_the_cores(monkeypatch, cores: int, workers: int, limit: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert worker._threads(workers) == threads
